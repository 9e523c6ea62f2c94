"""What training minimises, one small function per kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from pastille.values import Cases

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]


def loss_for(cases: Cases, *, balanced: bool = False) -> Loss:
    """The loss of a task: cross-entropy for classes, mean squared error for numbers.

    Args:
        cases: The training split's targets.
        balanced: Weigh each class by the inverse of its frequency.

    Returns:
        A function of outputs ``(N, …)`` and targets ``(N,)``, averaged over the batch. Regression
        errors are divided by the standard deviation of the training targets, so that a loss means
        the same whatever the target's unit.
    """
    if cases.kind == "regression":
        unit = float(np.std(cases.targets)) or 1.0
        return lambda out, y: F.mse_loss(out.reshape(-1) / unit, (y / unit).to(out.dtype))
    weights = class_weights(cases.targets, len(cases.labels)) if balanced else None
    return lambda out, y: classification_loss(out, y, weights)


def classification_loss(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, from one logit (sigmoid) or one logit per class (softmax).

    Args:
        outputs: Logits, ``(N,)``, ``(N, 1)`` or ``(N, K)``.
        targets: Class indices, ``(N,)``.
        weights: Weight of each class, ``(K,)``.

    Returns:
        Scalar in nats, averaged over the batch (by weight, as torch does).
    """
    weights = weights.to(outputs.device) if weights is not None else None
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return F.cross_entropy(outputs, targets, weight=weights)
    per_case = F.binary_cross_entropy_with_logits(
        outputs.reshape(-1), targets.to(outputs.dtype), reduction="none"
    )
    if weights is None:
        return per_case.mean()
    share = weights[targets]
    return (share * per_case).sum() / share.sum()


def class_weights(targets: np.ndarray, num_classes: int) -> Tensor:
    """Weights that make every class count the same: ``N / (K · n_k)``.

    Example:
        >>> class_weights(np.array([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    counts = np.bincount(targets, minlength=num_classes).clip(min=1)
    return torch.tensor(len(targets) / (num_classes * counts), dtype=torch.float32)
