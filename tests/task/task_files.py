"""What users bring, written into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pastille.recipe import Recipe, TaskSection

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, outputs=3):
        super().__init__()
        self.hidden, self.norm = nn.Linear(4, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.hidden(x))))

def build(width=8, outputs=3):
    return Net(width, outputs)

SHARED = Net()

def shared():
    return SHARED

def raises():
    raise RuntimeError("no such\\ncheckpoint")

def leaves():
    raise SystemExit(3)

def weights():
    return {"hidden": torch.zeros(3)}
"""

DATA = """
import numpy as np
from pastille.data.split import Split, Splits

def split(seed, n, width=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    inputs = (rng.normal(size=(n, width)) + targets[:, None]).astype(dtype)
    return Split(inputs=inputs, targets=targets)

def splits(width=4, dtype="float32"):
    return Splits(*(), train=split(0, 24, width, dtype), validation=split(1, 12, width, dtype),
                  test=split(2, 12, width, dtype))
"""

LABELS = ["a", "b", "c"]


def section(model: str = "model.py:build", **given: Any) -> TaskSection:
    return TaskSection(**{"kind": "multiclass", "model": model, "labels": LABELS, **given})


def recipe(*, data: dict[str, Any] | None = None, **task: Any) -> Recipe:
    whole = {
        "name": "test",
        "task": {"kind": "multiclass", "model": "model.py:build", "labels": LABELS, **task},
        "data": {"source": "data.py:splits", "arguments": data or {}},
        "requirements": {"risk": "low", "max_drop": {"accuracy": "5 %"}},
        "plan": [{"quantize": {}}],
    }
    return Recipe.model_validate(whole)


def write_users_files(folder: Path) -> Path:
    (folder / "model.py").write_text(MODEL)
    (folder / "data.py").write_text(DATA)
    return folder
