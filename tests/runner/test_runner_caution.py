"""What is said before work is spent."""

from __future__ import annotations

import numpy as np
import pytest

from pastille.runner.caution import guessing, too_few
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
    (line,) = guessing(metrics(np.tile([1.0, 0.0, 0.0], (90, 1))), 3)
    assert "balanced accuracy 33.3 %, by chance 33.3 %" in line
    assert "task.weights" in line


def test_a_baseline_that_knows_something_is_not() -> None:
    assert list(guessing(metrics(np.eye(3)[np.arange(90) % 3]), 3)) == []


def test_a_regression_that_is_worse_than_the_mean_is_named() -> None:
    (line,) = guessing(metrics(np.full(90, 7.0), "regression"), 0)
    assert "no better than always answering the mean" in line
    assert list(guessing(metrics(np.arange(90) % 3 + 0.1, "regression"), 0)) == []


@pytest.mark.parametrize(("n", "said"), [(72, True), (73, False)])
def test_the_border_is_tangos_without_a_disagreement(n: int, said: bool) -> None:
    """3.84 / (N + 3.84) falls below 5 % from N = 73."""
    cases = Cases(kind="multiclass", split="test", targets=np.zeros(n, np.int64), labels=("a", "b"))
    lines = list(too_few(cases, {"accuracy": 0.05, "r2": 0.1}, 0.95))
    assert bool(lines) is said
    if said:
        assert f"has {n} cases for accuracy" in lines[0]
        assert "takes at least 73" in lines[0]


def test_only_positive_cases_count_for_sensitivity() -> None:
    targets = np.repeat([0, 1], [500, 50])
    cases = Cases(kind="binary", split="test", targets=targets, labels=("a", "b"), positive=(1,))
    (line,) = too_few(cases, {"accuracy": 0.05, "sensitivity": 0.05, "specificity": 0.05}, 0.95)
    assert "has 50 cases for sensitivity" in line
