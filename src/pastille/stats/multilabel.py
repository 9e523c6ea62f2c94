"""Metrics of several yes-or-no questions to each case: of each label, and their plain means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pastille.stats.average_precision import average_precision, defined_mean, mean_of_defined
from pastille.stats.catalogue import ByClass, MetricForms
from pastille.stats.decisions import decide
from pastille.stats.forms import Form, MeanOfRankings, MeanOfShares, OfSums, OfWeights, Share
from pastille.stats.shares import called_shares
from pastille.stats.yes_or_no import Question, f1_of, precision_of, question_forms, ranking
from pastille.values import Cases


def multilabel_forms(outputs: np.ndarray, cases: Cases) -> MetricForms:
    """Plain means over the labels, and the share of cases with every label right (``exact_match``).

    Sensitivity is the mean over the positive labels where the task names some, else over all. Labels that
    the cases cannot define a metric for are left out of its mean.

    Args:
        outputs: Logits, ``(N, L)``.
        cases: The right answers, ``(N, L)`` of 0 and 1.

    Raises:
        ValueError: If the outputs do not fit or are not finite.
    """
    called, truly = decide(outputs, cases).astype(bool), cases.targets.astype(bool)  # (N, L)
    scores, right = np.asarray(outputs, np.float64), called == truly
    indices = dict(zip(cases.labels, range(len(cases.labels)), strict=True))
    everyone = np.ones(len(truly), bool)

    def question(index: int) -> Question:
        return Question(truly=truly[:, index], called=called[:, index], scores=scores[:, index])

    halves = {name: called_shares(called[:, i], truly[:, i]) for name, i in indices.items()}
    feared = [cases.labels[i] for i in cases.positive] or list(cases.labels)
    overall: dict[str, Form] = {
        "accuracy": MeanOfShares(
            parts={name: Share(hits=right[:, i], among=everyone) for name, i in indices.items()}
        ),
        "balanced_accuracy": MeanOfShares(
            parts={f"{half} of {name}": share for name in indices for half, share in halves[name].items()}
        ),
        "sensitivity": MeanOfShares(parts={name: halves[name]["sensitivity"] for name in feared}),
        "specificity": MeanOfShares(parts={name: halves[name]["specificity"] for name in indices}),
        **_called_means(called, truly),
        "auroc": MeanOfRankings(parts={name: ranking(question(i)) for name, i in indices.items()}),
        "average_precision": OfWeights(
            statistic=mean_of_defined(
                [average_precision(scores[:, i], truly[:, i]) for i in indices.values()]
            ),
            among=everyone,
        ),
        "exact_match": Share(hits=right.all(axis=1), among=everyone),
    }
    return MetricForms(
        overall=overall,
        classes=ByClass(labels=cases.labels, forms=lambda index: question_forms(question(index))),
    )


def _called_means(called: np.ndarray, truly: np.ndarray) -> dict[str, OfSums]:
    """Mean precision and mean F1, of the same columns ``(N, 3 L)``."""
    columns = np.stack([called & truly, called, truly], axis=-1).reshape(len(truly), -1).astype(np.float64)
    everyone = np.ones(len(truly), bool)
    metrics = {"precision": precision_of, "f1": f1_of}
    return {
        name: OfSums(columns=columns, among=everyone, statistic=_mean_over_labels(metric))
        for name, metric in metrics.items()
    }


def _mean_over_labels(metric: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: defined_mean(metric(sums.reshape(*sums.shape[:-1], sums.shape[-1] // 3, 3)))
