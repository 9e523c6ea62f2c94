"""The judgement as a user meets it: two files from anywhere, groups, thresholds, overrides, a second look."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from pastille.bundle import load_bundle
from pastille.bundle.manifest import read_manifest
from pastille.cli.app import app
from pastille.record import FinalJudged, StageFinished, ThresholdChosen, read_record
from pastille.record import TestOpened as Opened
from pastille.runtime import load
from pastille.stats.decisions import decisions

pytestmark = pytest.mark.e2e

OVERRIDE = {"by": "Dr. Ada Kern", "reason": "bench study, no patient is treated by it"}
DATA = """
import numpy as np
import pastille

def splits(n=(200, 400, 1200), seed=0):
    rng = np.random.default_rng(seed)
    def part(count):
        y = np.arange(count) % 2
        sex = np.array(["female", "male"])[rng.permutation(np.arange(count) % 10 < 8).astype(int)]
        x = rng.normal(0, 1, (count, 4)).astype(np.float32)
        x[:, 0] += np.where(y == 1, 4.0, -4.0)
        x[:, 1] = np.where(sex == "female", 1.0, -1.0)
        return pastille.Split(inputs=x, targets=y, groups={"sex": sex})
    return pastille.Splits(train=part(n[0]), validation=part(n[1]), test=part(n[2]))
"""
RECIPE: dict[str, Any] = {
    "name": "two-files",
    "task": {"kind": "binary", "labels": ["healthy", "ill"]},
    "data": {"source": "data.py:splits"},
    "requirements": {"risk": "low"},
}


def linear_model(path: Path, weights: list[float], bias: float = 0.0, name: str = "features") -> Path:
    """A logistic model as some other tool would write it: no PyTorch, and an input of its own name."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [name, "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["logit"]),
        ],
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(np.array(weights, np.float32)[:, None], "w"),
            numpy_helper.from_array(np.array([bias], np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    linear_model(tmp_path / "fp32.onnx", [1.0, 0.0, 0.1, 0.0])
    return tmp_path


def pastille(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def validate(folder: Path, candidate: str, *options: str | Path) -> Result:
    fixed: list[str | Path] = ["--against", folder / "fp32.onnx", "--data", folder / "recipe.yaml", "-q"]
    return pastille("validate", folder / candidate, *fixed, *options)


def test_two_files_from_anywhere_are_judged_without_torch(folder: Path) -> None:
    linear_model(folder / "other.onnx", [1.0, 0.0, 0.0, 0.05])
    command = (
        "import sys; from pastille.cli import main; sys.argv = ['pastille', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    arguments = [
        "validate",
        "other.onnx",
        "--against",
        "fp32.onnx",
        "--data",
        "recipe.yaml",
        "-q",
        "-o",
        "out",
    ]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "APPROVED on validation" in done.stdout
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "disagreements.csv",
        "report.html",
        "run.json",
        "verdict.json",
    ]
    evidence = json.loads((folder / "out/verdict.json").read_text())["evidence"]
    assert {c["metric"] for c in evidence["comparisons"]} >= {"accuracy", "sensitivity", "auroc", "f1"}
    assert evidence["invariance"]["cases"] > 0
    assert evidence["disagreement"]["file"] == "disagreements.csv"


def test_a_small_group_that_is_harmed_is_named_though_the_average_stays(folder: Path) -> None:
    """One case in five is a woman; ill women are called healthy a little more often."""
    linear_model(folder / "harmful.onnx", [1.0, -1.35, 0.1, 0.0], bias=-1.35)
    fair = ["--set", "requirements.fairness={by: [sex]}"]
    said = json.loads(validate(folder, "harmful.onnx", "--split", "test", *fair, "--json").stdout)
    overall = next(c for c in said["checks"] if c["metric"] == "accuracy" and not c["where"])
    assert overall["status"] == "approved"
    assert said["status"] == "rejected"
    (named,) = [c for c in said["checks"] if c["where"] == {"sex": "female"} and c["metric"] == "sensitivity"]
    assert named["status"] == "rejected"
    assert "sensitivity of sex female fell by" in said["reason"]
    men = [c for c in said["checks"] if c["where"] == {"sex": "male"}]
    assert {c["status"] for c in men} == {"approved"}
    # Without a limit the harm is said all the same.
    unasked = validate(folder, "harmful.onnx", "--split", "test")
    assert unasked.exit_code == 0
    assert "a group is harmed, though no fairness limit was asked for: sensitivity of sex female" in " ".join(
        unasked.stdout.split()
    )


def test_a_second_look_at_the_test_cases_is_said(folder: Path) -> None:
    first = validate(folder, "fp32.onnx", "--split", "test", "--json")
    second = validate(folder, "fp32.onnx", "--split", "test", "--json")
    assert json.loads(first.stdout)["notes"] == []
    (note,) = json.loads(second.stdout)["notes"]
    assert note.startswith("these test cases were opened 1 time before")
    assert note in json.loads(second.stdout)["reason"]
    assert validate(folder, "fp32.onnx").exit_code == 0  # validation may be looked at as often as one likes
    assert len((folder / "runs/test-openings.jsonl").read_text().splitlines()) == 2


def test_an_override_is_printed_wherever_the_verdict_is(folder: Path) -> None:
    linear_model(folder / "worse.onnx", [1.0, 0.0, 0.0, 0.4])
    asked = {
        **RECIPE,
        "requirements": {"risk": "critical", "max_drop": {"accuracy": "5 %", "sensitivity": "5 %"}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asked))
    refused = validate(folder, "worse.onnx")
    assert refused.exit_code == 2
    assert "must be at most 0.5 % at risk tier 'critical'" in refused.stderr
    asked["requirements"]["override"] = OVERRIDE
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asked))
    said = validate(folder, "worse.onnx", "-o", folder / "out")
    words = "Override by Dr. Ada Kern of risk tier 'critical' (0.5 %): max_drop.accuracy 5 %"
    assert words in " ".join(said.stdout.split())
    assert words in json.loads((folder / "out/verdict.json").read_text())["reason"]
    page = (folder / "out/report.html").read_text()
    assert "Override by Dr. Ada Kern" in page


def test_probabilities_are_recognised_and_not_taken_for_logits(folder: Path) -> None:
    model = onnx.load(folder / "fp32.onnx")
    model.graph.node.append(helper.make_node("Sigmoid", ["logit"], ["probability"]))
    model.graph.output[0].name = "probability"
    onnx.save(model, folder / "sigmoid.onnx")
    both: list[str | Path] = [
        "--against",
        folder / "sigmoid.onnx",
        "--data",
        folder / "recipe.yaml",
        "-q",
        "--json",
    ]
    refused = pastille("validate", folder / "sigmoid.onnx", *both)
    assert refused.exit_code == 2
    assert "task.outputs" in refused.stderr
    said = pastille("validate", folder / "sigmoid.onnx", *both, "--set", "task.outputs=probabilities")
    assert said.exit_code == 0, said.output
    (accuracy,) = [c for c in json.loads(said.stdout)["checks"] if c["metric"] == "accuracy"]
    assert accuracy["candidate"] > 0.99


def test_stress_and_calibration_are_gated_on_request(folder: Path) -> None:
    # Four times as sure, and thrown off by a feature that only noise brings.
    linear_model(folder / "sure.onnx", [4.0, 0.0, 0.4, 0.0])
    asked = [
        *("--set", "requirements.calibration={max_ece_increase: 1 %}"),
        *("--set", "requirements.stress={perturbations: [missing_values], severities: [3], cases: 200}"),
    ]
    said = json.loads(validate(folder, "sure.onnx", *asked, "--json").stdout)
    assert said["evidence"]["calibration"]["baseline_bins"]
    assert {c["metric"] for c in said["checks"]} >= {"ece", "invariance"}
    assert [c["perturbation"] for c in said["evidence"]["stress"]] == ["missing values"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.onnx"], "there is no file"),
        (["data.py"], "is not an ONNX model"),
        (["fp32.onnx", "--set", "requirements.fairness={by: [sexx]}"], "did you mean 'sex'?"),
        (["fp32.onnx", "--set", "requirements.stress={perturbations: [missing valus]}"], "missing_values?"),
        (["fp32.onnx", "--split", "train"], "--split must be validation or test"),
        (["fp32.onnx", "--set", "requirements.max_drop={dice: 1 %}"], "does not fit a binary task"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder: Path, arguments: list[str], words: str) -> None:
    result = validate(folder, arguments[0], *arguments[1:])
    assert result.exit_code in (2, 5), result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_a_file_with_other_inputs_is_named(folder: Path) -> None:
    wide = onnx.load(folder / "fp32.onnx")
    wide.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    wide.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((7, 1), np.float32), "w"))
    onnx.save(wide, folder / "wide.onnx")
    result = validate(folder, "wide.onnx")
    assert result.exit_code == 2
    assert "wide.onnx: input 'features' is float32 (7), but the data has float32 (4)" in result.stderr


def test_a_quantized_file_is_never_approved_at_tier_critical(finished: tuple[Path, Path, Result]) -> None:
    """How it was quantized cannot be read from it."""
    project, directory, _ = finished
    models = directory / "bundle/models"
    against: list[str | Path] = ["--against", models / "fp32.onnx", "--data", project / "recipe.yaml", "-q"]
    against += ["--set", "requirements.risk=critical", "--set", "plan=[]"]
    said = pastille("validate", models / "int8.onnx", *against)
    assert said.exit_code in (3, 4), said.output
    assert "post-training quantization alone is never approved" in " ".join(said.stdout.split())
    float_file = pastille("validate", models / "fp32.onnx", *against)
    assert "never approved" not in float_file.stdout


RUN = [
    *("--set", "requirements.max_drop.sensitivity=5 %"),
    *("--set", "requirements.fairness={by: [sex], undecided: report}"),
    *("--set", "requirements.calibration={max_ece_increase: 50 %}"),
    *(
        "--set",
        "requirements.stress={perturbations: [gaussian noise], severities: [1], cases: 60, "
        "max_extra_drop: 50 %}",
    ),
    *("--set", "plan=[{quantize: {samples: 64}}, {calibrate: {}}]"),
]


@pytest.fixture(scope="module")
def finished(new_project: Callable[[], Path]) -> tuple[Path, Path, Result]:
    project = new_project()
    result = pastille("run", project / "recipe.yaml", "-q", *RUN)
    (directory,) = (project / "runs/tiny").glob("*")
    return project, directory, result


def test_a_run_judges_everything_that_was_asked(finished: tuple[Path, Path, Result]) -> None:
    _, directory, result = finished
    assert result.exit_code == 0, result.output
    record = read_record(directory / "run.json")
    final = record.last(FinalJudged)
    assert final is not None
    evidence = final.verdict.evidence
    assert evidence is not None
    assert {c.metric for c in final.verdict.checks} >= {"accuracy", "sensitivity", "ece", "invariance"}
    assert any(c.where.get("sex") for c in final.verdict.checks)
    assert [f.attribute for f in evidence.fairness] == ["sex"]
    assert evidence.stress
    assert evidence.disagreement is not None
    assert (directory / evidence.disagreement.file).is_file()
    stages = record.all(StageFinished)
    assert [s.name for s in stages] == ["quantize", "calibrate"]
    assert stages[1].details.temperature is not None
    assert stages[1].profile.precision == "int8"


def test_the_manifest_carries_the_verdict_but_not_its_evidence(finished: tuple[Path, Path, Result]) -> None:
    manifest = read_manifest(finished[1] / "bundle/manifest.json")
    assert manifest.verdict.evidence is None
    assert manifest.verdict.checks
    assert b"disagreements" not in (finished[1] / "bundle/manifest.json").read_bytes()


def test_a_bundle_is_judged_against_its_own_fp32(finished: tuple[Path, Path, Result]) -> None:
    project, directory, _ = finished
    said = pastille("validate", directory / "bundle", "--data", project / "recipe.yaml", "-q", "--json")
    assert said.exit_code in (0, 4), said.output
    assert {c["metric"] for c in json.loads(said.stdout)["checks"]} >= {"accuracy", "sensitivity"}


def test_a_second_run_on_the_same_test_cases_says_so(finished: tuple[Path, Path, Result]) -> None:
    project, first, _ = finished
    result = pastille("run", project / "recipe.yaml", "-q", "--set", "plan=[{quantize: {samples: 32}}]")
    assert "these test cases were opened 1 time before" in " ".join(result.stdout.split())
    (second,) = [d for d in (project / "runs/tiny").glob("*") if d != first and d.is_dir()]
    (opened,) = read_record(second / "run.json").all(Opened)
    assert [o.by for o in opened.earlier] == [f"tiny/{first.name}"]
    assert "opened 1 time before" in (second / "report.html").read_text()


BINARY_DATA = """
import numpy as np
import pastille

def splits():
    rng = np.random.default_rng(0)
    def part(count):
        y = np.arange(count) % 2
        x = rng.normal(0, 1.2, (count, 1, 8, 8)).astype(np.float32)
        x[y == 1, :, 2:5, 2:5] += 1.0
        return pastille.Split(inputs=x, targets=y)
    return pastille.Splits(train=part(200), validation=part(200), test=part(400))
"""


def test_the_threshold_is_chosen_on_validation_kept_and_shipped(project: Path) -> None:
    (project / "data.py").write_text(BINARY_DATA)
    source = (project / "model.py").read_text()
    (project / "model.py").write_text(source.replace("classes=3", "classes=2"))
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["task"] = {
        "kind": "binary",
        "model": "model.py:build",
        "labels": ["healthy", "ill"],
        "threshold": {"sensitivity": "95 %"},
    }
    train = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05}
    recipe["plan"] = [{"finetune": train}, {"quantize": {"samples": 64}}, {"calibrate": {}}]
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = pastille("run", project / "recipe.yaml", "-q")
    assert result.exit_code in (0, 3, 4), result.output
    (directory,) = (project / "runs/tiny").glob("*")
    (chosen,) = read_record(directory / "run.json").all(ThresholdChosen)
    assert chosen.threshold != 0.5
    assert "95 %" in chosen.reason
    assert read_manifest(directory / "bundle/manifest.json").threshold == chosen.threshold
    manifest = load_bundle(directory / "bundle").manifest
    assert manifest.threshold == chosen.threshold
    # The temperature moved what the int8 file states, so that file has a threshold of its own.
    variant = manifest.variant("int8")
    assert variant.threshold not in (None, chosen.threshold)
    final = read_record(directory / "run.json").last(FinalJudged)
    assert final is not None
    spec = importlib.util.spec_from_file_location("binary_data", project / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = module.splits().test
    odds = load(directory / "bundle" / variant.file)({"input": test.inputs})["output"]
    called = decisions("binary", odds, threshold=variant.threshold)
    assert (called == test.targets).mean() == final.candidate_metrics.overall["accuracy"].value
    said = pastille("validate", directory / "bundle", "--data", project / "recipe.yaml", "-q", "--json")
    assert said.exit_code in (0, 3, 4), said.output
