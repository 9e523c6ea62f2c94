"""A stage is held to what it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages_task import Net, Scripted, artifact_of, task_of
from torch import nn

from pastille.errors import ExitCode, PreconditionError, StageError
from pastille.progress import SILENT
from pastille.stages import Artifact, run_stage
from pastille.stages.contract import state_digest, without_test
from pastille.task import Task


@pytest.fixture
def given(tmp_path: Path) -> tuple[Artifact, Task]:
    torch.manual_seed(0)
    model = Net().eval()
    task = task_of(model)
    return artifact_of(model, tmp_path), task


def run(stage: Any, given: tuple[Artifact, Task]) -> Any:
    return run_stage(stage, *given, given[0].file.parent, SILENT)


def test_a_stage_is_asked_in_order(given: tuple[Artifact, Task]) -> None:
    stage = Scripted()
    assert run(stage, given).module is given[0].module
    assert stage.calls == ["requires", "apply", "ensures"]


def test_nothing_is_done_where_a_requirement_is_not_met(given: tuple[Artifact, Task]) -> None:
    stage = Scripted(requires_raises=PreconditionError("no"))
    with pytest.raises(PreconditionError, match="no"):
        run(stage, given)
    assert stage.calls == ["requires"]


def test_a_broken_promise_is_the_authors_fault(given: tuple[Artifact, Task]) -> None:
    with pytest.raises(StageError, match="broken"):
        run(Scripted(ensures_raises=StageError("broken")), given)


def rename_a_buffer(artifact: Artifact) -> None:
    artifact.module.register_buffer("extra", torch.zeros(1))


CHANGES: dict[str, tuple[Callable[[Artifact], object], str]] = {
    "one weight": (lambda a: a.module.get_parameter("head.bias").data[0].add_(1e-3), "weights"),
    "statistics": (lambda a: a.module.get_buffer("norm.running_mean").add_(1.0), "weights"),
    "another buffer": (rename_a_buffer, "weights"),
    "dtype": (lambda a: a.module.half(), "weights"),
    "a layer's width": (lambda a: setattr(a.module, "head", nn.Linear(32, 4)), "weights and architecture"),
    "an activation": (lambda a: setattr(a.module, "extra", nn.ReLU()), "architecture"),
    "train mode": (lambda a: a.module.train(), "architecture"),
    "the file": (lambda a: a.file.write_bytes(b"other"), "file"),
}


@pytest.mark.parametrize(("does", "what"), CHANGES.values(), ids=list(CHANGES))
def test_a_stage_that_changes_its_input_is_found(
    does: Callable[[Artifact], object], what: str, given: tuple[Artifact, Task]
) -> None:
    stage = Scripted(does=does)
    with pytest.raises(
        StageError, match=rf"stage 'scripted' must leave .* but changed its {what};"
    ) as caught:
        run(stage, given)
    assert "report this to the stage's author" in str(caught.value)
    assert caught.value.exit_code is ExitCode.FAILURE  # not the user's
    assert stage.calls == ["requires", "apply"]


def test_digests_tell_models_apart() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    same = nn.Linear(2, 2)
    same.load_state_dict(model.state_dict())
    assert state_digest(model) == state_digest(same)
    different = [nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Sequential(same), nn.BatchNorm1d(2)]
    assert len({state_digest(m) for m in (model, *different)}) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_digests_of_every_dtype(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2).to(dtype)
    digest = state_digest(model)
    model.bias.data[1] += 1
    assert state_digest(model) != digest


LOOKS: dict[str, Callable[[Task], object]] = {
    "an input": lambda task: task.splits.test.inputs[0],
    "every input": lambda task: list(task.splits.test.inputs),
    "the right answers": lambda task: task.cases["test"],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=list(LOOKS))
def test_a_stage_cannot_reach_the_test_split(
    look: Callable[[Task], object], given: tuple[Artifact, Task]
) -> None:
    task = given[1]
    look(task)  # the runner's own task has it
    with pytest.raises((StageError, KeyError), match="test"):
        look(without_test(task))
    assert without_test(task).splits.test.targets.size == 0
    assert without_test(task).cases["validation"] is task.cases["validation"]


def test_what_a_stage_is_given_has_no_test_split(given: tuple[Artifact, Task]) -> None:
    seen: list[Task] = []
    run(Scripted(sees=seen.append), given)
    assert [task.splits.test.n for task in seen] == [0]
