"""Estimates without a closed form: BCa bootstrap intervals, by subject where one has several cases.

Where resamples all agree the bootstrap has nothing to say of cases that were not seen: 60 cases without a
wrong answer do not make precision certain. The interval then reaches as far as one unseen case, unlike all
others, may take the metric (`pastille.stats.bounded.score_reach`, as for a drop); of a share without errors
that is Wilson's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

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
from pastille.stats.clusters import has_repeats, typical_size
from pastille.stats.forms import OfSums, OfWeights
from pastille.stats.normal import critical_value
from pastille.values import Estimate, Interval

_BLOCKS = 200  # of the jackknife of weights: it only measures skewness, for which so many are enough


def value_of(form: OfSums | OfWeights) -> float:
    """The metric itself; NaN where the cases cannot define it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if not form.among.any():
            return math.nan
        if isinstance(form, OfSums):
            return float(form.statistic(form.columns[form.among].sum(axis=0)))
        return float(form.statistic(form.among[None].astype(np.float64))[0])


def resampled(
    forms: Mapping[str, OfSums | OfWeights], *, subjects: np.ndarray | None, confidence: float
) -> dict[str, Estimate]:
    """Estimate several metrics; those of the same columns, or of the same cases, share their resamples.

    Args:
        forms: Metric -> form, of the same ``N`` cases.
        subjects: ``(N,)``, or None if every case is a subject of its own.
        confidence: In ``(0, 1)``.

    Returns:
        An estimate of each that the cases can define, in the order of ``forms``.

    Example:
        >>> errors = np.array([0.1, -0.2, 0.3, 0.0, 0.1, -0.1, 0.2, 0.4])
        >>> mean = OfSums(columns=np.column_stack([errors, np.ones(8)]), among=np.ones(8, bool),
        ...               statistic=lambda s: s[..., 0] / s[..., 1])
        >>> resampled({"mean error": mean}, subjects=None, confidence=0.95)
        {'mean error': Estimate(value=0.1..., interval=Interval(low=-0.06..., ...), n=8, method=...)}
    """
    defined = {name: form for name, form in forms.items() if math.isfinite(value_of(form))}
    of_sums = {name: form for name, form in defined.items() if isinstance(form, OfSums)}
    of_weights = {name: form for name, form in defined.items() if isinstance(form, OfWeights)}
    found = _from_sums(of_sums, subjects, confidence) | _from_weights(of_weights, subjects, confidence)
    return {name: found[name] for name in defined}


def _from_sums(
    forms: Mapping[str, OfSums], subjects: np.ndarray | None, confidence: float
) -> dict[str, Estimate]:
    drawn: dict[tuple[int, bytes], ResampledSums] = {}
    found = {}
    for name, form in forms.items():
        source, clusters = (id(form.columns), form.among.tobytes()), _clusters(form.among, subjects)
        if source not in drawn:
            drawn[source] = resample_sums(form.columns[form.among], clusters=clusters)
        interval = bca_of_sums(drawn[source], form.statistic, confidence=confidence)
        found[name] = _estimate(form, value_of(form), interval, clusters)
    return found


def _from_weights(
    forms: Mapping[str, OfWeights], subjects: np.ndarray | None, confidence: float
) -> dict[str, Estimate]:
    by_cases: dict[bytes, dict[str, OfWeights]] = {}
    for name, form in forms.items():
        by_cases.setdefault(form.among.tobytes(), {})[name] = form
    found: dict[str, Estimate] = {}
    for alike in by_cases.values():
        found |= _from_same_weights(alike, subjects, confidence)
    return found


def _from_same_weights(
    forms: Mapping[str, OfWeights], subjects: np.ndarray | None, confidence: float
) -> dict[str, Estimate]:
    among = next(iter(forms.values())).among
    count, clusters = int(np.count_nonzero(among)), _clusters(among, subjects)

    def values(chunks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """Every metric in every row of every chunk, from how often each case among them counts."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in forms}
        for times in chunks:
            weights = np.zeros((len(times), len(among)))
            weights[:, among] = times
            for name, form in forms.items():
                found[name].append(form.statistic(weights))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    replicates = values(draws(count, clusters=clusters))
    jackknife = values(left_out(count, clusters=clusters, most=_BLOCKS))
    found = {}
    for name, form in forms.items():
        value = value_of(form)
        interval = bca_of_values(value, replicates[name], jackknife[name], confidence=confidence)
        found[name] = _estimate(form, value, interval, clusters)
    return found


def _estimate(
    form: OfSums | OfWeights, value: float, interval: Interval | None, clusters: np.ndarray | None
) -> Estimate:
    by = "" if clusters is None else f" of {len(np.unique(clusters))} subjects"
    return Estimate(
        value=value, interval=interval, n=int(np.count_nonzero(form.among)), method="BCa bootstrap" + by
    )


def with_unseen(form: OfSums | OfWeights, found: Estimate, *, subjects: np.ndarray | None) -> Estimate:
    """Of one model: what `resampled` found, where resamples agree with room for an unseen case.

    A metric that is 0 or 1 is taken to be at the end of its scale, which is as long as that. There is no
    interval where nothing says how much a case may add.
    """
    certain, value = found.interval, found.value
    if certain is None or certain.low < certain.high:
        return found
    jump = _unseen_jump(form, value) * typical_size(_clusters(form.among, subjects))
    if jump <= 0:
        return replace(found, interval=None)
    bound = 1.0 if value in (0.0, 1.0) else math.inf
    reach = score_reach(0.0, jump, bound=bound, z=critical_value(certain.confidence))
    low = value if value == 0 else value - reach
    high = value if value == 1 and form.higher_is_better else value + reach
    return replace(
        found, interval=replace(certain, low=low, high=high), method="score interval of an unseen case"
    )


def _unseen_jump(form: OfSums | OfWeights, value: float) -> float:
    """By how much a metric may move if one column of one case is as no other case has it."""
    if isinstance(form, OfWeights):
        return 0.0
    rows = form.columns[form.among]
    steps = np.diag(np.abs(rows).max(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.abs(form.statistic(rows.sum(axis=0) + np.concatenate([steps, -steps])) - value)
    return float(moved[np.isfinite(moved)].max(initial=0.0))


def _clusters(among: np.ndarray, subjects: np.ndarray | None) -> np.ndarray | None:
    return subjects[among] if subjects is not None and has_repeats(subjects[among]) else None
