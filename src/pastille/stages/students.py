"""One student after the other: each is built, taught, looked at and kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pastille.distillation.care import (
    Judged,
    answers_to,
    estimated,
    gain_over,
    inherited,
    judged,
    problems,
    turned,
)
from pastille.distillation.references import brought_factory, teacher_models
from pastille.distillation.students import Built, built_student
from pastille.distillation.students_fitting import gap_warning, suggested
from pastille.errors import PreconditionError, StageError
from pastille.processes import here
from pastille.progress import Progress
from pastille.recipe import DistillTraining, Student
from pastille.stages.contract import Artifact
from pastille.stages.distilled import Begun, Done, Width, keep, kept, require_same_teachers, width_of
from pastille.stages.lessons import Lesson, lesson
from pastille.stages.sparse import keeping_zeros
from pastille.stages.tuning import curve_of, tuned
from pastille.stats.metrics import selection_metric
from pastille.task import Task
from pastille.task.digest import state_digest
from pastille.train import PLAIN, Extras, Fitted
from pastille.values import Comparison, Estimate, StudentTaught

if TYPE_CHECKING:
    from torch import nn

    from pastille.task.factory import Factory

WHAT: Final = "distilling"
ALONE: Final = "training on the labels alone"
SAME: Final = "same"


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A student after its training, or the model that the first one is made of.

    Attributes:
        module: In eval mode.
        build: What builds it untrained; None: the factory of the model that the stage was given.
        done: What is told of it; None of a model that the stage was given.
    """

    module: nn.Module
    build: Factory | None = None
    done: Done | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherAtHand:
    """A teacher, and what became of its judgement."""

    module: nn.Module
    judged: Judged


@dataclass(frozen=True, kw_only=True)
class Way:
    """What every student is taught with.

    Attributes:
        settings: As asked in the recipe.
        base: The recipe's folder.
        artifact: As the stage was given it.
        task: Its test split is sealed.
        folder: Where students are kept, and found again after a kill.
        progress: Shown while it works.
    """

    settings: DistillTraining
    base: Path
    artifact: Artifact
    task: Task
    folder: Path
    progress: Progress

    def place(self, number: int) -> Path:
        """Where a student is kept."""
        return self.folder / f"{number:02d}"

    def factory(self, build: Factory | None) -> Factory:
        """What builds a student untrained."""
        return build or self.task.build

    @property
    def metric(self) -> str:
        """What teachers and students are judged by: as epochs are."""
        return selection_metric(
            self.task.cases["validation"], balanced=self.settings.class_weights == "balanced"
        )


def walked(way: Way) -> tuple[Taught, ...]:
    """Teach every student that was asked for; each begins with the one before it.

    Raises:
        PreconditionError: A teacher is poor, or a student cannot be built or trained.
        DataError: A teacher changed since an earlier process was killed.
    """
    teachers = teacher_models(way.settings.teachers, way.task, way.artifact.module, way.base)
    require_same_teachers(Begun(teachers=tuple(state_digest(module) for *_, module in teachers)), way.folder)
    asked: Sequence[Student | None] = way.settings.students or [None]
    reached = [Taught(module=way.artifact.module)]
    for number, student in enumerate(asked, start=1):
        last = number == len(asked)
        before = reached[-1]
        found = _taken_up(way, student, before, number) or _taught(way, student, before, number, last=last)
        reached.append(found)
    return tuple(reached[1:])


def _taken_up(way: Way, asked: Student | None, before: Taught, number: int) -> Taught | None:
    build = before.build
    if asked is not None and asked.model is not None:
        build = brought_factory(asked, way.task, way.base)
    found = kept(way.factory(build), way.place(number))
    if found is None:
        return None
    done, module = found
    way.progress.note(f"student {done.student.name}: taught before, taken up")
    return Taught(module=module, build=build, done=done)


def _taught(way: Way, asked: Student | None, before: Taught, number: int, *, last: bool) -> Taught:
    place, several = way.place(number), len(way.settings.students or ())
    built = _built(way, asked, before, place)
    if several > 1:  # two of them may be the same share of the one before
        built = replace(built, name=f"{built.name} ({number} of {several})")
    what = f"{WHAT} {built.name}" if several > 1 else WHAT
    teachers, notes = _teachers(way, built, before)
    found, fitted = _learned(way, asked, built, teachers, place, what)
    outputs = answers_to(fitted.model, way.task.splits.validation)
    alone = _alone(way, asked, built, found, place) if last and way.settings.compare_to_scratch else None
    student = _student(way, built, fitted, outputs, teachers, found)
    student, said = _beside(way, student, outputs, alone)
    curves = (curve_of(fitted, what), *([curve_of(alone, ALONE)] if alone else []))
    notes = (*built.notes, *notes, *_remarks(student), *said)
    for note in notes:
        way.progress.note(note)
    done = Done(student=student, curves=curves, notes=notes)
    build = built.build or before.build
    keep(done, fitted.model, way.factory(build), place)
    shutil.rmtree(place / "answers", ignore_errors=True)  # they may be large, and are not needed again
    return Taught(module=fitted.model, build=build, done=done)


def _learned(
    way: Way, asked: Student | None, built: Built, teachers: Sequence[TeacherAtHand], place: Path, what: str
) -> tuple[Lesson, Fitted]:
    """Train a student by its teachers, who stay as they are."""
    given = [(t.judged.seen.weight, t.module) for t in teachers]
    found = lesson(
        built.module,
        given,
        way.settings,
        way.settings,
        way.task,
        way.base,
        place / "answers",
        way.progress,
        cache=way.settings.cache,
    )
    looks = [state_digest(module) for _, module in given]
    extras = replace(_shared(way, asked, built, found), objective=found.objective)
    fitted = _trained(way, built, extras, place / "distilling", what)
    if looks != [state_digest(module) for _, module in given]:
        raise StageError("stage 'distill' must leave its teachers alone, but one changed while it taught")
    return found, fitted


def _built(way: Way, asked: Student | None, before: Taught, place: Path) -> Built:
    if asked is None:
        return Built(name=SAME, module=before.module)
    if asked.max_size is None and not any(asked.max_latency.limits()):
        return built_student(asked, before.module, way.task, way.base, way.progress)

    def measured() -> Width:
        found = built_student(asked, before.module, way.task, way.base, way.progress)
        assert found.width is not None
        return Width(width=found.width, notes=found.notes)

    fit = width_of(place, measured)
    again = built_student(asked, before.module, way.task, way.base, way.progress, width=fit.width)
    return replace(again, notes=fit.notes)


def _teachers(way: Way, built: Built, before: Taught) -> tuple[list[TeacherAtHand], tuple[str, ...]]:
    """Everyone who teaches a student, judged; and what the user should know of them.

    Raises:
        PreconditionError: One is poor, and that was not accepted.
    """
    cases, validation = way.task.cases["validation"], way.task.splits.validation
    asked = teacher_models(way.settings.teachers, way.task, way.artifact.module, way.base)
    assistant = [] if before.done is None else [_assistant(before, len(asked))]
    whole = sum(weight for _, weight, _ in (*asked, *assistant))
    named = [(name, weight / whole, module) for name, weight, module in (*asked, *assistant)]

    def judge() -> tuple[list[Judged], list[list[str]]]:
        start = answers_to(built.module, validation)
        known = start if np.isfinite(start).all() else None
        seen = [judged(name, w, m, validation, cases, metric=way.metric) for name, w, m in named]
        return seen, [problems(one, cases, start=known) for one in seen]

    seen, poor = here().agreed(judge)
    # On the way down a list nobody ends the run: who learned nothing, or was overtaken, no longer teaches.
    leaves = [
        bool(assistant and found) and (number >= len(asked) or not way.settings.accept_poor_teacher)
        for number, found in enumerate(poor)
    ]
    if not assistant or all(leaves):
        leaves = [False] * len(named)
        _refuse_poor(way, [p for each in poor[: len(asked)] for p in each])
    at_hand = [
        TeacherAtHand(module=module, judged=one) for (_, _, module), one in zip(named, seen, strict=True)
    ]
    at_hand = _weighed([one for one, out in zip(at_hand, leaves, strict=True) if not out])
    poor = [
        [f"{p}; it does not teach the next" for p in each] if out else each
        for each, out in zip(poor, leaves, strict=True)
    ]
    inherits = (sentence for teacher in at_hand for sentence in inherited(teacher.judged.seen))
    return at_hand, (*(p for each in poor for p in each), *inherits)


def _weighed(teachers: Sequence[TeacherAtHand]) -> list[TeacherAtHand]:
    """Those that are left, whose weights sum to one again."""
    whole = sum(t.judged.seen.weight for t in teachers)
    return [
        replace(t, judged=replace(t.judged, seen=replace(t.judged.seen, weight=t.judged.seen.weight / whole)))
        for t in teachers
    ]


def _assistant(before: Taught, teachers: int) -> tuple[str, float, nn.Module]:
    """The student before, who counts like one more teacher of average weight."""
    assert before.done is not None
    return f"student {before.done.student.name}", 1 / teachers, before.module


def _refuse_poor(way: Way, poor: Sequence[str]) -> None:
    if poor and not way.settings.accept_poor_teacher:
        raise PreconditionError(
            f"distill: {'; '.join(poor)}; bring a better teacher, or set accept_poor_teacher: true"
        )


def _shared(way: Way, asked: Student | None, built: Built, found: Lesson) -> Extras:
    """What a training with teachers and one without have in common: zeros, and the views of each case."""
    zeros = way.artifact.sparse and asked is None
    return replace(keeping_zeros(built.module) if zeros else PLAIN, views=found.views)


def _trained(way: Way, built: Built, extras: Extras, place: Path, what: str) -> Fitted:
    return tuned(
        built.module, way.task, way.settings, way.base, way.progress, what, extras=extras, keep=place
    )


def _alone(way: Way, asked: Student | None, built: Built, found: Lesson, place: Path) -> Fitted:
    """The same student from the same start, on the same batches, by its labels alone."""
    return _trained(way, built, _shared(way, asked, built, found), place / "alone", ALONE)


def _student(
    way: Way,
    built: Built,
    fitted: Fitted,
    outputs: np.ndarray,
    teachers: Sequence[TeacherAtHand],
    found: Lesson,
) -> StudentTaught:
    return StudentTaught(
        name=built.name,
        parameters=sum(p.numel() for p in fitted.model.parameters()),
        teachers=tuple(teacher.judged.seen for teacher in teachers),
        metric=way.metric,
        estimate=_estimated(way, outputs),
        asked=found.asked,
    )


def _estimated(way: Way, outputs: np.ndarray) -> Estimate:
    return here().agreed(lambda: estimated(outputs, way.task.cases["validation"], way.metric))


def _beside(
    way: Way, student: StudentTaught, outputs: np.ndarray, alone: Fitted | None
) -> tuple[StudentTaught, tuple[str, ...]]:
    """The same student without a teacher, beside it."""
    if alone is None:
        return student, ()
    others = answers_to(alone.model, way.task.splits.validation)
    cases = way.task.cases["validation"]
    found = here().agreed(lambda: gain_over(others, outputs, cases, way.metric))
    scratch = _estimated(way, others)
    student = replace(student, scratch=scratch, gain=turned(found.interval))
    return student, (_compared(student, scratch, found),)


def _compared(student: StudentTaught, scratch: Estimate, found: Comparison) -> str:
    metric = student.metric.replace("_", " ")
    sentence = (
        f"student {student.name}: validation {metric} {student.estimate.value:.4f} with its teachers, "
        f"{scratch.value:.4f} on the labels alone from the same start with the same batches"
    )
    if student.gain is None:
        return sentence
    low, high = student.gain.low, student.gain.high
    sentence += f" (gain {0.0 - (found.drop or 0.0):+.4f}, 95 % CI {low:.4f} to {high:.4f}, paired)"
    if high < 0:
        sentence += (
            "; its teachers held it back: lower alpha and temperature suit a short training, or give it more "
            "epochs"
        )
    return sentence


def _remarks(student: StudentTaught) -> Iterator[str]:
    """How large the student is beside its teachers, and how they were asked."""
    largest, nearest = (of(t.parameters for t in student.teachers) for of in (max, min))
    if student.parameters > largest:
        yield (
            f"student {student.name} has {student.parameters} parameters, more than its largest teacher "
            f"({largest}): nothing gets smaller by this; {suggested(largest).words}"
        )
    warning = gap_warning(student.parameters / nearest)
    if warning:
        yield warning
    yield f"student {student.name}: its teachers are {student.asked}"
