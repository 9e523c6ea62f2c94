"""The stages of a plan: prune, finetune, quantize."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stages_task import Net, Notes, artifact_of, exported_artifact_of, task_of
from torch import nn

from pastille.data.sampler import calibration_indices
from pastille.data.split import Split
from pastille.errors import CalibrationError, PreconditionError, StageError, UsageError
from pastille.pruning import remove
from pastille.pruning.removal import layer_widths
from pastille.recipe import FinetuneStep, Prune, PruneStep, QuantizeStep, SparsePrune
from pastille.record import StageDetails, WidthChange
from pastille.runtime import load
from pastille.stages import Artifact, StageResult, run_stage, stage_for
from pastille.stages.contract import state_digest
from pastille.stages.removing import goals
from pastille.stats.metrics import headline_value
from pastille.task import Task
from pastille.values import Kind


def prune_stage(base: Path = Path(), **options: Any) -> Any:
    return stage_for(PruneStep.model_validate({"prune": {"sparsity": 0.5, **options}}), base)


def finetune_stage(base: Path = Path(), **options: Any) -> Any:
    return stage_for(FinetuneStep.model_validate({"finetune": {"epochs": 1, **options}}), base)


def quantize_stage(**options: Any) -> Any:
    return stage_for(QuantizeStep.model_validate({"quantize": {"samples": 32, **options}}), Path())


def given_model(folder: Path, model: nn.Module | None = None, **task: Any) -> tuple[Artifact, Task]:
    torch.manual_seed(0)
    model = (model or Net()).eval()
    made = task_of(model, **task)
    return artifact_of(model, folder), made


def exported_model(folder: Path, model: nn.Module | None = None, **task: Any) -> tuple[Artifact, Task]:
    artifact, made = given_model(folder, model, **task)
    return exported_artifact_of(artifact.module, made, folder), made


def run(stage: Any, artifact: Artifact, task: Task, progress: Any = None) -> StageResult:
    folder = artifact.file.parent / "stage"
    folder.mkdir()
    return run_stage(stage, artifact, task, folder, progress or Notes())


@given(target=st.floats(0.01, 0.95), steps=st.integers(1, 20))
def test_steps_rise_to_the_target_by_equal_shares_of_what_is_left(target: float, steps: int) -> None:
    settings = Prune(sparsity=target, steps=steps, layers={"head": 0.3}, heads=target)
    found = [goal.sparsity or 0.0 for goal in goals(settings, original={}, widths=None)]
    assert len(found) == steps
    assert found[-1] == settings.sparsity
    left = [1.0, *(1 - s for s in found)]
    shares = [after / before for before, after in pairwise(left)]
    assert shares == pytest.approx([shares[0]] * steps)
    assert 0 < shares[0] < 1
    last = goals(settings, original={}, widths=None)[-1]
    assert (last.layers, last.heads, last.blocks) == ({"head": 0.3}, settings.heads, None)


@pytest.mark.parametrize("stage", [prune_stage(), finetune_stage(), quantize_stage()])
def test_options_are_what_was_asked_with_defaults(stage: Any) -> None:
    assert stage.options
    assert json.loads(json.dumps(dict(stage.options))) == stage.options
    assert {"prune": 0.5, "finetune": 1, "quantize": 32}[stage.name] in stage.options.values()


class TestPrune:
    def test_widths_and_reasons_are_recorded(self, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path)
        result = run(prune_stage(), artifact, task)
        assert layer_widths(result.module) == {"conv1": 16, "conv2": 16, "head": 3}
        assert set(result.details.widths) == {
            WidthChange(module="conv1", before=32, after=16),
            WidthChange(module="conv2", before=32, after=16),
        }
        assert result.details.left_whole == {"head": "makes the model's output"}
        assert result.details.curves == ()
        assert result.quantized is None

    def test_several_steps_with_fine_tuning_in_between(self, tmp_path: Path) -> None:
        artifact, task = exported_model(tmp_path)
        progress = Notes()
        result = run(prune_stage(steps=2, finetune={"epochs": 2}), artifact, task, progress)
        assert layer_widths(result.module)["conv1"] == 16
        assert [curve.stage for curve in result.details.curves] == [
            "after pruning step 1 of 2",
            "after pruning step 2 of 2",
        ]
        assert all(len(curve.loss) == 2 for curve in result.details.curves)
        assert progress.notes[0] == "pruning step 1 of 2: 2 layers narrowed"

    def test_steps_that_the_rounding_swallows_are_passed_over(self, tmp_path: Path) -> None:
        """Five steps to half of 32 channels, in multiples of 8: only 24 and 16 are on the way."""
        artifact, task = exported_model(tmp_path)
        progress = Notes()
        result = run(prune_stage(steps=5), artifact, task, progress)
        assert layer_widths(result.module)["conv1"] == 16
        assert len(progress.notes) == 2

    def test_rounding_that_forbids_every_cut_is_the_users_to_mend(self, tmp_path: Path) -> None:
        artifact, task = exported_model(tmp_path)
        with pytest.raises(PreconditionError, match=r"no narrower multiple of 32.*lower round_to"):
            run(prune_stage(steps=2, round_to=32), artifact, task)

    def test_a_later_step_that_fails_is_not_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise a model would ship that is pruned less than was asked, and nobody would know."""
        artifact, task = exported_model(tmp_path)
        real, calls = remove, []

        def second_fails(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise PreconditionError("the pruned model no longer runs")
            return real(*args, **kwargs)

        monkeypatch.setattr("pastille.stages.removing.remove", second_fails)
        with pytest.raises(PreconditionError, match="no longer runs"):
            run(prune_stage(steps=2), artifact, task)

    def test_requirements(self, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path)
        flat = Artifact(module=nn.Sequential(nn.BatchNorm1d(3)), file=artifact.file)
        with pytest.raises(PreconditionError, match="no convolution or linear layer"):
            prune_stage().requires(flat, task)
        frozen = Artifact(module=Net().requires_grad_(False), file=artifact.file)
        prune_stage().requires(frozen, task)
        with pytest.raises(
            PreconditionError, match=r"prune.finetune: the model has no parameter that requires"
        ):
            prune_stage(finetune={"epochs": 1}).requires(frozen, task)
        with pytest.raises(UsageError, match=r"augment: there is no file .*augment.py"):
            prune_stage(tmp_path, finetune={"epochs": 1, "augment": "augment.py:flip"}).requires(
                artifact, task
            )

    def test_promises(self, tmp_path: Path) -> None:
        artifact, _ = given_model(tmp_path)
        same = StageResult(module=artifact.module, details=StageDetails())
        with pytest.raises(StageError, match="must remove parameters, but removed none"):
            prune_stage().ensures(artifact, same)
        odd = (WidthChange(module="conv1", before=32, after=13),)
        narrow = StageResult(module=Net(13), details=StageDetails(widths=odd))
        with pytest.raises(StageError, match=r"must keep multiples of 8: \['conv1'\]"):
            prune_stage().ensures(artifact, narrow)
        prune_stage(round_to=13).ensures(artifact, narrow)


class TestFinetune:
    def test_it_learns_and_records_the_curve(self, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path)
        result = run(finetune_stage(epochs=4, batch_size=8, learning_rate=0.05), artifact, task)
        (curve,) = result.details.curves
        assert len(curve.loss) == len(curve.validation) == 4
        assert max(curve.validation) > 0.9
        assert result.module is not artifact.module

    def test_augmentation_comes_from_a_file_beside_the_recipe(self, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path)
        (tmp_path / "augment.py").write_text("def blank(x, generator):\n    return x * 0\n")
        result = run(
            finetune_stage(tmp_path, epochs=4, batch_size=8, learning_rate=0.05, augment="augment.py:blank"),
            artifact,
            task,
        )
        assert max(result.details.curves[0].validation) < 0.9

    def test_the_seed_of_the_recipe_decides(self, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path)
        stage = finetune_stage(epochs=1)
        one, two = (stage.apply(artifact, task, tmp_path, Notes()).module for _ in range(2))
        assert state_digest(one) == state_digest(two)

    def test_requirements_and_promises(self, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path)
        frozen = Artifact(module=Net().requires_grad_(False), file=artifact.file)
        with pytest.raises(PreconditionError, match="finetune: the model has no parameter that requires"):
            finetune_stage().requires(frozen, task)
        with pytest.raises(StageError, match="must not change the architecture"):
            finetune_stage().ensures(artifact, StageResult(module=Net(16), details=StageDetails()))


SPARSE = {"method": "unstructured", "sparsity": 0.5}


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (lambda train: finetune_stage(**train), "finetune"),
        (lambda train: prune_stage(finetune=train), "prune.finetune"),
        (lambda train: stage_for(PruneStep(prune=SparsePrune(**SPARSE, train=train)), Path()), "prune.train"),
        (lambda train: quantize_stage(method="qat", train=train), "quantize.train"),
    ],
    ids=["finetune", "prune", "sparse", "qat"],
)
@pytest.mark.parametrize("asked", [{"loss": "focal"}, {"class_weights": "balanced"}], ids=str)
def test_what_is_for_classes_is_refused_for_numbers_before_the_run(
    made: Any, key: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    artifact, task = exported_model(tmp_path, Net(outputs=1), regression=True)
    made({"epochs": 1}).requires(artifact, task)
    with pytest.raises(PreconditionError, match=rf"^{key}\.{next(iter(asked))}.* the task is a regression"):
        made({"epochs": 1, **asked}).requires(artifact, task)


def answers(file: Path, task: Task) -> np.ndarray:
    (out,) = load(file)({"input": np.stack(list(task.splits.validation.inputs))}).values()
    return out


class TestQuantize:
    @pytest.mark.parametrize("calibration", ["minmax", "percentile"])
    def test_an_int8_file_is_made_beside_the_float_one(self, calibration: str, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path)
        trained = run(finetune_stage(epochs=4, batch_size=8, learning_rate=0.05), artifact, task).module
        (tmp_path / "stage").rename(tmp_path / "first")
        artifact = exported_artifact_of(trained, task, tmp_path)
        progress = Notes()
        result = run(quantize_stage(calibration=calibration), artifact, task, progress)
        assert result.quantized == tmp_path / "stage" / "model.onnx"
        assert result.module is trained
        assert result.details.calibration_samples == 32
        assert result.details.int8_operators["QLinearConv"] == 2
        assert ("calibrating", 1) in progress.tracked
        cases = task.cases["validation"]
        before, after = (headline_value(answers(f, task), cases) for f in (artifact.file, result.quantized))
        assert before > 0.9
        assert after > before - 0.05

    def test_a_regression_is_calibrated_over_quantiles(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifact, task = exported_model(tmp_path, Net(outputs=1), regression=True)
        asked: list[Kind] = []

        def sample(split: Split, n: int, *, seed: int, kind: Kind) -> np.ndarray:
            asked.append(kind)
            return calibration_indices(split, n, seed=seed, kind=kind)

        monkeypatch.setattr("pastille.stages.calibration.calibration_indices", sample)
        result = run(quantize_stage(), artifact, task)
        assert set(asked) == {"regression"}
        assert result.details.calibration_samples == 32
        assert result.quantized is not None
        assert (
            np.corrcoef(answers(artifact.file, task)[:, 0], answers(result.quantized, task)[:, 0])[0, 1]
            > 0.99
        )

    @pytest.mark.parametrize(
        ("n", "samples", "problem"),
        [
            (1, 32, "must have at least 16 samples, but the split holds 1"),
            (15, 32, "must have at least 16 samples, but the split holds 15"),
        ],
    )
    def test_too_few_samples(self, n: int, samples: int, problem: str, tmp_path: Path) -> None:
        artifact, task = given_model(tmp_path, n=n)
        with pytest.raises(CalibrationError, match=problem):
            run(quantize_stage(samples=samples), artifact, task)

    def test_a_model_without_int8_kernels_is_told_to_leave_it_out(self, tmp_path: Path) -> None:
        class Cosine(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.cos(x.flatten(1))[:, :3]

        artifact, task = exported_model(tmp_path, Cosine())
        with pytest.raises(PreconditionError, match="has an int8 kernel; leave quantize out of the plan"):
            run(quantize_stage(), artifact, task)
