"""What is read first: the verdict, why, what was gained, and each limit that was held against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pastille.report.text as text
from pastille.report.account import Account
from pastille.values import Check, Speedup, Status

Tone = Literal["good", "bad", "unsure", "plain"]
Standing = Literal["approved", "rejected", "inconclusive", "unfinished"]

_TONES: dict[Status, Tone] = {
    Status.APPROVED: "good",
    Status.REJECTED: "bad",
    Status.INCONCLUSIVE: "unsure",
}
_WORDS: dict[Standing, str] = {
    "approved": "Approved",
    "rejected": "Rejected",
    "inconclusive": "Inconclusive",
    "unfinished": "Not finished",
}
_VARIANTS = {
    "int8": "the int8 model",
    "compressed": "the compressed float model",
    "fp32": "the unchanged fp32 model",
}
_MAX_DROPS = 3
_MAX_CHECKS = 30


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One headline number."""

    value: str
    what: str
    detail: str
    tone: Tone


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
    reason: str
    mark: LimitMark | None


@dataclass(frozen=True, kw_only=True)
class Banner:
    """The verdict of the run, in words."""

    standing: Standing
    word: str
    reason: str
    headline: str  # the gains in one sentence; empty where none were measured
    gains: tuple[Gain, ...]
    gains_title: str
    serves: str  # empty before the final verdict
    serves_reason: str
    meaning: str
    split: str
    checks: tuple[CheckRow, ...]
    more_checks: int  # left out of the table


def banner(run: Account) -> Banner:
    """What the top of the page says."""
    verdict = run.final.verdict if run.final else None
    standing: Standing = verdict.status.value if verdict else "unfinished"
    gains = tuple(_gains(run))
    checks = verdict.checks if verdict else ()
    return Banner(
        standing=standing,
        word=_WORDS[standing],
        reason=text.sentence(verdict.reason) if verdict else _how_far(run),
        headline=", ".join(_spoken(gain) for gain in gains),
        gains=gains,
        gains_title=_gains_title(run, standing),
        serves=_serves(run),
        serves_reason=text.sentence(run.final.selection_reason) if run.final else "",
        meaning=_meaning(standing, checks),
        split=verdict.split if verdict else "",
        checks=tuple(check_row(check) for check in checks[:_MAX_CHECKS]),
        more_checks=max(0, len(checks) - _MAX_CHECKS),
    )


def _how_far(run: Account) -> str:
    planned = len(run.recipe.get("plan") or ())
    stages = f"{len(run.stages)} of {text.plural(planned, 'planned stage')} done"
    begun = stages if run.baseline else "the baseline has not been measured yet"
    tested = (
        "the test split was opened but nothing was judged on it"
        if run.opened
        else "the test split is unopened"
    )
    return f"This run has no final verdict: {begun}, and {tested}. Nothing on this page is an approval."


def _serves(run: Account) -> str:
    if run.final is None:
        return ""
    return _VARIANTS.get(run.final.selected, text.clean(run.final.selected, 60))


def _gains_title(run: Account, standing: Standing) -> str:
    if standing == "unfinished":
        return "Measured so far, on validation"
    if run.final and run.final.selected == "fp32":
        return "What the judged candidate measured; it is not what is served"
    return "What was gained"


def _gains(run: Account) -> Iterator[Gain]:
    if run.before and run.after and run.after.size_bytes and run.before.size_bytes:
        yield _size_gain(run.before.size_bytes, run.after.size_bytes)
    if run.speedup:
        yield _speed_gain(run.speedup)
    verdict = run.final.verdict if run.final else (run.candidate.verdict if run.candidate else None)
    drops = [check for check in (verdict.checks if verdict else ()) if check.drop is not None]
    yield from (_drop_gain(check) for check in drops[:_MAX_DROPS])


def _size_gain(before: int, after: int) -> Gain:
    smaller = after <= before
    ratio = before / after if smaller else after / before
    return Gain(
        value=text.times(ratio),
        what="smaller" if after < before else "larger" if after > before else "the same size",
        detail=f"{text.size(before)} → {text.size(after)}",
        tone="good" if after < before else "bad" if after > before else "plain",
    )


def pace(speedup: Speedup) -> tuple[str, Tone]:
    """Whether a speedup is one, in a word; an interval that holds 1 shows no difference.

    A model that is slower is called slower, however small it is.
    """
    if speedup.interval.low > 1:
        return "faster", "good"
    if speedup.interval.high < 1:
        return "slower", "bad"
    return "no difference shown", "unsure"


def paired_medians(speedup: Speedup) -> str:
    """The medians of the calls that a ratio is from, before and after, where they were kept."""
    if speedup.baseline_ms is None or speedup.candidate_ms is None:
        return ""
    return f"{text.milliseconds(speedup.baseline_ms)} → {text.milliseconds(speedup.candidate_ms)}"


def _speed_gain(speedup: Speedup) -> Gain:
    word, tone = pace(speedup)
    what = word if word == "faster" else f"the speed: {word}"
    medians = paired_medians(speedup)
    span = f"{text.confidence(speedup.interval.confidence)} CI {text.ratio_span(speedup.interval)}"
    return Gain(
        value=text.times(speedup.ratio),
        what=f"{what} at batch {text.count(speedup.batch)}",
        detail=f"{span}; {medians}" if medians else span,
        tone=tone,
    )


def _drop_gain(check: Check) -> Gain:
    row = check_row(check)
    known = f"{row.interval}; " if row.interval else ""
    return Gain(
        value=row.drop,
        what=f"{row.metric} drop",
        detail=f"{known}limit {text.drop_limit(check.metric, check.limit)}",
        tone=row.tone,
    )


def _spoken(gain: Gain) -> str:
    if gain.what.endswith(" drop"):
        return f"{gain.what} {gain.value} ({gain.detail})"
    span = gain.detail.partition(";")[0]
    return f"{gain.value} {gain.what}" + (f" ({span})" if "CI" in span else "")


def check_row(check: Check) -> CheckRow:
    """One limit as a row of a table."""
    drop, interval = _drop_words(check)
    return CheckRow(
        metric=text.metric_name(check.metric),
        limit=_limit(check),
        baseline=_value(check.metric, check.baseline),
        candidate=_value(check.metric, check.candidate),
        drop=drop,
        interval=interval,
        n=text.count(check.n),
        more_cases=f"about {text.count(check.more_cases)}" if check.more_cases else text.ABSENT,
        status=check.status.value,
        tone=_TONES[check.status],
        method=text.clean(check.method, 120),
        reason=text.sentence(check.reason, 600),
        mark=_mark(check, drop, interval),
    )


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
    value = check.candidate if check.drop is None else check.drop
    ends = (check.interval.low, check.interval.high) if check.interval else ()
    if value is None or not check.limit > 0 or not all(map(math.isfinite, (value, check.limit, *ends))):
        return None
    said = _value(check.metric, check.candidate) if check.drop is None else f"drop {drop} {interval}".strip()
    return LimitMark(
        value=value / check.limit,
        interval=(ends[0] / check.limit, ends[1] / check.limit) if ends else None,
        level=check.drop is None,
        tone=_TONES[check.status],
        words=f"{text.metric_name(check.metric)}: {said}, limit {_limit(check)}",
    )


def _value(metric: str, value: float | None) -> str:
    if metric == "size":
        return text.size(value)
    return text.milliseconds(value) if metric.startswith("latency") else text.metric(metric, value)


def _limit(check: Check) -> str:
    if check.drop is None:
        return _value(check.metric, check.limit)
    return text.points(check.metric, text.drop_limit(check.metric, check.limit))


def _meaning(standing: Standing, checks: tuple[Check, ...]) -> str:
    more = max((check.more_cases or 0 for check in checks), default=0)
    enough = f" About {text.count(more)} more labelled cases would probably decide." if more else ""
    return {
        "approved": (
            "Approved means that the exported file itself was held against every limit above, on cases that "
            "no stage had seen. For each drop the whole confidence interval lies within its limit: not only "
            "the measured drop, but every drop that the data leave plausible."
        ),
        "rejected": (
            "Rejected means that a requirement is broken: a drop that is beyond its limit, a size or latency "
            "above what was asked, or a technique that the risk tier does not permit. The compressed model "
            "must not be used under these requirements; loosening a limit after seeing this result would "
            "void the test."
        ),
        "inconclusive": (
            "Inconclusive is not an approval, and is treated like a rejection. The interval of at least one "
            "drop reaches across its limit: the loss may be tolerable or not, and these cases are too few to "
            f"tell.{enough} Otherwise compress less, so that the two models disagree on fewer cases."
        ),
        "unfinished": (
            "Stages are judged on the validation split only, to decide whether to go on. The verdict comes "
            "last, from the test split, which is opened once."
        ),
    }[standing]
