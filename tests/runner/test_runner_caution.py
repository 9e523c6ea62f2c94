"""What is said before work is spent."""

from __future__ import annotations

import numpy as np

from pastille.runner.caution import guessing
from pastille.stats.metrics import score
from pastille.values import Cases, Metrics


def metrics(outputs: np.ndarray, kind: str = "multiclass") -> Metrics:
    targets = np.arange(len(outputs)) % 3
    if kind == "regression":
        return score(
            outputs, Cases(kind="regression", split="test", targets=targets.astype(float), labels=())
        )
    return score(outputs, Cases(kind="multiclass", split="test", targets=targets, labels=("a", "b", "c")))


def test_a_baseline_that_always_says_the_same_is_named() -> None:
    (line,) = guessing(metrics(np.tile([1.0, 0.0, 0.0], (90, 1))), 3, "multiclass")
    assert "balanced accuracy 33.3 %, by chance 33.3 %" in line
    assert "task.weights" in line


def test_a_baseline_that_knows_something_is_not() -> None:
    assert list(guessing(metrics(np.eye(3)[np.arange(90) % 3]), 3, "multiclass")) == []


def test_a_regression_that_is_worse_than_the_mean_is_named() -> None:
    (line,) = guessing(metrics(np.full(90, 7.0), "regression"), 0, "regression")
    assert "no better than always answering the mean" in line
    assert list(guessing(metrics(np.arange(90) % 3 + 0.1, "regression"), 0, "regression")) == []
