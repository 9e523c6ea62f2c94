"""What a student minimises: the loss of its labels, mixed with how far it is from its teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from pastille.distillation.answers import distillation_loss
from pastille.distillation.attention import relations, tokens_that_count
from pastille.distillation.features import (
    attention_transfer,
    fitnets,
    hidden,
    projection,
    relational,
    similarity,
)
from pastille.distillation.layers import Pair
from pastille.distillation.probing import matched
from pastille.distillation.teaching import Teaching, Told
from pastille.distillation.watching import watched
from pastille.errors import PreconditionError
from pastille.recipe import Distill
from pastille.train import BatchLoss, Objective
from pastille.train.batches import Drawn

if TYPE_CHECKING:
    from torch import Tensor

HINT_LOSSES: Final[Mapping[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]]] = {
    "fitnets": fitnets,
    "attention": attention_transfer,
    "relational": relational,
    "similarity": similarity,
    "minilm": relations,
    "hidden": hidden,
}
_PLACE_BY_PLACE: Final = ("fitnets", "attention", "minilm", "hidden")


def taught(
    labels: BatchLoss,
    teaching: Teaching,
    asked: Distill,
    *,
    kind: str,
    pairs: Sequence[Pair] = (),
    unit: float | None = None,
) -> Callable[[nn.Module], Objective]:
    """What a student that has a teacher minimises: ``(1 − α) · labels + α · (answers + weight · hints)``.

    Args:
        labels: The loss of the labels alone.
        teaching: What the teachers say; features too, where hints are asked for.
        asked: How much of each, and by which losses.
        kind: Of the task.
        pairs: Which layers hints are given between, from `proposed_pairs`; their mean counts.
        unit: Of a regression's numbers, see `distillation_loss`; that of `pastille.train.losses.loss_for`.

    Returns:
        A function of the copy of the student that is trained. It watches the copy for as long as the
        objective is held; what is learned beside the student are projections of its features.

    Raises:
        PreconditionError: Hints are asked for where no layers are known.
    """
    if asked.hints is not None and not pairs:
        raise PreconditionError(
            "distill.hints: this training knows no layers that hints could be given between; leave hints out"
        )

    def answers(batch: Drawn, outputs: Tensor, told: Told) -> Tensor:
        return distillation_loss(
            outputs,
            told.answers,
            kind=kind,
            temperature=asked.temperature.at(batch.done),
            method=asked.method,
            targets=batch.targets,
            unit=unit,
        )

    def objective(student: nn.Module) -> Objective:
        hinting = None if asked.hints is None else hinted(student, pairs, asked.hints.loss)
        weight = 0.0 if asked.hints is None else asked.hints.weight

        def loss(batch: Drawn, outputs: Tensor) -> Tensor:
            told, alpha = teaching(batch), asked.alpha.at(batch.done)
            like = answers(batch, outputs, told)
            if hinting is not None:
                like = like + weight * hinting.loss(batch, told.features)
            return (1 - alpha) * labels(batch, outputs) + alpha * like

        return Objective(loss=loss, learned=None if hinting is None else hinting.learned)

    return objective


def hinted(student: nn.Module, pairs: Sequence[Pair], loss: str) -> Hinting:
    """Watch a student, to compare what it computes with what its teacher did.

    Args:
        student: Given hooks, which stay for as long as what is returned.
        pairs: From `proposed_pairs`.
        loss: A key of `HINT_LOSSES`.

    Raises:
        PreconditionError: The student has no such module.
    """
    missing = [p.student for p in pairs if p.student.partition("#")[0] not in dict(student.named_modules())]
    if missing:
        raise PreconditionError(
            f"distill.hints.layers: the model that is trained has no module {missing[0]!r} (one that is "
            "trained in int8 keeps no modules of the float one); leave hints out here"
        )
    return Hinting(student, pairs, loss)


class Hinting:
    """A student that is watched.

    Attributes:
        learned: Projections of its features to the teacher's channels; None where there are none.
    """

    def __init__(self, student: nn.Module, pairs: Sequence[Pair], loss: str) -> None:
        self._pairs, self._name = pairs, loss
        self._seen = watched(student, dict.fromkeys(pair.student for pair in pairs))
        self._maps = {str(i): projected(pair) for i, pair in enumerate(pairs) if _needs_map(pair, loss)}
        self.learned = nn.ModuleDict(self._maps) if self._maps else None

    def loss(self, batch: Drawn, told: Mapping[str, Tensor]) -> Tensor:
        """Mean over pairs, of the student's latest forward pass.

        Args:
            batch: What it answered.
            told: Point of the teacher -> what it gave for the batch, ``(N, ...)``.
        """
        ours, mask = self._seen.taken(), tokens_that_count(batch.inputs)
        # In full precision: squares and products of features leave the range of half.
        with torch.autocast(batch.targets.device.type, enabled=False):
            each = [self._of(i, pair, ours, told, mask) for i, pair in enumerate(self._pairs)]
        return torch.stack(each).mean()

    def _of(
        self,
        i: int,
        pair: Pair,
        ours: Mapping[str, Tensor],
        told: Mapping[str, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        student = pair.ours.laid_out(ours[pair.student])
        teacher = pair.told.laid_out(told[pair.teacher].detach())
        if self._name in _PLACE_BY_PLACE:
            student, teacher = matched(student, teacher)
        else:
            student, teacher = student.flatten(2), teacher.flatten(2)
        if (change := self._maps.get(str(i))) is not None:
            student = change(student)
        fits = pair.ours.is_tokens and mask is not None and mask.shape[1] == student.shape[2]
        return HINT_LOSSES[self._name](student, teacher, mask if fits else None)


def projected(pair: Pair) -> nn.Module:
    """The learned map of a pair."""
    return projection(pair.ours.channels, pair.told.channels)


def _needs_map(pair: Pair, loss: str) -> bool:
    """FitNets always has one; hidden states are compared as they are where they can be."""
    return loss == "fitnets" or (loss == "hidden" and pair.ours.channels != pair.told.channels)
