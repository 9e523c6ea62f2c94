"""Distillation by itself, without a recipe: two modules and some data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pastille.data.split import Split
from pastille.distillation.answers import method_problem
from pastille.distillation.cache import (
    CacheKey,
    augment_digest,
    is_current,
    open_cache,
    remembered,
    split_digest,
    stale,
)
from pastille.distillation.layers import proposed_pairs
from pastille.distillation.objective import taught
from pastille.distillation.teaching import Live, Teaching
from pastille.errors import PreconditionError
from pastille.progress import SILENT, Progress
from pastille.recipe import Distill, Train
from pastille.task.digest import state_digest
from pastille.task.forward import example_batch, forward
from pastille.train import Extras, Fitted, fit
from pastille.train.batches import Augment, Batch
from pastille.train.loop import labels_alone
from pastille.train.losses import unit_of
from pastille.values import Cases

_PLAIN = Distill()


@dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """Where a teacher's answers are kept from one call to the next.

    Attributes:
        folder: Of these answers alone. Those of other teachers, data or augmentations are refused.
        views: Of each case, where there is an augmentation.

    Raises:
        PreconditionError: There is no view.
    """

    folder: Path
    views: int = 4

    def __post_init__(self) -> None:
        if self.views < 1:
            raise PreconditionError(f"views must be at least 1, got {self.views}")


def distill(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    train: tuple[Split, Cases],
    validation: tuple[Split, Cases],
    settings: Train,
    asked: Distill = _PLAIN,
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    augment: Augment | None = None,
    cache: TeacherCache | None = None,
    progress: Progress = SILENT,
) -> Fitted:
    """Train a student to answer like a larger model, and keep the epoch that is best on validation.

    Nobody judges the teacher here, as a run does.

    Args:
        student: Not modified; a copy is trained.
        teacher: Not modified; answers with the student's shape. Of several, the weighted mean of their
            logits counts.
        train: Inputs with their targets.
        validation: Likewise; scored after every epoch.
        settings: Epochs, optimizer and schedule.
        asked: Losses, temperature, and the teacher's share in the loss.
        weights: How much each of several teachers counts; None for all alike.
        seed: Of everything random.
        augment: Called with a batch of the only input ``(N, …)`` and a seeded generator.
        cache: Where the teacher's answers are kept; None to ask it for each batch.
        progress: Shown step by step.

    Returns:
        The student in eval mode, and how its training went.

    Raises:
        PreconditionError: There is no teacher, or no weight for each; student and teacher answer with
            different shapes; a loss does not fit the task; hints name layers that do not fit; or the cache is
            one of another teacher or of other data.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> split = Split(inputs=rng.normal(size=(64, 4)).astype(np.float32), targets=np.arange(64) % 2)
        >>> cases = Cases(kind="binary", split="train", targets=split.targets, labels=("well", "ill"))
        >>> teacher = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> student = nn.Linear(4, 2)
        >>> found = distill(student, teacher, (split, cases), (split, cases), Train(epochs=2),
        ...                 Distill(alpha=0.9, temperature=4))
        >>> len(found.loss), found.metric
        (2, 'balanced_accuracy')

    References:
        Hinton et al., 2015, arXiv:1503.02531.
    """
    split, cases = train
    teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    batch = example_batch(split.inputs)
    _check_weights(teachers, weights)
    _check(student, teachers, batch, cases, asked)
    pairs = () if asked.hints is None else proposed_pairs(student, teachers[0], batch, asked.hints)
    points = tuple(dict.fromkeys(pair.teacher for pair in pairs))
    live = Live(teachers, weights, layers=points)
    views = cache.views if cache is not None and augment is not None else None
    teaching: Teaching = live
    if cache is not None:
        key = CacheKey(
            teachers=tuple(state_digest(one) for one in teachers),
            weights=tuple(weights or [1.0] * len(teachers)),
            data=split_digest(split),
            cases=split.n,
            augment=augment_digest(augment),
            seed=seed,
            views=views or 1,
            layers=points,
        )
        teaching = _kept(live, split, key, cache.folder, augment, progress)
    objective = taught(
        labels_alone(cases, settings).loss,
        teaching,
        asked,
        kind=cases.kind,
        pairs=pairs,
        unit=unit_of(cases),
    )
    return fit(
        student,
        train,
        validation,
        settings,
        seed=seed,
        augment=augment,
        extras=Extras(objective=objective, views=views),
        progress=progress,
        what="distilling",
    )


def _kept(
    live: Live, split: Split, key: CacheKey, folder: Path, augment: Augment | None, progress: Progress
) -> Teaching:
    """What is another's is refused here, not overwritten: the folder is the caller's."""
    found = open_cache(folder, key)
    if found is not None and not is_current(found, live, split, key, augment):
        raise PreconditionError(f"{stale(folder)}; bring what it was made of, or another folder")
    return found or remembered(live, split, key, folder, augment=augment, progress=progress)


def _check_weights(teachers: Sequence[nn.Module], weights: Sequence[float] | None) -> None:
    if not teachers:
        raise PreconditionError("teacher must be a module, or several, got none")
    if weights is not None and (len(weights) != len(teachers) or not all(w > 0 for w in weights)):
        raise PreconditionError(
            f"weights must be a number above 0 for each of {len(teachers)} teachers, got {list(weights)}"
        )


def _check(
    student: nn.Module, teachers: Sequence[nn.Module], batch: Batch, cases: Cases, asked: Distill
) -> None:
    problem = method_problem(cases.kind, len(cases.labels), asked.method)
    if problem:
        raise PreconditionError(f"method: {problem}")
    own = _shape(student, batch)
    for number, teacher in enumerate(teachers, start=1):
        found = _shape(teacher, batch)
        if found != own:
            raise PreconditionError(
                f"teacher {number} answers with shape {found} for a batch of 2, the student with {own}; both "
                "must have the same classes, in the same order"
            )


def _shape(module: nn.Module, batch: Batch) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(forward(copy.deepcopy(module).eval(), batch).shape)
