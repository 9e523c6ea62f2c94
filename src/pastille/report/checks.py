"""Each limit that was held against the candidate, as a row of a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pastille.report.text as text
from pastille.values import Check, Status

Tone = Literal["good", "bad", "unsure", "plain"]

TONES: dict[Status, Tone] = {
    Status.APPROVED: "good",
    Status.REJECTED: "bad",
    Status.INCONCLUSIVE: "unsure",
}
_WORST_FIRST = (Status.REJECTED, Status.INCONCLUSIVE, Status.APPROVED)
_MAX_SHOWN = 16
_MAX_FOLDED = 60


@dataclass(frozen=True, kw_only=True)
class LimitMark:
    """One check on an axis where 0 is nothing (no loss, no bytes) and 1 is its limit."""

    value: float
    interval: tuple[float, float] | None
    level: bool  # a size or a time, which fills up to its limit; else a drop
    tone: Tone
    words: str  # the same, to be read aloud


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One limit of a verdict."""

    metric: str
    place: str  # whose cases; empty for all of them
    limit: str
    baseline: str
    candidate: str
    drop: str
    interval: str
    n: str
    more_cases: str
    status: str
    tone: Tone
    method: str
    aside: str  # p-values, which decide nothing by themselves
    reason: str
    mark: LimitMark | None


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Every limit of a verdict: those that decided it in full, the others behind a count."""

    shown: tuple[CheckRow, ...]
    folded: tuple[CheckRow, ...]
    folded_words: str  # "34 more checks, all approved"
    more: int  # neither shown nor folded


def checks(held: Sequence[Check]) -> Checks:
    """Sort out what a reader must see: all that is not approved, and all that concerns every case."""
    ranked = sorted(held, key=weight)
    overall = [check for check in held if not check.where]
    deciding = [check for check in ranked if check.where and check.status is not Status.APPROVED]
    shown = [*overall, *deciding][:_MAX_SHOWN]
    known = {id(check) for check in shown}
    rest = [check for check in ranked if id(check) not in known]
    return Checks(
        shown=tuple(check_row(check) for check in shown),
        folded=tuple(check_row(check) for check in rest[:_MAX_FOLDED]),
        folded_words=_folded_words(rest),
        more=max(0, len(rest) - _MAX_FOLDED),
    )


def weight(check: Check) -> tuple[int, bool, float]:
    """What sorts checks by how much a reader needs them: the worst first, groups that say nothing last."""
    of_group = bool(check.where) and "between" not in check.where
    unlikely = check.adjusted_p if check.adjusted_p is not None else 2.0 if of_group else 1.0
    return _WORST_FIRST.index(check.status), bool(check.where), unlikely


def _folded_words(rest: Sequence[Check]) -> str:
    counts = Counter(check.status for check in rest)
    more = f"{text.count(len(rest))} more check{'' if len(rest) == 1 else 's'}"
    if set(counts) == {Status.APPROVED}:
        return f"{more}, {'all ' if len(rest) > 1 else ''}approved"
    listed = (f"{text.count(counts[status])} {status.value}" for status in _WORST_FIRST if counts[status])
    return f"{more}: {', '.join(listed)}"


def check_row(check: Check) -> CheckRow:
    """One limit as a row of a table."""
    drop, interval = _drop_words(check)
    return CheckRow(
        metric=text.metric_name(check.metric),
        place=text.place(check.where),
        limit=_limit(check),
        baseline=_value(check.metric, check.baseline),
        candidate=_value(check.metric, check.candidate),
        drop=drop,
        interval=interval,
        n=text.count(check.n),
        more_cases=f"about {text.count(check.more_cases)}" if check.more_cases else text.ABSENT,
        status=check.status.value,
        tone=TONES[check.status],
        method=text.clean(check.method, 120),
        aside=_aside(check),
        reason=text.sentence(check.reason, 600),
        mark=_mark(check, drop, interval),
    )


def _aside(check: Check) -> str:
    named = (("Holm", check.adjusted_p), ("McNemar", check.mcnemar))
    return ", ".join(f"{name} {text.p_value(p)}" for name, p in named if text.p_value(p))


def _drop_words(check: Check) -> tuple[str, str]:
    if check.drop is None:
        return text.ABSENT, ""
    beside = [check.drop] + ([check.interval.low, check.interval.high] if check.interval else [])
    decimals = text.drop_decimals(check.metric, limit=check.limit, beside=beside)
    drop = text.drop(check.metric, check.drop, decimals=decimals)
    if check.interval is None:
        return drop, ""
    span = text.drop_span(check.metric, check.interval, decimals=decimals)
    return drop, f"{text.confidence(check.interval.confidence)} CI {span}"


def _mark(check: Check, drop: str, interval: str) -> LimitMark | None:
    if check.metric == "int8 share":
        return None  # more is better: it does not lie on an axis where the limit is not to be passed
    value = check.candidate if check.drop is None else check.drop
    ends = (check.interval.low, check.interval.high) if check.interval else ()
    if value is None or not check.limit > 0 or not all(map(math.isfinite, (value, check.limit, *ends))):
        return None
    said = _value(check.metric, check.candidate) if check.drop is None else f"drop {drop} {interval}".strip()
    return LimitMark(
        value=value / check.limit,
        interval=(ends[0] / check.limit, ends[1] / check.limit) if ends else None,
        level=check.drop is None,
        tone=TONES[check.status],
        words=f"{text.metric_name(check.metric)}: {said}, limit {_limit(check)}",
    )


def _value(metric: str, value: float | None) -> str:
    if metric == "size":
        return text.size(value)
    if metric == "int8 share":
        return text.ABSENT if value is None else f"{text.fixed(100 * value, 1)}{text.UNIT_SPACE}%"
    if metric == "invariance":
        return text.ABSENT if value is None else f"{text.fixed(value, 0)} changed"
    return text.milliseconds(value) if metric.startswith("latency") else text.metric(metric, value)


def _limit(check: Check) -> str:
    if check.metric == "int8 share":
        return f"at least {_value(check.metric, check.limit)}"
    absolute = check.metric in ("size", "invariance") or check.metric.startswith("latency")
    if absolute:
        return _value(check.metric, check.limit)
    return text.points(check.metric, text.drop_limit(check.metric, check.limit))
