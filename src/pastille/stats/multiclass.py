"""Metrics of a classification into one of several classes: of each class, and their plain means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pastille.stats.average_precision import Statistic, average_precision, defined_mean, mean_of_defined
from pastille.stats.catalogue import ByClass, MetricForms, confusion_of, count_pairs
from pastille.stats.decisions import class_log_odds, decide, log_odds
from pastille.stats.forms import Form, MeanOfRankings, MeanOfShares, OfWeights
from pastille.stats.shares import class_shares, positive_classes, recall_shares
from pastille.stats.yes_or_no import Question, f1_of, precision_of, question_forms, ranking
from pastille.values import Cases, Confusion


def binary_forms(outputs: np.ndarray, cases: Cases) -> MetricForms:
    """Metrics of the positive label, and the recall of both.

    Args:
        outputs: Logits, as in `pastille.stats.decisions`.
        cases: The right answers; without ``positive`` the second label is it.

    Raises:
        ValueError: If the outputs do not fit or are not finite.
    """
    decided, (positive, *_) = decide(outputs, cases), positive_classes(cases)
    odds = log_odds(outputs)
    question = Question(
        truly=cases.targets == positive,
        called=decided == positive,
        scores=odds if positive == 1 else -odds,
    )
    recalls = recall_shares(decided, cases)
    return MetricForms(
        overall=question_forms(question) | {"balanced_accuracy": MeanOfShares(parts=recalls)},
        classes={label: {"recall": recall} for label, recall in recalls.items()},
        confusion=_confusion(decided, cases),
    )


def _confusion(decided: np.ndarray, cases: Cases) -> Confusion:
    return confusion_of(count_pairs(decided, cases.targets, len(cases.labels)), cases.labels)


def multiclass_forms(outputs: np.ndarray, cases: Cases) -> MetricForms:
    """Shares of all cases, and plain means over the classes that occur, each against the rest.

    Sensitivity and specificity are there where the task has positive classes.

    Args:
        outputs: Logits, ``(N, K)``.
        cases: The right answers.

    Raises:
        ValueError: If the outputs do not fit or are not finite.
    """
    decided, odds = decide(outputs, cases), class_log_odds(outputs)

    def question(index: int) -> Question:
        return Question(truly=cases.targets == index, called=decided == index, scores=odds[:, index])

    everyone = np.ones(len(decided), bool)
    shares = class_shares(decided, cases)
    overall: dict[str, Form] = {
        "accuracy": shares.pop("accuracy"),
        "balanced_accuracy": MeanOfShares(parts=recall_shares(decided, cases)),
        **shares,
        "precision": OfWeights(statistic=_of_counts(decided, cases, precision_of), among=everyone),
        "f1": OfWeights(statistic=_of_counts(decided, cases, f1_of), among=everyone),
        "auroc": MeanOfRankings(parts={name: ranking(question(i)) for i, name in enumerate(cases.labels)}),
        "average_precision": OfWeights(
            statistic=mean_of_defined(
                [average_precision(odds[:, i], cases.targets == i) for i in np.unique(cases.targets)]
            ),
            among=everyone,
        ),
    }
    return MetricForms(
        overall=overall,
        classes=ByClass(labels=cases.labels, forms=lambda index: _class_forms(question(index))),
        confusion=_confusion(decided, cases),
    )


def _of_counts(decided: np.ndarray, cases: Cases, metric: Callable[[np.ndarray], np.ndarray]) -> Statistic:
    """The mean of a metric over classes, by counting: a column per class and case would not fit memory."""
    size, right = len(cases.labels), decided == cases.targets

    def statistic(weights: np.ndarray) -> np.ndarray:
        both = _by_class(weights * right, decided, size)
        called, truly = (_by_class(weights, column, size) for column in (decided, cases.targets))
        return defined_mean(metric(np.stack([both, called, truly], axis=-1)))

    return statistic


def _by_class(weights: np.ndarray, column: np.ndarray, size: int) -> np.ndarray:
    """Weights ``(R, N)`` summed over the cases of each class, ``(R, size)``."""
    count = len(weights)
    cell = (np.arange(count) * size)[:, None] + column  # (R, N)
    return np.bincount(cell.ravel(), weights.ravel(), minlength=count * size).reshape(count, size)


def _class_forms(question: Question) -> dict[str, Form]:
    forms = question_forms(question)
    kept = ("specificity", "precision", "f1", "auroc", "average_precision")
    return {"recall": forms["sensitivity"]} | {name: forms[name] for name in kept}
