"""A finished run taken apart: its plan without one stage after the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from pastille.cli.app import app
from pastille.record import (
    Ablated,
    BaselineProfiled,
    Record,
    StageFinished,
    appended,
    read_record,
    write_record,
)
from pastille.record import TestOpened as Opened

pytestmark = pytest.mark.e2e

PLAN: list[dict[str, Any]] = [
    {"prune": {"sparsity": 0.5, "finetune": {"epochs": 4, "batch_size": 16}}},
    {"quantize": {"samples": 64}},
]


def pastille(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def changed(project: Path, **keys: Any) -> Path:
    path = project / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def done(new_project: Callable[[], Path]) -> tuple[Path, Path, dict[str, Any]]:
    """A run that was taken apart: its recipe, its directory, and what the command printed."""
    recipe = changed(new_project(), plan=PLAN)
    assert pastille("run", recipe, "--quiet").exit_code in (0, 4)
    (directory,) = (recipe.parent / "runs/tiny").glob("*-*")
    result = pastille("ablate", recipe, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    return recipe, directory, json.loads(result.stdout)


Done = tuple[Path, Path, dict[str, Any]]


def record_of(directory: Path) -> Record:
    return read_record(directory / "run.json")


def test_a_row_for_the_whole_plan_and_for_each_stage(done: Done) -> None:
    _, directory, found = done
    rows = found["rows"]
    assert [row["stage"] for row in rows] == ["", "prune", "quantize"]
    assert [row["index"] for row in rows] == [0, 1, 2]
    record = record_of(directory)
    baseline, (pruned, whole) = record.last(BaselineProfiled), record.all(StageFinished)
    assert baseline is not None
    assert rows[0]["size_bytes"] == whole.profile.bytes_on_disk
    assert rows[0]["worse"] is None
    # Unpruned but quantized: between the baseline and the whole plan.
    assert rows[0]["size_bytes"] < rows[1]["size_bytes"] < baseline.profile.bytes_on_disk
    # Without quantizing it is the file of the prune, which was computed once.
    assert rows[2]["size_bytes"] == pruned.profile.bytes_on_disk
    assert rows[2]["estimate"]["value"] == pruned.profile.metrics.overall["accuracy"].value


def test_the_loss_is_paired_with_the_whole_plan(done: Done) -> None:
    _, _, found = done
    whole, *others = found["rows"]
    for row in others:
        assert row["worse"] == pytest.approx(whole["estimate"]["value"] - row["estimate"]["value"])
        assert row["interval"]["low"] <= row["worse"] <= row["interval"]["high"]


def test_what_came_before_the_left_out_stage_is_not_computed_anew(done: Done) -> None:
    _, directory, _ = done
    made = [p.parent.relative_to(directory).as_posix() for p in directory.glob("ablation/**/model.onnx")]
    assert made == ["ablation/without-01-prune/stages/01-quantize"]


def test_the_test_split_stays_closed_and_the_bundle_stays_whole(done: Done) -> None:
    _, directory, _ = done
    assert len(record_of(directory).all(Opened)) == 1
    assert not (directory / "ablation/without-01-prune/final").exists()
    assert pastille("verify", directory / "bundle").exit_code == 0


def test_the_report_has_the_table(done: Done) -> None:
    _, directory, _ = done
    page = (directory / "report.html").read_text()
    assert 'id="ablation"' in page
    assert "without 1 prune" in page
    # What was sealed before is as it was.
    assert 'id="ablation"' not in (directory / "bundle/evidence/report.html").read_text()


def test_started_again_it_computes_what_is_missing_alone(done: Done, tmp_path: Path) -> None:
    recipe, directory, found = done
    project = tmp_path / "project"
    shutil.copytree(recipe.parent, project)
    copied = project / directory.relative_to(recipe.parent)
    record = record_of(copied)
    kept = [e for e in record.events if not (isinstance(e, Ablated) and e.left_out.index == 1)]
    again = Record(name=record.name)
    for event in kept:
        again = appended(again, event)
    write_record(again, copied / "run.json")
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*.onnx")}
    result = pastille("ablate", project / "recipe.yaml", "--quiet", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[1] == found["rows"][1]
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*.onnx")} == before


def test_without_a_finished_run_it_is_one_line(project: Path) -> None:
    result = pastille("ablate", project / "recipe.yaml", "--quiet")
    assert result.exit_code == 2
    assert "no finished run of this recipe" in result.output
    assert "pastille run" in result.output


def test_with_other_data_it_is_refused(done: Done, tmp_path: Path) -> None:
    recipe, _, _ = done
    project = tmp_path / "project"
    shutil.copytree(recipe.parent, project)
    data = project / "data.py"
    data.write_text(data.read_text().replace("seed=0", "seed=1"))
    result = pastille("ablate", project / "recipe.yaml", "--quiet")
    assert result.exit_code == 2
    assert "data changed" in result.output


SMALL = """
from torch import nn

def build():
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


def test_a_stage_that_the_rest_cannot_do_without_keeps_no_other_row_back(
    new_project: Callable[[], Path],
) -> None:
    """The pruning names a module that only the student has."""
    student = {"student": {"model": "small.py:build"}, "epochs": 15, "batch_size": 16, "learning_rate": 0.05}
    plan = [
        {"distill": student},
        {"prune": {"sparsity": 0.25, "round_to": 2, "protect": ["0.3"]}},
        {"finetune": {"epochs": 1, "batch_size": 16}},
    ]
    recipe = changed(new_project(), plan=plan)
    (recipe.parent / "small.py").write_text(SMALL)
    assert pastille("run", recipe, "--quiet").exit_code in (0, 4)
    result = pastille("ablate", recipe, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["stage"] for row in found["rows"]] == ["", "prune and finetune", "finetune"]
    (sentence,) = found["impossible"]
    assert sentence.startswith("without distill: the rest of the plan cannot be carried out (prune.protect")
    assert sentence in pastille("ablate", recipe, "--quiet").output.replace("\n", " ")
