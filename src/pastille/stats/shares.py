"""Classification metrics that are shares of cases: accuracy, sensitivity, specificity, recall."""

from __future__ import annotations

import numpy as np

from pastille.stats.clusters import effective_cases, has_repeats
from pastille.stats.forms import Share
from pastille.stats.proportions import wilson
from pastille.values import Cases, Estimate


def class_shares(decided: np.ndarray, cases: Cases) -> dict[str, Share]:
    """Accuracy, and sensitivity and specificity where the task has positive classes.

    Sensitivity asks, among cases whose true class is positive, whether any positive class was decided;
    specificity asks the complement among the others. A binary task that names none means its second label.

    Args:
        decided: Class indices, ``(N,)``.
        cases: The right answers.

    Example:
        >>> cases = Cases(kind="multiclass", split="test", targets=np.array([0, 1, 2, 2]),
        ...               labels=("a", "b", "c"), positive=(1, 2))
        >>> {name: share.value for name, share in class_shares(np.array([0, 2, 2, 0]), cases).items()}
        {'accuracy': 0.5, 'sensitivity': 0.666..., 'specificity': 1.0}
    """
    everyone = np.ones(len(decided), bool)
    shares = {"accuracy": Share(hits=decided == cases.targets, among=everyone)}
    positive = positive_classes(cases)
    if positive:
        truly, called = (np.isin(x, positive) for x in (cases.targets, decided))
        shares |= called_shares(called, truly)
    return shares


def positive_classes(cases: Cases) -> tuple[int, ...]:
    """Class indices that must not be missed; of a binary task that names none, its second label."""
    return cases.positive or ((1,) if cases.kind == "binary" else ())


def called_shares(called: np.ndarray, truly: np.ndarray) -> dict[str, Share]:
    """Sensitivity and specificity of one yes-or-no question.

    Args:
        called: ``(N,)`` bool, cases that the model says yes to.
        truly: ``(N,)`` bool, cases for which yes is right.
    """
    return {
        "sensitivity": Share(hits=truly & called, among=truly),
        "specificity": Share(hits=~truly & ~called, among=~truly),
    }


def recall_shares(decided: np.ndarray, cases: Cases) -> dict[str, Share]:
    """Recall of each label; no case is asked of one that does not occur."""
    masks = {label: cases.targets == index for index, label in enumerate(cases.labels)}
    right = decided == cases.targets
    return {name: Share(hits=mask & right, among=mask) for name, mask in masks.items()}


def estimate_share(share: Share, *, subjects: np.ndarray | None, confidence: float) -> Estimate | None:
    """Estimate a share with Wilson's interval.

    Args:
        share: A question about ``N`` cases.
        subjects: ``(N,)``, or None if every case is a subject of its own. Where one has several of the
            cases asked, the interval rests on the number of independent cases that they are worth.
        confidence: In ``(0, 1)``.

    Returns:
        The estimate, or None if the question is put to no case.

    Example:
        >>> asked = np.ones(100, bool)
        >>> estimate_share(Share(hits=np.arange(100) < 98, among=asked), subjects=None, confidence=0.95)
        Estimate(value=0.98, interval=Interval(low=0.929..., high=0.994..., ...), n=100, method='Wilson')
    """
    if share.n == 0:
        return None
    asked, method = float(share.n), "Wilson"
    if subjects is not None and has_repeats(subjects[share.among]):
        asked = _effective(share, subjects[share.among], confidence)
        method = subject_method("Wilson", subjects[share.among], asked)
    interval = wilson(share.value * asked, asked, confidence)
    return Estimate(value=share.value, interval=interval, n=share.n, method=method)


def subject_method(method: str, subjects: np.ndarray, effective: float) -> str:
    """Say that an interval counts subjects, and what their cases are worth.

    Example:
        >>> subject_method("Wilson", np.array([1, 1, 2, 2]), 2.4)
        'Wilson, 4 cases of 2 subjects worth 2.4 independent ones'
    """
    count = len(np.unique(subjects))
    return f"{method}, {len(subjects)} cases of {count} subjects worth {effective:.1f} independent ones"


def _effective(share: Share, subjects: np.ndarray, confidence: float) -> float:
    hits = share.hits[share.among]
    right, wrong = (len(np.unique(subjects[mask])) for mask in (hits, ~hits))
    return effective_cases(hits, subjects, rare=hits if right < wrong else ~hits, confidence=confidence)
