"""Training inside a stage: on the task's own splits, by the recipe's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pastille.errors import PreconditionError
from pastille.progress import Progress
from pastille.recipe import (
    Train,
)
from pastille.record import Curve
from pastille.references import load_callable
from pastille.task import Task
from pastille.train import PLAIN, BatchLoss, Extras, Fitted, fit
from pastille.train.batches import Augment
from pastille.train.loop import labels_alone
from pastille.train.losses import loss_problem, settings_problem

if TYPE_CHECKING:
    from torch import nn


def tuned(
    module: nn.Module,
    task: Task,
    settings: Train,
    base: Path,
    progress: Progress,
    what: str,
    *,
    extras: Extras = PLAIN,
    keep: Path | None = None,
) -> Fitted:
    """Train a copy of a module on the task's own splits; the best epoch on validation stays.

    Args:
        module: Not modified.
        task: Train is learned from, validation chooses the epoch.
        settings: As the recipe asks.
        base: The recipe's folder, which ``augment`` is relative to.
        progress: Shown epoch by epoch.
        what: Name of the training in the progress.
        extras: What else is to be done at each step.
        keep: A folder of this training alone, where a run that was killed finds it again.
    """
    return fit(
        module,
        (task.splits.train, task.cases["train"]),
        (task.splits.validation, task.cases["validation"]),
        settings,
        seed=task.recipe.seed,
        augment=augmentation(settings, base),
        extras=extras,
        keep=keep,
        progress=progress,
        what=what,
    )


def labels_of(settings: Train, task: Task) -> BatchLoss:
    """The loss of the task's labels, by the recipe's settings."""
    return labels_alone(task.cases["train"], settings).loss


def require_loss(settings: Train, task: Task, what: str) -> None:
    """See that the labels have a loss, and that the recipe's settings fit it.

    Raises:
        PreconditionError: They do not.
    """
    problem = loss_problem(task.recipe.task)
    if problem:
        raise PreconditionError(f"{what}: {problem}; leave {what} out of the plan")
    problem = settings_problem(task.recipe.task.kind, settings)
    if problem:
        raise PreconditionError(f"{what}.{problem}")


def require_trainable(module: nn.Module, task: Task, what: str) -> None:
    """See that a stage can train at all.

    Raises:
        PreconditionError: The task has no loss, or every parameter is frozen.
    """
    problem = loss_problem(task.recipe.task)
    if problem:
        raise PreconditionError(f"{what}: {problem}; leave {what} out of the plan")
    if not any(p.requires_grad for p in module.parameters()):
        raise PreconditionError(
            f"{what}: the model has no parameter that requires a gradient; let its factory unfreeze some, "
            f"or leave {what} out of the plan"
        )


def augmentation(settings: Train, base: Path) -> Augment | None:
    """The user's augmentation, loaded."""
    return load_callable(settings.augment, base, key="augment") if settings.augment else None


def curve_of(fitted: Fitted, stage: str) -> Curve:
    """A training as the record keeps it."""
    return Curve(
        stage=stage,
        metric=fitted.metric,
        loss=fitted.loss,
        validation=fitted.validation,
        best_epoch=fitted.best_epoch,
    )
