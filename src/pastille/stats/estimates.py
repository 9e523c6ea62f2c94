"""Estimate a metric with its interval: how depends on the form that it takes, and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pastille.stats.forms import Form, MeanOfRankings, MeanOfShares, OfSums, OfWeights, Ranking, Share
from pastille.stats.means import area, mean_of_rankings, mean_of_shares, ranked_area
from pastille.stats.resampled import resampled, value_of, with_unseen
from pastille.stats.shares import estimate_share
from pastille.values import Estimate


def estimate(form: Form, *, subjects: np.ndarray | None, confidence: float) -> Estimate | None:
    """Estimate one metric from the cases that it is asked of.

    =================  =================================================================================
    form               interval
    =================  =================================================================================
    Share              Wilson, on the independent cases that the cases are worth
    MeanOfShares       method of variance estimates recovery (MOVER) from each share's
    Ranking            DeLong on the logit scale, by subject (Obuchowski); Newcombe where none is misplaced
    MeanOfRankings     MOVER from each area's
    OfSums, OfWeights  BCa bootstrap, by subject; where resamples agree, with room for an unseen case
    =================  =================================================================================

    Args:
        form: Of ``N`` cases.
        subjects: ``(N,)``, or None if every case is a subject of its own.
        confidence: In ``(0, 1)``.

    Returns:
        The estimate, or None if the cases cannot define the metric.

    Example:
        >>> hits = np.arange(100) < 98
        >>> estimate(Share(hits=hits, among=np.ones(100, bool)), subjects=None, confidence=0.95)
        Estimate(value=0.98, interval=Interval(low=0.929..., high=0.994..., ...), n=100, method='Wilson')
    """
    match form:
        case Share():
            return estimate_share(form, subjects=subjects, confidence=confidence)
        case MeanOfShares():
            return mean_of_shares(form, subjects=subjects, confidence=confidence)
        case Ranking():
            return ranked_area(form, subjects=subjects, confidence=confidence)
        case MeanOfRankings():
            return mean_of_rankings(form, subjects=subjects, confidence=confidence)
        case OfSums() | OfWeights():
            return _resampled({"": form}, subjects, confidence).get("")


def estimate_all(
    forms: Mapping[str, Form], *, subjects: np.ndarray | None, confidence: float, bootstrap: bool = True
) -> dict[str, Estimate]:
    """Estimate several metrics, leaving out those that the cases cannot define.

    Faster than one by one: metrics that are bootstrapped share their resamples.

    Args:
        forms: Metric -> form, of the same ``N`` cases.
        subjects: As `estimate`.
        confidence: As `estimate`.
        bootstrap: Whether metrics without a closed form get an interval; else their value alone.
    """
    open_forms = {name: form for name, form in forms.items() if isinstance(form, OfSums | OfWeights)}
    if bootstrap:
        found: dict[str, Estimate | None] = {**_resampled(open_forms, subjects, confidence)}
    else:
        found = {name: _value_alone(form) for name, form in open_forms.items()}
    for name, form in forms.items():
        if name not in open_forms:
            found[name] = estimate(form, subjects=subjects, confidence=confidence)
    return {name: known for name in forms if (known := found.get(name)) is not None}


def _resampled(
    forms: Mapping[str, OfSums | OfWeights], subjects: np.ndarray | None, confidence: float
) -> dict[str, Estimate]:
    found = resampled(forms, subjects=subjects, confidence=confidence)
    return {name: with_unseen(forms[name], each, subjects=subjects) for name, each in found.items()}


def _value_alone(form: OfSums | OfWeights) -> Estimate | None:
    value = value_of(form)
    if not math.isfinite(value):
        return None
    return Estimate(value=value, interval=None, n=int(np.count_nonzero(form.among)), method="value alone")


def value(form: Form) -> float:
    """The metric itself, without an interval; NaN where the cases cannot define it.

    Example:
        >>> value(Share(hits=np.array([True, False]), among=np.array([True, True])))
        0.5
    """
    match form:
        case OfSums() | OfWeights():
            return value_of(form)
        case Share():
            return form.value if form.n else math.nan
        case MeanOfShares() | MeanOfRankings():
            return _mean([value(part) for part in form.parts.values()])
        case Ranking():
            return area(form)


def _mean(values: list[float]) -> float:
    known = [x for x in values if not math.isnan(x)]
    return sum(known) / len(known) if known else math.nan
