"""How a pruned model is trained: on labels, like the model before it, for every patient group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from pastille.pruning.units import ChannelGroup, Entries
from pastille.recipe import Prune, Train
from pastille.stages.lessons import taught_by
from pastille.stages.tuning import labels_of
from pastille.task import Task
from pastille.train import Extras, Objective
from pastille.train.batches import steps
from pastille.train.fair import RobustLoss, attributes_of, memberships, worst_group
from pastille.train.losses import labels_losses

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


def tuning_extras(
    settings: Prune, train: Train, task: Task, student: nn.Module, teacher: nn.Module
) -> Extras:
    """What one fine-tuning minimises beside, or in place of, the loss of the labels.

    Args:
        settings: As asked in the recipe.
        train: Of this fine-tuning.
        task: The user's.
        student: The model as it is now pruned.
        teacher: The model before it was pruned.
    """
    fair = settings.fairness == "protect"
    if not fair and settings.distill is None:
        return Extras()
    robust = _robust(train, task) if fair else None
    labels = labels_of(train, task) if robust is None else robust
    extras = Extras(
        objective=lambda _model: Objective(loss=labels),
        chosen_by=worst_group(task.cases["validation"], members_of(task, "validation")) if fair else None,
        kept=() if robust is None else (robust,),
    )
    if settings.distill is None:
        return extras
    return replace(extras, objective=taught_by(labels, student, teacher, settings.distill, task))


def _robust(train: Train, task: Task) -> RobustLoss:
    each = labels_losses(task.cases["train"], train)
    total = train.epochs * steps(task.splits.train.n, train)
    return RobustLoss(each, members_of(task, "train"), steps=total)


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
            "warmup": 0.0,
            "ema": None,  # it would hold on to the channels that are to shrink
            "patience": None,
        }
    )
    total = asked.epochs * steps(task.splits.train.n, train)
    most = 2 * math.log(1 / asked.shrink) * (1 - _MOMENTUM) / (asked.learning_rate * total)
    penalty = growing_penalty(leaving, most=most)
    # Only the last epoch has shrunk them all the way; the best one on validation is often the first.
    return train, Extras(penalty=penalty, counts_from=1.0)


def growing_penalty(leaving: Sequence[Entries], *, most: float) -> Callable[[nn.Module, float], Tensor]:
    """Half the sum of squares of some weights, times a factor that grows from step to step.

    Args:
        leaving: Slices of parameters.
        most: The factor at the last step.

    Returns:
        A function of the model and the share of all steps that are done with this one.
    """

    def penalty(model: nn.Module, done: float) -> Tensor:
        squares = [e.rows(model.get_parameter(e.parameter)).square().sum() for e in leaving]
        return 0.5 * most * done * torch.stack(squares).sum()

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
