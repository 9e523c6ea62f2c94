"""How a pruned model is trained: on labels, like the model before it, for every patient group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from pastille.pruning.units import ChannelGroup, Entries
from pastille.recipe import Prune, Train
from pastille.task import Task
from pastille.train import Extras
from pastille.train.distillation import likeness
from pastille.train.fair import attributes_of, memberships, robust_loss, worst_group
from pastille.train.loop import Batch, BatchLoss, steps
from pastille.train.losses import case_losses_for, loss_for

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

_MOMENTUM: Final = 0.9


def members_of(task: Task, split: str) -> np.ndarray:
    """Which case of a split is in which group that ``fairness: protect`` protects; ``(N, G)`` bool.

    Raises:
        DataError: There are no groups, or none that are large enough.
    """
    fairness = task.recipe.requirements.fairness
    by = attributes_of(task.splits.train, fairness.by if fairness else ())
    return memberships(task.cases[split], by)


def slowed(train: Train, number: int, slower: float) -> Train:
    """The training after one step: its learning rate is that of the step before, times ``slower``.

    Args:
        train: After the first step.
        number: Of the step, from 1.
        slower: As in the recipe.

    Example:
        >>> slowed(Train(epochs=1, learning_rate=0.08), 3, 0.5).learning_rate
        0.02
    """
    return train.model_copy(update={"learning_rate": train.learning_rate * slower ** (number - 1)})


def tuning_extras(settings: Prune, train: Train, task: Task, teacher: nn.Module) -> Extras:
    """What one fine-tuning minimises beside, or in place of, the loss of the labels.

    Args:
        settings: As asked in the recipe.
        train: Of this fine-tuning.
        task: The user's.
        teacher: The model before it was pruned.
    """
    fair = settings.fairness == "protect"
    loss = _robust(train, task) if fair else _of_labels(train, task)
    if settings.distill is not None:
        asked = settings.distill
        like = likeness(teacher, kind=task.recipe.task.kind, temperature=asked.temperature)
        loss = _mixed(loss, like, asked.alpha)
    elif not fair:
        return Extras()
    choice = worst_group(task.cases["validation"], members_of(task, "validation")) if fair else None
    return Extras(loss=loss, chosen_by=choice)


def _of_labels(train: Train, task: Task) -> BatchLoss:
    labels = loss_for(task.cases["train"], balanced=train.class_weights == "balanced")
    return lambda _batch, outputs, targets, _rows: labels(outputs, targets)


def _robust(train: Train, task: Task) -> BatchLoss:
    each = case_losses_for(task.cases["train"], balanced=train.class_weights == "balanced")
    total = train.epochs * steps(task.splits.train.n, train)
    return robust_loss(each, members_of(task, "train"), steps=total)


def _mixed(labels: BatchLoss, like: Callable[[Batch, Tensor], Tensor], alpha: float) -> BatchLoss:
    def loss(batch: Batch, outputs: Tensor, targets: Tensor, rows: np.ndarray) -> Tensor:
        return (1 - alpha) * labels(batch, outputs, targets, rows) + alpha * like(batch, outputs)

    return loss


def shrinking(settings: Prune, task: Task, leaving: Sequence[Entries]) -> tuple[Train, Extras]:
    """The training before removal, which makes the channels that will go small.

    An L2 penalty on their weights grows from step to step, so that what they did moves to the others
    before they are gone. Its size is such that alone it would leave them ``shrink`` of their size: that
    holds for any number of steps and any learning rate.

    Args:
        settings: Its ``regularize`` is given.
        task: The user's.
        leaving: Weights that run through the channels that will go.

    References:
        Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021, arXiv:2012.09243.
    """
    asked = settings.regularize
    assert asked is not None
    like = settings.tuning or Train(epochs=asked.epochs)
    train = like.model_copy(
        update={
            "epochs": asked.epochs,
            "learning_rate": asked.learning_rate,
            "schedule": "constant",
            "optimizer": "sgd",
            "momentum": _MOMENTUM,
        }
    )
    total = asked.epochs * steps(task.splits.train.n, train)
    most = 2 * math.log(1 / asked.shrink) * (1 - _MOMENTUM) / (asked.learning_rate * total)
    penalty = growing_penalty(leaving, most=most, steps=total)
    # Only the last epoch has shrunk them all the way; the best one on validation is often the first.
    return train, Extras(penalty=penalty, counts_from=1.0)


def growing_penalty(leaving: Sequence[Entries], *, most: float, steps: int) -> Callable[[nn.Module], Tensor]:
    """Half the sum of squares of some weights, times a factor that grows with each call.

    Args:
        leaving: Slices of parameters.
        most: The factor at the last step.
        steps: How many calls there will be.
    """
    call = itertools.count(1)

    def penalty(model: nn.Module) -> Tensor:
        squares = [e.rows(model.get_parameter(e.parameter)).square().sum() for e in leaving]
        return 0.5 * most * next(call) / steps * torch.stack(squares).sum()

    return penalty


def entries_of(groups: Sequence[ChannelGroup], removals: Mapping[str, Tensor]) -> list[Entries]:
    """The weights that run through units: what makes them, scales them and reads them.

    Args:
        groups: From `pastille.pruning.survey`.
        removals: Name of a group -> its units, ``(n,)`` int64.
    """
    return [
        replace(member.entries, indices=member.entries.indices[torch.isin(member.channels, units)])
        for group in groups
        if len(units := removals.get(group.name, torch.empty(0)))
        for member in group.members
    ]
