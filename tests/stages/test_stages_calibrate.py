"""The last stage: the file's probabilities are scaled, its decisions are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit
from torch import nn

from pastille.data.cases import cases
from pastille.data.split import Split, Splits
from pastille.errors import PreconditionError, StageError
from pastille.export.temperature import scale_output, temperature_of
from pastille.measure.evaluate import answer
from pastille.progress import SILENT
from pastille.recipe import CalibrateStep, QuantizeStep, Recipe
from pastille.record import StageDetails
from pastille.runtime import load
from pastille.stages import Artifact, StageResult, run_stage, stage_for
from pastille.stats.temperature import fit_temperature, moved_threshold, thresholded
from pastille.task import Task
from pastille.values import TensorSpec

LABELS = {"binary": ["healthy", "ill"], "multiclass": ["a", "b", "c"], "multilabel": ["x", "y", "z"]}


def head(outputs: int, sureness: float, path: Path) -> Path:
    """A file that answers with ``sureness`` times its input, by a product that can be quantized."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["input", "weight"], ["output"], name="head")],
        "main",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", outputs])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(sureness * np.eye(outputs, dtype=np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def split(kind: str, n: int, seed: int) -> Split:
    """Inputs that are the log-odds which the targets were drawn from."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, (n, 1 if kind == "binary" else 3)).astype(np.float32)
    targets = (rng.random(odds.shape) < expit(odds)).astype(np.int64)
    if kind == "binary":
        return Split(inputs=odds, targets=targets[:, 0])
    return Split(
        inputs=odds,
        targets=targets if kind == "multilabel" else (odds + rng.gumbel(size=odds.shape)).argmax(axis=1),
    )


def given_task(
    folder: Path, kind: str, *, sureness: float = 3.0, n: int = 300, **section: Any
) -> tuple[Artifact, Task]:
    task_section = {"kind": kind, "model": "model.py:build", "labels": LABELS[kind], **section}
    recipe = Recipe.model_validate(
        {
            "name": "calibrated",
            "task": task_section,
            "data": {"source": "data.py:splits"},
            "requirements": {"risk": "low"},
            "plan": [{"calibrate": {}}],
        }
    )
    train, validation, test = (split(kind, n, seed) for seed in range(3))
    parts = Splits(train=train, validation=validation, test=test)
    model = nn.Identity()
    task = Task(
        recipe=recipe,
        build=lambda: model,
        model=model,
        splits=parts,
        cases={name: cases(part, name, recipe.task) for name, part in parts},
        inputs=(TensorSpec(name="input", shape=(1 if kind == "binary" else 3,), dtype="float32"),),
        data_digest="",
    )
    file = head(1 if kind == "binary" else 3, sureness, folder / "before.onnx")
    return Artifact(module=model, file=file), task


def calibrate() -> Any:
    return stage_for(CalibrateStep.model_validate({"calibrate": {}}), Path())


def run(artifact: Artifact, task: Task, folder: Path) -> StageResult:
    (folder / "stage").mkdir()
    return run_stage(calibrate(), artifact, task, folder / "stage", SILENT)


def answers(file: Path, task: Task) -> np.ndarray:
    return answer(load(file), task.splits.validation)


@pytest.mark.parametrize("kind", list(LABELS))
def test_the_file_answers_with_calibrated_logits(kind: str, tmp_path: Path) -> None:
    artifact, task = given_task(tmp_path, kind)
    result = run(artifact, task, tmp_path)
    assert result.quantized is not None
    assert result.precision == "fp32"
    assert result.module is artifact.module
    before, after = (answers(file, task) for file in (artifact.file, result.quantized))
    temperature = result.details.temperature
    assert temperature == fit_temperature(before, task.cases["validation"])
    assert temperature == temperature_of(result.quantized)
    assert 2.4 < temperature < 3.7  # what was drawn, times 3
    assert np.allclose(after * temperature, before, rtol=1e-5)
    assert fit_temperature(after, task.cases["validation"]) == pytest.approx(1, abs=1e-4)
    was, now = (thresholded(x, task.cases["validation"]) for x in (before, after))
    assert np.array_equal(was, now)
    assert result.details.threshold is None
    (note,) = result.details.notes
    assert note.startswith(f"temperature {temperature:.4g}: the expected calibration error on the 300 ")
    first, last = (float(word) for word in note.split("went from ")[1].removesuffix(" points").split(" to "))
    assert last < first


def test_a_quantized_file_stays_quantized(tmp_path: Path) -> None:
    artifact, task = given_task(tmp_path, "multiclass")
    quantize = stage_for(QuantizeStep.model_validate({"quantize": {"samples": 64}}), Path())
    (tmp_path / "int8").mkdir()
    quantized = run_stage(quantize, artifact, task, tmp_path / "int8", SILENT)
    assert quantized.quantized is not None
    assert quantized.precision == "int8"
    result = run(
        Artifact(module=quantized.module, file=quantized.quantized, precision=quantized.precision),
        task,
        tmp_path,
    )
    assert result.precision == "int8"
    assert result.quantized is not None
    assert result.details.temperature != 1.0
    assert len(onnx.load(result.quantized).graph.node) == len(onnx.load(quantized.quantized).graph.node) + 1


@pytest.mark.parametrize("positive", ["healthy", "ill"])
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_a_threshold_moves_with_the_probabilities(kind: str, positive: str, tmp_path: Path) -> None:
    section: dict[str, Any] = {"positive": [positive]} if kind == "binary" else {}
    artifact, task = given_task(tmp_path, kind, threshold=0.2, **section)
    result = run(artifact, task, tmp_path)
    details = result.details
    assert result.quantized is not None
    assert details.temperature is not None
    assert details.threshold is not None
    assert details.threshold == pytest.approx(moved_threshold(0.2, details.temperature), rel=1e-5)
    assert "the threshold moved with the probabilities from 0.2 to 0.3" in details.notes[1]
    before, after = (answers(file, task) for file in (artifact.file, result.quantized))
    asked = task.cases["validation"]
    moved = replace(asked, threshold=details.threshold)
    assert np.array_equal(thresholded(before, asked), thresholded(after, moved))
    assert not np.array_equal(thresholded(before, asked), thresholded(after, asked))


@pytest.mark.parametrize(
    ("factor", "why"), [(1.0, "decides nearly all of them rightly"), (-1.0, "tell nearly nothing")]
)
def test_where_no_temperature_is_best_the_probabilities_stay(factor: float, why: str, tmp_path: Path) -> None:
    artifact, task = given_task(tmp_path, "binary", sureness=factor)
    validation = replace(
        task.splits.validation, targets=(np.asarray(task.splits.validation.inputs)[:, 0] > 0).astype(int)
    )
    parts = replace(task.splits, validation=validation)
    asked = {**task.cases, "validation": cases(validation, "validation", task.recipe.task)}
    task = replace(task, splits=parts, cases=asked)
    result = run(artifact, task, tmp_path)
    assert result.quantized is not None
    assert result.details.temperature == 1.0
    assert "the probabilities were left as they are" in result.details.notes[0]
    assert why in result.details.notes[0]
    assert np.array_equal(answers(artifact.file, task), answers(result.quantized, task))


def test_requirements(tmp_path: Path) -> None:
    artifact, task = given_task(tmp_path, "binary")

    def of(**section: Any) -> Task:
        asked = task.recipe.task.model_copy(update=section)
        return replace(task, recipe=task.recipe.model_copy(update={"task": asked}))

    for kind in ("regression", "segmentation", "custom"):
        with pytest.raises(
            PreconditionError, match=f"calibrate: a {kind} task gives no probabilities; leave"
        ):
            calibrate().requires(artifact, of(kind=kind))
    with pytest.raises(PreconditionError, match="the model answers with probabilities; end it before its"):
        calibrate().requires(artifact, of(outputs="probabilities"))
    calibrate().requires(artifact, task)


def test_promises(tmp_path: Path) -> None:
    artifact, _ = given_task(tmp_path, "binary")
    scaled = tmp_path / "scaled.onnx"
    scale_output(artifact.file, scaled, 2.0, {"input": np.ones((2, 1), np.float32)})
    kept = StageResult(module=artifact.module, quantized=scaled, details=StageDetails(temperature=2.0))
    calibrate().ensures(artifact, kept)
    with pytest.raises(StageError, match="must write the temperature that it records"):
        calibrate().ensures(artifact, replace(kept, details=StageDetails(temperature=3.0)))
    with pytest.raises(StageError, match="must change the file alone"):
        calibrate().ensures(artifact, replace(kept, quantized=None))
    with pytest.raises(StageError, match="must change the file alone"):
        calibrate().ensures(artifact, replace(kept, module=nn.Linear(1, 1)))


def test_options_and_name() -> None:
    assert (calibrate().name, calibrate().options) == ("calibrate", {"method": "temperature"})
