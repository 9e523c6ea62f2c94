"""Whom a compressed model harms: every metric of every group, before and after, and the gaps between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pastille.stats.estimates import estimate_all
from pastille.stats.forms import Form, MeanOfRankings, MeanOfShares, OfSums, OfWeights, Ranking, Share
from pastille.stats.gaps import gap, group_name
from pastille.stats.groups import Group, groups_of
from pastille.stats.paired import compare
from pastille.values import Cases, Comparison, Estimate, Fairness, Gap, Interval

_REPORTED = ("sensitivity", "specificity", "accuracy", "auroc", "dice", "rmse", "bias")
_ODDS = ("sensitivity", "specificity")
_GATED = ("equalized odds difference", "equal opportunity gap")


def fairness(
    before: Mapping[str, Form],
    after: Mapping[str, Form],
    cases: Cases,
    *,
    by: Sequence[str],
    intersections: bool = True,
    min_group: int = 30,
    confidence: float = 0.95,
    also: Iterable[str] = (),
) -> tuple[Fairness, ...]:
    """Compare both models within each group, and the gaps between groups.

    Sensitivity, specificity, accuracy, AUROC and the underdiagnosis rate (positive cases that are called
    negative) where the task has them; Dice, RMSE and bias, and metrics of the user's own, where it has
    those.

    Args:
        before: Metric -> what it is made of, of the baseline.
        after: The same of the candidate.
        cases: The right answers, and whose they are.
        by: Attributes of ``cases.groups``.
        intersections: Whether to add the groups of every two attributes.
        min_group: Groups with fewer cases of a metric are compared, but left out of its gaps.
        confidence: Of the intervals, in ``(0, 1)``.
        also: Further metrics to compare, e.g. those with limits.

    Returns:
        One per attribute, then one per two.

    Raises:
        DataError: An attribute does not exist, or has too many groups.

    Example:
        >>> truth, sex = np.tile([1, 0], 200), np.repeat(["female", "male"], 200)
        >>> cases = Cases(kind="binary", split="test", targets=truth, labels=("healthy", "ill"),
        ...               positive=(1,), groups={"sex": sex})
        >>> ill = truth == 1
        >>> missed = ill & (np.arange(400) < 40)  # twenty ill women
        >>> before = {"sensitivity": Share(hits=ill, among=ill), "specificity": Share(hits=~ill, among=~ill)}
        >>> after = before | {"sensitivity": Share(hits=ill & ~missed, among=ill)}
        >>> (found,) = fairness(before, after, cases, by=["sex"])
        >>> found.worst, found.gaps[0].name, round(found.gaps[0].growth, 3)
        ('female', 'equalized odds difference', 0.2)

    References:
        Hardt, Price and Srebro, "Equality of opportunity in supervised learning", NeurIPS 2016;
        Seyyed-Kalantari et al., "Underdiagnosis bias of artificial intelligence algorithms applied to chest
        radiographs in under-served patient populations", Nature Medicine 27, 2021.
    """
    wanted = dict.fromkeys((*_REPORTED, *(metric.name for metric in cases.metrics), *also))
    pairs = {name: (before[name], after[name]) for name in wanted if name in before and name in after}
    subjects = None if cases.subjects is None else np.unique(cases.subjects, return_inverse=True)[1]
    return tuple(
        _of_attribute(attribute, groups, pairs, subjects, min_group=min_group, confidence=confidence)
        for attribute, groups in groups_of(cases, by, intersections=intersections).items()
    )


def gap_metrics(metrics: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The gaps that can be taken of some metrics, and of which.

    Example:
        >>> gap_metrics(["accuracy", "sensitivity", "specificity"])["equalized odds difference"]
        ('sensitivity', 'specificity')
        >>> gap_metrics(["rmse", "bias"]), gap_metrics(["accuracy"])
        ({'rmse gap': ('rmse',)}, {'accuracy gap': ('accuracy',)})
    """
    known = dict.fromkeys(metrics)
    found: dict[str, tuple[str, ...]] = {}
    if all(name in known for name in _ODDS):
        found["equalized odds difference"] = _ODDS
        found["equal opportunity gap"] = ("sensitivity",)
    if "accuracy" in known:
        found["accuracy gap"] = ("accuracy",)
    if found:
        return found
    return {f"{name} gap": (name,) for name in known if name not in {"bias", "auroc", "underdiagnosis"}}


def gated_gaps(metrics: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Those of the gaps that a limit holds.

    The equalized odds difference and the equal opportunity gap where the task has positive classes: the
    first sees every harm, the second proves one to the positive cases with fewer of them.

    Example:
        >>> list(gated_gaps(["accuracy", "sensitivity", "specificity"]))
        ['equalized odds difference', 'equal opportunity gap']
        >>> gated_gaps(["rmse", "mae"])
        {'rmse gap': ('rmse',)}
    """
    known = gap_metrics(metrics)
    return {name: known[name] for name in _GATED if name in known} or dict([*known.items()][:1])


def _of_attribute(
    attribute: str,
    groups: Sequence[Group],
    pairs: Mapping[str, tuple[Form, Form]],
    subjects: np.ndarray | None,
    *,
    min_group: int,
    confidence: float,
) -> Fairness:
    found = [_within(group, pairs, subjects, confidence) for group in groups]
    by_metric = {name: [of_group[name] for of_group in found] for name in pairs}
    higher = {name: _higher_is_better(form) for name, (form, _) in pairs.items()}
    gaps = [
        _gap(name, attribute, metrics, by_metric, higher, min_group=min_group, confidence=confidence)
        for name, metrics in gap_metrics(by_metric).items()
    ]
    if "sensitivity" in by_metric:
        by_metric["underdiagnosis"] = [_underdiagnosis(found) for found in by_metric["sensitivity"]]
    return Fairness(
        attribute=attribute,
        groups=tuple(found for of_groups in by_metric.values() for found in of_groups),
        gaps=tuple(found for found in gaps if found is not None),
        too_small={group.name: len(group.rows) for group in groups if len(group.rows) < min_group},
        worst=_worst(by_metric, min_group),
    )


def _gap(
    name: str,
    attribute: str,
    metrics: Sequence[str],
    by_metric: Mapping[str, Sequence[Comparison]],
    higher: Mapping[str, bool],
    *,
    min_group: int,
    confidence: float,
) -> Gap | None:
    return gap(
        name,
        attribute,
        [by_metric[metric] for metric in metrics],
        min_group=min_group,
        confidence=confidence,
        higher_is_better=all(higher[metric] for metric in metrics),
    )


def _within(
    group: Group, pairs: Mapping[str, tuple[Form, Form]], subjects: np.ndarray | None, confidence: float
) -> dict[str, Comparison]:
    """Every metric of one group."""
    # Weights speak of all cases; of every other form, the group's rows are enough, and quicker.
    whole = {
        name: (_masked(before, group.rows), _masked(after, group.rows))
        for name, (before, after) in pairs.items()
        if isinstance(before, OfWeights)
    }
    taken = {
        name: (_taken(before, group.rows), _taken(after, group.rows))
        for name, (before, after) in pairs.items()
        if name not in whole
    }
    theirs = None if subjects is None else subjects[group.rows]
    return _compared(whole, group, subjects, confidence) | _compared(taken, group, theirs, confidence)


def _compared(
    pairs: Mapping[str, tuple[Form, Form]], group: Group, subjects: np.ndarray | None, confidence: float
) -> dict[str, Comparison]:
    before, after = (
        estimate_all(
            {name: pair[side] for name, pair in pairs.items()}, subjects=subjects, confidence=confidence
        )
        for side in (0, 1)
    )
    return {
        name: compare(
            *pair,
            metric=name,
            where=group.where,
            subjects=subjects,
            confidence=confidence,
            baseline=before.get(name),
            candidate=after.get(name),
        )
        for name, pair in pairs.items()
    }


def _masked(form: Form, rows: np.ndarray) -> Form:
    assert isinstance(form, OfWeights)
    mask = np.zeros(len(form.among), bool)
    mask[rows] = True
    return form.within(mask)


def _taken(form: Form, rows: np.ndarray) -> Form:
    """The form of some rows alone."""
    match form:
        case Share():
            return _share_of(form, rows)
        case MeanOfShares():
            return MeanOfShares(parts={name: _share_of(part, rows) for name, part in form.parts.items()})
        case Ranking():
            return _ranking_of(form, rows)
        case MeanOfRankings():
            return MeanOfRankings(parts={name: _ranking_of(part, rows) for name, part in form.parts.items()})
        case OfSums():
            return replace(form, columns=form.columns[rows], among=form.among[rows])
        case OfWeights():
            raise AssertionError("weights speak of all cases")


def _share_of(share: Share, rows: np.ndarray) -> Share:
    return Share(hits=share.hits[rows], among=share.among[rows])


def _ranking_of(ranking: Ranking, rows: np.ndarray) -> Ranking:
    return Ranking(scores=ranking.scores[rows], truth=ranking.truth[rows], among=ranking.among[rows])


def _higher_is_better(form: Form) -> bool:
    return form.higher_is_better if isinstance(form, OfSums | OfWeights) else True


def _underdiagnosis(sensitivity: Comparison) -> Comparison:
    """Positive cases that are called negative: the other side of sensitivity, and as much worse."""
    return replace(
        sensitivity,
        metric="underdiagnosis",
        baseline=_complement(sensitivity.baseline),
        candidate=_complement(sensitivity.candidate),
    )


def _complement(estimate: Estimate | None) -> Estimate | None:
    if estimate is None:
        return None
    found = estimate.interval
    turned = found and Interval(low=1 - found.high, high=1 - found.low, confidence=found.confidence)
    return replace(estimate, value=1 - estimate.value, interval=turned)


def _worst(by_metric: Mapping[str, Sequence[Comparison]], min_group: int) -> str:
    """The group that loses most of what matters most, of those that are large enough."""
    metric = next((name for name in ("sensitivity", "accuracy", *by_metric) if name in by_metric), None)
    drops = {
        group_name(found): found.drop
        for found in by_metric.get(metric or "", ())
        if found.drop is not None and found.drop > 0 and found.n >= min_group
    }
    return max(drops, key=drops.__getitem__) if drops else ""
