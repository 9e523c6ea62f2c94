"""Score a model's outputs on one split: every metric with its interval, overall and by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from pastille.stats.auroc import auroc
from pastille.stats.bootstrap import bca_of_sums, resample_sums
from pastille.stats.clusters import has_repeats
from pastille.stats.decisions import decide, log_odds, predict
from pastille.stats.forms import Share
from pastille.stats.shares import class_shares, estimate_shares, recall_shares
from pastille.values import Cases, Confusion, Estimate, Interval, Kind, Metrics


def selection_metric(cases: Cases, *, balanced: bool) -> str:
    """The metric that the best epoch of a training is chosen by.

    Accuracy would choose the epoch that calls everything by the commonest name where one class is rare:
    on 85 % benign lesions a model that finds no melanoma scores 85 %. So a binary task, and one that
    weighs its classes alike, is chosen by balanced accuracy.

    Args:
        cases: The validation split's cases.
        balanced: Whether the training weighs classes by their rarity.

    Example:
        >>> cases = Cases(kind="binary", split="validation", targets=np.array([0, 1]), labels=("a", "b"))
        >>> selection_metric(cases, balanced=False)
        'balanced_accuracy'
    """
    rare = cases.kind == "binary" or (balanced and cases.kind == "multiclass")
    return "balanced_accuracy" if rare else headline(cases.kind)


def selection_value(outputs: np.ndarray, cases: Cases, *, metric: str) -> float:
    """The metric of `selection_metric` alone, without an interval: cheap enough for every epoch.

    Args:
        outputs: Logits or predictions, ``(N, ...)``, as in `pastille.stats.decisions`.
        cases: The right answers.
        metric: From `selection_metric`.

    Raises:
        ValueError: If the outputs do not fit or are not finite, or R² is undefined since all targets
            are equal.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 0, 0, 1]), labels=("a", "b"))
        >>> selection_value(np.array([-1.0, -1.0, -1.0, -1.0]), cases, metric="balanced_accuracy")
        0.5
    """
    if metric != "balanced_accuracy":
        return headline_value(outputs, cases)
    right = decide(outputs, cases) == cases.targets
    return float(np.mean([right[cases.targets == c].mean() for c in np.unique(cases.targets)]))


def headline(kind: Kind) -> str:
    """The one metric that a training loop and a table of stages go by.

    Example:
        >>> headline("binary"), headline("regression")
        ('accuracy', 'r2')
    """
    return "r2" if kind == "regression" else "accuracy"


def headline_value(outputs: np.ndarray, cases: Cases) -> float:
    """The headline metric alone, without an interval: cheap enough for every epoch.

    Args:
        outputs: Logits or predictions, ``(N, ...)``, as in `pastille.stats.decisions`.
        cases: The right answers.

    Raises:
        ValueError: If the outputs do not fit or are not finite, or R² is undefined since all targets
            are equal.

    Example:
        >>> cases = Cases(kind="regression", split="test", targets=np.array([1.0, 2.0, 3.0]), labels=())
        >>> headline_value(np.array([1.0, 2.0, 3.5]), cases)
        0.875
    """
    if cases.kind != "regression":
        return float(np.mean(decide(outputs, cases) == cases.targets))
    value = float(_r2(error_columns(predict(outputs, cases), cases.targets).sum(axis=0)))
    if not math.isfinite(value):
        raise ValueError("targets must differ from each other for R² to be defined")
    return value


def score(outputs: np.ndarray, cases: Cases, *, confidence: float = 0.95) -> Metrics:
    """Every metric of the task, with intervals, overall, by class and by group.

    Classification: accuracy, balanced accuracy, sensitivity and specificity (where the task has positive
    classes), AUROC (binary), recall of each label, confusion. Regression: R², RMSE, MAE and bias
    (mean of prediction - target). A metric that the cases cannot define is left out.

    Args:
        outputs: Logits or predictions, ``(N, ...)``, as in `pastille.stats.decisions`.
        cases: The right answers. Where one subject has several cases, intervals treat subjects as
            independent, not cases, and `Estimate.method` says so.
        confidence: Of the intervals, in ``(0, 1)``.

    Raises:
        ValueError: If there are no cases, or the outputs do not fit or are not finite.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 0, 1, 1]),
        ...               labels=("healthy", "ill"), positive=(1,))
        >>> metrics = score(np.array([-1.0, 0.5, 1.0, 2.0]), cases)
        >>> {name: estimate.value for name, estimate in metrics.overall.items()}
        {'accuracy': 0.75, 'sensitivity': 1.0, 'specificity': 0.5, 'auroc': 1.0, 'balanced_accuracy': 0.75}
    """
    if len(cases.targets) == 0:
        raise ValueError("cases must hold at least one case")
    return (_score_errors if cases.kind == "regression" else _score_classes)(outputs, cases, confidence)


def _score_classes(outputs: np.ndarray, cases: Cases, confidence: float) -> Metrics:
    decided = decide(outputs, cases)
    shares, recalls = class_shares(decided, cases), recall_shares(decided, cases)

    def within(rows: np.ndarray) -> dict[str, Estimate]:
        narrowed = {name: share.within(rows) for name, share in shares.items()}
        found = estimate_shares(narrowed, subjects=cases.subjects, confidence=confidence)
        return found | _auroc(outputs, cases, rows, confidence)

    balanced = _balanced_accuracy(recalls, cases.subjects, confidence)
    return Metrics(
        split=cases.split,
        n=len(decided),
        overall=within(np.ones(len(decided), bool)) | {"balanced_accuracy": balanced},
        per_class=estimate_shares(recalls, subjects=cases.subjects, confidence=confidence),
        groups=_by_group(cases, within),
        confusion=_confusion(decided, cases),
    )


def _by_group(
    cases: Cases, estimate: Callable[[np.ndarray], dict[str, Estimate]]
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Estimate the metrics of the rows of each group: attribute -> group -> metric."""
    return {
        attribute: {str(name): estimate(column == name) for name in np.unique(column)}
        for attribute, column in cases.groups.items()
    }


def _auroc(outputs: np.ndarray, cases: Cases, rows: np.ndarray, confidence: float) -> dict[str, Estimate]:
    if cases.kind != "binary" or len(np.unique(cases.targets[rows])) < 2:
        return {}
    subjects = None if cases.subjects is None else cases.subjects[rows]
    # Of the second label; of the first it is the same, with both orders turned round.
    truth = cases.targets[rows] == 1
    return {"auroc": auroc(log_odds(outputs)[rows], truth, confidence=confidence, clusters=subjects)}


def _confusion(decided: np.ndarray, cases: Cases) -> Confusion:
    size = len(cases.labels)
    counts = np.bincount(cases.targets * size + decided, minlength=size * size).reshape(size, size)
    return Confusion(labels=cases.labels, counts=tuple(tuple(map(int, row)) for row in counts))


def _balanced_accuracy(
    recalls: Mapping[str, Share], subjects: np.ndarray | None, confidence: float
) -> Estimate:
    """Mean recall of the classes that occur."""
    parts = list(estimate_shares(recalls, subjects=subjects, confidence=confidence).values())
    value = sum(part.value for part in parts) / len(parts)
    interval, method = _mean_interval(parts, confidence), "MOVER of each class's interval"
    if subjects is not None and has_repeats(subjects):
        # Classes share subjects, which MOVER does not see and the bootstrap does; the wider one holds.
        interval = _wider(interval, _bootstrapped_mean(recalls, subjects, confidence))
        method = "MOVER or BCa bootstrap by subject, the wider"
    return Estimate(value=value, interval=interval, n=sum(part.n for part in parts), method=method)


def _bootstrapped_mean(
    shares: Mapping[str, Share], subjects: np.ndarray, confidence: float
) -> Interval | None:
    columns = [column for share in shares.values() for column in (share.hits, share.among)]
    sums = resample_sums(np.column_stack(columns), clusters=subjects)
    return bca_of_sums(sums, lambda s: (s[..., ::2] / s[..., 1::2]).mean(axis=-1), confidence=confidence)


def _wider(one: Interval, other: Interval | None) -> Interval:
    if other is None:
        return one
    return Interval(low=min(one.low, other.low), high=max(one.high, other.high), confidence=one.confidence)


def _mean_interval(parts: list[Estimate], confidence: float) -> Interval:
    """Combine the intervals of independent estimates into that of their mean (Zou and Donner, 2008)."""
    reach = [(e.value - e.interval.low, e.interval.high - e.value) for e in parts if e.interval]
    down, up = (math.hypot(*side) / len(parts) for side in zip(*reach, strict=True))
    value = sum(e.value for e in parts) / len(parts)
    return Interval(low=max(0.0, value - down), high=min(1.0, value + up), confidence=confidence)


def _score_errors(outputs: np.ndarray, cases: Cases, confidence: float) -> Metrics:
    columns = error_columns(predict(outputs, cases), cases.targets)

    def within(rows: np.ndarray) -> dict[str, Estimate]:
        subjects = None if cases.subjects is None else cases.subjects[rows]
        return _error_estimates(columns[rows], subjects, confidence)

    return Metrics(
        split=cases.split,
        n=len(columns),
        overall=within(np.ones(len(columns), bool)),
        groups=_by_group(cases, within),
    )


def error_columns(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What the metrics of a regression need of each case, for their sums.

    Returns:
        ``(N, 6)``: 1, error, absolute error, squared error, and the target, centred, and its square.
    """
    error = predicted - targets
    centred = targets - targets.mean()  # sums of squares of large numbers would lose all digits
    return np.column_stack([np.ones(len(error)), error, np.abs(error), error**2, centred, centred**2])


def total_squares(sums: np.ndarray) -> np.ndarray:
    """Squared distance of the targets from their mean, from sums of `error_columns` ``(..., 6)``.

    Zero (up to rounding) is given as NaN: R² is undefined where all targets are equal.
    """
    squares: np.ndarray = sums[..., 5] - sums[..., 4] ** 2 / sums[..., 0]
    return np.where(squares > 1e-12 * sums[..., 5], squares, np.nan)


def _r2(sums: np.ndarray) -> np.ndarray:
    unexplained: np.ndarray = sums[..., 3] / total_squares(sums)
    return 1.0 - unexplained


_ERROR_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "r2": _r2,
    "rmse": lambda s: np.sqrt(s[..., 3] / s[..., 0]),
    "mae": lambda s: s[..., 2] / s[..., 0],
    "bias": lambda s: s[..., 1] / s[..., 0],
}


def _error_estimates(
    columns: np.ndarray, subjects: np.ndarray | None, confidence: float
) -> dict[str, Estimate]:
    clusters = subjects if has_repeats(subjects) else None
    method = "BCa bootstrap" if clusters is None else f"BCa bootstrap of {len(np.unique(clusters))} subjects"
    sums = resample_sums(columns, clusters=clusters)
    return {
        name: Estimate(
            value=value,
            interval=bca_of_sums(sums, statistic, confidence=confidence),
            n=len(columns),
            method=method,
        )
        for name, statistic in _ERROR_METRICS.items()
        if math.isfinite(value := float(statistic(sums.observed)))
    }
