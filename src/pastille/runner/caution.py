"""What a user should know before work is spent: a baseline that only guesses, too few cases to prove."""

from __future__ import annotations

from collections.abc import Iterator

from pastille import policy
from pastille.data.checks import one_sided_labels
from pastille.stats.provable import provable
from pastille.stats.unchanged import stressed_by
from pastille.task import Task
from pastille.values import Cases, Kind, Metrics

_WEIGHTS = "is task.weights missing or wrong?"


def unprovable(task: Task) -> tuple[str, ...]:
    """Limits that the cases cannot prove, even if no decision changes; said before any work is done."""
    bar = policy.bar(task.recipe)
    cases = task.cases["test"]
    return (
        *provable(
            cases,
            max_drop=bar.max_drop,
            max_class_drop=bar.max_class_drop,
            fairness=bar.fairness,
            stress=stressed_by(task.recipe, task.cases["validation"], bar.max_drop),
            confidence=bar.confidence,
        ),
        *one_sided(cases),
    )


def one_sided(cases: Cases) -> Iterator[str]:
    """Labels that the cases all have, or none has: nothing can be judged of them."""
    if cases.kind != "multilabel":
        return
    for label, side in one_sided_labels(cases.targets, cases.labels).items():
        yield (
            f"caution: every case of the {cases.split} split is {side} for {label!r}; "
            "nothing that such a label needs both of can be judged"
        )


def guessing(metrics: Metrics, num_labels: int, kind: Kind) -> Iterator[str]:
    """A baseline that is not shown to be better than always giving one answer."""
    by_chance = 0.5 if kind == "multilabel" else 1 / max(1, num_labels)
    r2, balanced = metrics.overall.get("r2"), metrics.overall.get("balanced_accuracy")
    if r2 is not None and r2.value <= 0:
        yield (
            "caution: the baseline is no better than always answering the mean "
            f"(R² {r2.value:.3g}); {_WEIGHTS}"
        )
    if balanced is not None and balanced.interval is not None and balanced.interval.low <= by_chance:
        yield (
            "caution: the baseline is not shown to be better than guessing (balanced accuracy "
            f"{100 * balanced.value:.1f} %, by chance {100 * by_chance:.1f} %); {_WEIGHTS}"
        )
