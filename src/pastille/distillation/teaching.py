"""What teachers say of a batch: asked anew each time, or remembered (`pastille.distillation.cache`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, final

import torch

from pastille.distillation.watching import watched
from pastille.pruning.hooks import no_fast_path
from pastille.task.forward import forward
from pastille.train.batches import Batch, Drawn

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the teachers say of one batch.

    Attributes:
        answers: As the task's model answers, ``(N, ...)``.
        features: Point of the first teacher -> what it gives for the batch, ``(N, ...)``.
    """

    answers: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


class Teaching(Protocol):
    """Whoever teaches."""

    def __call__(self, batch: Drawn) -> Told:
        """What is to be learned from one batch; on the batch's device, without gradients."""
        ...


@final
class Live:
    """Teachers that are asked for each batch, as it is augmented.

    They answer in the arithmetic of the training that asks them; what is remembered is in full precision.
    What several teachers say is the weighted mean of their logits: of classes that is the weighted
    geometric mean of their probabilities, once these sum to one again, and of numbers their mean. It does
    not depend on the temperature, so that one answer can be remembered for all of them. A teacher that is
    surer of itself counts for more; `Teacher.weight` balances that.

    Args:
        teachers: Not modified; copies of them, in eval mode, follow the batches to their device.
        weights: How much each counts; None for all alike.
        layers: Points of the first teacher (`pastille.distillation.layers.Pair.teacher`) whose features are
            told as well.

    Example:
        >>> from torch import nn
        >>> one, other = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.ReLU())
        >>> Live([one, other], [3, 1]).told({"input": torch.tensor([[-1.0, 2.0]])}).answers
        tensor([[-0.7500,  2.0000]])

    References:
        Hinton et al., 2015, arXiv:1503.02531 (ensembles of teachers, by the geometric mean).
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        *,
        layers: Sequence[str] = (),
    ) -> None:
        self._teachers = [copy.deepcopy(t).eval().requires_grad_(False) for t in teachers]
        given = list(weights or [1.0] * len(self._teachers))
        self._shares = [w / sum(given) for w in given]
        self._layers = tuple(dict.fromkeys(layers))
        self._seen = watched(self._teachers[0], self._layers) if self._layers else None

    @property
    def teachers(self) -> tuple[nn.Module, ...]:
        """The copies that are asked."""
        return tuple(self._teachers)

    def __call__(self, batch: Drawn) -> Told:
        """Their weighted mean answer."""
        return self.told(batch.inputs)

    def told(self, inputs: Batch) -> Told:
        """What they say of inputs ``{name: (N, ...)}``, on the device that these are on."""
        device = next(iter(inputs.values())).device
        # PyTorch's encoder would skip the layers that are watched, and pack padded tokens into another form.
        with torch.no_grad(), no_fast_path() if self._layers else nullcontext():
            answers = [
                share * forward(teacher.to(device), inputs)
                for share, teacher in zip(self._shares, self._teachers, strict=True)
            ]
        features = {} if self._seen is None else {name: self._seen.latest[name] for name in self._layers}
        return Told(answers=torch.stack(answers).sum(0), features=features)
