"""Area under the ROC curve, with an interval in O(n log n)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pastille.stats.clusters import has_repeats
from pastille.stats.normal import critical_value
from pastille.values import Estimate, Interval

_TOLERANCE = 1e-12
_CELLS_AT_ONCE = 100_000


def auroc(
    scores: np.ndarray,
    truth: np.ndarray,
    *,
    confidence: float,
    clusters: np.ndarray | None = None,
) -> Estimate:
    """The chance that a positive case scores above a negative one; equal scores count half.

    The interval is DeLong's on the logit scale: it stays inside (0, 1), and near 1, where good models
    are, it covers better than a symmetric one. Several cases of one subject are summed before the
    variance is taken (Obuchowski). Where no case is out of order that variance is 0, which claims too
    much: Newcombe's score interval stands in, whose variance is taken at the bound.

    Args:
        scores: ``(N,)``, larger means more positive; any monotone scale.
        truth: ``(N,)`` bool.
        confidence: In ``(0, 1)``.
        clusters: ``(N,)`` subjects, or None if every case is a subject of its own.

    Returns:
        Value in ``[0, 1]`` with its interval.

    Raises:
        ValueError: If the lengths differ, or one class is absent.

    Example:
        >>> truth = np.array([False, False, True, True, True])
        >>> round(auroc(np.array([0.1, 0.4, 0.35, 0.8, 0.9]), truth, confidence=0.95).value, 3)
        0.833

    References:
        DeLong et al., Biometrics 44, 1988; Sun and Xu, "Fast implementation of DeLong's algorithm",
        IEEE Signal Processing Letters 21, 2014; Obuchowski, "Nonparametric analysis of clustered ROC
        curve data", Biometrics 53, 1997; Newcombe, Statistics in Medicine 25, 2006, method 5.
    """
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, bool)
    if scores.shape != truth.shape or scores.ndim != 1 or truth.all() or not truth.any():
        raise ValueError(
            f"scores and truth must be (N,) with both classes present, got shapes {scores.shape} and "
            f"{truth.shape} with {np.count_nonzero(truth)} positive"
        )
    placed = placements(scores, truth)
    area = float(placed[truth].mean())
    groups = clusters if has_repeats(clusters) else None
    variance = _variance(placed, truth, area, groups)
    if variance > _TOLERANCE and 0 < area < 1:
        interval = _logit_interval(area, variance, confidence)
        method = "DeLong, logit scale" + ("" if groups is None else ", clustered by subject (Obuchowski)")
    else:
        sizes = _independent_sizes(truth, groups)
        interval, method = _newcombe(area, *sizes, confidence), "Newcombe score interval"
    return Estimate(value=area, interval=interval, n=len(scores), method=method)


def placements(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each case, the share of the other class that it is in the right order with; ties count half.

    Their mean over either class is the area under the ROC curve.

    Args:
        scores: ``(N,)``.
        truth: ``(N,)`` bool, with both classes present.

    Returns:
        ``(N,)`` in ``[0, 1]``, after one sort.

    Example:
        >>> placements(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
        array([1.  , 0.75, 0.75, 1.  ])
    """
    order = np.argsort(scores)
    starts, ends = _ties(scores[order])
    positive = np.concatenate([[0], np.cumsum(truth[order])])  # how many lie before each place
    negative = np.arange(len(scores) + 1) - positive
    below = (negative[starts] + negative[ends]) / (2 * negative[-1])
    above = 1 - (positive[starts] + positive[ends]) / (2 * positive[-1])
    found = np.empty(len(scores))
    found[order] = np.where(truth[order], below, above)
    return found


def _ties(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the run of equal scores that each one lies in begins, and ends."""
    begins = np.append(True, ordered[1:] != ordered[:-1])
    edges = np.append(np.flatnonzero(begins), len(ordered))
    run = np.cumsum(begins) - 1
    return edges[run], edges[run + 1]


def auroc_resamples(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area for many weightings of the same cases: a bootstrap without a sort per resample.

    Args:
        scores: ``(N,)``, larger means more positive.
        truth: ``(N,)`` bool.
        weights: ``(R, N)``, at least 0: how often each case counts, as `pastille.stats.bootstrap.draws`
            gives them.

    Returns:
        ``(R,)``; NaN where one class has no weight.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> truth = np.array([False, True, True])
        >>> auroc_resamples(np.array([0.5, 0.2, 0.9]), truth, np.array([[1, 1, 1], [1, 0, 2], [0, 1, 1]]))
        array([0.5, 1. , nan])
    """
    if not len(scores) == len(truth) == weights.shape[-1]:
        raise ValueError(
            f"scores, truth and weights must have one entry per case, got {len(scores)}, {len(truth)} and "
            f"{weights.shape[-1]}"
        )
    order = np.argsort(scores)
    positive, negative = order[truth[order]], order[~truth[order]]
    first, last = (np.searchsorted(scores[negative], scores[positive], side=s) for s in ("left", "right"))
    ties = not np.array_equal(first, last)
    areas = np.empty(len(weights))
    for chunk in _chunks(len(weights), len(scores)):
        ours = np.take(weights[chunk], positive, axis=1).astype(np.float64, copy=False)  # (r, P)
        below = np.zeros((len(ours), len(negative) + 1))
        np.cumsum(np.take(weights[chunk], negative, axis=1), axis=1, out=below[:, 1:])
        beaten = np.take(below, first, axis=1)
        if ties:
            beaten = (beaten + np.take(below, last, axis=1)) / 2
        with np.errstate(invalid="ignore"):
            areas[chunk] = np.einsum("rp,rp->r", ours, beaten) / (ours.sum(axis=1) * below[:, -1])
    return areas


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Few rows at a time, so that what is worked on stays in the cache."""
    step = max(1, _CELLS_AT_ONCE // max(1, width))
    return (slice(start, start + step) for start in range(0, rows, step))


def _variance(placed: np.ndarray, truth: np.ndarray, area: float, clusters: np.ndarray | None) -> float:
    """Variance of the area; 0 where it cannot be had."""
    classes = (placed[truth], placed[~truth])
    if clusters is None:
        if min(map(len, classes)) < 2:
            return 0.0
        return float(sum(part.var(ddof=1) / len(part) for part in classes))
    sizes = np.where(truth, len(classes[0]), len(classes[1]))
    subject = np.unique(clusters, return_inverse=True)[1]
    influence = np.bincount(subject, weights=(placed - area) / sizes)  # (U,)
    count = len(influence)
    return float((influence**2).sum()) * count / (count - 1) if count > 1 else 0.0


def _logit_interval(area: float, variance: float, confidence: float) -> Interval:
    center = math.log(area / (1 - area))
    reach = critical_value(confidence) * math.sqrt(variance) / (area * (1 - area))
    low, high = (0.5 * (1 + math.tanh(x / 2)) for x in (center - reach, center + reach))
    return Interval(low=low, high=high, confidence=confidence)


def _independent_sizes(truth: np.ndarray, clusters: np.ndarray | None) -> tuple[int, int]:
    """How many positive and negative cases count, a subject once in each class."""
    if clusters is None:
        return int(truth.sum()), int((~truth).sum())
    return len(np.unique(clusters[truth])), len(np.unique(clusters[~truth]))


def _newcombe(area: float, positives: int, negatives: int, confidence: float) -> Interval:
    z = critical_value(confidence)

    def end(bound: float) -> float:
        """Bisect between the estimate, which is not rejected, and the bound."""
        kept, rejected = area, bound
        while abs(kept - rejected) > _TOLERANCE:
            middle = (kept + rejected) / 2
            outside = (middle - area) ** 2 > z * z * _hanley_variance(middle, positives, negatives)
            kept, rejected = (kept, middle) if outside else (middle, rejected)
        return rejected

    return Interval(low=end(0.0), high=end(1.0), confidence=confidence)


def _hanley_variance(area: float, positives: int, negatives: int) -> float:
    spread = (positives + negatives) / 2 - 1
    ties = 1 + spread * (1 - area) / (2 - area) + spread * area / (1 + area)
    return area * (1 - area) * ties / (positives * negatives)
