"""From a model's raw outputs to probabilities, decisions and predictions: the one place that knows how."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pastille.values import Cases, Kind

_CELLS_AT_ONCE = 1_000_000  # of what is worked on in several copies


def output_problem(kind: Kind, num_labels: int, shape: Sequence[int]) -> str | None:
    """Say why an output shape does not fit a task, or None if it does.

    Args:
        kind: What the task is.
        num_labels: How many labels it has; not looked at for regression and custom tasks.
        shape: Shape of the output, batch axis first.

    Returns:
        One sentence without a full stop, or None.

    Example:
        >>> output_problem("multiclass", 4, (8, 4)) is None
        True
        >>> output_problem("multiclass", 4, (8, 3))
        'a multiclass model with 4 labels must answer with shape (N, 4), got (8, 3)'
    """
    return _output_problem(kind, num_labels, tuple(shape))


@lru_cache(maxsize=256)  # a server asks the same with every request
def _output_problem(kind: Kind, num_labels: int, shape: tuple[int, ...]) -> str | None:
    accepted = _accepted(kind, num_labels)
    if any(_fits(shape, pattern) for pattern in accepted):
        return None
    wanted = " or ".join(map(_spelled, accepted))
    labels = f" with {num_labels} label{'s' * (num_labels != 1)}" if kind in _BY_LABEL else ""
    return f"a {kind} model{labels} must answer with shape {wanted}, got {shape}"


_BY_LABEL = ("multiclass", "multilabel", "segmentation")
_Shape = tuple[int | str, ...]  # a letter stands for any size, "..." for any further axes


def _accepted(kind: Kind, num_labels: int) -> tuple[_Shape, ...]:
    if kind == "segmentation":
        one_logit: tuple[_Shape, ...] = (("N", 1, "H", "W"), ("N", "H", "W")) if num_labels == 2 else ()
        return (("N", num_labels, "H", "W"), *one_logit)
    shapes: dict[Kind, tuple[_Shape, ...]] = {
        "binary": (("N",), ("N", 1), ("N", 2)),
        "multiclass": (("N", num_labels),),
        "multilabel": (("N", num_labels),),
        "regression": (("N",), ("N", 1)),
        "custom": (("N", "..."),),
    }
    return shapes[kind]


def _fits(shape: tuple[int, ...], pattern: _Shape) -> bool:
    if pattern[-1] == "...":
        return len(shape) > 0
    return len(shape) == len(pattern) and all(
        isinstance(asked, str) or asked == size for asked, size in zip(pattern, shape, strict=True)
    )


def _spelled(pattern: _Shape) -> str:
    return f"({', '.join(map(str, pattern))}{',' * (len(pattern) == 1)})"


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


def class_log_odds(outputs: np.ndarray) -> np.ndarray:
    """Log-odds of each class against all others; like `log_odds`, they never saturate.

    Args:
        outputs: Logits, ``(N, K)`` with ``K`` of at least 2.

    Returns:
        ``(N, K)`` float64.

    Raises:
        ValueError: If the shape does not fit, or a value is not finite.

    Example:
        >>> class_log_odds(np.array([[0.0, 3.0]]))
        array([[-3., 3.]])
    """
    logits = _checked("multiclass", outputs)
    step = max(1, _CELLS_AT_ONCE // logits.shape[1])
    odds = [_class_log_odds(logits[start : start + step]) for start in range(0, len(logits), step)]
    return np.concatenate(odds) if odds else np.zeros_like(logits)


def _class_log_odds(logits: np.ndarray) -> np.ndarray:
    rows, top = np.arange(len(logits)), logits.argmax(axis=1)
    shifted = logits - logits[rows, top][:, None]  # (N, K), the largest is 0
    chances = np.exp(shifted)
    others = chances.sum(axis=1)[:, None] - chances
    # What is left beside the largest would be rounded away: it is summed on a scale of its own.
    rest = shifted.copy()
    rest[rows, top] = -np.inf
    second = rest.max(axis=1)
    others[rows, top] = 1.0
    odds: np.ndarray = shifted - np.log(others)
    odds[rows, top] = -second - np.log(np.exp(rest - second[:, None]).sum(axis=1))
    return odds


def probabilities(kind: Kind, outputs: np.ndarray) -> np.ndarray:
    """Probabilities from logits, in double precision.

    Args:
        kind: Any but ``"regression"`` and ``"custom"``, which have none.
        outputs: Logits. A softmax is taken of binary ``(N, 2)``, multiclass ``(N, K)`` and segmentation
            ``(N, K, H, W)``; a sigmoid of binary ``(N,)`` or ``(N, 1)``, multilabel ``(N, L)`` and
            segmentation ``(N, 1, H, W)`` or ``(N, H, W)``.

    Returns:
        Binary ``(N,)`` and segmentation by sigmoid ``(N, H, W)``: the probability of the second label.
        Otherwise the shape of ``outputs``.

    Raises:
        ValueError: If the shape does not fit, a value is not finite, or the kind has no probabilities.

    Example:
        >>> probabilities("binary", np.array([0.0, 1000.0]))
        array([0.5, 1. ])
    """
    match kind:
        case "binary":
            return sigmoid(log_odds(outputs))
        case "multilabel":
            return sigmoid(_checked(kind, outputs))
        case "multiclass":
            return _softmax(_checked(kind, outputs))
        case "segmentation":
            logits = _checked(kind, outputs)
            return _softmax(logits) if has_planes(logits) else sigmoid(_one_plane(logits))
    raise ValueError(f"kind must be one that has probabilities, got {kind!r}")


def sigmoid(odds: np.ndarray) -> np.ndarray:
    """Probability from log-odds, elementwise.

    Example:
        >>> sigmoid(np.array([-1000.0, 0.0]))
        array([0. , 0.5])
    """
    tail = np.exp(-np.abs(odds))  # never overflows
    less = tail / (1.0 + tail)  # of the less likely answer; the other is 1 - less, exactly near 1 too
    chances: np.ndarray = np.where(odds >= 0, 1.0 - less, less)
    return chances


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))  # (N, K, ...)
    chances: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return chances


def decisions(kind: Kind, outputs: np.ndarray, *, threshold: float, positive: int = 1) -> np.ndarray:
    """The class that each case, label or pixel is given.

    Args:
        kind: Any but ``"regression"`` and ``"custom"``, which decide nothing.
        outputs: Logits, as in `probabilities`.
        threshold: Binary, multilabel, and segmentation by sigmoid: positive from this probability on.
        positive: Binary: the label that ``threshold`` speaks of, 0 or 1.

    Returns:
        int64. Binary and multiclass: class indices ``(N,)``; multilabel: 0 or 1, ``(N, L)``;
        segmentation: class indices ``(N, H, W)``. Of a softmax the largest logit, the first of equals.

    Raises:
        ValueError: As `probabilities`.

    Example:
        >>> decisions("binary", np.array([-2.0, 0.0, 2.0]), threshold=0.5)
        array([0, 1, 1])
        >>> decisions("multilabel", np.array([[-2.0, 2.0]]), threshold=0.5)
        array([[0, 1]])
    """
    match kind:
        case "multiclass":
            return np.asarray(_checked(kind, outputs).argmax(axis=1), np.int64)
        case "multilabel":
            return np.asarray(probabilities(kind, outputs) >= threshold, np.int64)
        case "segmentation":
            return _decided_masks(np.asarray(outputs), threshold)
        case "binary":
            odds = log_odds(outputs)
            # The probability of label 0 is the sigmoid of the negated log-odds; 1 - p would round.
            called = sigmoid(odds if positive == 1 else -odds) >= threshold
            return np.asarray(np.where(called, positive, 1 - positive), np.int64)
    raise ValueError(f"kind must be one that decides, got {kind!r}")


def _decided_masks(outputs: np.ndarray, threshold: float) -> np.ndarray:
    """An image at a time: in double precision, all of them together would not fit into memory."""
    check_shape("segmentation", outputs)
    masks = np.empty((len(outputs), *outputs.shape[-2:]), np.int64)
    by_softmax = has_planes(outputs)
    for mask, image in zip(masks, outputs, strict=True):
        logits = _finite(np.asarray(image, np.float64))
        mask[:] = logits.argmax(axis=0) if by_softmax else sigmoid(logits.reshape(mask.shape)) >= threshold
    return masks


def decide(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    """What each of ``cases`` is called, by the task's own threshold and positive label.

    Returns:
        Class indices, as `decisions`.

    Raises:
        ValueError: If there is not one output per case, or as `decisions`.
    """
    check_rows(outputs, cases)
    positive = cases.positive[0] if cases.kind == "binary" and cases.positive else 1
    return decisions(cases.kind, outputs, threshold=cases.threshold, positive=positive)


def predict(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    """The prediction for each of ``cases`` of a regression, ``(N,)`` float64.

    Raises:
        ValueError: If there is not one output per case, or as `predictions`.
    """
    check_rows(outputs, cases)
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


def check_rows(outputs: np.ndarray, cases: Cases) -> None:
    """See that there is one output of the right shape for each of ``cases``.

    Raises:
        ValueError: If not.
    """
    shape = np.shape(outputs)
    problem = output_problem(cases.kind, len(cases.labels), shape)
    if problem:
        raise ValueError(f"outputs must fit the task: {problem}")
    if shape[:1] != (len(cases.targets),):
        raise ValueError(f"outputs must have one row per case, got {shape} for {len(cases.targets)} cases")
    if cases.kind == "segmentation" and shape[-2:] != cases.targets.shape[1:]:
        raise ValueError(
            f"outputs must be as high and wide as the targets, got {shape} for {cases.targets.shape}"
        )


def _checked(kind: Kind, outputs: np.ndarray) -> np.ndarray:
    values = np.asarray(outputs, np.float64)
    check_shape(kind, values)
    return _finite(values)


def check_shape(kind: Kind, outputs: np.ndarray, *, name: str = "outputs") -> None:
    """See that outputs have a shape that a kind of task answers with, whatever the number of labels is.

    Raises:
        ValueError: If not.
    """
    several = outputs.ndim > 1 and (kind != "segmentation" or has_planes(outputs))
    problem = output_problem(kind, outputs.shape[1] if several else 2, outputs.shape)
    if problem:
        raise ValueError(f"{name} must fit the task: {problem}")


def _finite(values: np.ndarray) -> np.ndarray:
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise ValueError(f"outputs must be finite, got NaN or infinity in {broken} of {values.size} values")
    return values


def has_planes(outputs: np.ndarray) -> bool:
    """Whether a segmentation answers with a logit for every label, and not with one for the second."""
    return outputs.ndim == 4 and outputs.shape[1] > 1


def _one_plane(logits: np.ndarray) -> np.ndarray:
    return logits.reshape(len(logits), *logits.shape[-2:])  # (N, H, W)
