"""The stages of a plan, each a frozen value made from its section of the recipe."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from pastille.errors import StageError
from pastille.progress import Progress
from pastille.pruning.removal import layer_widths
from pastille.recipe import (
    CalibrateStep,
    DistillStep,
    Finetune,
    FinetuneStep,
    PlanStep,
    PruneStep,
    QuantizeStep,
)
from pastille.record import StageDetails
from pastille.stages.calibrate import CalibrateStage
from pastille.stages.contract import STEPS, Artifact, Stage, StageResult
from pastille.stages.distilling import DistillStage
from pastille.stages.lessons import lesson, require_losses
from pastille.stages.pruning import pruning_stage
from pastille.stages.quantizing import quantize_stage
from pastille.stages.sparse import keeping_zeros
from pastille.stages.tuning import augmentation, curve_of, require_loss, require_trainable, tuned
from pastille.task import Task
from pastille.train import PLAIN


def stage_for(step: PlanStep, base: Path) -> Stage:
    """The stage that an entry of the plan asks for.

    Args:
        step: The entry.
        base: The recipe's folder, which an ``augment`` is relative to.
    """
    match step:
        case PruneStep(prune=settings):
            return pruning_stage(settings, base)
        case FinetuneStep(finetune=settings):
            return FinetuneStage(settings=settings, base=base)
        case DistillStep(distill=settings):
            return DistillStage(settings=settings, base=base)
        case QuantizeStep(quantize=settings):
            return quantize_stage(settings, base)
        case CalibrateStep(calibrate=settings):
            return CalibrateStage(settings=settings)


@final
@dataclass(frozen=True, kw_only=True)
class FinetuneStage:
    """Train on, from the weights at hand."""

    settings: Finetune
    base: Path
    name: str = field(default="finetune", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Something that can be trained."""
        require_loss(self.settings, task, "finetune")
        require_trainable(artifact.module, task, "finetune")
        if self.settings.distill is not None:
            require_losses(self.settings.distill, task, "finetune.distill")
        augmentation(self.settings, self.base)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Train; the best epoch on validation stays."""
        extras = keeping_zeros(artifact.module) if artifact.sparse else PLAIN
        settings, answers = self.settings, folder / STEPS / "answers"
        notes: tuple[str, ...] = ()
        if settings.distill is not None:
            found = lesson(
                artifact.module,
                [(1.0, task.model)],
                settings.distill,
                settings,
                task,
                self.base,
                answers,
                progress,
                cache="off" if settings.augment else "auto",  # kept answers must not make views fewer
            )
            extras, notes = replace(extras, objective=found.objective), (f"teacher {found.asked}",)
        keep = folder / STEPS / "fine-tuning"
        fitted = tuned(
            artifact.module, task, settings, self.base, progress, "fine-tuning", extras=extras, keep=keep
        )
        shutil.rmtree(answers, ignore_errors=True)
        details = StageDetails(curves=(curve_of(fitted, "fine-tuning"),), notes=notes)
        return StageResult(module=fitted.model, details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """The same architecture."""
        if layer_widths(result.module) != layer_widths(before.module):
            raise StageError("stage 'finetune' must not change the architecture")
