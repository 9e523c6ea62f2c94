"""The stages of a plan, each a frozen value made from its section of the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from pastille.errors import PreconditionError, StageError
from pastille.progress import Progress
from pastille.pruning import prune
from pastille.pruning.removal import layer_widths
from pastille.pruning.structured import NothingToRemove
from pastille.recipe import (
    CalibrateStep,
    FinetuneStep,
    PlanStep,
    Prune,
    PruneStep,
    QuantizeStep,
    Train,
)
from pastille.record import Curve, StageDetails, WidthChange
from pastille.references import load_callable
from pastille.stages.calibrate import CalibrateStage
from pastille.stages.contract import Artifact, Stage, StageResult
from pastille.stages.quantizing import quantize_stage
from pastille.task import Task, example_batch
from pastille.train import Fitted, fit
from pastille.train.loop import Augment
from pastille.train.losses import loss_problem

if TYPE_CHECKING:
    from torch import nn


def stage_for(step: PlanStep, base: Path) -> Stage:
    """The stage that an entry of the plan asks for.

    Args:
        step: The entry.
        base: The recipe's folder, which an ``augment`` is relative to.
    """
    match step:
        case PruneStep(prune=settings):
            return PruneStage(settings=settings, base=base)
        case FinetuneStep(finetune=settings):
            return FinetuneStage(settings=settings, base=base)
        case QuantizeStep(quantize=settings):
            return quantize_stage(settings, base)
        case CalibrateStep(calibrate=settings):
            return CalibrateStage(settings=settings)


@final
@dataclass(frozen=True, kw_only=True)
class PruneStage:
    """Remove channels in several steps, fine-tuning after each."""

    settings: Prune
    base: Path
    name: str = field(default="prune", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """A module with weights; whether channels can be removed shows when it is traced."""
        if not any(p.ndim > 1 for p in artifact.module.parameters()):
            raise PreconditionError(
                "prune: the model has no convolution or linear layer to prune; leave prune out of the plan"
            )
        if self.settings.finetune is not None:
            _require_trainable(artifact.module, task, "prune.finetune")
            _augment(self.settings.finetune, self.base)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Prune and fine-tune, step by step."""
        settings, module = self.settings, artifact.module
        original = layer_widths(module)
        batch = example_batch(task.splits.train.inputs)
        curves: list[Curve] = []
        whole: Mapping[str, str] = {}
        for number, sparsity in enumerate(sparsities(settings.sparsity, settings.steps), start=1):
            what = f"pruning step {number} of {settings.steps}"
            try:
                pruned = prune(
                    module,
                    batch,
                    sparsity=sparsity,
                    criterion=settings.criterion,
                    round_to=settings.round_to,
                    protect=settings.protect,
                    original_widths=original,
                )
            except NothingToRemove:
                # An early step may be finer than the rounding; only the last must remove something.
                if number < settings.steps or layer_widths(module) != original:
                    continue
                raise
            module, whole = pruned.model, pruned.left_whole
            progress.note(f"{what}: {len(pruned.widths)} layers narrowed")
            if settings.finetune is not None:
                fitted = _fit(module, task, settings.finetune, self.base, progress, f"fine-tuning, {what}")
                module = fitted.model
                curves.append(_curve(fitted, f"after {what}"))
        widths = _width_changes(original, layer_widths(module))
        narrowed = {change.module for change in widths}
        left = {name: why for name, why in whole.items() if name not in narrowed}
        details = StageDetails(curves=tuple(curves), widths=widths, left_whole=left)
        return StageResult(module=module, details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """Fewer parameters, and each new width a multiple of ``round_to``."""
        if _parameters(result.module) >= _parameters(before.module):
            raise StageError("stage 'prune' must remove parameters, but removed none")
        odd = [c.module for c in result.details.widths if c.after % self.settings.round_to]
        if odd:
            raise StageError(f"stage 'prune' must keep multiples of {self.settings.round_to}: {odd}")


@final
@dataclass(frozen=True, kw_only=True)
class FinetuneStage:
    """Train on, from the weights at hand."""

    settings: Train
    base: Path
    name: str = field(default="finetune", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Something that can be trained."""
        _require_trainable(artifact.module, task, "finetune")
        _augment(self.settings, self.base)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Train; the best epoch on validation stays."""
        fitted = _fit(artifact.module, task, self.settings, self.base, progress, "fine-tuning")
        return StageResult(module=fitted.model, details=StageDetails(curves=(_curve(fitted, "fine-tuning"),)))

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """The same architecture."""
        if layer_widths(result.module) != layer_widths(before.module):
            raise StageError("stage 'finetune' must not change the architecture")


def sparsities(target: float, steps: int) -> Sequence[float]:
    """What is removed in all after each step: every step takes the same share of what is left.

    Example:
        >>> [round(s, 2) for s in sparsities(0.75, 2)]
        [0.5, 0.75]
    """
    return [1 - (1 - target) ** (k / steps) for k in range(1, steps)] + [target]


def _fit(module: nn.Module, task: Task, settings: Train, base: Path, progress: Progress, what: str) -> Fitted:
    return fit(
        module,
        (task.splits.train, task.cases["train"]),
        (task.splits.validation, task.cases["validation"]),
        settings,
        seed=task.recipe.seed,
        augment=_augment(settings, base),
        progress=progress,
        what=what,
    )


def _require_trainable(module: nn.Module, task: Task, what: str) -> None:
    problem = loss_problem(task.recipe.task)
    if problem:
        raise PreconditionError(f"{what}: {problem}; leave {what} out of the plan")
    if not any(p.requires_grad for p in module.parameters()):
        raise PreconditionError(
            f"{what}: the model has no parameter that requires a gradient; let its factory unfreeze some, "
            f"or leave {what} out of the plan"
        )


def _augment(settings: Train, base: Path) -> Augment | None:
    return load_callable(settings.augment, base, key="augment") if settings.augment else None


def _curve(fitted: Fitted, stage: str) -> Curve:
    return Curve(
        stage=stage,
        metric=fitted.metric,
        loss=fitted.loss,
        validation=fitted.validation,
        best_epoch=fitted.best_epoch,
    )


def _width_changes(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[WidthChange, ...]:
    return tuple(
        WidthChange(module=name, before=width, after=after[name])
        for name, width in before.items()
        if after[name] != width
    )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
