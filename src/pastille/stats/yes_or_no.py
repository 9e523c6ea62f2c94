"""Metrics of one yes-or-no question: is it this class, or not?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pastille.stats.average_precision import average_precision
from pastille.stats.forms import Form, MeanOfShares, OfSums, OfWeights, Ranking, Share
from pastille.stats.shares import called_shares


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a model says to one question about each case, and what is right."""

    truly: np.ndarray  # (N,) bool
    called: np.ndarray  # (N,) bool
    scores: np.ndarray  # (N,) float64, larger means more yes; any monotone scale


def question_forms(question: Question) -> dict[str, Form]:
    """Every metric of one question.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``sensitivity``, ``specificity``, ``precision``, ``f1``,
        ``auroc`` and ``average_precision``. Precision is 0 where no case is called yes though some should
        be. All but accuracy and specificity are undefined where yes is never right.

    Example:
        >>> truly = np.array([True, True, False])
        >>> question = Question(truly=truly, called=~truly, scores=np.array([0.1, 0.2, 0.9]))
        >>> list(question_forms(question))[:4]
        ['accuracy', 'balanced_accuracy', 'sensitivity', 'specificity']
    """
    everyone = np.ones(len(question.truly), bool)
    shares = called_shares(question.called, question.truly)
    right = question.called == question.truly
    return {
        "accuracy": Share(hits=right, among=everyone),
        "balanced_accuracy": MeanOfShares(parts=shares),
        **shares,
        **called_forms(question.called, question.truly),
        "auroc": ranking(question),
        "average_precision": OfWeights(
            statistic=average_precision(question.scores, question.truly), among=everyone
        ),
    }


def ranking(question: Question) -> Ranking:
    """The area under the ROC curve of one question."""
    return Ranking(scores=question.scores, truth=question.truly, among=np.ones(len(question.truly), bool))


def called_forms(called: np.ndarray, truly: np.ndarray) -> dict[str, OfSums]:
    """Precision and F1, of the same columns.

    Args:
        called: ``(N,)`` bool.
        truly: ``(N,)`` bool.
    """
    columns = np.column_stack([called & truly, called, truly]).astype(np.float64)
    everyone = np.ones(len(columns), bool)
    return {
        "precision": OfSums(columns=columns, among=everyone, statistic=precision_of),
        "f1": OfSums(columns=columns, among=everyone, statistic=f1_of),
    }


def precision_of(sums: np.ndarray) -> np.ndarray:
    """Precision from sums ``(..., 3)`` of called rightly, called, and truly so.

    NaN where the class does not occur: whether a model calls it then would decide what is averaged.
    """
    both, called, truly = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.where(truly > 0, both / np.where(called > 0, called, 1), np.nan)


def f1_of(sums: np.ndarray) -> np.ndarray:
    """F1 from sums as of `precision_of`; NaN where the class does not occur."""
    both, called, truly = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.where(truly > 0, 2 * both / np.where(truly > 0, called + truly, 1), np.nan)
