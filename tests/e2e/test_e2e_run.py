"""The main job as a user carries it out: recipe in; verdict, bundle and report out."""

from __future__ import annotations

import json
import pickletools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pastille.cli.app import app
from pastille.record import BundleWritten, FinalJudged, StageFinished, read_record
from pastille.record import TestOpened as Opened

pytestmark = pytest.mark.e2e


def pastille(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def run(project: Path, *options: str) -> tuple[Result, Path]:
    result = pastille("run", project / "recipe.yaml", "--quiet", *options)
    found = sorted((project / "runs/tiny").glob("*")) if (project / "runs/tiny").is_dir() else []
    return result, found[-1] if found else project


@pytest.fixture(scope="module")
def done(new_project: Callable[[], Path]) -> tuple[Path, Path, Result]:
    """A run that passed: its project, its directory and what the command printed."""
    project = new_project()
    result, directory = run(project, "--json")
    return project, directory, result


Done = tuple[Path, Path, Result]


def test_a_model_that_passes(done: Done) -> None:
    _, directory, result = done
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["status"] == "approved"
    assert said["selected"] in ("int8", "fp32")
    assert said["candidate"]["size_bytes"] < said["baseline"]["size_bytes"]
    assert said["candidate"]["precision"] == "int8"
    assert Path(said["bundle"]) == directory / "bundle"
    names = [e.event for e in read_record(directory / "run.json").events]
    assert names == [
        "started",
        "task_loaded",
        "baseline_profiled",
        *["stage_finished"] * 3,
        "test_opened",
        "final_judged",
        "bundle_written",
    ]
    assert pastille("verify", directory / "bundle").exit_code == 0


def test_every_profile_carries_its_conditions(done: Done) -> None:
    _, directory, _ = done
    for file in (directory / "stages").glob("*/profile.json"):
        profile = json.loads(file.read_text())
        assert [x["batch"] for x in profile["latency"]] == [1, 2]
        for latency in profile["latency"]:
            assert latency["conditions"]["device"]
            assert latency["conditions"]["threads"] == 1
        assert profile["parameters"] > 0
        assert profile["macs"] > 0


def test_nothing_on_disk_is_a_pickle(done: Done) -> None:
    _, directory, _ = done
    files = [p for p in directory.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 15
    for file in files:
        data = file.read_bytes()
        assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), file
        with pytest.raises(Exception):  # noqa: B017, PT011 - any: it must not parse as one
            list(pickletools.genops(data))


def test_the_pruned_model_is_rebuilt_in_a_fresh_process(done: Done) -> None:
    project, directory, _ = done
    code = (
        "import sys, numpy as np, torch; from pathlib import Path\n"
        "from pastille.pruning import read_model; from pastille.references import load_callable\n"
        "from pastille.runtime import load\n"
        "base, stage = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "model = read_model(load_callable('model.py:build', base, key='task.model'), stage)\n"
        "x = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)\n"
        "want = load(stage / 'model.onnx')({'input': x})['output']\n"
        "got = model(torch.from_numpy(x)).detach().numpy()\n"
        "print(sum(p.numel() for p in model.parameters()), abs(got - want).max())\n"
    )
    stage = directory / "stages/01-prune"
    process = subprocess.run(
        [sys.executable, "-c", code, project, stage], capture_output=True, text=True, check=True, timeout=120
    )
    count, error = process.stdout.split()
    assert int(count) < 16 * 9 + 16 * 16 * 9
    assert float(error) < 1e-4


def test_a_stage_that_harms_is_dropped_and_fp32_is_served(project: Path) -> None:
    result, directory = run(project, "--set", "plan=[{prune: {sparsity: 0.9, round_to: 1}}]")
    assert result.exit_code == 3, result.output
    record = read_record(directory / "run.json")
    stage, final = record.last(StageFinished), record.last(FinalJudged)
    assert stage is not None
    assert final is not None
    assert not stage.kept
    assert final.selected == "fp32"
    assert "nothing was compressed" in final.verdict.reason
    assert not (directory / "bundle/models/int8.onnx").exists()
    assert pastille("verify", directory / "bundle").exit_code == 0


def test_a_prune_is_judged_together_with_the_finetune_after_it(project: Path) -> None:
    plan = "plan=[{prune: {sparsity: 0.9, round_to: 1}}, {finetune: {epochs: 1, learning_rate: 1.0e-9}}]"
    result, directory = run(project, "--set", plan)
    assert result.exit_code == 3
    prune, finetune = read_record(directory / "run.json").all(StageFinished)
    assert prune.kept
    assert "fine-tuning that follows" in prune.consequence
    assert not finetune.kept
    final = read_record(directory / "run.json").last(FinalJudged)
    assert final is not None
    assert final.candidate == "baseline"


def test_too_few_cases_are_inconclusive(project: Path) -> None:
    result, _ = run(
        project,
        "--json",
        "--set",
        "requirements={risk: medium}",
        "--set",
        "data.arguments={n: [150, 60, 60]}",
    )
    assert result.exit_code == 4, result.output
    said = json.loads(result.stdout)
    assert said["selected"] == "fp32"
    assert any((check["more_cases"] or 0) > 50 for check in said["verdict"]["checks"])


def test_a_size_that_is_missed_is_rejected(project: Path) -> None:
    result, _ = run(project, "--json", "--set", "requirements.max_size=2 kB")
    assert result.exit_code == 3, result.output
    said = json.loads(result.stdout)
    assert said["selected"] == "fp32"
    sizes = [c for c in said["verdict"]["checks"] if c["metric"] == "size"]
    assert sizes[0]["status"] == "rejected"


def test_the_test_split_is_opened_once(done: Done) -> None:
    _, directory, _ = done
    assert len(read_record(directory / "run.json").all(Opened)) == 1


def test_the_same_seed_gives_the_same_content(done: Done, project: Path) -> None:
    _, one, _ = done
    _, two = run(project)
    assert content(one) == content(two)
    _, other = run(project, "--set", "seed=1")
    assert content(other) != content(one)


def content(directory: Path) -> Any:
    written = read_record(directory / "run.json").last(BundleWritten)
    assert written is not None
    return written.content


def test_commands_on_what_a_run_left(done: Done, tmp_path: Path) -> None:
    project, directory, _ = done
    page = tmp_path / "again.html"
    assert pastille("report", directory, "-o", page).exit_code == 0
    assert "<html" in page.read_text()
    int8, fp32 = (directory / f"bundle/models/{n}.onnx" for n in ("int8", "fp32"))
    judged = pastille(
        "validate", int8, "-r", project / "recipe.yaml", "--baseline", fp32, "--split", "test", "--json", "-q"
    )
    assert judged.exit_code == 0, judged.output
    assert json.loads(judged.stdout)["status"] == "approved"
    own = pastille("validate", int8, "-r", project / "recipe.yaml", "-q")
    assert own.exit_code in (0, 4), own.output
    timed = pastille("bench", directory / "bundle", "--batch", "1", "--json", "-q")
    assert timed.exit_code == 0, timed.output
    assert json.loads(timed.stdout)["int8"]["speedups"][0]["ratio"] > 0
    profiled = pastille("profile", project / "recipe.yaml", "-o", tmp_path / "baseline.json", "-q")
    assert profiled.exit_code == 0, profiled.output
    assert (
        json.loads((tmp_path / "baseline.json").read_text())["metrics"]["overall"]["accuracy"]["value"] > 0.9
    )


def test_the_bundle_answers_like_the_record_says(done: Done) -> None:
    import importlib.util

    import numpy as np

    from pastille import load_bundle

    project, directory, _ = done
    spec = importlib.util.spec_from_file_location("tiny_data", project / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = module.splits().test
    answer = load_bundle(directory / "bundle").predict(np.stack(list(test.inputs)))
    labels = np.array(["a", "b", "c"])
    share = float((np.array(answer.decisions) == labels[test.targets]).mean())
    final = read_record(directory / "run.json").last(FinalJudged)
    assert final is not None
    metrics = final.candidate_metrics if final.selected == "int8" else final.baseline_metrics
    assert share == pytest.approx(metrics.overall["accuracy"].value)
