"""A moving average of a model's weights, which is steadier than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import Tensor, nn

_BEGINS: Final = 10  # steps: the average of the first few would be all but the weights before training


def decay_at(step: int, decay: float) -> float:
    """The share of an average that stays at a step: less in the first ones.

    Args:
        step: From 0, over the whole training.
        decay: As asked.

    Example:
        >>> decay_at(0, 0.99), decay_at(5000, 0.99)
        (0.1, 0.99)
    """
    return min(decay, (1 + step) / (_BEGINS + step))


def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average a little towards a model, in place.

    Statistics of batch norms are averaged as well, since those of the last step belong to other weights;
    what is not a floating-point number, such as a count, is copied.

    Args:
        average: Began as a copy of the model.
        model: As it is after a step.
        decay: Share of the average that stays.

    References:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on
        Control and Optimization 30(4), 1992.
    """
    pairs = list(zip(_tensors(average), _tensors(model), strict=True))
    numbers = [(own, new) for own, new in pairs if own.is_floating_point()]
    averaged = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        averaged([own for own, _ in numbers], [new for _, new in numbers], 0)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
