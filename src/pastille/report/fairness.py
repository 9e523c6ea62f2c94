"""How far the groups of each attribute lie apart, before and after, and what was asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pastille.report.text as text
from pastille.report.account import Account
from pastille.report.checks import TONES, Tone
from pastille.report.forest import min_group
from pastille.values import Check, Fairness, Gap
from pastille.vocabulary import counted

_MAX_ATTRIBUTES = 12
_MAX_LEFT_OUT = 6


@dataclass(frozen=True, kw_only=True)
class GapRow:
    """One gap of one attribute."""

    name: str
    before: str
    after: str
    growth: str
    interval: str
    limit: str
    worst_before: str
    worst_after: str
    status: str  # empty where no limit holds
    tone: Tone
    reason: str


@dataclass(frozen=True, kw_only=True)
class AttributeRows:
    """The gaps of one attribute, or of an intersection of two."""

    title: str
    worst: str  # the group that loses most; empty where none loses
    left_out: str  # groups too small to be counted, in words; empty where there are none
    gaps: tuple[GapRow, ...]


@dataclass(frozen=True, kw_only=True)
class Fair:
    """The fairness table, and whether anything hangs on it."""

    gated: str  # one sentence
    attributes: tuple[AttributeRows, ...]
    more: int


def fair(run: Account) -> Fair:
    """Arrange the gaps between groups."""
    checks = run.verdict.checks if run.verdict else ()
    of_groups = [c for c in checks if c.where and not {"class", "perturbation"} & set(c.where)]
    gaps = {(c.metric, c.where["between"]): c for c in of_groups if "between" in c.where}
    found = run.evidence.fairness
    return Fair(
        gated=_gated(run, of_groups),
        attributes=tuple(_attribute(each, gaps, min_group(run)) for each in found[:_MAX_ATTRIBUTES]),
        more=max(0, len(found) - _MAX_ATTRIBUTES),
    )


def _gated(run: Account, checks: list[Check]) -> str:
    if not isinstance(run.requirements.get("fairness"), Mapping) and not checks:
        return "No fairness limit was asked for, so these rows are described, not gated."
    if not checks:
        return "A fairness limit was asked for, but these cases decide about no group."
    drops = _limits(c for c in checks if "between" not in c.where)
    growth = _limits(c for c in checks if "between" in c.where)
    parts = [f"no group may lose more than {drops}"] if drops else []
    parts += [f"no gap between groups may grow by more than {growth}"] if growth else []
    return f"Gated: {', and '.join(parts)}. Groups with fewer than {min_group(run)} cases are never passed."


def _limits(checks: Iterable[Check]) -> str:
    """Each limit with its metrics, once: "1 point of accuracy and sensitivity"."""
    metrics: dict[str, list[str]] = {}
    for check in checks:
        limit = text.points(check.metric, text.drop_limit(check.metric, check.limit))
        metrics.setdefault(limit, []).append(text.metric_name(check.metric))
    return ", ".join(
        f"{limit} ({', '.join(dict.fromkeys(names))})" for limit, names in list(metrics.items())[:6]
    )


def _attribute(found: Fairness, gaps: Mapping[tuple[str, str], Check], least: int) -> AttributeRows:
    return AttributeRows(
        title=text.attribute_name(found.attribute),
        worst=text.clean(found.worst, 80),
        left_out=_left_out(found, least),
        gaps=tuple(_gap(gap, gaps.get((gap.name, found.attribute))) for gap in found.gaps[:8]),
    )


def _left_out(found: Fairness, least: int) -> str:
    """Of the gaps, and of the attribute as a whole."""
    groups = dict(found.too_small)
    for name, n in (each for gap in found.gaps for each in gap.left_out.items()):
        groups[name] = min(n, groups.get(name, n))
    if not groups:
        return ""
    named = [
        f"{text.clean(name, 60)} ({_few(found, name, n)})" for name, n in [*groups.items()][:_MAX_LEFT_OUT]
    ]
    more = len(groups) - len(named)
    listed = ", ".join(named) + (f" and {text.count(more)} more" if more else "")
    return f"Not counted, with fewer than {text.count(least)}: {listed}."


def _few(found: Fairness, name: str, n: int) -> str:
    """The cases of a group, and of which kind there are so few."""
    own = (c.metric for c in found.groups if " × ".join(c.where.values()) == name and c.n == n)
    return text.clean(counted(n, next(own, "")), 80)


def _gap(gap: Gap, check: Check | None) -> GapRow:
    beside = [gap.growth, *((gap.interval.low, gap.interval.high) if gap.interval else ())]
    decimals = text.drop_decimals(gap.name, limit=check.limit if check else None, beside=beside)
    span = text.drop_span(gap.name, gap.interval, decimals=decimals)
    limit = text.points(gap.name, text.drop_limit(gap.name, check.limit)) if check else text.ABSENT
    return GapRow(
        name=text.metric_name(gap.name),
        before=text.metric(gap.name, gap.baseline),
        after=text.metric(gap.name, gap.candidate),
        growth=text.drop(gap.name, gap.growth, decimals=decimals),
        interval=f"{text.confidence(gap.interval.confidence)} CI {span}" if gap.interval else "",
        limit=limit,
        worst_before=text.clean(gap.worst_before, 80) or text.ABSENT,
        worst_after=text.clean(gap.worst_after, 80) or text.ABSENT,
        status=check.status.value if check else "",
        tone=TONES[check.status] if check else "plain",
        reason=text.sentence(check.reason, 600) if check else "",
    )
