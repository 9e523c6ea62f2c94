"""The pruning stage on small nets: what it is given, and how it is run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from stages_task import Net, Notes, exported_artifact_of, task_of
from torch import nn

from pastille.recipe import PruneStep, Train
from pastille.stages import Artifact, StageResult, run_stage, stage_for
from pastille.task import Task
from pastille.train import fit

TUNE = {"epochs": 2, "learning_rate": 0.02, "batch_size": 16}


@cache
def trained_net(*, width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    task = task_of(Net())
    train, validation = (
        (task.splits.train, task.cases["train"]),
        (task.splits.validation, task.cases["validation"]),
    )
    settings = Train(epochs=6, learning_rate=0.05, batch_size=16)
    return fit(Net(width), train, validation, settings, seed=0).model


@cache
def exported() -> bytes:
    """The trained net's file: exporting takes longer than all else."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(trained_net())
        return exported_artifact_of(task.model, task, Path(folder)).file.read_bytes()


def given(folder: Path, model: nn.Module | None = None) -> tuple[Artifact, Task]:
    if model is not None:
        task = task_of(model)
        return exported_artifact_of(task.model, task, folder), task
    (folder / "before.onnx").write_bytes(exported())
    return Artifact(module=trained_net(), file=folder / "before.onnx"), task_of(trained_net())


def stage(base: Path = Path(), **options: Any) -> Any:
    return stage_for(PruneStep.model_validate({"prune": {"round_to": 1, **options}}), base)


def run(asked: Any, artifact: Artifact, task: Task, progress: Any = None) -> StageResult:
    folder = artifact.file.parent / "stage"
    folder.mkdir(exist_ok=True)
    return run_stage(asked, artifact, task, folder, progress or Notes())


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


def deep(blocks: int = 6) -> nn.Module:
    torch.manual_seed(0)
    stack = nn.Sequential(*(Residual() for _ in range(blocks)))
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), stack, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()


class Tokens(nn.Module):
    """The rows of an image, that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(8, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.squeeze(1))
        x = x + self.attend(x, x, x, need_weights=False)[0]
        x = x + self.narrow(torch.relu(self.wide(x)))
        out: torch.Tensor = self.head(x.mean(1))
        return out


def tokens() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().eval()


class Layer(nn.Module):
    """Of a transformer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(x, x, x, need_weights=False)[0]
        out: torch.Tensor = x + self.narrow(torch.relu(self.wide(x)))
        return out


class Transformer(nn.Module):
    """Of the rows of an image."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.layers = nn.Sequential(*(Layer() for _ in range(layers)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.layers(self.embed(x.squeeze(1))).mean(1))
        return out


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer().eval()
