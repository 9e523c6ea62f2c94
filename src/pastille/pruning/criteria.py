"""How much a channel matters: one small function per criterion, low scores go first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Criterion = Callable[["Tensor"], "Tensor"]


def l1(weights: Tensor) -> Tensor:
    """Sum of absolute weights of each channel.

    Args:
        weights: One row per channel, ``(C, M)``.

    Returns:
        Scores ``(C,)``.

    Example:
        >>> l1(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
        tensor([3.0000, 0.5000])

    References:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710.
    """
    return weights.abs().sum(dim=1)


def l2(weights: Tensor) -> Tensor:
    """Euclidean norm of the weights of each channel.

    Args:
        weights: One row per channel, ``(C, M)``.

    Returns:
        Scores ``(C,)``.

    Example:
        >>> l2(torch.tensor([[3.0, -4.0], [0.5, 0.0]]))
        tensor([5.0000, 0.5000])

    References:
        He et al., "Soft Filter Pruning", IJCAI 2018, arXiv:1808.06866.
    """
    return weights.square().sum(dim=1).sqrt()


CRITERIA: Mapping[str, Criterion] = {"l1": l1, "l2": l2}


def channel_scores(members: list[tuple[Tensor, Tensor]], num_channels: int, criterion: Criterion) -> Tensor:
    """Score the channels of one coupled group over every layer that they run through.

    Each layer's scores are divided by their mean first: neither large weights nor many rows per
    channel (a flattened map gives one per pixel) let a layer outvote the others.

    Args:
        members: For each coupled layer its weights, one row per channel ``(C_i, M_i)``, and for each
            row which channel of the group it belongs to, ``(C_i,)`` int64.
        num_channels: Channels of the group, ``C``.
        criterion: Maps ``(C_i, M_i)`` to ``(C_i,)``.

    Returns:
        Scores ``(C,)``.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
    """
    total = torch.zeros(num_channels, dtype=torch.float64)
    for weights, rows in members:
        layer = torch.zeros_like(total).index_add_(0, rows, criterion(weights.detach().double()))
        total += layer / layer[rows].mean().clamp(min=1e-12)
    return total


def channels_kept(num_channels: int, *, sparsity: float, round_to: int) -> int:
    """How wide a layer stays: rounded up, so that never more is removed than was asked.

    Args:
        num_channels: Width before any pruning.
        sparsity: Fraction to remove, in ``[0, 1)``.
        round_to: The width kept is a multiple of this, or the layer stays whole.

    Raises:
        ValueError: ``sparsity`` or ``round_to`` is out of range.

    Example:
        >>> channels_kept(64, sparsity=0.6, round_to=8)
        32
        >>> channels_kept(12, sparsity=0.6, round_to=8)
        8
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1, got {round_to}")
    # 1e-9: 64 · (1 − 0.75) must be 16 and not 16.000000000000004 rounded up to 24.
    exact = num_channels * (1 - sparsity) - 1e-9
    return min(num_channels, max(1, -int(-exact // round_to)) * round_to)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` lowest scores, ascending; equal scores go by index.

    Example:
        >>> lowest(torch.tensor([3.0, 1.0, 2.0, 4.0]), 2)
        tensor([1, 2])
    """
    return scores.argsort(stable=True)[:count].sort().values
