"""From a model's raw outputs to probabilities, decisions and predictions: the one place that knows how."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pastille.values import Cases, Kind


def output_problem(kind: Kind, num_labels: int, shape: Sequence[int]) -> str | None:
    """Say why an output shape does not fit a task, or None if it does.

    Args:
        kind: What the task is.
        num_labels: How many labels it has; not looked at for regression.
        shape: Shape of the output, batch axis first.

    Returns:
        One sentence without a full stop, or None.

    Example:
        >>> output_problem("multiclass", 4, (8, 4)) is None
        True
        >>> output_problem("multiclass", 4, (8, 3))
        'a multiclass model with 4 labels must answer with shape (N, 4), got (8, 3)'
    """
    accepted: dict[Kind, list[tuple[int, ...]]] = {
        "binary": [(), (1,), (2,)],
        "multiclass": [(num_labels,)],
        "regression": [(), (1,)],
    }
    if len(shape) > 0 and tuple(shape[1:]) in accepted[kind]:
        return None
    wanted = " or ".join(
        f"({', '.join(['N', *map(str, tail)])}{'' if tail else ','})" for tail in accepted[kind]
    )
    labels = f" with {num_labels} labels" if kind == "multiclass" else ""
    return f"a {kind} model{labels} must answer with shape {wanted}, got {tuple(shape)}"


def log_odds(outputs: np.ndarray) -> np.ndarray:
    """Log-odds of the second label of a binary task; they order cases even where probabilities saturate.

    Args:
        outputs: Logits, ``(N,)`` or ``(N, 1)`` of the second label, or ``(N, 2)`` of both.

    Returns:
        ``(N,)`` float64.

    Raises:
        ValueError: If the shape does not fit, or a value is not finite.

    Example:
        >>> log_odds(np.array([[1.0, 3.0]]))
        array([2.])
    """
    logits = _checked("binary", outputs).reshape(len(outputs), -1)  # (N, 1) | (N, 2)
    odds: np.ndarray = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
    return odds


def probabilities(kind: Kind, outputs: np.ndarray) -> np.ndarray:
    """Probabilities from logits, in double precision.

    Args:
        kind: ``"binary"`` or ``"multiclass"``.
        outputs: Logits: binary ``(N,)`` or ``(N, 1)`` for a sigmoid, ``(N, 2)`` for a softmax;
            multiclass ``(N, K)``.

    Returns:
        Binary ``(N,)``, the probability of the second label; multiclass ``(N, K)``.

    Raises:
        ValueError: If the shape does not fit, a value is not finite, or the task is a regression.

    Example:
        >>> probabilities("binary", np.array([0.0, 1000.0]))
        array([0.5, 1. ])
    """
    if kind == "binary":
        return _sigmoid(log_odds(outputs))
    if kind == "multiclass":
        return _softmax(_checked(kind, outputs))
    raise ValueError(f"kind must be 'binary' or 'multiclass', got {kind!r}")


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    tail = np.exp(-np.abs(odds))  # never overflows, and gives exactly 0.5 for a logit of 0
    chances: np.ndarray = np.where(odds >= 0, 1.0, tail) / (1.0 + tail)
    return chances


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))  # (N, K)
    chances: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return chances


def decisions(kind: Kind, outputs: np.ndarray, *, threshold: float, positive: int = 1) -> np.ndarray:
    """The class that each case is given.

    Args:
        kind: ``"binary"`` or ``"multiclass"``.
        outputs: Logits, as in `probabilities`.
        threshold: Binary: a case is called positive from this probability on.
        positive: Binary: the label that ``threshold`` speaks of, 0 or 1.

    Returns:
        Class indices, ``(N,)`` int64. Multiclass: the largest logit, the first of equals.

    Raises:
        ValueError: As `probabilities`.

    Example:
        >>> decisions("binary", np.array([-2.0, 0.0, 2.0]), threshold=0.5)
        array([0, 1, 1])
    """
    if kind == "multiclass":
        return np.asarray(_checked(kind, outputs).argmax(axis=1), np.int64)
    odds = log_odds(outputs)
    # The probability of label 0 is the sigmoid of the negated log-odds; 1 - p would round.
    called = _sigmoid(odds if positive == 1 else -odds) >= threshold
    return np.asarray(np.where(called, positive, 1 - positive), np.int64)


def decide(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    """The class that each of ``cases`` is given, by the task's own threshold and positive label.

    Returns:
        Class indices, ``(N,)`` int64.

    Raises:
        ValueError: If there is not one output per case, or as `probabilities`.
    """
    _check_rows(outputs, cases)
    positive = cases.positive[0] if cases.kind == "binary" and cases.positive else 1
    return decisions(cases.kind, outputs, threshold=cases.threshold, positive=positive)


def predict(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    """The prediction for each of ``cases`` of a regression, ``(N,)`` float64.

    Raises:
        ValueError: If there is not one output per case, or as `predictions`.
    """
    _check_rows(outputs, cases)
    return predictions(outputs)


def predictions(outputs: np.ndarray) -> np.ndarray:
    """Predictions of a regression, in the units of its targets.

    Args:
        outputs: ``(N,)`` or ``(N, 1)``.

    Returns:
        ``(N,)`` float64.

    Raises:
        ValueError: If the shape does not fit, or a value is not finite.

    Example:
        >>> predictions(np.array([[1.5], [2.0]], np.float32))
        array([1.5, 2. ])
    """
    return _checked("regression", outputs).reshape(-1)


def _checked(kind: Kind, outputs: np.ndarray) -> np.ndarray:
    values = np.asarray(outputs, np.float64)
    problem = output_problem(kind, values.shape[-1] if values.ndim == 2 else 0, values.shape)
    if problem:
        raise ValueError(f"outputs must fit the task: {problem}")
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise ValueError(f"outputs must be finite, got NaN or infinity in {broken} of {values.size} values")
    return values


def _check_rows(outputs: np.ndarray, cases: Cases) -> None:
    problem = output_problem(cases.kind, len(cases.labels), np.shape(outputs))
    if problem:
        raise ValueError(f"outputs must fit the task: {problem}")
    if np.shape(outputs)[:1] != (len(cases.targets),):
        raise ValueError(
            f"outputs must have one row per case, got {np.shape(outputs)} for {len(cases.targets)} cases"
        )
