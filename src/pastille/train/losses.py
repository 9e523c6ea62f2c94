"""What training minimises, one small function per kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np
import torch
import torch.nn.functional as F

from pastille.errors import PreconditionError
from pastille.recipe import TaskSection, Train
from pastille.values import Cases, Kind

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]

# What is rarer than that counts as if it were not: one pixel in a million must not outweigh all others.
MAX_WEIGHT = 100.0

_SURE: Final = 1e-12  # chance of being wrong below which nothing is learned


def loss_problem(task: TaskSection) -> str | None:
    """Why a model of this task cannot be trained, in a sentence; None if it can.

    Example:
        >>> loss_problem(TaskSection(kind="custom", metric="metric.py:mean_average_precision"))
        'a custom task has no loss to minimise'
    """
    if task.kind == "custom":
        return "a custom task has no loss to minimise"
    if task.outputs == "probabilities":
        return "losses need logits, but task.outputs is probabilities (to train, let the model return logits)"
    return None


def settings_problem(kind: Kind, settings: Train) -> str | None:
    """Why a recipe's loss does not fit a kind of task, in a sentence; None if it does.

    Example:
        >>> settings_problem("regression", Train(epochs=1, loss="focal"))
        'loss: focal is for classes, labels and pixels, but the task is a regression; leave it out'
    """
    if kind != "regression":
        return None
    if settings.loss == "focal":
        return "loss: focal is for classes, labels and pixels, but the task is a regression; leave it out"
    if settings.label_smoothing:
        return "label_smoothing is for classes, labels and pixels, but the task is a regression; leave it out"
    if settings.class_weights == "balanced":
        return "class_weights are for classes, labels and pixels, but the task is a regression; leave it out"
    return None


def labels_loss(cases: Cases, settings: Train) -> Loss:
    """The loss of a task by a recipe's settings; see `loss_for`.

    Raises:
        PreconditionError: The settings do not fit the kind of task.
    """
    return loss_for(cases, **_asked(cases, settings))


def labels_losses(cases: Cases, settings: Train) -> Loss:
    """The loss of each case by a recipe's settings; see `case_losses_for`.

    Raises:
        PreconditionError: The settings do not fit the kind of task.
    """
    return case_losses_for(cases, **_asked(cases, settings))


class _Asked(TypedDict):
    balanced: bool
    smoothing: float
    focal: float | None


def _asked(cases: Cases, settings: Train) -> _Asked:
    problem = settings_problem(cases.kind, settings)
    if problem:
        raise PreconditionError(problem)
    return {
        "balanced": settings.class_weights == "balanced",
        "smoothing": settings.label_smoothing,
        "focal": settings.focal_gamma if settings.loss == "focal" else None,
    }


def loss_for(
    cases: Cases, *, balanced: bool = False, smoothing: float = 0.0, focal: float | None = None
) -> Loss:
    """The loss of a task: cross-entropy for classes, of each label or pixel too; squared error for numbers.

    Args:
        cases: The training split's targets.
        balanced: Weigh each class by the inverse of its frequency, of pixels in a segmentation; of several
            labels, weigh the positive cases of each as much as its negative ones. No class and no label
            counts more than `MAX_WEIGHT` times as much as the commonest, or as a negative case.
        smoothing: Share of each target that is spread over all classes, or over yes and no of a label.
        focal: See `focal_factor`; None for plain cross-entropy.

    Returns:
        A function of outputs ``(N, …)`` and targets ``(N, …)``, averaged over the batch, labels and
        pixels. Regression errors are divided by the standard deviation of the training targets, so that
        a loss means the same whatever the target's unit.

    Raises:
        PreconditionError: The task is a custom one.
    """
    match cases.kind:
        case "custom":
            raise PreconditionError("a custom task has no loss; leave finetune out of the plan")
        case "regression":
            unit = unit_of(cases) or 1.0
            return lambda out, y: F.mse_loss(out.reshape(-1) / unit, (y / unit).to(out.dtype))
        case "multilabel":
            by_label = positive_weights(cases.targets) if balanced else None
            return lambda out, y: multilabel_loss(out, y, by_label, smoothing=smoothing, focal=focal)
        case _:
            weights = class_weights(cases.targets, len(cases.labels)) if balanced else None
            return lambda out, y: classification_loss(out, y, weights, smoothing=smoothing, focal=focal)


def unit_of(cases: Cases) -> float | None:
    """What errors of a regression are counted in: the standard deviation of its training targets.

    Args:
        cases: The training split's targets.

    Returns:
        1 where they are all alike; None of other kinds.

    Example:
        >>> unit_of(Cases(kind="regression", split="train", targets=np.array([1.0, 5.0]), labels=()))
        2.0
    """
    return float(np.std(cases.targets)) or 1.0 if cases.kind == "regression" else None


def case_losses_for(
    cases: Cases, *, balanced: bool = False, smoothing: float = 0.0, focal: float | None = None
) -> Loss:
    """The loss of each case; their mean over a batch is `loss_for`, where nothing is balanced.

    Args:
        cases: The training split's targets.
        balanced: As in `loss_for`.
        smoothing: Likewise.
        focal: Likewise.

    Returns:
        A function of outputs ``(N, …)`` and targets ``(N, …)``; it gives ``(N,)``.

    Raises:
        PreconditionError: The task is a custom one.

    Example:
        >>> cases = Cases(kind="binary", split="train", targets=np.array([0, 1]), labels=("a", "b"))
        >>> case_losses_for(cases)(torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
        tensor([0.6931, 0.6931])
    """
    match cases.kind:
        case "custom":
            raise PreconditionError("a custom task has no loss; leave finetune out of the plan")
        case "regression":
            unit = unit_of(cases) or 1.0
            return lambda out, y: ((out.reshape(-1) - y.to(out.dtype)) / unit).square()
        case "multilabel":
            by_label = positive_weights(cases.targets) if balanced else None
            return lambda out, y: _label_losses(out, y, by_label, smoothing, focal).mean(dim=1)
        case _:
            weights = class_weights(cases.targets, len(cases.labels)) if balanced else None
            return lambda out, y: (
                _class_losses(out, y, weights, smoothing, focal).reshape(len(y), -1).mean(dim=1)
            )


def focal_factor(plain: Tensor, gamma: float) -> Tensor:
    """How much each decision counts by how wrong it is: ``(1 - p)^gamma``.

    Args:
        plain: Its cross-entropy, ``-log p``, neither weighed nor smoothed.
        gamma: 0 counts all alike.

    References:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002.

    Example:
        >>> focal_factor(torch.tensor([0.9, 0.1]).log().neg(), 2.0)
        tensor([0.0100, 0.8100])
    """
    # Above zero: the slope of a root would be infinite there.
    return torch.expm1(-plain).neg().clamp_min(_SURE).pow(gamma)


def _class_losses(
    outputs: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    smoothing: float = 0.0,
    focal: float | None = None,
) -> Tensor:
    """Of each case or pixel, flat; times the weight of its class."""
    truth = targets.reshape(-1)
    by_class = None if weights is None else weights.to(outputs.device, outputs.dtype)
    if outputs.ndim > targets.ndim and outputs.shape[1] > 1:
        return _softmax_losses(outputs, targets, by_class, smoothing, focal).reshape(-1)
    flat = outputs.reshape(-1)
    if by_class is None:
        return _sigmoid_losses(flat, truth, None, smoothing, focal)
    return by_class[0] * _sigmoid_losses(flat, truth, by_class[1] / by_class[0], smoothing, focal)


def _softmax_losses(
    outputs: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float, focal: float | None
) -> Tensor:
    if focal is None:
        return F.cross_entropy(outputs, targets, weights, reduction="none", label_smoothing=smoothing)
    plain = F.cross_entropy(outputs, targets, reduction="none")
    weighed = plain if weights is None else plain * weights[targets]
    return weighed * focal_factor(plain, focal)


def _sigmoid_losses(
    outputs: Tensor, targets: Tensor, positive: Tensor | None, smoothing: float, focal: float | None
) -> Tensor:
    truth = targets.to(outputs.dtype)
    soft = truth * (1 - smoothing) + smoothing / 2 if smoothing else truth
    each = F.binary_cross_entropy_with_logits(outputs, soft, pos_weight=positive, reduction="none")
    if focal is None:
        return each
    plain = (
        each
        if positive is None and not smoothing
        else F.binary_cross_entropy_with_logits(outputs, truth, reduction="none")
    )
    return each * focal_factor(plain, focal)


def _label_losses(
    outputs: Tensor, targets: Tensor, positive: Tensor | None, smoothing: float, focal: float | None
) -> Tensor:
    weight = None if positive is None else positive.to(outputs.device)
    return _sigmoid_losses(outputs, targets, weight, smoothing, focal)


def classification_loss(
    outputs: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    focal: float | None = None,
) -> Tensor:
    """Cross-entropy, from one logit (sigmoid) or one logit per class (softmax).

    Args:
        outputs: Logits, ``(N, …)``, ``(N, 1, …)`` or ``(N, K, …)``.
        targets: Class indices, ``(N, …)``: of cases, or of the pixels of masks.
        weights: Weight of each class, ``(K,)``.
        smoothing: As in `loss_for`.
        focal: Likewise.

    Returns:
        Scalar in nats, averaged over the batch (by weight, as torch does).
    """
    # In one operator of torch; of pixels a GPU sums in no fixed order there, which a run does not permit.
    if focal is None and targets.ndim == 1 and outputs.ndim > 1 and outputs.shape[1] > 1:
        by_class = None if weights is None else weights.to(outputs.device, outputs.dtype)
        return F.cross_entropy(outputs, targets, by_class, label_smoothing=smoothing)
    each = _class_losses(outputs, targets, weights, smoothing, focal)
    return each.mean() if weights is None else each.sum() / weights.to(outputs.device)[targets].sum()


def multilabel_loss(
    outputs: Tensor,
    targets: Tensor,
    positive: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    focal: float | None = None,
) -> Tensor:
    """Binary cross-entropy, averaged over cases and labels.

    Args:
        outputs: Logits, ``(N, L)``.
        targets: 0 or 1, ``(N, L)``.
        positive: How much a positive case of each label counts, ``(L,)``; a negative one counts 1.
        smoothing: As in `loss_for`.
        focal: Likewise.

    Returns:
        Scalar in nats.
    """
    return _label_losses(outputs, targets, positive, smoothing, focal).mean()


def class_weights(targets: np.ndarray, num_classes: int) -> Tensor:
    """Weights that make every class count the same: ``N / (K · n_k)``, capped by `MAX_WEIGHT`.

    Example:
        >>> class_weights(np.array([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    counts = np.bincount(targets.reshape(-1), minlength=num_classes).clip(min=1)
    counts = np.maximum(counts, counts.max() / MAX_WEIGHT)
    return torch.tensor(targets.size / (num_classes * counts), dtype=torch.float32)


def positive_weights(targets: np.ndarray) -> Tensor:
    """Weights that make the positive cases of each label count as much as the negative ones, capped.

    Example:
        >>> positive_weights(np.array([[1, 0], [0, 0], [0, 1], [0, 1]]))
        tensor([3., 1.])
    """
    positive = targets.sum(axis=0)
    odds = (len(targets) - positive) / np.maximum(positive, 1)
    return torch.tensor(odds.clip(max=MAX_WEIGHT), dtype=torch.float32)
