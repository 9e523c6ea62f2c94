"""A small task that stages can be tried on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pastille.data.cases import cases
from pastille.data.split import Split, Splits
from pastille.export import export_onnx
from pastille.recipe import Recipe
from pastille.record import StageDetails
from pastille.stages import Artifact, StageResult
from pastille.task import Task, example_batch
from pastille.values import TensorSpec


class Net(nn.Module):
    def __init__(self, width: int = 32, outputs: int = 3) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 2, 1)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        out: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return out


def split(n: int, seed: int, *, regression: bool = False) -> Split:
    """Images that are brighter, the higher the class."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    inputs = rng.normal(size=(n, 1, 8, 8)) + 2 * targets[:, None, None, None]
    return Split(
        inputs=inputs.astype(np.float32), targets=targets + rng.normal(size=n) / 9 if regression else targets
    )


def task_of(model: nn.Module, *, n: int = 48, regression: bool = False) -> Task:
    asked: dict[str, Any] = {
        "name": "stages",
        "task": {"kind": "regression" if regression else "multiclass", "model": "model.py:build"},
        "data": {"source": "data.py:splits"},
        "requirements": {"risk": "low"},
        "plan": [{"quantize": {}}],
    }
    if not regression:
        asked["task"]["labels"] = ["a", "b", "c"]
    recipe = Recipe.model_validate(asked)
    train, validation, test = (split(n, seed, regression=regression) for seed in range(3))
    parts = Splits(train=train, validation=validation, test=test)
    return Task(
        recipe=recipe,
        build=Net,
        model=model,
        splits=parts,
        cases={name: cases(part, name, recipe.task) for name, part in parts},
        inputs=(TensorSpec(name="input", shape=(1, 8, 8), dtype="float32"),),
        data_digest="",
    )


def artifact_of(model: nn.Module, folder: Path) -> Artifact:
    """With a stand-in for the file, for stages that do not read it."""
    (folder / "before.onnx").write_bytes(b"a file")
    return Artifact(module=model, file=folder / "before.onnx")


def exported_artifact_of(model: nn.Module, task: Task, folder: Path) -> Artifact:
    export_onnx(model, example_batch(task.splits.train.inputs), folder / "before.onnx")
    return Artifact(module=model, file=folder / "before.onnx")


@dataclass
class Notes:
    """A `Progress` that remembers."""

    tracked: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def track(self, items: Any, *, what: str, total: int | None = None) -> Any:
        known = len(items) if total is None and hasattr(items, "__len__") else total or 0
        self.tracked.append((what, known))
        yield from items

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Scripted:
    """A `Stage` that does what it is told."""

    does: Any = None
    sees: Any = None
    requires_raises: Exception | None = None
    ensures_raises: Exception | None = None
    calls: list[str] = field(default_factory=list)
    name: str = "scripted"
    options: dict[str, Any] = field(default_factory=dict)

    def requires(self, artifact: Artifact, task: Task) -> None:
        self.calls.append("requires")
        if self.requires_raises:
            raise self.requires_raises

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: object) -> StageResult:
        self.calls.append("apply")
        if self.does:
            self.does(artifact)
        if self.sees:
            self.sees(task)
        return StageResult(module=artifact.module, details=StageDetails())

    def ensures(self, before: Artifact, result: StageResult) -> None:
        self.calls.append("ensures")
        if self.ensures_raises:
            raise self.ensures_raises
