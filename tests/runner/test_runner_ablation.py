"""Which stages of a finished run are left out, and which together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_runner_decisions import FINETUNE, PROFILE, PRUNE, QUANTIZE, SPARSE, recipe, said

from pastille.record import Record, StageDetails, StageFinished, appended
from pastille.runner.ablation import moves, stages_kept
from pastille.values import Status

APPROVED, REJECTED, UNDECIDED = Status.APPROVED, Status.REJECTED, Status.INCONCLUSIVE


def record(*stages: tuple[Status, bool]) -> Record:
    made = Record(name="r")
    for index, (status, kept) in enumerate(stages, start=1):
        event = StageFinished(
            index=index,
            name="prune",
            options={},
            profile=replace(PROFILE, name="prune"),
            verdict=said(status),
            kept=kept,
            consequence="why",
            details=StageDetails(),
            seconds=1.0,
        )
        made = appended(made, event)
    return made


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        (((APPROVED, True), (UNDECIDED, True)), (1, 2)),
        (((APPROVED, True), (REJECTED, False), (APPROVED, True)), (1, 3)),
        # A prune that was kept for now, and a fine-tuning that saved it.
        (((REJECTED, True), (APPROVED, True)), (1, 2)),
        # One that did not: both are gone, though the prune was kept for now.
        (((APPROVED, True), (REJECTED, True), (REJECTED, False), (APPROVED, True)), (1, 4)),
        (((REJECTED, False),), ()),
    ],
)
def test_stages_that_the_result_went_through(
    stages: tuple[tuple[Status, bool], ...], kept: tuple[int, ...]
) -> None:
    assert stages_kept(record(*stages)) == kept


@pytest.mark.parametrize(
    ("plan", "kept", "expected"),
    [
        ((PRUNE, FINETUNE, QUANTIZE), (1, 2, 3), [(1, 2), (2,), (3,)]),
        ((PRUNE, QUANTIZE), (1, 2), [(1,), (2,)]),
        ((SPARSE, FINETUNE, QUANTIZE), (3,), [(3,)]),
        ((FINETUNE, QUANTIZE), (1, 2), [(1,), (2,)]),
        ((QUANTIZE,), (), []),
    ],
)
def test_a_prune_goes_with_its_fine_tuning(
    plan: tuple[dict[str, Any], ...], kept: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    assert list(moves(recipe(*plan).plan, kept)) == expected
