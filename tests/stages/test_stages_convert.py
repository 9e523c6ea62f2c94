"""Dynamic int8, weights in blocks and 16 bits as a stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from stages_task import Net, Notes, exported_artifact_of, task_of
from torch import nn

from pastille.errors import CalibrationError, PreconditionError
from pastille.recipe import QuantizeStep, parse_recipe
from pastille.stages import Artifact, StageResult, run_stage, stage_for
from pastille.stages.looking import answers_of
from pastille.task import Task


class Wide(nn.Module):
    """Two linear layers that hold nearly all of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 256), nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return out


def given(folder: Path, model: nn.Module | None = None) -> tuple[Artifact, Task]:
    torch.manual_seed(0)
    task = task_of((model or Wide()).eval(), n=96)
    return exported_artifact_of(task.model, task, folder), task


def run(artifact: Artifact, task: Task, folder: Path, **settings: Any) -> StageResult:
    (folder / "stage").mkdir()
    stage = stage_for(QuantizeStep.model_validate({"quantize": settings}), Path())
    return run_stage(stage, artifact, task, folder / "stage", Notes())


@pytest.mark.parametrize(
    ("settings", "precision", "operator", "share", "error"),
    [
        ({"method": "dynamic"}, "int8", "MatMulInteger", 0.3, 0.05),
        ({"method": "dynamic", "ranges": "row"}, "int8", "MatMulNBits", 0.55, 0.05),
        ({"method": "int8-weights", "rounding": "rtn"}, "int8", "MatMulNBits", 0.4, 0.02),
        ({"method": "int4", "rounding": "rtn"}, "int4", "MatMulNBits", 0.25, 0.2),
        ({"method": "int4", "rounding": "gptq", "samples": 64}, "int4", "MatMulNBits", 0.25, 0.2),
        ({"method": "fp16"}, "fp16", "Cast", 0.55, 0.005),
        ({"method": "bf16"}, "bf16", "Cast", 0.55, 0.02),
    ],
)
def test_each_method_writes_its_file(
    settings: dict[str, Any], precision: str, operator: str, share: float, error: float, tmp_path: Path
) -> None:
    artifact, task = given(tmp_path)
    result = run(artifact, task, tmp_path, **settings)
    assert result.precision == precision
    assert result.module is artifact.module
    assert result.quantized is not None
    assert operator in {node.op_type for node in onnx.load(result.quantized).graph.node}
    assert result.quantized.stat().st_size < share * artifact.file.stat().st_size
    before, after = answers_of(artifact.file, task), answers_of(result.quantized, task)
    assert np.abs(after - before).max() < error * np.abs(before).max()
    assert "converted" in result.details.notes[0]


def test_layers_kept_on_request_are_named(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    result = run(artifact, task, tmp_path, method="int4", rounding="rtn", keep_float=["last"])
    assert len(result.details.left_whole) == 1
    assert result.details.notes[0].endswith("1 left as they were")


def test_nothing_to_convert(tmp_path: Path) -> None:
    class Still(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cos(x.flatten(1))[:, :3]

    artifact, task = given(tmp_path, Still())
    with pytest.raises(PreconditionError, match="no linear layer or LSTM to convert"):
        run(artifact, task, tmp_path, method="dynamic")


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_a_model_of_convolutions_alone_has_no_blocks(rounding: str, tmp_path: Path) -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(1, 3, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(x).flatten(1)
            return out

    artifact, task = given(tmp_path, Convolution())
    with pytest.raises(PreconditionError, match="no linear layer with a constant weight to convert"):
        run(artifact, task, tmp_path, method="int4", rounding=rounding, samples=32)


def test_a_mask_that_is_no_input(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    with pytest.raises(PreconditionError, match=r"quantize.mask must be one of the inputs input, got 'mask'"):
        run(artifact, task, tmp_path, method="int4", mask="mask", samples=64)


def test_too_few_samples_to_solve_with(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    train = task.splits.train
    few = replace(train, inputs=np.asarray(train.inputs)[:9], targets=train.targets[:9])
    task = replace(task, splits=replace(task.splits, train=few))
    with pytest.raises(CalibrationError, match="at least 16 samples, but the split holds 9"):
        run(artifact, task, tmp_path, method="int4", samples=32)


def test_a_convolution_net_keeps_its_convolutions(tmp_path: Path) -> None:
    artifact, task = given(tmp_path, Net(width=16))
    result = run(artifact, task, tmp_path, method="dynamic")
    assert result.quantized is not None
    assert [n.op_type for n in onnx.load(result.quantized).graph.node].count("Conv") == 2


def test_a_tier_that_does_not_permit_int4(tmp_path: Path) -> None:
    from pastille import policy
    from pastille.errors import RecipeError

    asked = {
        "name": "r",
        "task": {"kind": "regression", "model": "m.py:f"},
        "data": {"source": "d.py:s"},
        "plan": [{"quantize": {"method": "int4"}}],
    }
    for risk in ("high", "medium"):
        with pytest.raises(RecipeError, match="must not be 'int4' at risk tier"):
            policy.check(parse_recipe({**asked, "requirements": {"risk": risk}}))
    policy.check(parse_recipe({**asked, "requirements": {"risk": "low"}}))
    override = {"by": "Dr. Ada Kern", "reason": "research use only"}
    signed = parse_recipe({**asked, "requirements": {"risk": "high", "override": override}})
    policy.check(signed)
    assert "quantize.method int4" in str(policy.override_note(signed))
    with pytest.raises(RecipeError, match="never approved there; train in int8"):
        policy.check(parse_recipe({**asked, "requirements": {"risk": "critical", "override": override}}))
