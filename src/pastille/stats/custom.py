"""Metrics of the user's own, called with the cases as often as each counts."""

from __future__ import annotations

from functools import partial

import numpy as np

from pastille.stats.forms import OfWeights
from pastille.values import Cases, CustomMetric


def custom_forms(outputs: np.ndarray, cases: Cases) -> dict[str, OfWeights]:
    """The metrics that ``cases.metrics`` names.

    Args:
        outputs: ``(N, ...)``, handed to each function as they are.
        cases: The right answers, whose ``targets`` are handed on likewise.

    Raises:
        ValueError: From an estimate, where a function raises or gives no number.

    Example:
        >>> errors = CustomMetric(name="wer", function=lambda y, t: float((y != t).mean()),
        ...                       higher_is_better=False)
        >>> cases = Cases(kind="custom", split="test", targets=np.array([1, 2]), labels=(), metrics=(errors,))
        >>> custom_forms(np.array([1, 3]), cases)["wer"].statistic(np.array([[1, 1], [3, 1]]))
        array([0.5 , 0.25])
    """
    everyone = np.ones(len(cases.targets), bool)
    return {
        metric.name: OfWeights(
            statistic=partial(_values, metric, np.asarray(outputs), cases.targets),
            among=everyone,
            higher_is_better=metric.higher_is_better,
        )
        for metric in cases.metrics
    }


def _values(
    metric: CustomMetric, outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    counts = np.asarray(weights).round().astype(np.int64)  # (R, N)
    rows = (np.repeat(np.arange(len(targets)), times) for times in counts)
    return np.array([_value(metric, outputs[chosen], targets[chosen]) for chosen in rows], np.float64)


def _value(metric: CustomMetric, outputs: np.ndarray, targets: np.ndarray) -> float:
    try:
        found = metric.function(outputs, targets)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"metric {metric.name!r} raised {reason}, asked of {len(targets)} cases") from error
    if np.ndim(found) or np.asarray(found).dtype.kind not in "iuf":
        raise ValueError(f"metric {metric.name!r} must give one number, got {_shown(found)}")
    return float(found)


def _shown(found: object) -> str:
    return f"{type(found).__name__} {' '.join(repr(found).split())[:60]}"
