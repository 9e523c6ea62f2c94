"""How far what a student computes on the way to its answers is from what its teacher computes.

Features have the form ``(N, C, P)``: cases, channels, places (pixels, points in time or tokens); vectors
have one place. A mask ``(N, P)`` says which places count, tokens that only pad do not. Every loss is free
of the features' scale: about 1 for a student that knows nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import nn

from pastille.distillation.answers import spread, unit

if TYPE_CHECKING:
    from torch import Tensor

# Angles between all of N cases are N³ numbers; the rows of a batch are in random order.
_ANGLED: Final = 64
_DISTANCES, _ANGLES = 1 / 3, 2 / 3  # 25 and 50 in the paper
_SHORT: Final = 1e-3  # over the others' length, of a vector whose direction says nothing
_LEAST: Final = 1e-6


def projection(student: int, teacher: int) -> nn.Module:
    """A learned map of a student's channels to its teacher's, ``(N, C, P)`` to ``(N, D, P)``.

    The same in every process and every time: its first weights do not depend on what was drawn before.

    Args:
        student: C.
        teacher: D.

    Example:
        >>> projection(2, 3)(torch.zeros(1, 2, 5)).shape
        torch.Size([1, 3, 5])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv1d(student, teacher, 1)


def fitnets(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Match features value by value: mean squared difference over the teacher's variance.

    Args:
        student: After its projection, ``(N, C, P)``.
        teacher: ``(N, C, P)``.
        mask: ``(N, P)`` bool.

    References:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, equation 3.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> float(fitnets(torch.full_like(x, 2.0), x))
        1.0
    """
    ours, told = (_rows(x, mask) for x in (student, teacher))
    return F.mse_loss(ours, told) / spread(told)


def attention_transfer(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Match where features are large: the channels' mean square at each place, as a vector of length 1.

    Args:
        student: ``(N, C, P)``.
        teacher: ``(N, D, P)``.
        mask: ``(N, P)`` bool.

    Returns:
        Squared distance, averaged over cases, within ``[0, 2]``.

    References:
        Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928, equation 2 (with squares, p = 2).

    Example:
        >>> x = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
        >>> round(float(attention_transfer(3 * x, x)), 4)
        0.0
    """
    ours, told = (_unit(_masked(x, mask).square().mean(dim=1)) for x in (student, teacher))
    return (ours - told).square().sum(dim=1).mean()


def relational(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Match how cases lie to each other: distances between two of them, angles between three.

    Args:
        student: ``(N, C, P)``; each case is its mean over places.
        teacher: ``(N, D, Q)``.
        mask: ``(N, P)`` bool; of both, where Q is P.

    Returns:
        Scalar; 0 of a single case. Angles are of the first 64 cases of a larger batch.

    References:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])[:, :, None]
        >>> round(float(relational(5 * x, x)), 6)
        0.0
    """
    ours, told = (_pooled(x, mask) for x in (student, teacher))
    if len(ours) < 2:
        return ours.sum() * 0
    by_distance = F.smooth_l1_loss(_distances(ours), _distances(told))
    by_angle = F.smooth_l1_loss(_angles(ours[:_ANGLED]), _angles(told[:_ANGLED]))
    return _DISTANCES * by_distance + _ANGLES * by_angle


def _distances(x: Tensor) -> Tensor:
    """Between every two rows, ``(N·(N−1)/2,)``, over their mean."""
    away = F.pdist(x)
    return away / away.mean().clamp_min(_LEAST)


def _angles(x: Tensor) -> Tensor:
    """Cosine of the angle at row i between rows j and k, ``(N, N, N)``."""
    to = _unit(x[None] - x[:, None])
    return to @ to.mT


def similarity(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Match which cases of a batch are alike.

    Args:
        student: ``(N, C, P)``.
        teacher: ``(N, D, Q)``.
        mask: ``(N, P)`` bool; of both, where Q is P.

    Returns:
        Squared distance of the rows of both Gram matrices, each of length 1; averaged over rows. The paper
        divides by N once more, which lets the loss vanish in large batches.

    References:
        Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682.

    Example:
        >>> x = torch.eye(3)[:, :, None]
        >>> round(float(similarity(7 * x, x)), 4)
        0.0
    """
    ours, told = (_alike(x, mask) for x in (student, teacher))
    return (ours - told).square().sum(dim=1).mean()


def _alike(x: Tensor, mask: Tensor | None) -> Tensor:
    flat = _masked(x, mask).flatten(1)
    return _unit(flat @ flat.T)


def hidden(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Match the direction of the hidden state of each token.

    Args:
        student: After its projection where the widths differ, ``(N, C, P)``.
        teacher: ``(N, C, P)``.
        mask: ``(N, P)`` bool.

    Returns:
        One minus the cosine, averaged over tokens that count.

    References:
        Sanh et al., "DistilBERT", 2019, arXiv:1910.01108, section 2; layer by layer as in Jiao et al.,
        "TinyBERT", 2020, arXiv:1909.10351, section 3.1.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
        >>> round(float(hidden(3 * x, x)), 4), round(float(hidden(-x, x)), 4)
        (0.0, 2.0)
    """
    ours, told = (_unit(_rows(x, mask)) for x in (student, teacher))
    return 1 - (ours * told).sum(dim=1).mean()


def _unit(x: Tensor) -> Tensor:
    """Along the last axis, see `unit`."""
    typical = x.detach().square().sum(dim=-1).mean().sqrt()
    return unit(x, _SHORT * typical + _LEAST)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Of each place that counts, ``(M, C)``."""
    rows = x.movedim(1, -1)
    return rows.flatten(0, 1) if mask is None else rows[mask]


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where a place does not count."""
    return x if mask is None or mask.shape[1] != x.shape[2] else x * mask[:, None]


def _pooled(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the places that count, ``(N, C)``."""
    if mask is None or mask.shape[1] != x.shape[2]:
        return x.mean(dim=2)
    return _masked(x, mask).sum(dim=2) / mask.sum(dim=1, keepdim=True).clamp_min(1)
