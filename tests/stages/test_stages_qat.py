"""Quantization with training in int8, on a small task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from stages_task import Net, Notes, exported_artifact_of, task_of
from torch import nn

from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.pruning import prune, read_model
from pastille.quantization.qat import prepare
from pastille.recipe import Distill, QatQuantize, Train
from pastille.runtime import load
from pastille.stages import run_stage
from pastille.stages.contract import StageResult, state_digest
from pastille.stages.qat import QatStage, equal_decisions
from pastille.stages.qat_training import Trained, train_in_int8
from pastille.task import Task, example_batch
from pastille.train import fit

EASY = Train(epochs=4, learning_rate=0.05, batch_size=16)


def stage(**changes: Any) -> QatStage:
    given: dict[str, Any] = {"method": "qat", "samples": 32, "train": EASY, **changes}
    return QatStage(settings=QatQuantize(**given), base=Path())


def trained_net(task: Task) -> nn.Module:
    pairs = [(task.splits.train, task.cases["train"]), (task.splits.validation, task.cases["validation"])]
    return fit(task.model, pairs[0], pairs[1], Train(epochs=4, learning_rate=0.02), seed=0).model


def small_task(**changes: Any) -> Task:
    torch.manual_seed(0)
    regression = changes.get("regression", False)
    return task_of(Net(width=16, outputs=1 if regression else 3).eval(), **changes)


def run(task: Task, folder: Path, module: nn.Module | None = None, **changes: Any) -> StageResult:
    artifact = exported_artifact_of(task.model if module is None else module, task, folder)
    inside = folder / "stage"
    inside.mkdir()
    return run_stage(stage(**changes), artifact, task, inside, Notes())


def trained(task: Task, folder: Path, settings: Train, *, bits: int | None = None, **changes: Any) -> Trained:
    """The training alone, without the rest of the stage; ``simulation.start`` is what PTQ scores."""
    artifact = exported_artifact_of(task.model, task, folder)
    inside = folder / f"stage-{len(list(folder.iterdir()))}"
    inside.mkdir()
    quick = run_stage(stage(train=Train(epochs=1)), artifact, task, inside, Notes())
    assert quick.quantized is not None
    ready = prepare(artifact.file, quick.quantized, task.model, weight_bits=bits)
    given: dict[str, Any] = {"freeze_after": 0.6, "distill": None, "augment": None, "progress": Notes()}
    return train_in_int8(ready.simulation, settings, task, **{**given, **changes})


@pytest.mark.parametrize("regression", [False, True])
def test_it_learns_and_file_module_and_training_agree(regression: bool, tmp_path: Path) -> None:
    task = small_task(regression=regression)
    task = task_of(trained_net(task), regression=regression)
    result = run(task, tmp_path)
    assert result.precision == "int8"
    assert result.quantized == tmp_path / "stage" / "model.onnx"
    (curve,) = result.details.curves
    assert curve.best_epoch > 0
    assert curve.validation[curve.best_epoch - 1] == max(curve.validation)
    assert sum(result.details.int8_operators.values()) >= 4
    # The module holds the weights behind the file: exported in float, it answers nearly the same.
    export_onnx(result.module, example_batch(task.splits.train.inputs), tmp_path / "float.onnx")
    inputs = {"input": np.asarray(task.splits.validation.inputs)}
    in_float, in_int8 = (load(p)(inputs)["output"] for p in (tmp_path / "float.onnx", result.quantized))
    assert np.abs(in_float - in_int8).mean() < 0.1 * in_float.std()
    assert not result.details.notes


def test_the_safe_form_rebuilds_the_module(tmp_path: Path) -> None:
    task = small_task()
    result = run(task, tmp_path)
    again = read_model(lambda: Net(width=16), tmp_path / "stage")
    assert state_digest(again) == state_digest(result.module)


def test_a_pruned_model_is_trained(tmp_path: Path) -> None:
    task = task_of(Net(width=32).eval())
    pruned = prune(task.model, example_batch(task.splits.train.inputs), sparsity=0.5, round_to=16).model
    result = run(task, tmp_path, pruned)
    assert result.module.get_submodule("conv1").weight.shape[0] == 16  # type: ignore[index]
    assert read_model(Net, tmp_path / "stage").get_submodule("conv1").weight.shape[0] == 16  # type: ignore[index]


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        result = run(small_task(), tmp_path / name)
        assert result.quantized is not None
        files.append(result.quantized.read_bytes())
    assert files[0] == files[1]


def test_a_diverging_run_is_stopped_and_the_best_is_kept(tmp_path: Path) -> None:
    task = small_task()
    task = task_of(trained_net(task))
    result = run(task, tmp_path, train=Train(epochs=5, learning_rate=300, batch_size=16))
    note, kept = result.details.notes
    assert kept == "no epoch of training in int8 beat quantization alone, whose file this is"
    assert "training in int8 was stopped in epoch 1" in note
    assert "what quantization gave before it is kept; lower learning_rate" in note
    (curve,) = result.details.curves
    assert (curve.best_epoch, curve.validation) == (0, ())
    assert state_digest(result.module) == state_digest(task.model)


def test_at_critical_risk_the_file_of_quantization_alone_is_not_an_outcome(tmp_path: Path) -> None:
    task = small_task()
    requirements = task.recipe.requirements.model_copy(update={"risk": "critical"})
    task = replace(task, recipe=task.recipe.model_copy(update={"requirements": requirements}))
    huge = Train(epochs=2, learning_rate=300.0, batch_size=16)
    module = trained_net(task)
    result = run(task, tmp_path, module, train=huge)
    assert result.details.curves[0].best_epoch == 0
    assert result.precision == "fp32"
    assert result.quantized is not None
    assert result.quantized.read_bytes() == (tmp_path / "before.onnx").read_bytes()
    assert "whose file this risk tier does not permit" in result.details.notes[-1]


def test_ranges_stay_after_the_share_of_epochs(tmp_path: Path) -> None:
    task = small_task()
    settings = EASY.model_copy(update={"epochs": 5, "schedule": "constant", "learning_rate": 0.5})
    spans = []

    def growth(rounding: Any) -> tuple[float, ...]:
        return tuple((rounding.average / rounding.reference).tolist())

    for share in (0.0, 1.0):
        model = trained(task, tmp_path, settings, freeze_after=share).model
        spans.append([growth(r) for r in list(model.roundings)[1:]])
    assert all(high == 1.0 for _, high in spans[0])
    assert any(high != 1.0 for _, high in spans[1])


def test_training_recovers_what_coarse_weights_lose(tmp_path: Path) -> None:
    task = small_task(n=96)
    task = task_of(trained_net(task), n=96)
    settings = Train(epochs=8, learning_rate=0.3, batch_size=16)
    found = trained(task, tmp_path, settings, bits=2)
    assert found.curve.best_epoch > 0
    assert found.curve.loss[-1] < 0.9 * found.curve.loss[0]


def test_distillation_pulls_towards_the_float_model(tmp_path: Path) -> None:
    task = small_task()
    settings = Train(epochs=3, learning_rate=0.5, batch_size=16)
    teacher = task.model
    pulled, free = (
        trained(task, tmp_path, settings, distill=distill).curve.loss
        for distill in ((Distill(alpha=1.0), teacher), None)
    )
    assert pulled[0] < 0.01  # it starts as the teacher, rounded
    assert free[0] > 0.5


def test_a_file_that_decides_otherwise_is_noticed(tmp_path: Path) -> None:
    task = small_task()
    result = run(task, tmp_path)
    assert result.quantized is not None
    ready = prepare(tmp_path / "before.onnx", result.quantized, task.model)
    assert equal_decisions(ready.simulation.eval(), result.quantized, task).shape == (48,)
    model = onnx.load(result.quantized)
    for tensor in model.graph.initializer:
        if tensor.name == "model.head.weight_quantized":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    assert equal_decisions(ready.simulation.eval(), tmp_path / "other.onnx", task).mean() < 0.9


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    task = small_task()
    artifact = exported_artifact_of(task.model, task, tmp_path)
    artifact.module.requires_grad_(False)
    with pytest.raises(PreconditionError, match="no weight that requires a gradient"):
        stage().requires(artifact, task)
    artifact.module.requires_grad_(True)
    section = task.recipe.task.model_copy(update={"outputs": "probabilities"})
    changed = task.recipe.model_copy(update={"task": section})
    odd = Task(**{**{f: getattr(task, f) for f in task.__dataclass_fields__}, "recipe": changed})
    with pytest.raises(PreconditionError, match=r"losses need logits.*use method: ptq"):
        stage().requires(artifact, odd)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_layer_is_refused_before_any_work(kind: str, tmp_path: Path) -> None:
    task = small_task()
    net = nn.ModuleDict({"body": nn.Sequential(getattr(nn, kind)(4, 4)), "head": nn.Linear(4, 2)})
    artifact = replace(exported_artifact_of(task.model, task, tmp_path), module=net)
    with pytest.raises(PreconditionError) as caught:
        stage(samples=10**6).requires(artifact, task)  # too many, which would be found next
    assert str(caught.value) == (
        f"quantize: training in int8 cannot go through operator {kind} (body.0); leave quantize out, or use "
        "method: ptq or dynamic where the risk tier permits it"
    )


def test_options_are_what_was_asked() -> None:
    found = stage(distill=Distill(alpha=0.3)).options
    assert found["method"] == "qat"
    assert found["train"]["epochs"] == 4
    assert found["freeze_observers_after"] == 0.6
    assert found["distill"] == {"alpha": 0.3, "temperature": 2.0, "method": "kl", "hints": None}
