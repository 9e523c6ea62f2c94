"""Area under the ROC curve, with an interval in O(n log n)."""

from __future__ import annotations

import math

import numpy as np

from pastille.stats.clusters import has_repeats
from pastille.stats.normal import critical_value
from pastille.values import Estimate, Interval

_TOLERANCE = 1e-12


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
    placements = _placements(scores, truth)
    area = float(placements[truth].mean())
    groups = clusters if has_repeats(clusters) else None
    variance = _variance(placements, truth, area, groups)
    if variance > _TOLERANCE and 0 < area < 1:
        interval = _logit_interval(area, variance, confidence)
        method = "DeLong, logit scale" + ("" if groups is None else ", clustered by subject (Obuchowski)")
    else:
        sizes = _independent_sizes(truth, groups)
        interval, method = _newcombe(area, *sizes, confidence), "Newcombe score interval"
    return Estimate(value=area, interval=interval, n=len(scores), method=method)


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _placements(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each case, the share of the other class that it is in the right order with, ``(N,)``."""
    overall = _midranks(scores)
    placements = np.empty(len(scores))
    placements[truth] = (overall[truth] - _midranks(scores[truth])) / np.count_nonzero(~truth)
    placements[~truth] = 1 - (overall[~truth] - _midranks(scores[~truth])) / np.count_nonzero(truth)
    return placements


def _variance(placements: np.ndarray, truth: np.ndarray, area: float, clusters: np.ndarray | None) -> float:
    """Variance of the area; 0 where it cannot be had."""
    classes = (placements[truth], placements[~truth])
    if clusters is None:
        if min(map(len, classes)) < 2:
            return 0.0
        return float(sum(part.var(ddof=1) / len(part) for part in classes))
    sizes = np.where(truth, len(classes[0]), len(classes[1]))
    subject = np.unique(clusters, return_inverse=True)[1]
    influence = np.bincount(subject, weights=(placements - area) / sizes)  # (U,)
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
