"""Mixed precision by what a scan found: from the file of the scan to the layers that stay float."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from stages_task import Net, Notes, exported_artifact_of, task_of
from torch import nn

from pastille.errors import PreconditionError, RecipeError
from pastille.files import write_atomic
from pastille.recipe import QuantizeStep, Train, check_files, parse_recipe
from pastille.stages import Artifact, StageResult, run_stage, stage_for
from pastille.stages.scanning import ScanSettings, scan
from pastille.task import Task
from pastille.train import fit
from pastille.values import to_json
from pastille.values.scanned import Scan


@cache
def planted() -> nn.Module:
    """Its head has huge weights on a channel that is always zero, beside which all others are nothing."""
    torch.manual_seed(0)
    task = task_of(Net(width=16), n=96)
    parts = (task.splits.train, task.cases["train"]), (task.splits.validation, task.cases["validation"])
    net: Any = fit(task.model, *parts, Train(epochs=4, learning_rate=0.03), seed=0).model
    with torch.no_grad():
        net.conv2.weight[0], net.conv2.bias[0] = 0, -1
        net.head.weight[:, 0] = 300.0
    return net.eval()  # type: ignore[no-any-return]


@cache
def found() -> Scan:
    return scan(planted(), task_of(planted(), n=96), ScanSettings(techniques=("quantization",), cases=64))


def given(folder: Path) -> tuple[Artifact, Task]:
    task = task_of(planted(), n=96)
    measure = task.recipe.measure.model_copy(update={"seconds": 0.1})
    task = replace(task, recipe=task.recipe.model_copy(update={"measure": measure}))
    return exported_artifact_of(task.model, task, folder), task


def run(folder: Path, known: Scan, **settings: Any) -> StageResult:
    artifact, task = given(folder)
    write_atomic(folder / "scan.json", to_json(known))
    asked = {"method": "mixed", "samples": 32, "goal": "smallest", "scan": "scan.json", **settings}
    stage = stage_for(QuantizeStep.model_validate({"quantize": asked}), folder)
    (folder / "stage").mkdir()
    return run_stage(stage, artifact, task, folder / "stage", Notes())


def test_what_the_scan_found_to_be_harmed_stays_float(tmp_path: Path) -> None:
    assert found().ranking("quantization")[0] == "head"
    result = run(tmp_path, found())
    assert result.precision == "int8"
    assert list(result.details.left_whole) == ["head"]
    why = result.details.left_whole["head"]
    assert why.startswith("accuracy needs float")
    assert "the scan found that it alone in int8 changes the loss by +" in why
    assert "dB" not in why  # nothing was measured a second time
    assert any("1 of 3 layers stay float, after 1 trials" in note for note in result.details.notes)


def test_layers_that_it_knows_nothing_of_are_named(tmp_path: Path) -> None:
    some = replace(found(), effects=tuple(e for e in found().effects if e.layer != "conv1"))
    notes = run(tmp_path, some).details.notes
    assert "the scan knows nothing of 1 layers, which go to float last: conv1" in notes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_digest": "0" * 64}, r"quantize.scan: .*made of a model with other weights"),
        ({"schema": 99}, r"quantize.scan: .*has schema 99, but this Pastille reads 1"),
        ({"effects": ()}, r"quantize.scan: .*no effect of quantization; scan with --technique quantization"),
    ],
)
def test_one_that_does_not_fit_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match=said):
        run(tmp_path, replace(found(), **changes))


def test_one_of_other_names_is_refused_in_one_line(tmp_path: Path) -> None:
    renamed = tuple(replace(effect, layer=f"net.{effect.layer}") for effect in found().effects)
    with pytest.raises(
        PreconditionError, match=r"quantize.scan: no layer of the file has the name"
    ) as caught:
        run(tmp_path, replace(found(), effects=renamed))
    assert "the file has conv1, conv2, head; the scan has net.conv1, net.conv2, net.head" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_missed_at_once(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "name": "x",
            "task": {"kind": "multiclass", "model": "torchvision:resnet18", "labels": ["a", "b"]},
            "data": {"source": "data:splits"},
            "plan": [{"quantize": {"method": "mixed", "scan": "scan.json"}}],
        }
    )
    with pytest.raises(RecipeError, match=r"plan.0.quantize.scan: there is no file .*scan.json"):
        check_files(recipe, tmp_path)
