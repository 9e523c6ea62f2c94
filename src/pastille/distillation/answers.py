"""Learning from another model: to answer like it, beside the labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor, nn

Likeness = Callable[[Mapping[str, "Tensor"], "Tensor"], "Tensor"]


def likeness(teacher: nn.Module, *, kind: str, temperature: float) -> Likeness:
    """A function of a batch and a model's answers to it: how far they are from the teacher's.

    Args:
        teacher: Not modified; a copy of it, in eval mode, follows the answers to their device.
        kind: Of the task.
        temperature: As in `distillation_loss`.
    """
    taught = copy.deepcopy(teacher).eval()

    def loss(batch: Mapping[str, Tensor], outputs: Tensor) -> Tensor:
        with torch.no_grad():
            answer = forward(taught.to(outputs.device), batch)
        return distillation_loss(outputs, answer, kind=kind, temperature=temperature)

    return loss


def distillation_loss(outputs: Tensor, teacher: Tensor, *, kind: str, temperature: float) -> Tensor:
    """How far a model's answers are from its teacher's.

    Args:
        outputs: Logits, ``(N, K, …)`` of exclusive classes, ``(N,)``, ``(N, 1, …)`` or ``(N, L)`` of
            yes-or-no questions; predictions of a regression.
        teacher: Likewise, of the same shape.
        kind: Of the task.
        temperature: Both are divided by it; the loss is multiplied by its square, so that gradients
            keep their size.

    Returns:
        Kullback-Leibler divergence in nats, averaged over the batch; of a regression, the mean squared
        difference over the teacher's variance in the batch.

    References:
        Hinton et al., 2015, arXiv:1503.02531.

    Example:
        >>> x = torch.tensor([[1.0, -1.0]])
        >>> float(distillation_loss(x, x, kind="multiclass", temperature=2.0))
        0.0
    """
    if kind == "regression":
        return F.mse_loss(outputs, teacher) / teacher.var(correction=0).clamp_min(1e-6)
    logs = [_log_probabilities(x / temperature, kind) for x in (outputs, teacher)]
    each = (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1)
    return each.mean() * temperature**2


def _log_probabilities(logits: Tensor, kind: str) -> Tensor:
    """Of each class, or of yes and no, along axis 1."""
    if kind == "multilabel" or logits.ndim == 1 or logits.shape[1] == 1:
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=1)
    return F.log_softmax(logits, dim=1)
