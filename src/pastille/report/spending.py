"""Where size and time went: what each stage left of them, and whether the speed kept up with the MACs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pastille.report.text as text
from pastille.record import StageFinished
from pastille.report.account import Account, at_batch
from pastille.report.comparison import PointKind, stage_label
from pastille.values import Profile, Speedup

Cost = Literal["parameters", "MACs", "size", "time"]

_MAX_ROWS = 8
_CHANGED = 0.01  # a count that differs by less is the same: an export may fold a constant
_KEPT_UP = 0.05  # a speed this near to what the MACs promise is as promised


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left of one cost of the baseline."""

    of: Cost
    share: float | None  # None: not measured
    span: tuple[float, float] | None  # its interval
    value: str  # the cost itself
    words: str  # the share


@dataclass(frozen=True, kw_only=True)
class SpendingRow:
    """One exported model."""

    name: str
    kind: PointKind
    costs: tuple[Left, ...]


@dataclass(frozen=True, kw_only=True)
class PromisePoint:
    """One model: its time against its multiply-accumulates."""

    label: str
    kind: PointKind
    macs: float
    ms: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Spending:
    """The section; without rows there is nothing to tell."""

    whole: tuple[tuple[Cost, str], ...]  # of the baseline, in the order of each row's costs
    rows: tuple[SpendingRow, ...]
    more: int
    most: float  # the longest bar, as a share of the baseline
    sentences: tuple[str, ...]
    points: tuple[PromisePoint, ...]  # the baseline first


def spending(run: Account) -> Spending:
    """Compare every stage's file with the baseline; empty where no stage took anything out of the model."""
    before, stages = run.before, run.stages[:_MAX_ROWS]
    if before is None or not any(_took_out(before, stage) for stage in stages):
        return Spending(whole=(), rows=(), more=0, most=1.0, sentences=(), points=())
    rows = tuple(_row(before, s.profile, stage_label(s), _kind(run, s)) for s in stages)
    ends = [end for row in rows for cost in row.costs for end in (cost.share or 0.0, *(cost.span or ()))]
    return Spending(
        whole=tuple((cost.of, cost.value) for cost in _costs(before, before)),
        rows=rows,
        more=len(run.stages) - len(stages),
        most=max([1.0, *ends]),
        sentences=tuple(_sentences(before, stages)),
        points=tuple(_points(run, before, stages)),
    )


def _took_out(before: Profile, stage: StageFinished) -> bool:
    after = stage.profile
    fewer = before.macs / max(1, after.macs), before.parameters / max(1, after.parameters)
    return stage.details.zeros is not None or any(abs(ratio - 1) > _CHANGED for ratio in fewer)


def _kind(run: Account, stage: StageFinished) -> PointKind:
    if run.final is not None and stage is run.candidate:
        return "final"
    return "kept" if stage.kept else "dropped"


def _row(before: Profile, after: Profile, name: str, kind: PointKind) -> SpendingRow:
    return SpendingRow(name=name, kind=kind, costs=_costs(before, after))


def _costs(before: Profile, after: Profile) -> tuple[Left, ...]:
    return (
        _left("parameters", before.parameters, after.parameters, text.amount(after.parameters)),
        _left("MACs", before.macs, after.macs, text.amount(after.macs)),
        _left("size", before.bytes_on_disk, after.bytes_on_disk, text.size(after.bytes_on_disk)),
        _time_left(before, after),
    )


def _left(of: Cost, before: float, after: float, value: str) -> Left:
    share = after / before if before else None
    return Left(of=of, share=share, span=None, value=value, words=_percent(share))


def _time_left(before: Profile, after: Profile) -> Left:
    """By the paired ratio, never by two medians of different moments."""
    if after is before:
        ms = _baseline_ms(before)
        return Left(of="time", share=1.0, span=None, value=text.milliseconds(ms), words=_percent(1))
    found = after.speedup
    if found is None or not found.interval.low > 0:
        return Left(of="time", share=None, span=None, value=text.ABSENT, words=text.ABSENT)
    share, span = 1 / found.ratio, (1 / found.interval.high, 1 / found.interval.low)
    value = f"{text.times(found.ratio)} the speed, {text.ratio_span(found.interval)}"
    return Left(of="time", share=share, span=span, value=value, words=_percent(share))


def _percent(share: float | None) -> str:
    if share is None:
        return text.ABSENT
    return f"{text.fixed(100 * share, 0 if share >= 0.1 else 1)}{text.UNIT_SPACE}%"


def _baseline_ms(before: Profile) -> float | None:
    latency = at_batch(before)
    return latency.ms(0.5) if latency else None


def _points(run: Account, before: Profile, stages: tuple[StageFinished, ...]) -> Iterator[PromisePoint]:
    """The baseline's own median, and the others' by their paired ratio to it."""
    ms = _baseline_ms(before)
    if ms is None or not ms > 0 or before.macs <= 0:
        return
    yield PromisePoint(label="baseline", kind="baseline", macs=before.macs, ms=ms, low=None, high=None)
    for stage in stages:
        found = stage.profile.speedup
        if found is not None and found.interval.low > 0 and stage.profile.macs > 0:
            yield PromisePoint(
                label=stage_label(stage),
                kind=_kind(run, stage),
                macs=stage.profile.macs,
                ms=ms / found.ratio,
                low=ms / found.interval.high,
                high=ms / found.interval.low,
            )


def _sentences(before: Profile, stages: tuple[StageFinished, ...]) -> Iterator[str]:
    """Of stages that changed what is multiplied, or in which numbers; training alone changes neither."""
    last = before
    for stage in stages:
        after = stage.profile
        is_other = (after.macs, after.precision) != (last.macs, last.precision)
        if is_other and (said := promise(before, after)):
            yield f"{stage_label(stage)}: {said}"
        last = after if stage.kept else last
        if stage.details.zeros is not None:
            yield f"{stage_label(stage)}: {_sparse(stage, stage.details.zeros)}"


def promise(before: Profile, after: Profile, found: Speedup | None = None) -> str:
    """Whether the measured speed kept up with the multiply-accumulates, in one sentence.

    Args:
        before: The baseline.
        after: Some stage's file.
        found: The speed that was measured last; of ``after`` itself if None.

    Returns:
        Empty where the counts are the same.
    """
    ratio = before.macs / max(1, after.macs)
    if abs(ratio - 1) <= _CHANGED:
        return ""
    said = f"{_times(max(ratio, 1 / ratio))} times {'fewer' if ratio > 1 else 'MORE'} multiply-accumulates"
    measured = found or after.speedup
    if measured is None:
        return f"{said} than the baseline; its speed was not measured."
    return f"{said} than the baseline, {_measured(measured, ratio, after.precision)}."


def _measured(found: Speedup, ratio: float, precision: str) -> str:
    span = f"({text.confidence(found.interval.confidence)} CI {text.ratio_span(found.interval)})"
    if found.slower:
        return f"but measured SLOWER: {_times(found.ratio)} times the speed {span}"
    if not found.faster:
        return f"but measured no clear difference: {_times(found.ratio)} times the speed {span}"
    said = f"measured {_times(found.ratio)} times faster {span}"
    if found.interval.high < ratio * (1 - _KEPT_UP):
        return f"{said}: less than they promise"
    if found.interval.low <= ratio * (1 + _KEPT_UP):
        return f"{said}: as they promise"
    part = "" if precision == "fp32" else f", {precision} has its part in it"
    return f"{said}: more than they promise{part}"


def _times(ratio: float) -> str:
    return text.times(ratio).removesuffix("×")


def _sparse(stage: StageFinished, zeros: float) -> str:
    said = f"{_percent(zeros)} of the weights are zero"
    found, stored = stage.profile.speedup, stage.details.stored_bytes
    if found is not None:
        what = "faster" if found.faster else "SLOWER" if found.slower else "no clear difference"
        said += (
            f"; fewer bytes, not fewer multiply-accumulates: measured {_times(found.ratio)} times the speed "
            f"({text.confidence(found.interval.confidence)} CI {text.ratio_span(found.interval)}, {what})"
        )
    if stored is not None:
        size = text.size(stage.profile.size_bytes)
        said += f"; packed in a bundle the file takes {text.size(stored)}, unpacked {size}"
    return f"{said}."
