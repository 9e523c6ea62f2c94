"""No group may lose more than the limit, and no gap between groups may grow more than the limit.

Approving needs no correction for many groups, since every one must pass (intersection-union). Naming a
group as harmed does: among many groups some look harmed by chance, so the p-values of all groups and
metrics are adjusted by Holm. What is neither is undecided, and so is a group that is too small to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pastille.gates.drops import as_check, status_of
from pastille.gates.words import conclusion, digits_for, drop_reason, number, subject
from pastille.stats.fairness import gated_gaps
from pastille.stats.gaps import group_name
from pastille.stats.holm import holm, p_value_of_excess
from pastille.stats.power import cases_by_width, cases_needed
from pastille.values import Check, Comparison, Fairness, Gap, Interval, Status
from pastille.vocabulary import cases_of, counted, is_share, many, spoken

# Without any change their intervals are no shorter than Tango's, which says how many cases a limit needs.
_OF_DECISIONS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "recall", "auroc")
_NAMED = 4  # groups that a sentence names before it counts the rest


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What goes into the verdict, and what is only said beside it."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def settled(checks: Iterable[Check], *, undecided: Literal["inconclusive", "report"]) -> Settled:
    """Put aside what the cases cannot decide, if the recipe only wants it reported.

    Example:
        >>> settled([], undecided="report")
        Settled(checks=(), notes=())
    """
    held = tuple(checks)
    if undecided == "inconclusive":
        return Settled(checks=held, notes=())
    decided = tuple(check for check in held if check.status is not Status.INCONCLUSIVE)
    left_open = (check.reason for check in held if check.status is Status.INCONCLUSIVE)
    return Settled(checks=decided, notes=tuple(f"undecided, reported only: {reason}" for reason in left_open))


def group_checks(
    found: Sequence[Fairness], *, limits: Mapping[str, float], min_group: int, confidence: float
) -> tuple[Check, ...]:
    """Hold the drop of every metric that has a limit, in every group, against that limit.

    Args:
        found: From `pastille.stats.fairness.fairness`, at the same confidence.
        limits: Metric -> largest drop of any group, in the metric's own units.
        min_group: A group with fewer cases of a metric is inconclusive, whatever its interval says.
        confidence: In ``(0, 1)``. With groups whose drop is exactly at the limit, at most
            ``(1 - confidence) / 2`` of repeats approve, and as many name any group wrongly as harmed.

    Returns:
        One check per metric and group, in that order within each attribute.

    Raises:
        ValueError: If a limit is set on a metric that was not compared: it would pass unseen.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
        Statistics 6, 1979; Berger and Hsu, Statistical Science 11, 1996.
    """
    compared = {c.metric for attribute in found for c in attribute.groups}
    if found and not compared.issuperset(limits):
        unknown = ", ".join(sorted(limits.keys() - compared))
        raise ValueError(f"limits must name metrics of groups, {sorted(compared)}, got {unknown}")
    drops = [c for attribute in found for metric in limits for c in attribute.groups if c.metric == metric]
    judged = [c for c in drops if _may_be_judged(c, min_group)]
    adjusted = holm([p_value_of_excess(c, limits[c.metric]) for c in judged])
    family = _Family(
        adjusted={id(c): float(p) for c, p in zip(judged, adjusted, strict=True)},
        level=(1 - confidence) / 2,
        confidence=confidence,
        min_group=min_group,
    )
    return tuple(_group_check(c, limits[c.metric], family) for c in drops)


def gap_checks(found: Sequence[Fairness], *, limit: float, min_group: int) -> tuple[Check, ...]:
    """Hold the growth of each attribute's gaps against a limit.

    The gaps are the equalized odds difference and the equal opportunity gap where the task has positive
    classes, else that of accuracy, Dice, RMSE or a metric of the user's own. Both must pass.

    Args:
        found: From `pastille.stats.fairness.fairness`.
        limit: Largest growth, in the units of the gap.
        min_group: As it was given to `pastille.stats.fairness.fairness`, for the reason.

    Returns:
        One check per attribute or intersection, and gap; inconclusive where fewer than two groups are large
        enough to be compared. ``where`` is ``{"between": attribute}``.
    """
    return tuple(
        _gap_check(attribute, name, metrics, limit, min_group)
        for attribute in found
        for name, metrics in gated_gaps(c.metric for c in attribute.groups).items()
    )


def unasked_harm(
    found: Sequence[Fairness], *, limits: Mapping[str, float], min_group: int, confidence: float
) -> tuple[str, ...]:
    """Cautions that name groups harmed beyond the overall limits, where no limit was set for groups.

    Args:
        found: From `pastille.stats.fairness.fairness`.
        limits: Metric -> largest overall drop.
        min_group: Smaller groups are not named.
        confidence: In ``(0, 1)``.
    """
    compared = {c.metric for attribute in found for c in attribute.groups}
    known = {metric: limit for metric, limit in limits.items() if metric in compared}
    checks = group_checks(found, limits=known, min_group=min_group, confidence=confidence)
    return tuple(
        f"a group is harmed, though no fairness limit was asked for: {check.reason}"
        for check in checks
        if check.status is Status.REJECTED
    )


@dataclass(frozen=True, kw_only=True)
class _Family:
    """All groups and metrics that are tested together."""

    adjusted: Mapping[int, float]  # id of a comparison -> Holm-adjusted p-value
    level: float  # one-sided
    confidence: float
    min_group: int

    @property
    def size(self) -> int:
        return len(self.adjusted)


def _may_be_judged(found: Comparison, min_group: int) -> bool:
    return found.n >= min_group and found.interval is not None


def _group_check(found: Comparison, limit: float, family: _Family) -> Check:
    adjusted = family.adjusted.get(id(found))
    if adjusted is None:
        return _too_small(found, limit, family)
    if adjusted < family.level:
        suffix = f" and after Holm's correction over {_times(family.size)}"
        return as_check(found, limit, Status.REJECTED, adjusted_p=adjusted, suffix=suffix)
    status = status_of(found.interval, limit)
    if status is Status.APPROVED or found.drop is None or found.drop <= limit:
        return as_check(found, limit, status, adjusted_p=adjusted)
    reason = _perhaps_chance(found, limit, family) if status is Status.REJECTED else ""
    return as_check(found, limit, Status.INCONCLUSIVE, adjusted_p=adjusted, reason=reason)


def _times(count: int) -> str:
    return f"{count} comparison{'' if count == 1 else 's'} of groups"


def _too_small(found: Comparison, limit: float, family: _Family) -> Check:
    """Inconclusive, whatever the interval says; without an interval, the usual sentence says why."""
    if found.n >= family.min_group:
        return as_check(found, limit, Status.INCONCLUSIVE)
    more = max(family.min_group, _fewest(found.metric, limit, family.confidence)) - found.n
    reason = (
        f"{subject(found.metric, found.where)} is not judged: the group has "
        f"{counted(found.n, found.metric)}, fewer than the {many(family.min_group)} asked for; "
        f"at least {many(more)} more {'is' if more == 1 else 'are'} needed"
    )
    return replace(as_check(found, limit, Status.INCONCLUSIVE, reason=reason), more_cases=more)


def _fewest(metric: str, limit: float, confidence: float) -> int:
    """Cases without which a limit cannot be shown to hold, even if no decision changes."""
    if metric not in _OF_DECISIONS or not 0 < limit <= 1:
        return 0
    return cases_needed(0.0, limit, confidence=confidence)


def _perhaps_chance(found: Comparison, limit: float, family: _Family) -> str:
    """Beyond the limit alone, but not as one of many."""
    said = drop_reason(found, limit, Status.REJECTED, None)
    chance = f"among {_times(family.size)} that may be chance (Holm's correction)"
    return f"{said}, but {chance}; more cases would sooner reject than approve"


def _gap_check(found: Fairness, name: str, metrics: Sequence[str], limit: float, min_group: int) -> Check:
    growth = next((each for each in found.gaps if each.name == name), None)
    if growth is None:
        return _no_gap(found, name, metrics, limit, min_group)
    status = status_of(growth.interval, limit)
    n = _cases_behind(found, metrics, least=min_group)
    more = _more_for_gap(growth, n, limit) if status is Status.INCONCLUSIVE else None
    left_out = _left_out(_too_few(found, metrics, growth), min_group)
    return Check(
        metric=name,
        status=status,
        limit=limit,
        baseline=growth.baseline,
        candidate=growth.candidate,
        drop=growth.growth,
        interval=growth.interval,
        n=n,
        method=growth.method,
        more_cases=more,
        reason=_gap_reason(growth, n, limit, status, more) + left_out,
        where={"between": found.attribute},
    )


def _cases_behind(found: Fairness, metrics: Sequence[str], *, least: int = 0) -> int:
    """Cases of the groups that are compared; of several labels, one case may count in both metrics."""
    asked: dict[str, int] = {}
    whole: dict[str, int] = {}
    for c in found.groups:
        whole[group_name(c)] = max(c.n, whole.get(group_name(c), 0))
        if c.metric in metrics and c.n >= least:
            asked[group_name(c)] = asked.get(group_name(c), 0) + c.n
    return sum(min(n, whole[name]) for name, n in asked.items())


def _no_gap(found: Fairness, name: str, metrics: Sequence[str], limit: float, min_group: int) -> Check:
    groups = len({group_name(c) for c in found.groups})
    asked = " and ".join(cases_of(metric) for metric in metrics)
    why = (
        "there is only one group"
        if groups < 2
        else f"fewer than two of {groups} groups have {min_group} {asked}"
    )
    return Check(
        metric=name,
        status=Status.INCONCLUSIVE,
        limit=limit,
        baseline=None,
        candidate=None,
        drop=None,
        interval=None,
        n=_cases_behind(found, metrics),
        method="none",
        more_cases=None,
        reason=f"{_between(name, found.attribute)} cannot be judged: {why}",
        where={"between": found.attribute},
    )


def _between(name: str, attribute: str) -> str:
    return f"{spoken(name)} between groups of {attribute.replace('_', ' ')}"


def _more_for_gap(growth: Gap, n: int, limit: float) -> int | None:
    if growth.interval is None or max(0.0, growth.growth) >= limit:
        return None
    reach = max(0.0, growth.interval.high - growth.growth)
    needed = cases_by_width(n, reach, limit - growth.growth, confidence=growth.interval.confidence)
    return max(1, needed - n)


def _gap_reason(growth: Gap, n: int, limit: float, status: Status, more: int | None) -> str:
    whose = _between(growth.name, growth.attribute)
    if growth.interval is None:
        return f"{whose} cannot be judged: a group has too few cases for an interval"
    said = f"{whose} {_moved(growth, growth.interval, limit)}, {counted(n)}{_worst_off(growth)})"
    return f"{said}, {conclusion(growth.name, limit, status, more, drop=growth.growth, what='growth')}"


def _moved(growth: Gap, interval: Interval, limit: float) -> str:
    """How a gap changed, with the interval; the bracket is left open."""
    factor, least, unit = (100.0, 1, " points") if is_share(growth.name) else (1.0, 3, "")
    value, low, high, bound = (factor * x for x in (growth.growth, interval.low, interval.high, limit))
    digits = digits_for(least, value, low, high, bound)
    before, after = (number(factor * x, digits) for x in (growth.baseline, growth.candidate))
    verb = "grew" if value > 0 else "shrank" if value < 0 else "stayed"
    change = f"{verb} by {number(abs(value), digits)}{unit}, from {before} to {after}"
    what = "CI" if value > 0 else "CI of the growth"
    return (
        f"{change if value else f'{verb} at {before}{unit}'} ({100 * interval.confidence:.6g} % {what} "
        f"{number(low, digits)} to {number(high, digits)}"
    )


def _worst_off(growth: Gap) -> str:
    if not growth.worst_after:
        return ""
    changed = growth.worst_before and growth.worst_before != growth.worst_after
    return f", worst off: {growth.worst_after}" + (f", before: {growth.worst_before}" if changed else "")


def _too_few(found: Fairness, metrics: Sequence[str], growth: Gap) -> dict[str, str]:
    """Groups that are not counted, and the cases that they have too few of."""
    fewest_last = sorted((c for c in found.groups if c.metric in metrics), key=lambda c: -c.n)
    cases = {group_name(c): counted(c.n, c.metric) for c in fewest_last}
    return {name: cases[name] for name in growth.left_out}


def _left_out(groups: Mapping[str, str], min_group: int) -> str:
    if not groups:
        return ""
    named = [f"{name} ({cases})" for name, cases in list(groups.items())[:_NAMED]]
    rest = len(groups) - len(named)
    listed = ", ".join(named) + (f" and {rest} more" if rest else "")
    return f"; not counted, with fewer than {min_group}: {listed}"
