"""What was lost, and by whom: the drop of every metric overall, of every class and of every group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pastille.report.text as text
from pastille.report.account import Account
from pastille.report.checks import TONES, Tone
from pastille.report.evidence import allot
from pastille.values import Check, Comparison

_MAX_ROWS = 60
_MAX_BLOCKS = 14
_MIN_GROUP = 30  # as in recipes that do not say
_REACH = 6.0  # limits that an interval is drawn to; a drop itself is always on the axis
_NOT_DRAWN = ("underdiagnosis",)  # sensitivity, the other way round
_POINTS = "points"


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """One comparison, in the unit that it is printed in."""

    heading: str  # what the row before it need not say again; the metric, in blocks of classes and groups
    label: str
    n: str
    drop: float | None  # None: the cases cannot tell
    drop_words: str
    low: float | None
    high: float | None
    limit: float | None
    tone: Tone  # "plain" where no limit holds
    few: bool  # below the least size of a group
    words: str  # the same, to be read aloud


@dataclass(frozen=True, kw_only=True)
class ForestBlock:
    """All cases, the classes, or the groups of one attribute; blocks of one unit share their axis."""

    title: str
    unit: str  # "points", or a metric that has an axis of its own
    rows: tuple[ForestRow, ...]
    more: int
    low: float  # of the axis
    high: float


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Every drop that is drawn."""

    blocks: tuple[ForestBlock, ...]
    more_blocks: int


Key = tuple[str, frozenset[tuple[str, str]]]


def forest(run: Account) -> Forest:
    """Draw what was compared, whether a limit was set on it or not."""
    checks = {_key(c.metric, c.where): c for c in (run.verdict.checks if run.verdict else ())}
    least = min_group(run)
    made = [
        (title, unit, [_row(c, checks.get(_key(c.metric, c.where)), least, title) for c in found])
        for title, unit, found in _blocks(run)
    ]
    shown = [(title, unit, rows) for title, unit, rows in made if rows]
    kept = shown[:_MAX_BLOCKS]
    shares = allot([len(rows) for _, _, rows in kept], _MAX_ROWS)
    cut = [
        (title, unit, _cut(rows, most), len(rows))
        for (title, unit, rows), most in zip(kept, shares, strict=True)
    ]
    axes = {unit: _axis([row for _, u, rows, _ in cut if u == unit for row in rows]) for _, unit, _, _ in cut}
    return Forest(
        blocks=tuple(
            ForestBlock(
                title=title,
                unit=unit,
                rows=tuple(_headed(rows)),
                more=total - len(rows),
                low=axes[unit][0],
                high=axes[unit][1],
            )
            for title, unit, rows, total in cut
        ),
        more_blocks=len(shown) - len(kept),
    )


def min_group(run: Account) -> int:
    """Cases that a group must have to be judged, as the recipe says."""
    asked = run.requirements.get("fairness")
    least = asked.get("min_group", _MIN_GROUP) if isinstance(asked, Mapping) else _MIN_GROUP
    return least if isinstance(least, int) else _MIN_GROUP


def _key(metric: str, where: Mapping[str, str]) -> Key:
    return metric, frozenset(where.items())


def _blocks(run: Account) -> Iterator[tuple[str, str, list[Comparison]]]:
    """Title, unit and comparisons; metrics that are no shares have an axis, and so a block, of their own."""
    overall = [c for c in run.evidence.comparisons if not c.where]
    classes = [c for c in run.evidence.comparisons if c.where]
    titled = [("all cases", overall), ("class", classes)]
    titled += [(text.attribute_name(found.attribute), list(found.groups)) for found in run.evidence.fairness]
    for title, found in titled:
        by_unit: dict[str, list[Comparison]] = {}
        for comparison in found:
            if comparison.metric not in _NOT_DRAWN:
                by_unit.setdefault(_unit(comparison.metric), []).append(comparison)
        yield from ((title, unit, of_unit) for unit, of_unit in by_unit.items())


def _unit(metric: str) -> str:
    return _POINTS if text.is_share(metric) else text.metric_name(metric)


def _row(found: Comparison, check: Check | None, least: int, title: str) -> ForestRow:
    known = found.drop is not None and math.isfinite(found.drop)
    ends = (found.interval.low, found.interval.high) if found.interval and known else ()
    factor = text.scale(found.metric)
    low, high = (factor * x for x in ends) if ends and all(map(math.isfinite, ends)) else (None, None)
    metric = text.metric_name(found.metric)
    few = bool(found.where) and "class" not in found.where and found.n < least
    drawn = ForestRow(
        heading=metric if found.where else "",
        label=_label(found) or metric,
        n=text.count(found.n),
        drop=factor * found.drop if found.drop is not None and known else None,
        drop_words=text.bare_drop(found.metric, found.drop) if known else text.ABSENT,
        low=low,
        high=high,
        limit=factor * check.limit if check and math.isfinite(check.limit) else None,
        tone=TONES[check.status] if check else "plain",
        few=few,
        words="",
    )
    return replace(drawn, words=_words(drawn, found, check, title))


def _label(found: Comparison) -> str:
    return " × ".join(text.clean(value, 40) or "(empty)" for value in list(found.where.values())[:3])


def _words(row: ForestRow, found: Comparison, check: Check | None, title: str) -> str:
    whose = text.place(found.where) or title
    if row.drop is None:
        return f"{text.metric_name(found.metric)}, {whose}: these cases cannot tell"
    span = f" (CI {text.drop_span(found.metric, found.interval)})" if found.interval else ""
    drop = f"drop {text.drop(found.metric, found.drop)}{span}, {text.plural(found.n, 'case')}"
    said = f", limit {text.drop_limit(found.metric, check.limit)}: {check.status.value}" if check else ""
    few = ", too few" if row.few else ""
    return f"{text.metric_name(found.metric)}, {whose}: {drop}{said}{few}"


def _cut(rows: list[ForestRow], most: int) -> list[ForestRow]:
    """All in their order, or the worst of them first; always one metric after the other."""
    headings = {row.heading: place for place, row in enumerate(reversed(rows))}
    ranked = rows if len(rows) <= most else sorted(rows, key=_badness)[:most]
    return sorted(ranked, key=lambda row: -headings[row.heading])


def _badness(row: ForestRow) -> tuple[int, float]:
    rank = {"bad": 0, "unsure": 1, "plain": 2, "good": 2}[row.tone]
    return (3 if row.few or row.drop is None else rank), -(row.drop or 0.0)


def _headed(rows: Sequence[ForestRow]) -> Iterator[ForestRow]:
    before = ""
    for row in rows:
        yield row if row.heading != before else replace(row, heading="")
        before = row.heading


def _axis(rows: Sequence[ForestRow]) -> tuple[float, float]:
    """Wide enough for every drop that counts; an interval far beyond its limit ends in an arrow."""
    drops = [row.drop for row in rows if row.drop is not None and not row.few]
    ends = [x for row in rows if not row.few for x in (row.low, row.high) if x is not None]
    limits = [row.limit for row in rows if row.limit is not None]
    reach = _REACH * max(limits) if limits and max(limits) > 0 else math.inf
    low = min([0.0, *drops, max(min([0.0, *ends]), -reach)])
    high = max([0.0, *drops, *limits, min(max([0.0, *ends]), reach)])
    pad = 0.04 * (high - low) or 1.0
    return low - pad, high + pad
