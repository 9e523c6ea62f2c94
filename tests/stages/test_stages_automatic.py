"""The search among precisions: what is measured, what is chosen, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from stages_task import Net, Notes, exported_artifact_of, task_of
from torch import nn

from pastille.devices import this_machine
from pastille.errors import PreconditionError
from pastille.recipe import AutoQuantize, Goal, MixedQuantize, Train
from pastille.record import Tried
from pastille.stages import Artifact, StageResult, run_stage
from pastille.stages.automatic import AutoStage, chosen
from pastille.stages.mixed import MixedStage
from pastille.task import Task
from pastille.train import fit
from pastille.values import Interval, Speedup


def tried(name: str, low: float, high: float, size: int, *, passes: bool = True) -> Tried:
    conditions = this_machine(threads=1, runtime="onnxruntime", runtime_version="1")
    interval = Interval(low=low, high=high, confidence=0.95)
    speedup = Speedup(ratio=(low + high) / 2, interval=interval, pairs=9, batch=1, conditions=conditions)
    return Tried(name=name, size_bytes=size, speedup=speedup, spent=0.1, passes=passes, chosen=False)


FP32 = Tried(name="fp32", size_bytes=400, speedup=None, spent=0.0, passes=True, chosen=False)


@pytest.mark.parametrize(
    ("others", "goal", "best"),
    [
        ([tried("int8", 1.9, 2.1, 100, passes=False)], "smallest", 0),
        ([tried("int8", 1.9, 2.1, 100)], "fastest", 1),
        ([tried("int8", 0.7, 0.8, 100)], "fastest", 0),  # never slower
        ([tried("int8", 0.9, 1.2, 100)], "fastest", 1),  # equally fast, and smaller
        ([tried("int8", 0.7, 0.8, 100)], "smallest", 1),
        ([tried("int8", 1.9, 2.1, 100, passes=False)], "fastest", 0),
        ([tried("int8", 1.9, 2.1, 100), tried("mixed", 2.4, 2.6, 150)], "fastest", 2),
        ([tried("int8", 1.99, 2.01, 100), tried("mixed", 2.0, 2.02, 150)], "fastest", 1),
        ([tried("int8", 1.9, 2.1, 100), tried("mixed", 2.4, 2.6, 150)], "smallest", 1),
        ([tried("a", 1.9, 2.1, 100), tried("b", 1.9, 2.1, 100)], "fastest", 1),
    ],
)
def test_what_is_chosen(others: list[Tried], goal: Goal, best: int) -> None:
    assert chosen([FP32, *others], goal) == best


def given(folder: Path, model: nn.Module) -> tuple[Artifact, Task]:
    torch.manual_seed(0)
    task = task_of(model.eval(), n=96)
    measure = task.recipe.measure.model_copy(update={"seconds": 0.2})
    recipe = task.recipe.model_copy(update={"measure": measure})
    task = Task(**{**{f: getattr(task, f) for f in task.__dataclass_fields__}, "recipe": recipe})
    parts = (task.splits.train, task.cases["train"]), (task.splits.validation, task.cases["validation"])
    trained = fit(task.model, *parts, Train(epochs=4, learning_rate=0.03), seed=0).model
    return exported_artifact_of(trained, task, folder), task


def run(artifact: Artifact, task: Task, folder: Path, **settings: Any) -> tuple[StageResult, Notes]:
    (folder / "stage").mkdir()
    stage = AutoStage(settings=AutoQuantize(method="auto", samples=32, **settings))
    notes = Notes()
    return run_stage(stage, artifact, task, folder / "stage", notes), notes


def test_each_candidate_is_measured_and_one_is_kept(tmp_path: Path) -> None:
    artifact, task = given(tmp_path, Net(width=16))
    result, notes = run(artifact, task, tmp_path, goal="smallest")
    rows = {each.name: each for each in result.details.tried}
    assert list(rows) == ["fp32", "bf16", "int8", "mixed", "dynamic"]
    assert all(each.speedup is not None for name, each in rows.items() if name != "fp32")
    (best,) = (each for each in rows.values() if each.chosen)
    assert best.size_bytes == min(each.size_bytes for each in rows.values() if each.passes)
    assert result.quantized is not None
    assert result.quantized.stat().st_size == best.size_bytes
    assert [path.name for path in result.quantized.parent.iterdir()] == ["model.onnx"]
    assert any(note.startswith("int8: ") for note in notes.notes)


def test_what_the_model_cannot_have_is_passed_over_and_said(tmp_path: Path) -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 3, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(torch.relu(self.conv(x))).flatten(1)
            return out

    artifact, task = given(tmp_path, Convolutions())
    result, _ = run(artifact, task, tmp_path, candidates=["dynamic"])
    assert [each.name for each in result.details.tried] == ["fp32"]
    assert any("dynamic was passed over: " in note for note in result.details.notes)
    assert result.quantized is not None
    assert result.quantized.read_bytes() == artifact.file.read_bytes()  # nothing better: the file as it was
    assert result.precision == "fp32"


def test_mixed_names_its_layers_and_keeps_what_was_asked(tmp_path: Path) -> None:
    artifact, task = given(tmp_path, Net(width=64))
    (tmp_path / "stage").mkdir()
    stage = MixedStage(settings=MixedQuantize(method="mixed", samples=32, keep_float=["conv1"]))
    result = run_stage(stage, artifact, task, tmp_path / "stage", Notes())
    assert result.details.left_whole["conv1"].startswith("float was asked for")
    assert any("layers stay float" in note for note in result.details.notes)
    assert result.quantized is not None
    graph = onnx.load(result.quantized).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    first = next(node for node in graph.node if node.op_type == "Conv")
    assert makers.get(first.input[1]) != "DequantizeLinear"
    assert [path.name for path in result.quantized.parent.iterdir()] == ["model.onnx"]


def test_mixed_leaves_the_file_where_nothing_is_better_in_int8(tmp_path: Path) -> None:
    class Still(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cos(x.flatten(1))[:, :3]

    task = task_of(Still(), n=96)
    artifact = exported_artifact_of(task.model, task, tmp_path)
    (tmp_path / "stage").mkdir()
    stage = MixedStage(settings=MixedQuantize(method="mixed", samples=32))
    result = run_stage(stage, artifact, task, tmp_path / "stage", Notes())
    assert result.precision == "fp32"
    assert result.quantized is not None
    assert result.quantized.read_bytes() == artifact.file.read_bytes()
    assert "no layer of this model is better in int8" in result.details.notes[0]


def test_every_layer_in_float_is_refused(tmp_path: Path) -> None:
    artifact, task = given(tmp_path, Net(width=16))
    (tmp_path / "stage").mkdir()
    stage = MixedStage(settings=MixedQuantize(method="mixed", samples=32, keep_float=["*"]))
    with pytest.raises(PreconditionError, match="names every layer"):
        run_stage(stage, artifact, task, tmp_path / "stage", Notes())


def test_a_candidate_that_cannot_meet_what_is_asked_is_not_chosen(tmp_path: Path) -> None:
    artifact, task = given(tmp_path, Net(width=16))
    size = artifact.file.stat().st_size
    requirements = task.recipe.requirements.model_copy(update={"max_size": 0.6 * size})
    task = replace(task, recipe=task.recipe.model_copy(update={"requirements": requirements}))
    result, _ = run(artifact, task, tmp_path, candidates=["int8", "bf16"])
    rows = {each.name: each for each in result.details.tried}
    assert rows["fp32"].note == "larger than max_size"
    assert not rows["fp32"].passes
    assert not rows["fp32"].chosen


def test_a_candidate_that_fails_when_it_is_asked_is_passed_over(tmp_path: Path) -> None:
    artifact, task = given(tmp_path, Net(width=16))
    result, _ = run(artifact, task, tmp_path, candidates=["bf16", "int8"], keep_float=["node_nowhere"])
    assert [each.name for each in result.details.tried] == ["fp32", "bf16"]
    assert any("int8 was passed over: " in note and "nowhere" in note for note in result.details.notes)
    (tmp_path / "stage").rename(tmp_path / "first")
    with pytest.raises(PreconditionError, match=r"no layer 'conf1'; closest: conv1"):
        run(artifact, task, tmp_path, keep_float=["conf1"])
