"""The way of a pruning: from step to step, each made or taken up, until one breaks a limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pastille.processes import here
from pastille.progress import Progress
from pastille.recipe import FinetuneStep, Prune, PruneStep, Train
from pastille.record import PrunedStep
from pastille.stages.contract import Artifact
from pastille.stages.looking import Looking, looking
from pastille.stages.preparing import Prepared, prepared
from pastille.stages.pruning_steps import Done, keep, kept, looked_at
from pastille.stages.pruning_tuning import entries_of, shrinking, slowed, tuning_extras
from pastille.stages.removing import Goal, leaving, narrowed, scored, share_gone
from pastille.stages.tuning import curve_of, tuned
from pastille.task import Task
from pastille.train import Fitted

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Way:
    """What every step is made with.

    Attributes:
        settings: As asked in the recipe.
        base: The recipe's folder.
        artifact: As the stage was given it.
        task: Its test split is sealed.
        folder: Where steps are kept.
        progress: Shown while it works.
        ready: What was decided before the first step.
        looking: What files are held against; None where the gate after the stage is enough.
    """

    settings: Prune
    base: Path
    artifact: Artifact
    task: Task
    folder: Path
    progress: Progress
    ready: Prepared
    looking: Looking | None

    def place(self, number: int) -> Path:
        """Where a step is kept."""
        return self.folder / f"{number:02d}"

    def training(self, number: int) -> Path:
        """Where the training of a step keeps how far it is."""
        return self.place(number) / "training"


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A model on its way, and what was done to it.

    Attributes:
        module: As it is now.
        done: Step by step.
        whole: Layer -> why it lost nothing in the last step that was tried.
    """

    module: nn.Module
    done: tuple[Done, ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[PrunedStep, ...]:
        """Those that removed something."""
        return tuple(done.step for done in self.done if done.step is not None)


def way_of(
    settings: Prune, base: Path, artifact: Artifact, task: Task, folder: Path, progress: Progress
) -> Way:
    """Decide what is to be decided before the first step.

    Args:
        settings: As asked in the recipe.
        base: The recipe's folder.
        artifact: As the stage was given it.
        task: Its test split is sealed.
        folder: Where steps are kept, and found again after a kill.
        progress: Shown while it works.
    """
    ready = prepared(settings, base, artifact, task, folder, progress)
    several = settings.steps > 1 and not _mended_later(settings, task)
    return Way(
        settings=settings,
        base=base,
        artifact=artifact,
        task=task,
        folder=folder,
        progress=progress,
        ready=ready,
        looking=looking(artifact, task, progress) if several else None,
    )


def _mended_later(settings: Prune, task: Task) -> bool:
    """Whether a training of its own follows: only after it a look is fair."""
    plan = task.recipe.plan
    followed = (
        isinstance(step, PruneStep) and step.prune == settings and isinstance(after, FinetuneStep)
        for step, after in pairwise(plan)
    )
    return settings.tuning is None and any(followed)


def walked(way: Way) -> tuple[Reached, Reached | None]:
    """Go from step to step until the last, or until one breaks a limit on validation.

    Returns:
        What the stage gives back: the last step that broke none, or the first one if already that did; and
        the step that was gone back from, None if none was.
    """
    reached = _begun(way)
    for number, goal in enumerate(way.ready.goals, start=1):
        after = _taken_up(way, reached, number) or _removed(way, reached, number, goal)
        rejected = after.steps != reached.steps and after.steps[-1].rejected
        if rejected and reached.steps:
            return reached, after
        reached = after
        if rejected:
            break
    return reached, None


def _begun(way: Way) -> Reached:
    """The model before the first removal, after sparsity learning if that is asked."""
    start = Reached(module=way.artifact.module)
    if way.settings.regularize is None:
        return start
    return _taken_up(way, start, 0) or _regularized(way, start)


def _taken_up(way: Way, before: Reached, number: int) -> Reached | None:
    found = kept(way.task, way.place(number))
    if found is None:
        return None
    done, module = found
    way.progress.note(f"{_title(way, number)}: finished before, taken up")
    return Reached(module=module, done=(*before.done, done), whole=done.left_whole)


def _title(way: Way, number: int) -> str:
    return f"pruning step {number} of {way.settings.steps}" if number else "learning to do without"


def _regularized(way: Way, start: Reached) -> Reached:
    goal = way.ready.goals[-1]
    found = scored(start.module, goal, way.ready.work, way.progress)
    gone = leaving(found, goal, way.ready.work)
    if not gone:
        return start  # the steps will say why
    train, extras = shrinking(way.settings, way.task, entries_of(found.groups, gone))
    what = _title(way, 0)
    keep = way.training(0)
    fitted = tuned(start.module, way.task, train, way.base, way.progress, what, extras=extras, keep=keep)
    return _kept(way, start, fitted.model, Done(step=None, curve=curve_of(fitted, what)), 0)


def _removed(way: Way, before: Reached, number: int, goal: Goal) -> Reached:
    """One removal with its fine-tuning; nothing but the reasons is new where rounding leaves none."""
    pruned = narrowed(before.module, goal, way.ready.work, way.progress)
    if parameters(pruned.model) == parameters(before.module):
        return replace(before, whole=pruned.left_whole)
    way.progress.note(f"{_title(way, number)}: {len(pruned.widths)} layers narrowed")
    fitted = _tuned(way, pruned.model, number)
    module = pruned.model if fitted is None else fitted.model
    step = PrunedStep(
        number=number,
        removed=1 - parameters(module) / parameters(way.artifact.module),
        sparsity=share_gone(way.artifact.module, module, way.ready.groups),
        parameters=parameters(module),
        macs=None,
        metric=None if fitted is None else fitted.score,
        spent=None,
        rejected=False,
    )
    if way.looking is not None:
        seen, looking = step, way.looking
        step = here().agreed(lambda: looked_at(seen, module, looking, way.place(number)))
    curve = None if fitted is None else curve_of(fitted, f"after {_title(way, number)}")
    return _kept(way, before, module, Done(step=step, curve=curve, left_whole=pruned.left_whole), number)


def _tuned(way: Way, module: nn.Module, number: int) -> Fitted | None:
    if way.settings.tuning is None:
        return None
    train: Train = slowed(way.settings.tuning, number, way.settings.slower)
    extras = tuning_extras(way.settings, train, way.task, module, way.artifact.module)
    what = f"fine-tuning, {_title(way, number)}"
    keep = way.training(number)
    return tuned(module, way.task, train, way.base, way.progress, what, extras=extras, keep=keep)


def _kept(way: Way, before: Reached, module: nn.Module, done: Done, number: int) -> Reached:
    if way.settings.steps > 1 or way.settings.regularize is not None:
        keep(done, module, way.task, way.place(number))
    return Reached(module=module, done=(*before.done, done), whole=done.left_whole)


def parameters(module: nn.Module) -> int:
    """How many numbers were trained."""
    return sum(p.numel() for p in module.parameters())
