"""Quantization after training as a stage: what is tried, what is kept, and what is said of it."""

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

from pastille.data.cases import cases
from pastille.errors import PreconditionError
from pastille.quantization.conversion import float_model
from pastille.recipe import Quantize, Train
from pastille.stages import Artifact, StageResult, run_stage
from pastille.stages.calibration import others, sample
from pastille.stages.looking import MARGIN, _share, looking
from pastille.stages.quantize import QuantizeStage
from pastille.task import Task
from pastille.train import fit

SPREAD = "calibration samples: answers vary by"


def trained(task: Task, epochs: int = 4) -> nn.Module:
    pairs = [(task.splits.train, task.cases["train"]), (task.splits.validation, task.cases["validation"])]
    return fit(task.model, pairs[0], pairs[1], Train(epochs=epochs, learning_rate=0.03), seed=0).model


def given(folder: Path, model: nn.Module | None = None, n: int = 120) -> tuple[Artifact, Task]:
    torch.manual_seed(0)
    task = task_of((model or Net(width=16)).eval(), n=n)
    return exported_artifact_of(trained(task), task, folder), task


def run(artifact: Artifact, task: Task, folder: Path, **settings: Any) -> StageResult:
    inside = folder / f"stage-{len(list(folder.iterdir()))}"
    inside.mkdir()
    stage = QuantizeStage(settings=Quantize(**{"samples": 32, **settings}))
    return run_stage(stage, artifact, task, inside, Notes())


class BadlyScaled(nn.Module):
    """Channels whose sizes differ by thousands: one range leaves most of them no steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        out: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return out

    def unbalance(self) -> None:
        """The same function, each hidden channel scaled up by what the next layer takes back."""
        factors = torch.logspace(0, 4, 16)
        assert self.conv1.bias is not None
        with torch.no_grad():
            self.conv1.weight *= factors[:, None, None, None]
            self.conv1.bias *= factors
            self.conv2.weight /= factors[:, None, None]


class TestRecovery:
    def test_what_loses_nothing_is_left_plain(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, n=480)
        result = run(artifact, task, tmp_path)
        assert not any("recovery" in note for note in result.details.notes)
        plain = run(artifact, task, tmp_path, recover="none")
        assert result.quantized is not None
        assert plain.quantized is not None
        assert result.quantized.read_bytes() == plain.quantized.read_bytes()

    def test_what_loses_much_is_won_back(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        task = task_of(BadlyScaled().eval(), n=240)
        model = trained(task, epochs=8)
        model.unbalance()  # type: ignore[operator]
        artifact = exported_artifact_of(model, task, tmp_path)
        seen = looking(artifact, task, Notes())
        plain, mended = (
            run(artifact, task, tmp_path, recover=recover, draws=1) for recover in ("none", "auto")
        )
        assert plain.quantized is not None
        assert mended.quantized is not None
        before, after = seen.at(plain.quantized), seen.at(mended.quantized)
        assert before.spent > MARGIN
        assert after.spent < before.spent / 2
        (said,) = (note for note in mended.details.notes if "recovery was tried" in note)
        assert "equalization" in said

    def test_named_techniques_are_said(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        result = run(artifact, task, tmp_path, recover=["bias_correction"], draws=1)
        assert result.details.notes == ("made by minmax ranges, bias_correction",)


class TestLayers:
    def test_the_last_layer_stays_float_on_request(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        result = run(artifact, task, tmp_path, keep_float=["conv1", "last"], draws=1)
        assert result.quantized is not None
        graph = onnx.load(result.quantized).graph
        makers = {name: node for node in graph.node for name in node.output}
        products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        dequantized = {
            node.op_type: [makers[n].op_type for n in node.input if n in makers] for node in products
        }
        assert len(products) == 3
        assert "DequantizeLinear" not in dequantized["Gemm"][1:]
        assert result.details.int8_operators["QLinearConv"] == 1

    def test_a_layer_that_is_not_there(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        with pytest.raises(PreconditionError, match=r"no layer 'conf1'; closest: conv1, conv2"):
            run(artifact, task, tmp_path, keep_float=["conf1"])


class TestSamples:
    def test_the_spread_over_samples_is_said(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        (said,) = (n for n in run(artifact, task, tmp_path).details.notes if SPREAD in n)
        assert said.startswith("3 calibration samples")
        assert "decisions on validation" in said
        for settings in ({"draws": 1}, {"samples": 120}):  # nothing to compare, or all samples are the same
            assert not any(SPREAD in n for n in run(artifact, task, tmp_path, **settings).details.notes)

    def test_draws_differ_and_repeat(self) -> None:
        task = task_of(Net(), n=120)
        first, second = sample(task, 32), sample(task, 32, draw=1)
        assert not np.array_equal(first.rows, second.rows)
        assert np.array_equal(sample(task, 32, draw=1).rows, second.rows)

    def test_others_calibrated_nothing(self) -> None:
        task = task_of(Net(), n=120)
        drawn = sample(task, 32)
        rest = others(drawn, 50)
        assert len(rest.rows) == 50
        assert not set(rest.rows) & set(drawn.rows)
        assert len(others(drawn, 1000).rows) == 120 - 32

    def test_a_group_that_calibration_does_not_cover_is_named(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, n=300)
        bright = np.zeros(300, bool)
        bright[:40] = True
        inputs = np.stack([np.asarray(task.splits.train.inputs[i]) for i in range(300)])
        inputs[bright] *= 6
        # Balanced over strata, calibration would hold bright ones; the sample is drawn from dark ones alone.
        split = replace(
            task.splits.train, inputs=inputs, groups={"scanner": np.where(bright, "bright", "dark")}
        )
        held = cases(split, "train", task.recipe.task)
        task = replace(task, splits=replace(task.splits, train=split), cases={**task.cases, "train": held})
        result = run(artifact, task, tmp_path, calibration="percentile", percentile=90, draws=1)
        warnings = [note for note in result.details.notes if "calibrate on more of them" in note]
        assert warnings
        assert all("scanner 'bright'" in note for note in warnings)


def test_a_file_that_is_quantized_already(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    result = run(artifact, task, tmp_path, draws=1)
    assert result.quantized is not None
    with pytest.raises(PreconditionError, match="is quantized already"):
        float_model(result.quantized)


def test_a_look_spends_what_a_limit_allows(tmp_path: Path) -> None:
    """Random answers lose all that a limit allows many times over; the file itself loses nothing."""
    artifact, task = given(tmp_path)
    seen = looking(artifact, task, Notes())
    same = seen.at(artifact.file)
    assert (same.spent, same.rejected, seen.passes(same)) == (0.0, False, True)
    torch.manual_seed(1)
    (tmp_path / "random").mkdir()
    random = exported_artifact_of(Net(width=16).eval(), task, tmp_path / "random")
    other = seen.at(random.file)
    assert other.rejected
    assert not seen.passes(other)
    assert seen.loses(other)
    drop = (np.argmax(seen.before, 1) == task.cases["validation"].targets).mean() - (
        np.argmax(other.outputs, 1) == task.cases["validation"].targets
    ).mean()
    assert other.spent == pytest.approx(drop / 0.05)  # risk low: five points


def test_what_earlier_stages_lost_counts(tmp_path: Path) -> None:
    """A file that an earlier stage made worse leaves no room: nothing may lose more than it did."""
    artifact, task = given(tmp_path)
    torch.manual_seed(1)
    (tmp_path / "random").mkdir()
    worse = exported_artifact_of(Net(width=16).eval(), task, tmp_path / "random")
    seen = looking(replace(worse, baseline=artifact.file), task, Notes())
    assert seen.start.spent > MARGIN
    assert not seen.loses(seen.at(worse.file))  # all of it was lost before
    assert not seen.passes(seen.start)  # and it is rejected already
    assert seen.passes(seen.at(artifact.file))


@pytest.mark.parametrize(
    ("drop", "limit", "spent"), [(0.01, 0.02, 0.5), (0.002, 0.0, np.inf), (0.0, 0.0, 0.0)]
)
def test_a_limit_of_nothing_is_spent_by_anything(drop: float, limit: float, spent: float) -> None:
    assert _share(drop, limit) == spent
