"""Small data sets and networks that train in an instant."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from pastille.data.split import Split
from pastille.recipe import Train
from pastille.values import Cases, Kind

LABELS = ("a", "b", "c")


def blobs(n: int, seed: int, *, spread: float = 1.0) -> tuple[Split, Cases]:
    """Three classes, each around its own corner."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(n) % 3)
    inputs = (np.eye(3)[targets] * 3 + rng.normal(scale=spread, size=(n, 3))).astype(np.float32)
    return paired(inputs, targets, "multiclass", LABELS)


def line(n: int, seed: int, *, unit: float = 1.0) -> tuple[Split, Cases]:
    """A number that depends on the inputs, in some unit."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 3)).astype(np.float32)
    return paired(inputs, (inputs @ [1.0, -2.0, 0.5]) * unit, "regression", ())


def paired(inputs: Any, targets: np.ndarray, kind: Kind, labels: tuple[str, ...]) -> tuple[Split, Cases]:
    return Split(inputs=inputs, targets=targets), Cases(
        kind=kind, split="train", targets=targets, labels=labels, positive=(1,) if kind == "binary" else ()
    )


def net(outputs: int = 3, *, seed: int = 0, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, outputs)
    )


def settings(**given: Any) -> Train:
    return Train(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.05, **given})
