"""Students as a recipe asks for them: cut out of a model, fitted to a budget, or brought."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pastille.data.split import collate
from pastille.devices import this_machine
from pastille.distillation.references import brought, brought_factory
from pastille.distillation.students_cut import Batch, anew, narrowed, narrower, shallower
from pastille.distillation.students_fitting import Costs, Fit, said, widest
from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.measure.latency import time_calls
from pastille.progress import SILENT, Progress
from pastille.recipe import Student
from pastille.runtime import ONNXRUNTIME, load
from pastille.task import Task, example_batch
from pastille.task.factory import Factory
from pastille.task.forward import to_tensors

if TYPE_CHECKING:
    from torch import nn

_KEY: Final = "distill.student"
_LOOKED_AT: Final = 64  # cases of train that show what blocks change
_LATENCY: Final = "max_latency.p"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A student before its training.

    Attributes:
        name: E.g. ``"width 0.5"``.
        module: In eval mode, of its own.
        build: What builds it untrained; None: the factory of the model that it was cut out of.
        width: What a budget came to; None where none was asked for.
        notes: What a user should know of it.
    """

    name: str
    module: nn.Module
    build: Factory | None = None
    width: float | None = None
    notes: tuple[str, ...] = ()


def built_student(
    asked: Student,
    before: nn.Module,
    task: Task,
    base: Path,
    progress: Progress = SILENT,
    *,
    width: float | None = None,
) -> Built:
    """Build a student.

    Args:
        asked: As in the recipe.
        before: What a fraction is one of; not modified.
        task: Train gives example inputs.
        base: The recipe's folder, which paths are relative to.
        progress: Shown while a budget is looked for.
        width: What the budget came to in an earlier process, which is not looked for again.

    Raises:
        PreconditionError: The model has no such fraction, or none that keeps to the budget.
        UsageError: A reference cannot be resolved, or does not answer like the task.
    """
    if asked.model is not None:
        module, build = brought(asked, task, base, key=_KEY)
        return Built(name=asked.model, module=module, build=build)
    limits = _limits(asked)
    notes: tuple[str, ...] = ()
    if limits and width is None:
        fit = _fitted(before, task, limits, progress)
        width, notes = fit.width, (_told(fit, limits),)
    cut = asked.model_copy(update={"width": width}) if limits else asked
    module = fraction(cut, before, example_batch(task.splits.train.inputs), seen=_seen(task))
    if asked.init == "random":
        module = anew(module, seed=task.recipe.seed)
    return Built(name=student_name(cut), module=module.eval(), width=width, notes=notes)


def fraction(asked: Student, model: nn.Module, batch: Batch, *, seen: Sequence[Batch] = ()) -> nn.Module:
    """A copy of a model with a share of its blocks, and then of its channels.

    Args:
        asked: Its ``depth`` and ``width``.
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        seen: Batches of train that show what blocks change.
    """
    if asked.depth is not None:
        model = shallower(model, batch, asked.depth, batches=seen)
    return model if asked.width is None else narrower(model, batch, asked.width)


def student_name(asked: Student) -> str:
    """A student in a few words.

    Example:
        >>> student_name(Student(width=0.5, depth=0.25)), student_name(Student(model="torchvision:resnet18"))
        ('depth 0.25, width 0.5', 'torchvision:resnet18')
    """
    if asked.model is not None:
        return asked.model
    shares = {"depth": asked.depth, "width": asked.width}
    said = [f"{name} {share:.3g}" for name, share in shares.items() if share is not None]
    return ", ".join([*said, *(["begun anew"] if asked.init == "random" else [])])


def check_students(students: Sequence[Student], task: Task, base: Path) -> None:
    """See, before anything is trained, that students that are brought suit the task.

    Raises:
        UsageError: A reference cannot be resolved, does not answer like the task, or is frozen.
    """
    for asked in students:
        if asked.model is not None:
            module, _ = brought(asked, task, base, key=_KEY)
            if not any(p.requires_grad for p in module.parameters()):
                raise PreconditionError(
                    f"{_KEY}: {asked.model} has no parameter that requires a gradient; let it unfreeze some"
                )


def factory_after(
    students: Sequence[Student] | None, before: Factory | None, task: Task, base: Path
) -> Factory | None:
    """What the last of some students is rebuilt from, by what the recipe says alone.

    Args:
        students: One after the other, each of the one before it; None: the model stays as it is.
        before: Of the model that the first is cut out of; None: the task's own.
        task: The user's.
        base: The recipe's folder.
    """
    own = [asked for asked in students or () if asked.model is not None]
    return brought_factory(own[-1], task, base) if own else before


def _seen(task: Task) -> list[Batch]:
    """Inputs from all over the training split, which is often sorted."""
    inputs, count = task.splits.train.inputs, task.splits.train.n
    rows = np.linspace(0, count - 1, min(_LOOKED_AT, count)).astype(int).tolist()
    return [to_tensors(collate([inputs[row] for row in rows]))]


def _limits(asked: Student) -> dict[str, float]:
    size = {} if asked.max_size is None else {"max_size": asked.max_size}
    return size | {f"{_LATENCY}{q * 100:g}": limit for q, limit in asked.max_latency.limits()}


def _fitted(before: nn.Module, task: Task, limits: Costs, progress: Progress) -> Fit:
    """Networks of several widths are made as they would ship, and measured on this machine."""
    batch = example_batch(task.splits.train.inputs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "student.onnx"

        def costs(width: float) -> Costs:
            module = narrowed(before, batch, width) if width < 1 else None
            export_onnx(before if module is None else module, batch, file)
            found = file_costs(file, task, limits)
            progress.note(f"student of width {width:.3g}: {said(found)}")
            return found

        return widest(costs, limits)


def file_costs(file: Path, task: Task, limits: Costs) -> Costs:
    """What a file takes of each limit.

    Args:
        file: As it would ship.
        task: The first input of its validation split is timed, for as long as the recipe gives one
            measurement.
        limits: Name -> the most that is allowed: ``max_size`` in bytes, ``max_latency.p95`` in milliseconds.

    Raises:
        PreconditionError: The time is too short to tell a percentile.
    """
    asked = [name for name in limits if name.startswith(_LATENCY)]
    times = _times(file, task, asked) if asked else {}
    return {name: times[name] if name in times else float(file.stat().st_size) for name in limits}


def _times(file: Path, task: Task, asked: Sequence[str]) -> Mapping[str, float]:
    measure = task.recipe.measure
    conditions = this_machine(
        threads=measure.threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version
    )
    batch = collate([task.splits.validation.inputs[0]])
    session = load(file, threads=measure.threads)
    timed = time_calls(session, batch, conditions=conditions, budget_s=measure.seconds)
    found = {name: timed.ms(float(name.removeprefix(_LATENCY)) / 100) for name in asked}
    for name, value in found.items():
        if value is None:
            raise PreconditionError(
                f"{_KEY}.{name}: {timed.samples} calls in {measure.seconds:g} s are too few to tell it; "
                "raise measure.seconds, or ask for a lower percentile"
            )
    return {name: value for name, value in found.items() if value is not None}


def _told(fit: Fit, limits: Costs) -> str:
    return f"the widest student that keeps to {said(limits)} has width {fit.width:.3g}: {said(fit.costs)}"
