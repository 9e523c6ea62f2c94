"""What each stage contributed: the plan's result without it, beside the whole plan's."""

from __future__ import annotations

from dataclasses import dataclass

import pastille.report.text as text
from pastille.report.account import Account
from pastille.report.banner import pace
from pastille.report.checks import TONES, Tone
from pastille.report.students import LearnedMark, LearnedPanel, panel_of
from pastille.values import LeftOut, Status

_MAX_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """The whole plan, or the plan without a stage."""

    name: str
    whole: bool
    metric: str
    span: str
    worse: str  # than the whole plan
    worse_span: str
    tone: Tone
    size: str
    larger: str  # than the whole plan's
    latency: str
    speed: str
    speed_span: str
    pace: str
    status: str
    status_tone: Tone


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The table."""

    metric: str
    rows: tuple[AblationRow, ...]
    more: int
    panel: LearnedPanel | None


def ablation(run: Account) -> Ablation | None:
    """Arrange what was left out after a run.

    Args:
        run: Its account.

    Returns:
        None where nothing was left out yet.
    """
    rows = run.left_out
    whole = next((row for row in rows if row.index == 0), None)
    if whole is None or len(rows) < 2:
        return None
    marks = [_mark(row) for row in rows[:_MAX_ROWS] if row.worse is not None]
    unit = ", points" if text.is_share(whole.metric) else ""
    title = f"{text.metric_name(whole.metric)} worse without it{unit} →"
    return Ablation(
        metric=text.metric_name(whole.metric),
        rows=tuple(_row(row, whole) for row in rows[:_MAX_ROWS]),
        more=max(0, len(rows) - _MAX_ROWS),
        panel=panel_of(title, marks, from_zero=True) if marks else None,
    )


def _row(row: LeftOut, whole: LeftOut) -> AblationRow:
    metric, span = text.estimate(row.metric, row.estimate)
    word = pace(row.speedup)[0] if row.speedup else ""
    return AblationRow(
        name=_name(row),
        whole=row.index == 0,
        metric=metric,
        span=span,
        worse="" if row.worse is None else text.drop(row.metric, row.worse),
        worse_span=text.drop_span(row.metric, row.interval),
        tone=_tone(row),
        size=text.size(row.size_bytes),
        larger=_larger(row, whole),
        latency=text.significant(row.latency_ms),
        speed=text.times(row.speedup.ratio) if row.speedup else text.ABSENT,
        speed_span=text.ratio_span(row.speedup.interval) if row.speedup else "",
        pace=word,
        status=text.clean(row.status, 20),
        status_tone=_status_tone(row.status),
    )


def _name(row: LeftOut) -> str:
    return "the whole plan" if row.index == 0 else f"without {row.index} {text.clean(row.stage, 60)}"


def _tone(row: LeftOut) -> Tone:
    """Good where the result is certainly worse without it; what a stage costs bought something else."""
    return "good" if row.interval is not None and row.interval.low > 0 else "plain"


def _status_tone(status: str) -> Tone:
    return TONES[Status(status)] if status in list(Status) else "plain"


def _larger(row: LeftOut, whole: LeftOut) -> str:
    if row.index == 0 or not whole.size_bytes or not row.size_bytes:
        return ""
    ratio = row.size_bytes / whole.size_bytes
    if round(ratio, 2) == 1:
        return "as large"
    return f"{text.times(ratio)} larger" if ratio > 1 else f"{text.times(1 / ratio)} smaller"


def _mark(row: LeftOut) -> LearnedMark:
    factor = text.scale(row.metric)
    low, high = (row.interval.low * factor, row.interval.high * factor) if row.interval else (None, None)
    printed = text.bare_drop(row.metric, row.worse)
    return LearnedMark(
        label=f"{row.index} {text.clean(row.stage, 40)}",
        kind="gain",
        value=(row.worse or 0.0) * factor,
        low=low,
        high=high,
        tone=_tone(row),
        printed=printed,
        words=f"{_name(row)}: {printed} ({text.drop_span(row.metric, row.interval)})",
    )
