"""Structured pruning as a stage: several steps, fine-tuning after each."""

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
    Prune,
    Pruning,
    SparsePrune,
)
from pastille.record import Curve, StageDetails, WidthChange
from pastille.stages.contract import Artifact, Stage, StageResult
from pastille.stages.tuning import augmentation, curve_of, require_trainable, tuned
from pastille.task import Task, example_batch

if TYPE_CHECKING:
    from torch import nn


def pruning_stage(settings: Pruning, base: Path) -> Stage:
    """The stage that a `prune` entry asks for, by its method."""
    match settings:
        case Prune():
            return PruneStage(settings=settings, base=base)
        case SparsePrune():
            raise NotImplementedError


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
            require_trainable(artifact.module, task, "prune.finetune")
            augmentation(self.settings.finetune, self.base)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Prune and fine-tune, step by step."""
        settings, module = self.settings, artifact.module
        original = layer_widths(module)
        batch = example_batch(task.splits.train.inputs)
        curves: list[Curve] = []
        whole: Mapping[str, str] = {}
        for number, sparsity in enumerate(sparsities(settings.sparsity or 0.0, settings.steps), start=1):
            what = f"pruning step {number} of {settings.steps}"
            try:
                pruned = prune(
                    module,
                    batch,
                    sparsity=sparsity,
                    criterion=settings.criterion,
                    round_to=settings.round_to if isinstance(settings.round_to, int) else 8,
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
                fitted = tuned(module, task, settings.finetune, self.base, progress, f"fine-tuning, {what}")
                module = fitted.model
                curves.append(curve_of(fitted, f"after {what}"))
        widths = _width_changes(original, layer_widths(module))
        narrowed = {change.module for change in widths}
        left = {name: why for name, why in whole.items() if name not in narrowed}
        details = StageDetails(curves=tuple(curves), widths=widths, left_whole=left)
        return StageResult(module=module, details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """Fewer parameters, and each new width a multiple of ``round_to``."""
        if _parameters(result.module) >= _parameters(before.module):
            raise StageError("stage 'prune' must remove parameters, but removed none")
        multiple = self.settings.round_to if isinstance(self.settings.round_to, int) else 1
        odd = [c.module for c in result.details.widths if c.after % multiple]
        if odd:
            raise StageError(f"stage 'prune' must keep multiples of {multiple}: {odd}")


def sparsities(target: float, steps: int) -> Sequence[float]:
    """What is removed in all after each step: every step takes the same share of what is left.

    Example:
        >>> [round(s, 2) for s in sparsities(0.75, 2)]
        [0.5, 0.75]
    """
    return [1 - (1 - target) ** (k / steps) for k in range(1, steps)] + [target]


def _width_changes(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[WidthChange, ...]:
    return tuple(
        WidthChange(module=name, before=width, after=after[name])
        for name, width in before.items()
        if after[name] != width
    )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
