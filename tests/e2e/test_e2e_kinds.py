"""The main job for tasks of other kinds: several labels, masks, a metric of the user's own, probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from pastille.bundle import load_bundle
from pastille.cli.app import app
from pastille.data.cases import cases
from pastille.recipe import Train, read_recipe
from pastille.record import FinalJudged, StageFinished, read_record
from pastille.references import load_callable
from pastille.train import fit

pytestmark = pytest.mark.e2e

MODEL = """
from torch import nn

def block(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())

class Findings(nn.Module):
    def __init__(self, sigmoid=False):
        super().__init__()
        self.body = nn.Sequential(block(1, 16), nn.MaxPool2d(2), block(16, 16), nn.AdaptiveMaxPool2d(1))
        self.head = nn.Linear(16, 3)
        self.last = nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, x):
        return self.last(self.head(self.body(x).flatten(1)))

def organs():
    return nn.Sequential(block(1, 16), block(16, 16), nn.Conv2d(16, 3, 1))

def boxes():
    return nn.Sequential(
        block(1, 16), nn.MaxPool2d(2), block(16, 16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 2)
    )
"""

DATA = """
import numpy as np
import pastille

def parts(make, n=(160, 60, 300)):
    found = [make(np.random.default_rng(seed), count) for seed, count in enumerate(n)]
    return pastille.Splits(train=found[0], validation=found[1], test=found[2])

def noise(rng, n):
    return rng.normal(0, 0.15, (n, 1, 16, 16)).astype(np.float32)

def findings():
    def make(rng, n):
        x, y = noise(rng, n), (rng.random((n, 3)) < [0.5, 0.35, 0.25]).astype(int)
        for image, (row, column, square) in zip(x[:, 0], y):
            image[rng.integers(0, 16)] += 2 * row
            image[:, rng.integers(0, 16)] += 2 * column
            top, left = rng.integers(0, 12, 2)
            image[top : top + 4, left : left + 4] -= 2 * square
        sex = np.array(["f", "m"])[rng.integers(0, 2, n)]
        return pastille.Split(inputs=x, targets=y, groups={"sex": sex})
    return parts(make)

def organs():
    def make(rng, n):
        x, y = noise(rng, n), np.zeros((n, 16, 16), np.uint8)
        for image, mask in zip(x[:, 0], y):
            for label, size in ((1, 7), (2, 4)):
                top, left = rng.integers(0, 16 - size, 2)
                mask[top : top + size, left : left + size] = label
            image += np.array([0, 1.5, -1.5])[mask]
        return pastille.Split(inputs=x, targets=y)
    return parts(make)

def boxes():
    def make(rng, n):
        x, y = noise(rng, n), rng.integers(2, 14, (n, 2)).astype(np.float32)
        for image, (top, left) in zip(x[:, 0], y.astype(int)):
            image[top - 2 : top + 2, left - 2 : left + 2] += 2
        return pastille.Split(inputs=x, targets=y / 16)
    return parts(make)
"""

METRIC = """
import numpy as np

def centre_error(outputs, targets):
    return float(np.abs(outputs - targets).mean())

centre_error.higher_is_better = False
"""

FINDINGS = {
    "kind": "multilabel",
    "model": "model.py:Findings",
    "labels": ["row", "column", "square"],
    "positive": ["row", "column", "square"],
}
ORGANS = {"kind": "segmentation", "model": "model.py:organs", "labels": ["background", "liver", "spleen"]}
BOXES = {"kind": "custom", "model": "model.py:boxes", "metric": "metric.py:centre_error"}
TUNE = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
PLANS: dict[str, list[dict[str, Any]]] = {
    "findings": [
        {"prune": {"sparsity": 0.25, "round_to": 4, "finetune": {**TUNE, "class_weights": "balanced"}}}
    ],
    "organs": [{"finetune": {**TUNE, "class_weights": "balanced"}}],
    "boxes": [{"prune": {"sparsity": 0.1, "round_to": 1, "criterion": "l2"}}],
}


def project(base: Path, task: dict[str, Any], data: str, *, plan: list[dict[str, Any]], limits: Any) -> Path:
    """A folder with a trained model, its data and its recipe; returns the recipe."""
    for name, text in (("model.py", MODEL), ("data.py", DATA), ("metric.py", METRIC)):
        (base / name).write_text(text)
    recipe = {
        "name": data,
        "task": {**task, "weights": "trained.safetensors"},
        "data": {"source": f"data.py:{data}"},
        "requirements": {"risk": "low", "max_drop": limits},
        "measure": {"seconds": 0.05, "batch_sizes": [1, 2], "memory": False},
        "plan": plan,
    }
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return base / "recipe.yaml"


def train(base: Path, *, epochs: int) -> None:
    """Train what the recipe names, as a task that can be trained, and save its weights."""
    section = read_recipe(base / "recipe.yaml")
    task = section.task.model_copy(update={"outputs": "logits", "arguments": {}})
    build = load_callable(task.model, base, key="task.model")
    splits = load_callable(section.data.source, base, key="data.source")()  # type: ignore[union-attr]
    pairs = [(part, cases(part, name, task)) for name, part in splits if name != "test"]
    asked = Train(epochs=epochs, learning_rate=0.05, batch_size=16, class_weights="balanced")
    save_file(
        fit(build(), pairs[0], pairs[1], asked, seed=0).model.state_dict(), base / "trained.safetensors"
    )


def carry_out(recipe: Path, *options: str) -> tuple[dict[str, Any], Path]:
    """Run the recipe; what the command said, and the run's folder."""
    result = CliRunner().invoke(app, ["run", str(recipe), "--quiet", "--json", *options])
    assert result.exit_code in (0, 3, 4), result.output
    said: dict[str, Any] = json.loads(result.stdout)
    directory = Path(said["bundle"]).parent
    assert CliRunner().invoke(app, ["verify", said["bundle"]]).exit_code == 0
    assert (directory / "report.html").stat().st_size > 10_000
    return said, directory


def test_several_labels(tmp_path: Path) -> None:
    plan = [*PLANS["findings"], {"quantize": {"samples": 64}}]
    recipe = project(tmp_path, FINDINGS, "findings", plan=plan, limits={"balanced_accuracy": "5 %"})
    train(tmp_path, epochs=25)
    said, directory = carry_out(recipe)
    assert said["test"]["baseline"]["overall"]["balanced_accuracy"]["value"] > 0.9
    assert {"row", "column", "square"} <= set(json.dumps(said["test"]["baseline"]["per_class"]).split('"'))
    record = read_record(directory / "run.json")
    assert [stage.name for stage in record.all(StageFinished)] == ["prune", "quantize"]
    splits = load_callable("data.py:findings", tmp_path, key="data.source")()
    answer = load_bundle(said["bundle"]).predict(splits.test.inputs)
    given = np.array([[label in row for label in FINDINGS["labels"]] for row in answer.decisions])
    assert (given == splits.test.targets).mean() > 0.9


def test_masks(tmp_path: Path) -> None:
    plan = [*PLANS["organs"], {"quantize": {"samples": 64}}]
    recipe = project(tmp_path, ORGANS, "organs", plan=plan, limits={"dice": "5 %"})
    train(tmp_path, epochs=8)
    said, directory = carry_out(recipe)
    assert said["status"] == "approved", said["verdict"]["reason"]
    assert said["candidate"]["precision"] == "int8"
    assert said["test"]["candidate"]["overall"]["dice"]["value"] > 0.85
    splits = load_callable("data.py:organs", tmp_path, key="data.source")()
    answer = load_bundle(said["bundle"]).predict(splits.test.inputs[:20])
    assert answer.masks is not None
    assert (answer.masks == splits.test.targets[:20]).mean() > 0.9
    final = read_record(directory / "run.json").last(FinalJudged)
    assert final is not None
    assert {check.metric for check in final.verdict.checks} >= {"dice"}


def test_a_metric_of_the_users_own(tmp_path: Path) -> None:
    plan = [{"quantize": {"samples": 64}}]
    recipe = project(tmp_path, BOXES, "boxes", plan=plan, limits={"centre_error": 0.05})
    _fit_boxes(tmp_path)
    said, directory = carry_out(recipe)
    assert said["status"] == "approved", said["verdict"]["reason"]
    (check,) = [c for c in said["verdict"]["checks"] if c["metric"] == "centre_error"]
    assert 0 < check["baseline"] < 0.1
    assert check["drop"] == pytest.approx(check["candidate"] - check["baseline"])  # lower is better
    answer = load_bundle(said["bundle"]).predict(np.zeros((3, 1, 16, 16), np.float32))
    assert (answer.decisions, answer.probabilities) == ((), None)
    assert answer.outputs.shape == (3, 2)
    assert (directory / "bundle/golden/cases.npz").is_file()


def _fit_boxes(base: Path) -> None:
    """Custom tasks have no loss of ours: the user trains, here by least squares on the body's features."""
    import torch

    torch.manual_seed(0)
    model = load_callable("model.py:boxes", base, key="task.model")()
    splits = load_callable("data.py:boxes", base, key="data.source")()
    x, y = torch.from_numpy(splits.train.inputs), torch.from_numpy(splits.train.targets)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    save_file(model.state_dict(), base / "trained.safetensors")


def test_a_custom_task_is_not_finetuned(tmp_path: Path) -> None:
    recipe = project(tmp_path, BOXES, "boxes", plan=[{"finetune": TUNE}], limits={"centre_error": 0.05})
    _fit_boxes(tmp_path)
    result = CliRunner().invoke(app, ["run", str(recipe), "-q"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith("finetune: a custom task has no loss to minimise; leave finetune out of the plan")
    assert not (tmp_path / "runs").exists()


def test_a_model_that_answers_probabilities(tmp_path: Path) -> None:
    """The same weights with and without a sigmoid behind them: the same figures, the same answers."""
    limits, plan = {"balanced_accuracy": "5 %"}, [{"quantize": {"samples": 64}}]
    given: dict[str, Any] = {}
    for outputs in ("logits", "probabilities"):
        base = tmp_path / outputs
        base.mkdir()
        task = {**FINDINGS, "outputs": outputs, "arguments": {"sigmoid": outputs == "probabilities"}}
        recipe = project(base, task, "findings", plan=plan, limits=limits)
        if outputs == "logits":
            train(base, epochs=12)
        else:
            (base / "trained.safetensors").write_bytes((tmp_path / "logits/trained.safetensors").read_bytes())
        said, _ = carry_out(recipe)
        splits = load_callable("data.py:findings", base, key="data.source")()
        given[outputs] = said, load_bundle(said["bundle"]).predict(splits.test.inputs)
    (logits, plain), (chances, ended) = given["logits"], given["probabilities"]
    for metric in ("balanced_accuracy", "auroc"):
        values = [said["test"]["baseline"]["overall"][metric]["value"] for said in (logits, chances)]
        assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert ended.outputs.min() >= 0
    assert ended.outputs.max() <= 1
    same = np.mean([a == b for a, b in zip(plain.decisions, ended.decisions, strict=True)])
    assert same > 0.97
    (tmp_path / "logits/recipe.yaml").write_text(
        (tmp_path / "probabilities/recipe.yaml").read_text().replace("  outputs: probabilities\n", "")
    )
    result = CliRunner().invoke(app, ["run", str(tmp_path / "logits/recipe.yaml"), "-q"])
    assert result.exit_code == 2
    assert "set task.outputs: probabilities" in result.stderr
