"""What a training inside a stage learns from teachers: the one way for every stage that has some."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pastille.distillation import Live, Teaching, taught
from pastille.distillation.answers import method_problem
from pastille.distillation.asking import Asking, asking, cost_of
from pastille.distillation.cache import CacheKey, augment_digest, open_cache, remembered
from pastille.distillation.layers import Pair, proposed_pairs
from pastille.errors import PreconditionError
from pastille.processes import here
from pastille.progress import Progress
from pastille.recipe import CacheLimits, Distill, Train
from pastille.stages.tuning import augmentation, labels_of
from pastille.task import Task, example_batch
from pastille.task.digest import state_digest
from pastille.train import BatchLoss, Objective
from pastille.train.losses import unit_of

if TYPE_CHECKING:
    from torch import nn

Cache = Literal["auto", "off"] | CacheLimits
Weighted = tuple[float, "nn.Module"]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a training has to learn from.

    Attributes:
        objective: For `pastille.train.Extras`.
        views: Likewise.
        asked: How the teachers are asked, for the record.
    """

    objective: Callable[[nn.Module], Objective]
    views: int | None
    asked: str


def lesson(
    student: nn.Module,
    teachers: Sequence[Weighted],
    asked: Distill,
    train: Train,
    task: Task,
    base: Path,
    folder: Path,
    progress: Progress,
    *,
    cache: Cache,
) -> Lesson:
    """Prepare what a student is to learn: pair its layers, and ask its teachers once if that is cheaper.

    Args:
        student: As it begins; not modified.
        teachers: How much each counts, and its module; hints come from the first.
        asked: Losses and their shares.
        train: How it is trained.
        task: The user's.
        base: The recipe's folder.
        folder: Where answers are kept, of this lesson alone.
        progress: Shown while teachers are asked.
        cache: As in the recipe.

    Raises:
        PreconditionError: Hints name layers that are not there, or do not fit.
    """
    batch = example_batch(task.splits.train.inputs)
    modules = [module for _, module in teachers]
    pairs = () if asked.hints is None else proposed_pairs(student, modules[0], batch, asked.hints)
    points = tuple(dict.fromkeys(pair.teacher for pair in pairs))
    live = Live(modules, [weight for weight, _ in teachers], layers=points)
    augmented = train.augment is not None
    how = here().agreed(
        lambda: asking(
            cache,
            cost_of(live, batch),
            cases=task.splits.train.n,
            epochs=train.epochs,
            augmented=augmented,
            free=_free(folder),
        )
    )
    teaching: Teaching = live
    if how.views is not None:
        key = _key(teachers, points, how, train, task, base)
        teaching = _cached(live, key, train, task, base, folder, progress)
    return Lesson(
        objective=_taught(labels_of(train, task), teaching, asked, task, pairs),
        views=how.views if augmented else None,
        asked=how.said(augmented=augmented),
    )


def taught_by(
    labels: BatchLoss, student: nn.Module, teacher: nn.Module, asked: Distill, task: Task
) -> Callable[[nn.Module], Objective]:
    """The objective of a training that asks its one teacher for each batch.

    Args:
        labels: The loss of the labels.
        student: As it begins; not modified.
        teacher: Not modified.
        asked: Losses and their shares.
        task: The user's.

    Raises:
        PreconditionError: Hints name layers that are not there, or do not fit.
    """
    batch = example_batch(task.splits.train.inputs)
    pairs = () if asked.hints is None else proposed_pairs(student, teacher, batch, asked.hints)
    live = Live([teacher], layers=[pair.teacher for pair in pairs])
    return _taught(labels, live, asked, task, pairs)


def _taught(
    labels: BatchLoss, teaching: Teaching, asked: Distill, task: Task, pairs: Sequence[Pair]
) -> Callable[[nn.Module], Objective]:
    unit = unit_of(task.cases["train"])
    return taught(labels, teaching, asked, kind=task.recipe.task.kind, pairs=pairs, unit=unit)


def require_losses(asked: Distill, task: Task, what: str) -> None:
    """See that the losses asked for fit the task.

    Raises:
        PreconditionError: They do not.
    """
    problem = method_problem(task.recipe.task.kind, len(task.recipe.task.labels), asked.method)
    if problem:
        raise PreconditionError(f"{what}.method: {problem}")


def require_answers_alone(asked: Distill, task: Task, what: str) -> None:
    """Likewise, of a training in int8, whose simulated file has no modules of the model's names.

    Raises:
        PreconditionError: They do not fit, or hints are asked for.
    """
    require_losses(asked, task, what)
    if asked.hints is not None:
        raise PreconditionError(
            f"{what}.hints: training in int8 compares answers alone, since a simulated file has no layers of "
            "the model's names; leave hints out, or distill before quantizing"
        )


def _free(folder: Path) -> float:
    """On the disk, once what an earlier process left is gone: one that is taken up decides alike."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    left = sum(file.stat().st_size for file in folder.glob("*")) if folder.is_dir() else 0
    return shutil.disk_usage(there).free + left


def _key(
    teachers: Sequence[Weighted], points: tuple[str, ...], how: Asking, train: Train, task: Task, base: Path
) -> CacheKey:
    assert how.views is not None
    return CacheKey(
        teachers=tuple(f"{state_digest(module)}" for _, module in teachers),
        weights=tuple(weight for weight, _ in teachers),
        data=task.data_digest,
        cases=task.splits.train.n,
        augment=augment_digest(augmentation(train, base)),
        seed=task.recipe.seed,
        views=how.views,
        layers=points,
    )


def _cached(
    live: Live, key: CacheKey, train: Train, task: Task, base: Path, folder: Path, progress: Progress
) -> Teaching:
    """The main process asks the teachers and writes, all of them read."""

    def fill() -> str:
        augment, split = augmentation(train, base), task.splits.train
        return str(remembered(live, split, key, folder, augment=augment, progress=progress).folder.resolve())

    found = open_cache(Path(here().agreed(fill)), key)
    assert found is not None
    return found
