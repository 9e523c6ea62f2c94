"""Iterative pruning step by step: what went, what it cost, and which step was kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pastille.report.text as text
from pastille.record import PrunedStep, StageDetails
from pastille.report.checks import Tone
from pastille.report.comparison import PointKind
from pastille.values import Profile

_MAX_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One step."""

    number: str
    removed: str  # of the parameters
    channels: str  # likewise, of those that could be pruned
    parameters: str
    macs: str
    metric: str
    spent: str
    outcome: str
    tone: Tone
    note: str


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """One step in the plot, in the units that are printed."""

    label: str
    kind: PointKind
    removed: float
    metric: float


@dataclass(frozen=True, kw_only=True)
class Steps:
    """All steps of one stage."""

    metric: str
    share: bool  # the metric is in percent
    rows: tuple[StepRow, ...]
    more: int
    points: tuple[StepPoint, ...]  # what the steps began with first; empty where fewer than two are known
    words: str


def steps(details: StageDetails, before: Profile | None, after: Profile) -> Steps | None:
    """Arrange the steps of a stage.

    Args:
        details: Of the stage.
        before: The file that the stage began with.
        after: Its own.

    Returns:
        None where the stage kept no account of steps.
    """
    if not details.steps:
        return None
    name = details.curves[-1].metric if details.curves else ""
    kept = kept_step(details.steps, after.parameters)
    points = tuple(_points(details.steps, kept, name, before))
    return Steps(
        metric=text.metric_name(name) if name else "metric",
        share=text.is_share(name),
        rows=tuple(_row(step, name, is_kept=step is kept) for step in details.steps[:_MAX_ROWS]),
        more=max(0, len(details.steps) - _MAX_ROWS),
        points=points if len(points) > 1 else (),
        words=_words(details.steps, kept),
    )


def kept_step(found: Sequence[PrunedStep], parameters: int) -> PrunedStep:
    """The step that a stage's file is of: the last that has as many parameters.

    Args:
        found: At least one.
        parameters: Of the stage's file.

    Returns:
        Where none has as many, the last that was not rejected, else the first.
    """
    same = [step for step in found if step.parameters == parameters]
    passed = [step for step in found if not step.rejected]
    likely = [step for step in same if not step.rejected] or same or passed or found[:1]
    return likely[-1]


def _row(step: PrunedStep, name: str, *, is_kept: bool) -> StepRow:
    outcome, tone = _outcome(step, is_kept=is_kept)
    return StepRow(
        number=text.count(step.number),
        removed=_percent(step.removed),
        channels=_percent(step.sparsity or None),
        parameters=text.amount(step.parameters),
        macs=text.amount(step.macs),
        metric=text.metric(name, step.metric),
        spent=_percent(step.spent),
        outcome=outcome,
        tone=tone,
        note=text.sentence(step.note, 240),
    )


def _outcome(step: PrunedStep, *, is_kept: bool) -> tuple[str, Tone]:
    if step.rejected:
        return ("rejected, yet the first: the gate judges it" if is_kept else "rejected"), "bad"
    return ("kept", "good") if is_kept else ("passed on", "plain")


def _percent(share: float | None) -> str:
    return text.ABSENT if share is None else f"{text.fixed(100 * share, 0)}{text.UNIT_SPACE}%"


def _points(
    found: Sequence[PrunedStep], kept: PrunedStep, name: str, before: Profile | None
) -> Iterator[StepPoint]:
    factor = text.scale(name)
    began = before.metrics.overall.get(name) if before else None
    if began:
        yield StepPoint(label="before", kind="baseline", removed=0.0, metric=began.value * factor)
    for step in found[:_MAX_ROWS]:
        if step.metric is not None and math.isfinite(step.metric):
            yield StepPoint(
                label=f"step {step.number}",
                kind="dropped" if step.rejected else "final" if step is kept else "kept",
                removed=100 * step.removed,
                metric=step.metric * factor,
            )


def _words(found: Sequence[PrunedStep], kept: PrunedStep) -> str:
    rejected = sum(step.rejected for step in found)
    gone = f"{_percent(kept.removed)} of the parameters removed"
    said = f"step {kept.number} of {found[-1].number} was kept, with {gone}"
    return f"{said}; {rejected} rejected" if rejected else said
