"""What pruning did, in lines: whether the speed kept up with the MACs, and each step of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pastille.record import Record, StageFinished
    from pastille.report.steps import StepRow, Steps
    from pastille.values import Profile, Speedup


def operations_line(before: Profile, after: Profile, speedup: Speedup | None) -> list[str]:
    """Multiply-accumulates and what they were worth; nothing where they are the same."""
    from pastille.report.spending import promise

    said = promise(before, after, speedup)
    return [f"operations  {_plain(said)}"] if said else []


def step_lines(record: Record) -> Iterator[str]:
    """Each step of every iterative pruning stage: what had gone, what it cost, whether it was kept."""
    from pastille.record import BaselineProfiled, StageFinished
    from pastille.report.steps import steps

    baseline = record.last(BaselineProfiled)
    before = baseline.profile if baseline else None
    for stage in record.all(StageFinished):
        found = steps(stage.details, before, stage.profile)
        if found and len(found.rows) > 1:
            yield from _lines(stage, found)
        before = stage.profile if stage.kept else before


def _lines(stage: StageFinished, found: Steps) -> Iterator[str]:
    yield _plain(f"{stage.name}: {found.words}")
    yield from (_plain(f"{stage.name}, step {row.number}: {_told(row, found.metric)}") for row in found.rows)


def _told(row: StepRow, metric: str) -> str:
    said = f"{row.removed} removed, {row.parameters} parameters left, {metric} {row.metric}, {row.outcome}"
    return f"{said}: {row.note}" if row.note else said


def _plain(words: str) -> str:
    from pastille.report.text import UNIT_SPACE

    return words.replace(UNIT_SPACE, " ")
