"""Average precision as a function of how often each case counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # weights (R, N) -> (R,); NaN where undefined


def average_precision(scores: np.ndarray, truth: np.ndarray) -> Statistic:
    """The mean of the precision at each positive case, going down from the highest score.

    Equal scores are taken together, as one threshold takes them; nothing is interpolated.

    Args:
        scores: ``(N,)``, larger means more positive.
        truth: ``(N,)`` bool.

    Returns:
        A function of weights ``(R, N)``, at least 0, that gives ``(R,)``; NaN where no positive case counts.
        It sorts once, and takes one pass over the weights each time.

    Example:
        >>> statistic = average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
        >>> statistic(np.array([[1, 1, 1], [1, 0, 1]])).round(4)
        array([0.8333, 1. ])

    References:
        Davis and Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006, on why
        the curve must not be interpolated linearly.
    """
    ranks = cache(partial(_ranks, scores, truth))

    def statistic(weights: np.ndarray) -> np.ndarray:
        if not truth.any():
            return np.full(len(weights), np.nan)
        found = ranks()
        called = np.cumsum(np.add.reduceat(weights[:, found.ranked], found.starts, axis=1), axis=1)  # (R, M)
        hits = np.add.reduceat(weights[:, found.positives], found.first, axis=1)
        total = hits.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(called > 0, np.cumsum(hits, axis=1) / called, 0.0)
            area: np.ndarray = (hits * precision).sum(axis=1) / total
        return area

    return statistic


@dataclass(frozen=True, kw_only=True)
class _Ranks:
    """Cases from the highest score down, cut into ``M`` thresholds that positive cases lie at."""

    ranked: np.ndarray  # rows down to the last positive case
    starts: np.ndarray  # (M,) where in `ranked` the cases that a threshold adds begin
    positives: np.ndarray  # (P,) rows of the positive cases
    first: np.ndarray  # (M,) the same in `positives`


def _ranks(scores: np.ndarray, truth: np.ndarray) -> _Ranks:
    order = np.argsort(-scores, kind="stable").astype(np.int32)
    positives = order[truth[order]]
    levels, first = np.unique(-scores[positives], return_index=True)
    ends = np.searchsorted(-scores[order], levels, side="right")
    return _Ranks(ranked=order[: ends[-1]], starts=np.append(0, ends[:-1]), positives=positives, first=first)


def mean_of_defined(statistics: Sequence[Statistic]) -> Statistic:
    """The mean over the classes that the weights define each for; NaN where there is none."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        values = np.stack([one(weights) for one in statistics], axis=-1)  # (R, K)
        return defined_mean(values)

    return statistic


def defined_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all is.

    Example:
        >>> defined_mean(np.array([[1.0, np.nan, 0.0], [np.nan, np.nan, np.nan]]))
        array([0.5, nan])
    """
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, values, 0.0).sum(axis=-1) / known.sum(axis=-1)
    return mean
