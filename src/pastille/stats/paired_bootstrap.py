"""By how much a metric without a closed form dropped: both models answer the same resampled subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from pastille.stats.bootstrap import (
    ResampledSums,
    bca_of_sums,
    bca_of_values,
    draws,
    left_out,
    resample_sums,
)
from pastille.stats.bounded import score_reach
from pastille.stats.clusters import typical_size
from pastille.stats.forms import OfSums, OfWeights
from pastille.stats.normal import critical_value
from pastille.values import Interval

FEWEST = 20  # cases or subjects; of fewer, resamples say nothing of what is rare
_ROUNDING = 1e-9
_ALIKE = 0.1  # cases that differ less, relative to the range of a column, are equally good

Statistic = Callable[[np.ndarray], np.ndarray]


def drop_of_sums(
    before: OfSums, after: OfSums, *, subjects: np.ndarray | None, confidence: float
) -> Interval | None:
    """Interval of the drop of a function of column sums.

    A BCa bootstrap knows only what it resamples: if 3 of 200 cases changed, it takes the next 200 to hold no
    worse ones. Its ends are therefore moved out by what a few unseen cases might add (`score_reach`), each
    as much as the one that moved the drop most. Where fewer than 20 cases changed, they do not tell how
    much one may: it then counts for as much as the worst case of either model would in place of the best.

    Args:
        before: Of the baseline, ``N`` cases.
        after: Of the candidate, of the same cases.
        subjects: ``(N,)`` what is resampled, or None for cases.
        confidence: In ``(0, 1)``.

    Returns:
        The interval, positive is worse; None if there are fewer than 20 cases or subjects, or the metric is
        undefined in many resamples.

    References:
        Efron, "Better bootstrap confidence intervals", JASA 82, 1987; Tango, Statistics in Medicine 17,
        1998, for the unseen cases.
    """
    rows = before.among
    width = before.columns.shape[1]
    clusters = _taken(subjects, rows)
    sums = resample_sums(np.column_stack([before.columns[rows], after.columns[rows]]), clusters=clusters)
    if len(sums.jackknife) < FEWEST:
        return None
    sign = 1.0 if before.higher_is_better else -1.0

    def drop(s: np.ndarray) -> np.ndarray:
        found: np.ndarray = sign * (before.statistic(s[..., :width]) - after.statistic(s[..., width:]))
        return found

    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = bca_of_sums(sums, drop, confidence=confidence)
        jump, changed = _seen_jump(sums, width, drop)
        if changed < FEWEST:
            jump = max(jump, _possible_jump(before, after) * typical_size(clusters))
        return _moved_out(resampled, float(drop(sums.observed)), jump)


def _seen_jump(sums: ResampledSums, width: int, drop: Statistic) -> tuple[float, int]:
    """By how much one unit moved the drop at most, and how many units changed."""
    units = sums.observed - sums.jackknife  # (U, 2k)
    before, after = units[:, :width], units[:, width:]
    scale = np.abs(units).max(axis=0)
    changed = (np.abs(after - before) > _ROUNDING * np.maximum(scale[:width], scale[width:])).any(axis=1)
    undone = np.tile(sums.observed, (int(changed.sum()), 1))  # had one of them not changed
    undone[:, width:] += (before - after)[changed]
    return _largest(drop(undone) - drop(sums.observed)), len(undone)


def _possible_jump(before: OfSums, after: OfSums) -> float:
    """By how much a case may move the metric, if it came to be as any other case is."""
    rows = np.concatenate([form.columns[form.among] for form in (before, after)])  # (2n, k)
    total = after.columns[after.among].sum(axis=0)
    steps = np.diag(np.ptp(rows, axis=0))
    up, down = (after.statistic(total + step) for step in (steps, -steps))
    span = np.diag(steps)
    slopes = np.nan_to_num((up - down) / np.where(span > 0, 2 * span, 1.0), posinf=0.0, neginf=0.0)
    jump = float(np.ptp(rows @ slopes))
    at_most = _largest(np.concatenate([up, down]) - after.statistic(total))
    # Where both models are always right no case is any worse than another: any column may then move alone.
    return jump if jump > _ALIKE * at_most else at_most


def _largest(values: np.ndarray) -> float:
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size else 0.0


def drop_of_weights(
    before: OfWeights, after: OfWeights, *, subjects: np.ndarray | None, confidence: float
) -> Interval | None:
    """Interval of the drop of a function of how often each case counts.

    As `drop_of_sums`, but what a case may add is taken from leaving each out in turn (blocks of them, where
    they are many). Where that never changes the drop, the models do not differ on any case, and nothing is
    known of how much they might.

    Args:
        before: Of the baseline, ``N`` cases.
        after: Of the candidate, of the same cases.
        subjects: ``(N,)`` what is resampled, or None for cases.
        confidence: In ``(0, 1)``.

    Returns:
        The interval, positive is worse; None if there are fewer than 20 cases or subjects, the models do not
        differ, or the metric is undefined in many resamples.
    """
    rows, clusters = before.among, _taken(subjects, before.among)
    count = int(np.count_nonzero(rows))
    if (count if clusters is None else len(np.unique(clusters))) < FEWEST:
        return None
    sign = 1.0 if before.higher_is_better else -1.0

    def drops(chunks: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([sign * _difference(before, after, times) for times in chunks])

    observed = float(drops([np.ones((1, count))])[0])
    jackknife = drops(left_out(count, clusters=clusters))
    resampled = bca_of_values(
        observed, drops(draws(count, clusters=clusters)), jackknife, confidence=confidence
    )
    return _moved_out(resampled, observed, _largest(jackknife - observed))


def _difference(before: OfWeights, after: OfWeights, times: np.ndarray) -> np.ndarray:
    weights = np.zeros((len(times), len(before.among)))
    weights[:, before.among] = times
    difference: np.ndarray = before.statistic(weights) - after.statistic(weights)
    return difference


def _taken(subjects: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if subjects is None else subjects[rows]


def _moved_out(resampled: Interval | None, drop: float, jump: float) -> Interval | None:
    """Move both ends out by what unseen cases may add; None where nothing is known of those."""
    if resampled is None or jump <= 0:
        return None
    z = critical_value(resampled.confidence)
    down, up = (
        score_reach(max(0.0, reach) / z, jump, bound=math.inf, z=z)
        for reach in (drop - resampled.low, resampled.high - drop)
    )
    return Interval(low=drop - down, high=drop + up, confidence=resampled.confidence)
