"""Distillation as a stage: a student learns from teachers, and is judged like any other model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from pastille.distillation.references import teacher_models
from pastille.distillation.students import check_students
from pastille.errors import StageError
from pastille.progress import Progress
from pastille.pruning.removal import layer_widths
from pastille.recipe import DistillTraining
from pastille.record import StageDetails
from pastille.stages.contract import STEPS, Artifact, StageResult
from pastille.stages.lessons import require_losses
from pastille.stages.students import Way, walked
from pastille.stages.tuning import augmentation, require_loss, require_trainable
from pastille.task import Task

if TYPE_CHECKING:
    from torch import nn


@final
@dataclass(frozen=True, kw_only=True)
class DistillStage:
    """Train a student to answer like its teachers.

    Attributes:
        settings: As asked in the recipe.
        base: The recipe's folder, which paths are relative to.
    """

    settings: DistillTraining
    base: Path
    name: str = field(default="distill", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Losses that fit the task, teachers that answer like it, students that can be built and trained."""
        require_loss(self.settings, task, "distill")
        require_losses(self.settings, task, "distill")
        augmentation(self.settings, self.base)
        if self.settings.students is None:
            require_trainable(artifact.module, task, "distill")
        else:
            check_students(self.settings.students, task, self.base)
        teacher_models(self.settings.teachers, task, artifact.module, self.base)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Teach one student after the other; each begins where the one before it ended."""
        taught = walked(
            Way(
                settings=self.settings,
                base=self.base,
                artifact=artifact,
                task=task,
                folder=folder / STEPS,
                progress=progress,
            )
        )
        done = [each.done for each in taught if each.done is not None]
        details = StageDetails(
            curves=tuple(curve for one in done for curve in one.curves),
            students=tuple(one.student for one in done),
            notes=tuple(dict.fromkeys(note for one in done for note in one.notes)),
        )
        return StageResult(module=taught[-1].module, build=taught[-1].build, details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """The same architecture, or a student that is as small as it was asked to be."""
        students = self.settings.students
        if students is None:
            if layer_widths(result.module) != layer_widths(before.module):
                raise StageError("stage 'distill' must not change the architecture of student: same")
        elif all(student.model is None for student in students) and (
            _parameters(result.module) >= _parameters(before.module)
        ):
            raise StageError("stage 'distill' must make the student smaller, but it has as many parameters")


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
