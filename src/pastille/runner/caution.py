"""What a user should know before work is spent: a baseline that only guesses, too few cases to prove."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pastille import policy
from pastille.stats.power import cases_needed
from pastille.task import Task
from pastille.values import Cases, Metrics

_WEIGHTS = "is task.weights missing or wrong?"


def cautions(metrics: Metrics, task: Task) -> tuple[str, ...]:
    """Sentences for the terminal and the record; none where all is well.

    Args:
        metrics: Of the baseline on validation.
        task: Its limits and its test cases.
    """
    confidence = task.recipe.requirements.confidence
    limits = policy.limits(task.recipe)
    return (
        *guessing(metrics, len(task.recipe.task.labels)),
        *too_few(task.cases["test"], limits, confidence),
    )


def guessing(metrics: Metrics, num_labels: int) -> Iterator[str]:
    """A baseline that is not shown to be better than always giving one answer."""
    r2, balanced = metrics.overall.get("r2"), metrics.overall.get("balanced_accuracy")
    if r2 is not None and r2.value <= 0:
        yield (
            "caution: the baseline is no better than always answering the mean "
            f"(R² {r2.value:.3g}); {_WEIGHTS}"
        )
    if balanced is not None and balanced.interval is not None and balanced.interval.low <= 1 / num_labels:
        yield (
            "caution: the baseline is not shown to be better than guessing (balanced accuracy "
            f"{100 * balanced.value:.1f} %, by chance {100 / num_labels:.1f} %); {_WEIGHTS}"
        )


def too_few(cases: Cases, limits: dict[str, float], confidence: float) -> Iterator[str]:
    """A limit that the test split cannot prove, even if no decision changes."""
    positive = np.isin(cases.targets, cases.positive)
    counts = {
        "accuracy": len(positive),
        "sensitivity": int(positive.sum()),
        "specificity": int((~positive).sum()),
    }
    for metric, limit in limits.items():
        needed = cases_needed(0.0, limit, confidence=confidence) if metric in counts and limit > 0 else 0
        if counts.get(metric, 0) < needed:
            yield (
                f"caution: the test split has {counts[metric]} cases for {metric}, but to show that no more "
                f"than {100 * limit:g} points are lost takes at least {needed}, even if no decision changes: "
                "the verdict cannot be approved"
            )
