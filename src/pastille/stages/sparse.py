"""Unstructured and 2:4 pruning as a stage: at once or while training; and what the zeros are worth here."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final

from pastille.data.split import batches
from pastille.errors import PreconditionError, StageError
from pastille.export import export_onnx
from pastille.measure.latency import compare
from pastille.processes import here
from pastille.progress import Progress
from pastille.pruning.sparse import Thinned, in_fours, masked, share_gone, weights_to_thin, zero_masks
from pastille.pruning.thinning import UNTIL, Thinning, masks_of
from pastille.recipe import SparsePrune, Train
from pastille.record import StageDetails
from pastille.runtime import load
from pastille.runtime.packed import stored_size
from pastille.stages.contract import STEPS, Artifact, StageResult
from pastille.stages.lessons import require_losses, taught_by
from pastille.stages.looking import conditions_of
from pastille.stages.tuning import augmentation, curve_of, labels_of, require_loss, require_trainable, tuned
from pastille.task import Task, example_batch
from pastille.train import Extras, Objective
from pastille.values import Speedup

if TYPE_CHECKING:
    from torch import Tensor, nn

WHAT: Final = "training while weights go"
_HARDWARE: Final = (
    "hardware with sparse tensor cores (NVIDIA Ampere and later) can skip two of four weights; ONNX Runtime "
    "on this CPU does not"
)


@final
@dataclass(frozen=True, kw_only=True)
class SparseStage:
    """Set single weights to zero, and keep them there.

    Attributes:
        settings: As asked in the recipe.
        base: The recipe's folder, which an ``augment`` is relative to.
    """

    settings: SparsePrune
    base: Path
    name: str = field(default="prune", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Weights that may go, and something that can be trained if training was asked for."""
        thinned = self._thinned(artifact.module)
        if not thinned.axes:
            reasons = "; ".join(sorted(set(thinned.left_whole.values()))) or "it has none"
            raise PreconditionError(
                f"prune: no weight of a convolution or linear layer may go ({reasons}); protect less, use "
                "method: unstructured, or leave prune out of the plan"
            )
        if self.settings.train is not None:
            require_trainable(artifact.module, task, "prune.train")
            require_loss(self.settings.train, task, "prune.train")
            if self.settings.score == "movement" and self.settings.train.precision == "fp16":
                raise PreconditionError(
                    "prune.train.precision: fp16 scales gradients until they overflow, and score: movement "
                    "adds them up; use bf16 or fp32"
                )
            if self.settings.distill is not None:
                require_losses(self.settings.distill, task, "prune.distill")
            augmentation(self.settings.train, self.base)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Let weights go; time the file against the one before it, and see what it takes when stored."""
        settings, thinned = self.settings, self._thinned(artifact.module)
        details = StageDetails(left_whole=thinned.left_whole)
        if settings.train is None:
            module = self._at_once(artifact.module, thinned)
        else:
            extras = self._while_training(settings.train, thinned, task, artifact.module)
            fitted = tuned(
                artifact.module,
                task,
                settings.train,
                self.base,
                progress,
                WHAT,
                extras=extras,
                keep=folder / STEPS / "training",
            )
            module = fitted.model
            details = replace(details, curves=(curve_of(fitted, WHAT),))
        zeros = _zeros(module)
        speed, stored = here().agreed(lambda: _worth(module, artifact, task, progress))
        before = stored_size(artifact.file)
        notes = (effect(zeros, speed, stored, before), *([_HARDWARE] if settings.method == "2:4" else []))
        for note in notes:
            progress.note(note)
        return StageResult(
            module=module, details=replace(details, zeros=zeros, stored_bytes=stored, notes=notes)
        )

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """The share that was asked for is zero; of 2:4, two of every four."""
        thinned = self._thinned(before.module)
        weights = {name: result.module.get_parameter(name) for name in thinned.axes}
        if self.settings.method == "2:4":
            full = [name for name, w in weights.items() if not _is_two_of_four(w, thinned.axes[name])]
            if full:
                raise StageError(
                    f"stage 'prune' must leave two of every four weights zero, but not in {full}"
                )
            return
        total = sum(w.numel() for w in weights.values())
        asked = self.settings.share * total - len(weights)  # each layer's count is rounded
        gone = sum(int((w == 0).sum()) for w in weights.values())
        if gone < asked:
            raise StageError(
                f"stage 'prune' must set {self.settings.share:.1%} of {total} weights to zero, but "
                f"{gone / total:.1%} are"
            )

    @property
    def _pattern(self) -> Literal["layer", "global", "2:4"]:
        return "2:4" if self.settings.method == "2:4" else self.settings.scope

    def _thinned(self, module: nn.Module) -> Thinned:
        by_four = self.settings.method == "2:4"
        return weights_to_thin(module, protect=self.settings.protect, by_four=by_four)

    def _at_once(self, module: nn.Module, thinned: Thinned) -> nn.Module:
        new = copy.deepcopy(module).eval()
        scores = {name: new.get_parameter(name).detach().abs() for name in thinned.axes}
        masked(new, masks_of(scores, thinned, self.settings.share, self._pattern))
        return new

    def _while_training(self, train: Train, thinned: Thinned, task: Task, teacher: nn.Module) -> Extras:
        settings = self.settings
        thinning = Thinning(
            thinned=thinned, sparsity=settings.share, pattern=self._pattern, score=settings.score
        )
        objective = None if settings.distill is None else _taught(settings, train, task, teacher)
        return Extras(
            objective=objective,
            before_step=thinning.before_step,
            after_step=thinning.after_step,
            # A moving average only comes near zero where the weights are zero.
            after_epoch=lambda model, _epoch: masked(model, thinning.masks),
            counts_from=UNTIL,
            kept=(thinning,),
        )


def _taught(
    settings: SparsePrune, train: Train, task: Task, teacher: nn.Module
) -> Callable[[nn.Module], Objective]:
    assert settings.distill is not None
    return taught_by(labels_of(train, task), teacher, teacher, settings.distill, task)


def keeping_zeros(module: nn.Module) -> Extras:
    """For a training after a sparse stage: every weight of a matrix that is exactly zero stays zero."""
    masks = zero_masks(module)
    return Extras(
        before_step=partial(_without_gradients, masks), after_step=lambda model, _done: masked(model, masks)
    )


def _without_gradients(masks: dict[str, Tensor], model: nn.Module) -> None:
    for name, mask in masks.items():
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            gradient.mul_(mask.to(gradient.device))


def _zeros(module: nn.Module) -> float:
    """Share of all weights that are zero, those of protected layers too; biases and norms do not count."""
    return share_gone({name: module.get_parameter(name) != 0 for name in weights_to_thin(module).axes})


def _is_two_of_four(weight: Tensor, axis: int) -> bool:
    return bool(((in_fours(weight.detach(), axis) != 0).sum(dim=-1) <= 2).all())


def _worth(module: nn.Module, artifact: Artifact, task: Task, progress: Progress) -> tuple[Speedup, int]:
    """How fast the model's file is over the one before it, and what it takes when stored."""
    asked = task.recipe.measure
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        file = Path(folder) / "sparse.onnx"
        for _ in progress.track(range(1), what="timing the sparse file"):
            export_onnx(module, example_batch(task.splits.validation.inputs), file)
            (batch,) = batches(task.splits.validation.inputs, [0], 1)
            one, other = (load(path, threads=asked.threads) for path in (artifact.file, file))
            speed = compare(one, other, batch, conditions=conditions_of(task), budget_s=asked.seconds)
        return speed, stored_size(file)


def effect(zeros: float, speed: Speedup, stored: int, before: int) -> str:
    """What single zeros do here, in one sentence.

    Args:
        zeros: Share of the weights that are zero.
        speed: Of the sparse file over the one before it.
        stored: Bytes of the sparse file as a bundle stores it.
        before: Likewise, of the file before it.

    Returns:
        It says that the runtime multiplies zeros like other numbers only where the two times are alike.
    """
    times = f"{speed.ratio:.2f} ({speed.interval.low:.2f}–{speed.interval.high:.2f}) times as fast"
    unit, factor = ("MB", 1e6) if before >= 1e6 else ("kB", 1e3)
    alike = "" if speed.faster or speed.slower else " multiplies them all the same and"
    return (
        f"{zeros:.0%} of the weights are zero; ONNX Runtime on this CPU{alike} is {times} as before; stored "
        f"it takes {stored / factor:.3g} instead of {before / factor:.3g} {unit}"
    )
