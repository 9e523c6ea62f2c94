"""Several cases of one subject: how many independent cases they are worth."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from pastille.stats.normal import critical_value


def has_repeats(subjects: np.ndarray | None) -> bool:
    """Whether any subject has several cases, so that cases are not independent.

    Example:
        >>> has_repeats(np.array(["a", "b", "a"])), has_repeats(np.array([1, 2])), has_repeats(None)
        (True, False, False)
    """
    return subjects is not None and len(np.unique(subjects)) < len(subjects)


def typical_size(subjects: np.ndarray | None) -> float:
    """Cases of a subject, larger ones counting more, as they do in a variance.

    Example:
        >>> typical_size(None), typical_size(np.array(["a", "a", "a", "b"]))
        (1.0, 2.5)
    """
    if subjects is None:
        return 1.0
    sizes = np.unique(subjects, return_counts=True)[1].astype(np.float64)
    return float((sizes**2).sum() / sizes.sum())


def effective_cases(
    values: np.ndarray, subjects: np.ndarray, *, rare: np.ndarray, confidence: float
) -> float:
    """How many independent cases give a mean that is as uncertain as this one.

    The variance of the mean is taken over subjects and divided by what independent cases would have (the
    design effect, at least 1). Where few subjects carry the rare outcome that ratio is itself uncertain:
    a t quantile widens it. It never exceeds the worst case, in which all cases of a subject are one.

    A bootstrap by subject is not used for shares: with few rare outcomes it is too narrow, and with none
    it has no width at all (`tests/stats/test_clusters.py` counts how often each would approve wrongly).

    Args:
        values: ``(N,)``, what is averaged.
        subjects: ``(N,)``.
        rare: ``(N,)`` bool, the cases that make the mean uncertain, e.g. the wrong ones.
        confidence: Of the two-sided interval that will be built, in ``(0, 1)``.

    Returns:
        In ``[1, N]``.

    Raises:
        ValueError: If the lengths differ, or there are no cases.

    Example:
        >>> right, ear = np.array([1, 1, 0, 0, 1, 1]), np.array(["p", "p", "q", "q", "r", "r"])
        >>> effective_cases(right, ear, rare=right == 0, confidence=0.95)  # both ears always agree
        3.0

    References:
        Rao and Scott, "A simple method for the analysis of clustered binary data", Biometrics 48, 1992;
        Korn and Graubard, "Confidence intervals for proportions with small expected number of positive
        counts estimated from survey data", Survey Methodology 24, 1998.
    """
    if not len(values) == len(subjects) == len(rare) or len(values) == 0:
        raise ValueError(
            f"values, subjects and rare must have one entry per case, got {len(values)}, {len(subjects)} and "
            f"{len(rare)}"
        )
    _, subject, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    n = len(values)
    worst = float((sizes.astype(np.float64) ** 2).sum()) / n
    carriers = len(np.unique(subject[rare]))
    if carriers == 0:
        return n / worst
    # Any two models, or a model and the truth, agree more often than not: carriers are few.
    caution = (float(stdtrit(carriers, 0.5 + confidence / 2)) / critical_value(confidence)) ** 2
    return n / min(caution * max(1.0, _design_effect(values, subject, sizes)), worst)


def _design_effect(values: np.ndarray, subject: np.ndarray, sizes: np.ndarray) -> float:
    """Variance of the mean over subjects, relative to that over cases; infinite where it cannot be had."""
    count, n = len(sizes), len(values)
    deviations = values - values.mean()
    naive = float((deviations**2).sum()) / (n * (n - 1)) if n > 1 else 0.0
    if count < 2 or naive == 0.0:
        return np.inf
    totals = np.bincount(subject, weights=deviations)  # (subjects,)
    return float((totals**2).sum()) * count / (count - 1) / n**2 / naive
