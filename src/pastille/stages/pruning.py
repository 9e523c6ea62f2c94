"""Structured pruning as a stage: step by step, fine-tuned and looked at after each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from pastille.errors import PreconditionError, StageError
from pastille.processes import here
from pastille.progress import Progress
from pastille.pruning.naming import check_names
from pastille.pruning.structured import nothing_removed
from pastille.recipe import Prune, Pruning, SparsePrune
from pastille.record import BudgetLimit, PrunedStep, StageDetails
from pastille.stages.budget import ranges_for
from pastille.stages.budget_spent import budget_words, spending
from pastille.stages.changed import changes, still_whole
from pastille.stages.contract import STEPS, Artifact, Stage, StageResult
from pastille.stages.lessons import require_losses
from pastille.stages.preparing import Prepared, later_int8
from pastille.stages.pruning_tuning import members_of
from pastille.stages.scan_file import read_scan
from pastille.stages.sparse import SparseStage
from pastille.stages.tuning import augmentation, require_loss, require_trainable
from pastille.stages.walking import Reached, Way, parameters, walked, way_of
from pastille.task import Task
from pastille.train.losses import loss_problem

if TYPE_CHECKING:
    from torch import nn

_ALOT: Final = 0.3  # of what is left, in one step
_NEAR: Final = 0.02  # of what was asked, in channels
_GENTLE: Final = 0.2


def pruning_stage(settings: Pruning, base: Path) -> Stage:
    """The stage that a `prune` entry asks for, by its method."""
    match settings:
        case Prune():
            return PruneStage(settings=settings, base=base)
        case SparsePrune():
            return SparseStage(settings=settings, base=base)


@final
@dataclass(frozen=True, kw_only=True)
class PruneStage:
    """Remove channels, heads or blocks in several steps, fine-tuning after each.

    After each step the file is held against the baseline on validation. Where that shows that a limit is
    broken, the step before is what the stage gives back.

    Attributes:
        settings: As asked in the recipe.
        base: The recipe's folder, which ``augment`` and ``scan`` are relative to.
    """

    settings: Prune
    base: Path
    name: str = field(default="prune", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """A module with weights, and what the settings look at; what can be removed shows when tracing."""
        settings = self.settings
        if not any(p.ndim > 1 for p in artifact.module.parameters()):
            raise PreconditionError(
                "prune: the model has no convolution or linear layer to prune; leave prune out of the plan"
            )
        check_names(artifact.module, "protect", settings.protect)
        check_names(artifact.module, "layers", settings.layers)
        problem = loss_problem(task.recipe.task)
        if problem and settings.criterion in ("taylor", "fisher"):
            raise PreconditionError(
                f"prune.criterion: {problem}, which {settings.criterion} looks at; set criterion: l2"
            )
        for key in ("finetune", "regularize"):
            if getattr(settings, key) is not None:
                require_trainable(artifact.module, task, f"prune.{key}")
        if settings.tuning is not None:
            require_trainable(artifact.module, task, "prune.finetune")
            require_loss(settings.tuning, task, "prune.finetune")
            augmentation(settings.tuning, self.base)
        if settings.distill is not None:
            require_losses(settings.distill, task, "prune.distill")
        if problem and settings.fairness == "protect":
            raise PreconditionError(f"prune.fairness: {problem}, which protect weighs; leave fairness out")
        if settings.fairness == "protect":
            members_of(task, "train"), members_of(task, "validation")
        if settings.scan is not None:
            read_scan(self.base / settings.scan, task.model, "pruning")

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Prune and fine-tune, step by step; what an earlier process finished is taken up."""
        way = way_of(self.settings, self.base, artifact, task, folder / STEPS, progress)
        reached, rejected = walked(way)
        if not reached.steps:
            raise nothing_removed(reached.whole, _asked(way.ready))
        notes = [
            *way.ready.notes,
            *_steep(self.settings),
            *([] if rejected else _short_of(self.settings, reached)),
            *(cut := _cut_short(reached, rejected, way)),
            *budget_words(budget := _spending(reached.module, way, folder, arrived=not cut)),
        ]
        for note in notes:
            progress.note(note)
        widths = changes(artifact.module, reached.module, way.ready, task)
        last = rejected or reached
        details = StageDetails(
            curves=tuple(done.curve for done in last.done if done.curve is not None),
            widths=widths,
            left_whole=still_whole(reached.whole, widths, artifact.module),
            steps=last.steps,
            budget=budget,
            notes=tuple(notes),
        )
        return StageResult(module=reached.module, details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """Fewer parameters, and each new width a multiple of ``round_to``, or noted as none."""
        if parameters(result.module) >= parameters(before.module):
            raise StageError("stage 'prune' must remove parameters, but removed none")
        settings = self.settings
        if (
            not isinstance(settings.round_to, int)
            or settings.heads is not None
            or settings.budget is not None
        ):
            return  # heads are not rounded, and a budget takes other widths as a last resort
        narrowed = [c for c in result.details.widths if c.kind == "channels" and not c.note]
        odd = [c.module for c in narrowed if c.after % settings.round_to]
        if odd:
            raise StageError(f"stage 'prune' must keep multiples of {settings.round_to}: {odd}")


def _spending(module: nn.Module, way: Way, folder: Path, *, arrived: bool) -> tuple[BudgetLimit, ...]:
    """What the stage's file comes to of a budget; nothing where none was given."""
    budget, plan, task = way.settings.budget, way.ready.plan, way.task
    if budget is None or plan is None:
        return ()
    ranges = ranges_for(budget, later_int8(task))
    return here().agreed(lambda: spending(module, task, plan, folder, quantize=ranges, arrived=arrived))


def _asked(ready: Prepared) -> str:
    """What the last step was to reach, in words."""
    goal = ready.goals[-1]
    shares = {"sparsity": goal.sparsity, "heads": goal.heads, "blocks": goal.blocks}
    words = [f"{name} {share:g}" for name, share in shares.items() if share is not None]
    words = words if goal.widths is None else ["these widths"]
    return f"{' and '.join(words or ['sparsity 0'])} and round_to {ready.work.round_to}"


def _steep(settings: Prune) -> list[str]:
    """That a step takes much at once, in a sentence."""
    share = 1 - (1 - (settings.sparsity or 0.0)) ** (1 / settings.steps)
    if share <= _ALOT or settings.tuning is None:
        return []
    gentle = math.ceil(math.log(1 - (settings.sparsity or 0.0)) / math.log(1 - _GENTLE))
    each = "each step is asked to remove" if settings.steps > 1 else "the only step is asked to remove"
    return [
        f"{each} {share:.0%} of the channels that are left; 10 % to 20 % at a time cost less accuracy "
        f"(steps: {gentle})"
    ]


def _short_of(settings: Prune, reached: Reached) -> list[str]:
    """That fewer channels went than was asked, in a sentence."""
    gone = reached.steps[-1].sparsity
    if settings.sparsity is None or gone > settings.sparsity - _NEAR or reached.steps[-1].rejected:
        return []
    return [
        f"{gone:.0%} of the channels are gone, {settings.sparsity:.0%} were asked for: widths are rounded up "
        f"to multiples (round_to: {settings.round_to}), and some layers stay whole"
    ]


def _cut_short(reached: Reached, rejected: Reached | None, way: Way) -> list[str]:
    """Where and why the schedule ended early, in a sentence."""
    of, original = f"of {way.settings.steps}", parameters(way.artifact.module)
    if rejected is not None:
        back, gone = reached.steps[-1], rejected.steps[-1]
        return [
            f"step {gone.number} {of} broke a limit on validation with {_gone(gone, original)} "
            f"({_spent(gone)}); step {back.number} is what it went back to, with {_gone(back, original)}"
        ]
    last = reached.steps[-1]
    if last.rejected and last.number < way.settings.steps:
        return [
            f"step {last.number} {of} already broke a limit on validation with {_gone(last, original)} "
            f"({_spent(last)}), and no further step was taken"
        ]
    return []


def _gone(step: PrunedStep, original: int) -> str:
    return f"{1 - step.parameters / original:.0%} of the weights gone"


def _spent(step: PrunedStep) -> str:
    return (
        "of a group" if step.spent is None or step.spent <= 1 else f"{step.spent:.1f} times what is permitted"
    )
