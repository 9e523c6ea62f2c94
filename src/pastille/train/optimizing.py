"""Optimizers by their standard names, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.recipe import Train

# Of one_cycle, as its paper and torch have them: the share of steps in which the rate rises, and by how much
# the first and the last are smaller than the highest.
_RISING, _FIRST, _LAST = 0.3, 1 / 25, 1 / 25e4
_DROP: Final = 0.1  # of schedule: step


def optimizer_for(models: Iterable[nn.Module], settings: Train) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, of all parameters that require a gradient.

    Raises:
        PreconditionError: Every parameter is frozen.
    """
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise PreconditionError("the model cannot be trained: none of its parameters requires a gradient")
    lr, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(
            parameters, lr, momentum=settings.momentum, weight_decay=decay, nesterov=nesterov
        )
    return torch.optim.AdamW(parameters, lr, weight_decay=decay)


def rate(step: int, total: int, settings: Train) -> float:
    """The learning rate of a step, as a share of ``settings.learning_rate``.

    Args:
        step: From 0.
        total: Steps of the whole training.
        settings: Schedule and warm-up. A warm-up takes its steps from those of cosine and linear, which
            still fall to zero at the end; the shares in ``steps_at`` are of all steps.

    References:
        Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983 (cosine). Smith and Topin, 2018,
        arXiv:1708.07120 (one cycle; the momentum stays as it is).

    Example:
        >>> [rate(step, 4, Train(epochs=1)) for step in (0, 2)]
        [1.0, 0.5]
        >>> [rate(step, 4, Train(epochs=1, schedule="constant", warmup=0.5)) for step in range(4)]
        [0.3333333333333333, 0.6666666666666666, 1.0, 1.0]
    """
    rising = round(settings.warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, total - rising)
    match settings.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - done
        case "cosine":
            return _cosine(1.0, 0.0, done)
        case "step":
            return _DROP ** sum(step >= share * total for share in settings.steps_at)
        case "one_cycle":
            return _one_cycle(step, total)


def _one_cycle(step: int, total: int) -> float:
    peak, last = _RISING * total - 1, total - 1
    if step < peak:
        return _cosine(_FIRST, 1.0, step / peak)
    return _cosine(1.0, _LAST, (step - peak) / (last - peak))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True, kw_only=True)
class Momenta:
    """What an optimizer remembers, as tensors by name; the rate and the rest follow from the recipe.

    Attributes:
        optimizer: Read and changed.
    """

    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of each parameter, by its number: ``{"0.momentum_buffer": ...}``."""
        state = self.optimizer.state_dict()["state"]
        return {
            f"{number}.{name}": value
            for number, of in state.items()
            for name, value in of.items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `state_dict` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
