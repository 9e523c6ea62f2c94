"""How many units stay, and which go."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
        >>> import torch
        >>> lowest(torch.tensor([3.0, 1.0, 2.0, 4.0]), 2)
        tensor([1, 2])
    """
    return scores.argsort(stable=True)[:count].sort().values
