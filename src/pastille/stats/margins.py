"""How far from the decision border each case lies."""

from __future__ import annotations

import numpy as np
from scipy.special import logit

from pastille.values import Cases


def decision_margins(probabilities: np.ndarray, cases: Cases) -> np.ndarray | None:
    """How sure a model is of each decision: the distance of its probability from the border.

    Distances are taken in log-odds, or as the logarithm of a ratio: a threshold of 5 % would else leave
    all negatives near it.

    Args:
        probabilities: As `pastille.stats.decisions.probabilities` gives them: binary ``(N,)``, of the
            second label; multiclass ``(N, K)``; multilabel ``(N, L)``.
        cases: Their kind, threshold and positive label.

    Returns:
        ``(N,)``, 0 on the border, infinite for a probability of 0 or 1. Binary: from the threshold.
        Multiclass: of the decided class from the next. Multilabel: of the label that is nearest to the
        threshold. None for other kinds, which decide no case by one probability.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 1]), labels=("a", "b"))
        >>> decision_margins(np.array([0.5, 0.9]), cases).round(3)
        array([0.   , 2.197])
    """
    chances = np.asarray(probabilities, np.float64)
    match cases.kind:
        case "binary":
            of_positive = 1 - chances if cases.positive == (0,) else chances
            return np.abs(logit(of_positive) - logit(cases.threshold))
        case "multilabel":
            return np.asarray(np.abs(logit(chances) - logit(cases.threshold)).min(axis=1))
        case "multiclass":
            second, first = np.partition(chances, -2, axis=1)[:, -2:].T
            with np.errstate(divide="ignore"):
                return np.asarray(np.log(first) - np.log(second))
        case _:
            return None
