"""What training minimises, one small function per kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from pastille.errors import PreconditionError
from pastille.recipe import TaskSection
from pastille.values import Cases

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]

# What is rarer than that counts as if it were not: one pixel in a million must not outweigh all others.
MAX_WEIGHT = 100.0


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


def loss_for(cases: Cases, *, balanced: bool = False) -> Loss:
    """The loss of a task: cross-entropy for classes, of each label or pixel too; squared error for numbers.

    Args:
        cases: The training split's targets.
        balanced: Weigh each class by the inverse of its frequency, of pixels in a segmentation; of several
            labels, weigh the positive cases of each as much as its negative ones. No class and no label
            counts more than `MAX_WEIGHT` times as much as the commonest, or as a negative case.

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
            unit = float(np.std(cases.targets)) or 1.0
            return lambda out, y: F.mse_loss(out.reshape(-1) / unit, (y / unit).to(out.dtype))
        case "multilabel":
            by_label = positive_weights(cases.targets) if balanced else None
            return lambda out, y: multilabel_loss(out, y, by_label)
        case _:
            weights = class_weights(cases.targets, len(cases.labels)) if balanced else None
            return lambda out, y: classification_loss(out, y, weights)


def case_losses_for(cases: Cases, *, balanced: bool = False) -> Loss:
    """The loss of each case; their mean over a batch is `loss_for`, where nothing is balanced.

    Args:
        cases: The training split's targets.
        balanced: As in `loss_for`.

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
            unit = float(np.std(cases.targets)) or 1.0
            return lambda out, y: ((out.reshape(-1) - y.to(out.dtype)) / unit).square()
        case "multilabel":
            by_label = positive_weights(cases.targets) if balanced else None
            return lambda out, y: _label_losses(out, y, by_label).mean(dim=1)
        case _:
            weights = class_weights(cases.targets, len(cases.labels)) if balanced else None
            return lambda out, y: _class_losses(out, y, weights).reshape(len(y), -1).mean(dim=1)


def _class_losses(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Of each case or pixel, flat; times the weight of its class."""
    truth = targets.reshape(-1)
    if outputs.ndim > targets.ndim and outputs.shape[1] > 1:
        each = F.cross_entropy(outputs, targets, reduction="none").reshape(-1)
    else:
        flat = outputs.reshape(-1)
        each = F.binary_cross_entropy_with_logits(flat, truth.to(outputs.dtype), reduction="none")
    return each if weights is None else weights.to(outputs.device)[truth] * each


def _label_losses(outputs: Tensor, targets: Tensor, positive: Tensor | None) -> Tensor:
    weight = positive.to(outputs.device) if positive is not None else None
    return F.binary_cross_entropy_with_logits(
        outputs, targets.to(outputs.dtype), pos_weight=weight, reduction="none"
    )


def classification_loss(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, from one logit (sigmoid) or one logit per class (softmax).

    Args:
        outputs: Logits, ``(N, …)``, ``(N, 1, …)`` or ``(N, K, …)``.
        targets: Class indices, ``(N, …)``: of cases, or of the pixels of masks.
        weights: Weight of each class, ``(K,)``.

    Returns:
        Scalar in nats, averaged over the batch (by weight, as torch does).
    """
    each = _class_losses(outputs, targets, weights)
    return each.mean() if weights is None else each.sum() / weights.to(outputs.device)[targets].sum()


def multilabel_loss(outputs: Tensor, targets: Tensor, positive: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, averaged over cases and labels.

    Args:
        outputs: Logits, ``(N, L)``.
        targets: 0 or 1, ``(N, L)``.
        positive: How much a positive case of each label counts, ``(L,)``; a negative one counts 1.

    Returns:
        Scalar in nats.
    """
    return _label_losses(outputs, targets, positive).mean()


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
