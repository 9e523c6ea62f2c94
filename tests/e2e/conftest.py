"""A whole project of a user's, small enough to carry out in seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = self.a(x)
        return self.head(F.relu(x + self.b(x)).mean((2, 3)))

def build():
    return Net()
"""

DATA = """
import numpy as np
import pastille

def splits(n=(150, 60, 270), seed=0):
    rng = np.random.default_rng(seed)
    def part(count):
        y = np.arange(count) % 3
        x = rng.normal(0, 0.2, (count, 1, 8, 8)).astype(np.float32)
        for i, c in enumerate(y):
            x[i, 0, 2 * c : 2 * c + 3, 2 * c : 2 * c + 3] += 2.0 * (1 + c)
        sex = np.array(["f", "m"])[rng.integers(0, 2, count)]
        return pastille.Split(inputs=x, targets=y, groups={"sex": sex})
    return pastille.Splits(train=part(n[0]), validation=part(n[1]), test=part(n[2]))
"""

RECIPE = {
    "name": "tiny",
    "task": {
        "kind": "multiclass",
        "model": "model.py:build",
        "weights": "trained.safetensors",
        "labels": ["a", "b", "c"],
        "positive": ["c"],
    },
    "data": {"source": "data.py:splits"},
    "requirements": {"risk": "low"},
    "measure": {"seconds": 0.05, "batch_sizes": [1, 2], "memory": False},
    "plan": [
        {"prune": {"sparsity": 0.5, "finetune": {"epochs": 4, "batch_size": 16}}},
        {"finetune": {"epochs": 2, "batch_size": 16}},
        {"quantize": {"samples": 64}},
    ],
}

_TRAIN = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from pastille.data.cases import cases
from pastille.recipe import Train, read_recipe
from pastille.references import load_callable
from pastille.train import fit
base = Path(sys.argv[1])
task = read_recipe(base / "recipe.yaml").task
splits = load_callable("data.py:splits", base, key="x")()
model = load_callable("model.py:build", base, key="x")()
pairs = [(getattr(splits, n), cases(getattr(splits, n), n, task)) for n in ("train", "validation")]
fitted = fit(model, *pairs, Train(epochs=15, learning_rate=0.05, batch_size=16), seed=0)
save_file(fitted.model.state_dict(), base / "trained.safetensors")
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the trained model, as a file's bytes."""
    base = tmp_path_factory.mktemp("trained")
    lay_out(base)
    subprocess.run([sys.executable, "-c", _TRAIN, str(base)], check=True, timeout=120)
    return (base / "trained.safetensors").read_bytes()


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory, trained: bytes) -> Callable[[], Path]:
    """Makes a folder with recipe, model, data and weights."""

    def make() -> Path:
        base = tmp_path_factory.mktemp("project")
        lay_out(base)
        (base / "trained.safetensors").write_bytes(trained)
        return base

    return make


@pytest.fixture
def project(new_project: Callable[[], Path]) -> Path:
    """A folder of the test's own."""
    return new_project()


def lay_out(base: Path) -> None:
    """Write the project's files."""
    (base / "model.py").write_text(MODEL)
    (base / "data.py").write_text(DATA)
    (base / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
