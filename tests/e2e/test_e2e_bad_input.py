"""Bad input: one line that names what is wrong, what is allowed and what to do; exit code 2."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pastille.cli.app import app

Change = dict[str, Any]

_NAN = """
import numpy as np, pastille
import data
def splits():
    s = data.splits()
    s.validation.inputs[7, 0, 3, 3] = np.nan
    return s
"""


@pytest.fixture(scope="module")
def project(new_project: Callable[[], Path]) -> Path:
    """One project for all: what is wrong lies in a recipe of the test's own."""
    return new_project()


def refused(project: Path, changes: Change, files: dict[str, str] | None = None) -> str:
    """Run a changed recipe; it must be refused in one line. Returns that line."""
    for name, text in (files or {}).items():
        (project / name).write_text(text)
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    for key, value in changes.items():
        place = recipe
        *path, last = key.split(".")
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    changed = project / "changed.yaml"
    changed.write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(app, ["run", str(changed), "-q"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.output
    assert not (project / "runs").exists(), "nothing may be begun"
    return line


def test_unknown_key_with_the_closest_match(project: Path) -> None:
    line = refused(project, {"requirments": {"risk": "low"}})
    assert "unknown key 'requirments'; did you mean 'requirements'?" in line


def test_a_missing_recipe() -> None:
    result = CliRunner().invoke(app, ["run", "nowhere.yaml"])
    assert result.exit_code == 2
    assert "nowhere.yaml: cannot read the recipe: No such file" in result.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task.weights": "lost.safetensors"}, "there is no file"),
        ({"task.model": "lost.py:build"}, "there is no file"),
        ({"task.model": "model.py:bild"}, "no callable 'bild'; it has: build"),
        ({"task.model": "model.py"}, "must be FILE.py:CALLABLE or package.module:CALLABLE"),
        ({"data.source": "lost.py:splits"}, "there is no file"),
    ],
)
def test_missing_files_and_names(project: Path, changes: Change, said: str) -> None:
    assert said in refused(project, changes)


def test_a_factory_that_raises(project: Path) -> None:
    line = refused(project, {"task.model": "bad1.py:build"}, {"bad1.py": "def build():\n    return 1 / 0\n"})
    assert "bad1.py:build raised ZeroDivisionError: division by zero" in line


def test_a_factory_that_returns_no_module(project: Path) -> None:
    line = refused(project, {"task.model": "bad2.py:build"}, {"bad2.py": "def build():\n    return 3\n"})
    assert "must return a torch.nn.Module, got int" in line


def test_weights_that_do_not_fit(project: Path) -> None:
    line = refused(project, {"task.arguments": {"classes": 4}}, {"model4.py": ""} | _factory("model4.py"))
    assert "does not accept" in line or "build raised TypeError" in line
    line = refused(project, {"task.model": "model5.py:build"}, _factory("model5.py", classes=4))
    assert "head.weight: file (3, 16), model (4, 16)" in line


def _factory(name: str, classes: int = 3) -> dict[str, str]:
    return {name: f"from model import Net\ndef build():\n    return Net({classes})\n"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("y = s.train.targets[:0]; x = s.train.inputs[:0]", "train"),
        ("y = s.train.targets * 0; x = s.train.inputs", "train"),
        ("y = s.train.targets + 1; x = s.train.inputs", "train"),
        ("y = s.train.targets; x = s.train.inputs.reshape(150, 64)", "must be float32 (64,) like the first"),
    ],
    ids=["empty split", "one class only", "labels out of range", "wrong input shape"],
)
def test_data_that_cannot_be_used(project: Path, text: str, said: str, request: Any) -> None:
    name = f"bad_{request.node.callspec.id.replace(' ', '_')}.py"
    code = (
        "import pastille\nfrom data import splits as good\n"
        f"def splits():\n    s = good(); {text}\n"
        "    train = pastille.Split(inputs=x, targets=y)\n"
        "    return pastille.Splits(train=train, validation=s.validation, test=s.test)\n"
    )
    line = refused(project, {"data.source": f"{name}:splits"}, {name: code})
    assert said in line


def test_nan_in_inputs(project: Path) -> None:
    line = refused(project, {"data.source": "nan.py:splits"}, {"nan.py": _NAN})
    assert "NaN" in line
    assert "validation" in line
    assert "7" in line


def test_all_inputs_of_a_shape_that_the_model_does_not_take(project: Path) -> None:
    code = "import data, pastille\ndef splits():\n    s = data.splits()\n"
    code += "    cut = lambda p: pastille.Split(inputs=p.inputs.repeat(2, axis=1), targets=p.targets)\n"
    code += "    return pastille.Splits(train=cut(s.train), validation=cut(s.validation), test=cut(s.test))\n"
    line = refused(project, {"data.source": "wide.py:splits"}, {"wide.py": code})
    assert "the model does not accept inputs of shape input (2, 8, 8) torch.float32" in line


def test_an_output_that_does_not_fit_the_task(project: Path) -> None:
    labels = {"task.labels": ["a", "b", "c", "d"], "task.positive": ["d"]}
    line = refused(project, labels)
    assert "the model's output does not fit the task" in line


def test_a_leak_is_named(project: Path) -> None:
    code = "import data, pastille\ndef splits():\n    s = data.splits()\n"
    code += "    s.test.inputs[5] = s.train.inputs[9]\n    return s\n"
    line = refused(project, {"data.source": "leak.py:splits"}, {"leak.py": code})
    assert "train" in line
    assert "test" in line
    assert "--allow-leakage" in line


def test_a_model_that_cannot_be_exported(project: Path) -> None:
    code = (
        "from model import Net\nimport torch\nfrom torch import nn\n"
        "class Gate(nn.Module):\n    def forward(self, x):\n        return x * 2 if x.sum() > 0 else x\n"
        "class Branching(Net):\n"
        "    def __init__(self):\n        super().__init__()\n        self.gate = Gate()\n"
        "    def forward(self, x):\n        return super().forward(self.gate(x))\n"
        "def build():\n    return Branching()\n"
    )
    (project / "branch.py").write_text(code)
    result = _run(project, {"task.model": "branch.py:build"})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "cannot be exported" in line
    assert "module gate" in line
    assert "x.sum() > 0" in line


def test_a_calibration_set_of_one_sample(project: Path) -> None:
    plan = [{"quantize": {"samples": 1}}]
    result = _run(project, {"plan": plan})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "plan.0.quantize.samples must be greater than or equal to 16, got 1" in line


def test_a_size_that_cannot_be_reached(project: Path) -> None:
    result = _run(project, {"requirements.max_size": "100 B"})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "requirements.max_size" in line
    assert "cannot be reached" in line
    assert "at least" in line


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        (
            {"sparsity": 0},
            "plan.0.prune.sparsity must be a fraction above 0 and at most 0.95, e.g. 0.5, got 0",
        ),
        ({"sparsity": 1}, "at most 0.95, e.g. 0.5, got 1"),
        ({"sparsity": -0.5}, "at most 0.95, e.g. 0.5, got -0.5"),
        ({"sparsity": 0.5, "round_to": "atuo"}, "prune.round_to must be auto, or a whole number from 1 on"),
        ({"sparsity": 0.5, "scope": "layer"}, "it belongs to unstructured or 2:4"),
        (
            {"sparsity": 0.5, "layers": {"b.3": 0.2}},
            "prune.layers: no module of the model is called 'b.3'; closest:",
        ),
        ({"sparsity": 0.5, "protect": ["haed"]}, "is called 'haed'; closest: head"),
        (
            {"sparsity": 0.5, "allocation": "sensitivity", "scan": "scan.json"},
            "plan.0.prune.scan: there is no file",
        ),
    ],
)
def test_a_prune_that_asks_for_what_cannot_be(new_project: Any, prune: Change, said: str) -> None:
    assert said in refused(new_project(), {"plan": [{"prune": prune}]})


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"sparsity": 0.5, "protect": ["a", "b"]}, "nothing can be removed"),
        ({"budget": {"max_macs": 10}}, "budget.max_macs"),
        ({"blocks": 0.5}, "prune.blocks: 0.5 of 0 residual blocks"),
    ],
    ids=["protected", "budget", "no blocks"],
)
def test_a_prune_that_the_model_does_not_permit(new_project: Any, prune: Change, said: str) -> None:
    result = _run(new_project(), {"plan": [{"prune": prune}]})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: prune")
    assert said in line


def _run(project: Path, changes: Change) -> Any:
    overrides = [x for key, value in changes.items() for x in ("--set", f"{key}={yaml.safe_dump(value)}")]
    return CliRunner().invoke(app, ["run", str(project / "recipe.yaml"), "-q", *overrides])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requirements": {"risk": "medium", "max_drop": {"accuracy": "3 %"}}}, "medium"),
        ({"requirements": {"risk": "critical"}}, "critical"),
        ({"requirements": {"risk": "high"}}, "high"),
        ({"requirements": {"risk": "low", "max_drop": {"acuracy": "1 %"}}}, "accuracy"),
    ],
    ids=["looser than its tier", "quantized at critical", "pruned at once at high", "unknown metric"],
)
def test_a_recipe_that_breaks_its_tier(new_project: Any, changes: Change, said: str) -> None:
    assert said in refused(new_project(), changes)


def test_quantizing_before_pruning(new_project: Any) -> None:
    plan = [{"quantize": {}}, {"prune": {"sparsity": 0.5}}]
    line = refused(new_project(), {"plan": plan})
    assert "plan must quantize last" in line
    assert "void the ranges" in line


def test_leakage_can_be_recorded_instead(new_project: Any) -> None:
    from pastille.record import TaskLoaded, read_record

    project = new_project()
    code = "import data, pastille\ndef splits():\n    s = data.splits()\n"
    code += "    s.test.inputs[5] = s.train.inputs[9]\n    return s\n"
    (project / "leak.py").write_text(code)
    options = ["--allow-leakage", "-q", "--set", "data.source=leak.py:splits"]
    result = CliRunner().invoke(app, ["run", str(project / "recipe.yaml"), *options])
    assert result.exit_code == 0, result.output
    (run,) = (project / "runs/tiny").iterdir()
    loaded = read_record(run / "run.json").last(TaskLoaded)
    assert loaded is not None
    assert len(loaded.leakage) == 1
    assert "train" in loaded.leakage[0]
    assert os.fspath(project) not in (run / "run.json").read_text()


def test_errors_are_json_on_demand(project: Path) -> None:
    import json

    result = CliRunner().invoke(app, ["run", "nowhere.yaml", "--json"])
    assert result.exit_code == 2
    said = json.loads(result.stdout)
    assert said["exit_code"] == 2
    assert "nowhere.yaml" in said["error"]


def test_inputs_that_differ_each_time_they_are_read(new_project: Any) -> None:
    code = (
        "import data, numpy as np, pastille\n"
        "class Noise:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def __len__(self): return len(self.x)\n"
        "    def __getitem__(self, i): return self.x[i] + np.random.random((1, 8, 8)).astype(np.float32)\n"
        "def splits():\n    s = data.splits()\n"
        "    cut = lambda p: pastille.Split(inputs=Noise(p.inputs), targets=p.targets)\n"
        "    return pastille.Splits(train=cut(s.train), validation=cut(s.validation), test=cut(s.test))\n"
    )
    line = refused(new_project(), {"data.source": "noise.py:splits"}, {"noise.py": code})
    assert "train[0] differs when it is read twice" in line


def test_a_model_that_mixes_the_batch(new_project: Any) -> None:
    code = (
        "from model import Net\n"
        "class Mixing(Net):\n"
        "    def forward(self, x):\n        y = super().forward(x)\n        return y[:1].expand(len(y), -1)\n"
        "def build():\n    return Mixing()\n"
    )
    line = refused(new_project(), {"task.model": "mixing.py:build"}, {"mixing.py": code})
    assert "when others are in the batch" in line


def test_what_the_users_code_prints_does_not_spoil_the_json(new_project: Any) -> None:
    import json

    project = new_project()
    (project / "loud.py").write_text(
        "from model import build as b\ndef build():\n    print('HELLO')\n    return b()\n"
    )
    options = [
        "--json",
        "-q",
        "--set",
        "task.model=loud.py:build",
        "--set",
        "plan=[{quantize: {samples: 32}}]",
    ]
    result = CliRunner().invoke(app, ["run", str(project / "recipe.yaml"), *options])
    assert json.loads(result.stdout)["status"]
    assert "HELLO" in result.stderr


def test_validate_judges_the_latency_too(new_project: Any) -> None:
    import json

    project = new_project()
    run = ["run", str(project / "recipe.yaml"), "-q", "--set", "plan=[{quantize: {samples: 32}}]"]
    CliRunner().invoke(app, run)
    (int8,) = project.rglob("bundle/models/int8.onnx")
    validate = ["validate", str(int8), "-r", str(project / "recipe.yaml"), "--split", "test", "--json", "-q"]
    result = CliRunner().invoke(app, [*validate, "--set", "requirements.max_latency.p95=1 us"])
    assert result.exit_code == 3, result.output
    assert any(c["metric"] == "latency p95" for c in json.loads(result.stdout)["checks"])


def test_a_key_that_stands_twice(project: Path) -> None:
    path = project / "twice.yaml"
    path.write_text((project / "recipe.yaml").read_text() + "seed: 3\nseed: 4\n")
    result = CliRunner().invoke(app, ["run", str(path), "-q"])
    assert result.exit_code == 2
    assert "key 'seed' stands twice" in result.stderr
