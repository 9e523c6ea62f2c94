"""Thinning a model while it trains: hooks that a training loop calls at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn

from pastille.pruning.sparse import (
    Masks,
    Thinned,
    cubic_sparsity,
    highest_of_all,
    highest_of_each,
    masked,
    moved,
    two_of_four,
)

UNTIL: Final = 0.7  # share of the training at which the model is as sparse as asked; then the masks are fixed
_LEVELS: Final = 50  # masks made on the way there: sorting all weights at every step would take longer
_ROUNDING: Final = 1e-9


@dataclass(kw_only=True, eq=False)
class Thinning:
    """Sets more and more weights of one training to zero; its state is that of the training.

    A weight that is out keeps its last value aside, gets no gradient, and comes back where its score rises
    above another's, as long as the masks are not fixed.

    Attributes:
        thinned: What goes.
        sparsity: Fraction of it, at the end.
        pattern: Where the zeros may lie: ``"2:4"`` moves from whole groups to groups of two one by one.
        score: ``"magnitude"`` lets small weights go, ``"movement"`` those that move towards zero.
        masks: As they are now; empty before the first step.
    """

    thinned: Thinned
    sparsity: float
    pattern: Literal["layer", "global", "2:4"]
    score: Literal["magnitude", "movement"]
    masks: Masks = field(default_factory=dict, init=False)
    _aside: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _movement: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _level: int = field(default=0, init=False, repr=False)

    def before_step(self, model: nn.Module) -> None:
        """With the gradients of a step there: measure movement, and let what is out have no gradient."""
        if not self._aside:
            self._begin(model)
        for name in self._aside:
            gradient = model.get_parameter(name).grad
            if gradient is None:
                continue
            if self.score == "movement" and self._level < _LEVELS:
                self._movement[name] = moved(self._movement[name], self._aside[name], gradient)
            gradient.mul_(self.masks[name])

    def after_step(self, model: nn.Module, done: float) -> None:
        """After a step: see which weights are out by now, and set them to zero.

        Args:
            model: Its weights were changed by the optimizer.
            done: Share of all steps that are done, in ``(0, 1]``.
        """
        level = min(_LEVELS, math.floor(_LEVELS * done / UNTIL + _ROUNDING))
        if self._level < _LEVELS:
            self._put_aside(model)
        if level > self._level:
            self._level = level
            self.masks = self._chosen(cubic_sparsity(level / _LEVELS, target=self.sparsity, until=1.0))
            self._bring_back(model)
        masked(model, self.masks)

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers, for a training that is killed; nothing before the first step."""
        parts = {"masks": self.masks, "aside": self._aside, "movement": self._movement}
        tensors = {f"{part}/{name}": x for part, of in parts.items() for name, x in of.items()}
        return {"level": torch.tensor(self._level), **tensors}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `state_dict` gave."""
        parts: dict[str, dict[str, Tensor]] = {"masks": {}, "aside": {}, "movement": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if name:
                parts[part][name] = value
        self.masks, self._aside, self._movement = parts.values()
        self._level = int(tensors["level"])

    def _begin(self, model: nn.Module) -> None:
        for name in self.thinned.axes:
            self._aside[name] = model.get_parameter(name).detach().clone()
            self._movement[name] = torch.zeros_like(self._aside[name])
        self.masks = {name: torch.ones_like(of, dtype=torch.bool) for name, of in self._aside.items()}

    def _put_aside(self, model: nn.Module) -> None:
        for name, mask in self.masks.items():
            self._aside[name] = torch.where(mask, model.get_parameter(name).detach(), self._aside[name])

    def _bring_back(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name, values in self._aside.items():
                model.get_parameter(name).copy_(values)

    def _chosen(self, sparsity: float) -> Masks:
        scores = self._movement if self.score == "movement" else {n: w.abs() for n, w in self._aside.items()}
        return masks_of(scores, self.thinned, sparsity, self.pattern)


def masks_of(
    scores: dict[str, Tensor], thinned: Thinned, sparsity: float, pattern: Literal["layer", "global", "2:4"]
) -> dict[str, Tensor]:
    """What stays, by scores.

    Args:
        scores: Of every weight in ``thinned``.
        thinned: Says along which axis fours lie.
        sparsity: Fraction that goes. Of ``"2:4"``, where it is below a half, those fours are thinned to two
            that lose least by it.
        pattern: Where the zeros may lie.
    """
    if pattern == "2:4":
        return {name: some_of_fours(of, sparsity, thinned.axes[name]) for name, of in scores.items()}
    return (highest_of_all if pattern == "global" else highest_of_each)(scores, sparsity)


def some_of_fours(scores: Tensor, sparsity: float, axis: int) -> Tensor:
    """A mask on the way to 2:4: of the two lowest of every four, the lowest of all go first.

    Args:
        scores: With a multiple of 4 entries along ``axis``.
        sparsity: Fraction of all entries that goes, at most a half.
        axis: See `two_of_four`.

    Example:
        >>> some_of_fours(torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0]]), 0.25, 1)
        tensor([[False, False,  True,  True,  True,  True,  True,  True]])
    """
    both = two_of_four(scores, axis)
    low = scores.masked_fill(both, torch.inf).flatten()
    mask = torch.ones_like(low, dtype=torch.bool)
    mask[low.argsort(stable=True)[: round(min(sparsity, 0.5) * low.numel())]] = False
    return mask.view(scores.shape)
