"""Quantize, then train in int8: the file of post-training quantization, with weights that know it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from pastille.data.split import batches
from pastille.errors import PreconditionError, StageError
from pastille.policy import TIERS
from pastille.progress import Progress
from pastille.pruning import write_model
from pastille.quantization import quantize_static
from pastille.quantization.qat import finish, prepare
from pastille.quantization.simulation import Simulation, unsimulated
from pastille.recipe import QatQuantize
from pastille.record import StageDetails
from pastille.references import load_callable
from pastille.runtime import load
from pastille.stages.calibration import require_calibration, sample
from pastille.stages.contract import STEPS, Artifact, StageResult
from pastille.stages.lessons import require_answers_alone
from pastille.stages.qat_training import train_in_int8
from pastille.stages.quantize import MODEL, left_alone, operators_of, require_int8
from pastille.stages.tuning import require_loss
from pastille.stats.decisions import decide
from pastille.task import Task, example_batch
from pastille.task.forward import forward, to_tensors
from pastille.train.batches import Augment
from pastille.train.losses import loss_problem
from pastille.values import Cases

if TYPE_CHECKING:
    from torch import nn

_NO_BETTER = "no epoch of training in int8 beat quantization alone, whose file this is"
_UNTRAINED = (
    "no epoch of training in int8 beat quantization alone, whose file this risk tier does not permit: the "
    "float file stays; train longer, or with another learning rate"
)
LEAST_AGREEMENT = 0.999
_ALIKE = 0.01  # numbers count as equal within this share of their spread
_BATCH = 32
_NAMED = 5
_PARITY_CASES = 8


@final
@dataclass(frozen=True, kw_only=True)
class QatStage:
    """Quantize the exported file, then train the weights under its own rounding.

    Attributes:
        settings: As asked in the recipe.
        base: The recipe's folder, which an ``augment`` is relative to.
    """

    settings: QatQuantize
    base: Path
    name: str = field(default="quantize", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Something that can be trained, and enough samples to calibrate on."""
        problem = loss_problem(task.recipe.task)
        if problem:
            raise PreconditionError(f"quantize: {problem}; use method: ptq")
        if not any(p.requires_grad and p.ndim > 1 for p in artifact.module.parameters()):
            raise PreconditionError(
                "quantize: the model has no weight that requires a gradient; let its factory unfreeze some, "
                "or use method: ptq"
            )
        _require_trainable(artifact.module)
        if self.settings.distill is not None:
            require_answers_alone(self.settings.distill, task, "quantize.distill")
        require_loss(self.settings.train, task, "quantize.train")
        self._augment()
        require_calibration(artifact.module, task, self.settings)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Quantize, train, write the same file with other numbers, and see that it decides alike."""
        target, settings = folder / MODEL, self.settings
        drawn = sample(task, settings.samples, progress=progress)
        quantize_static(artifact.file, target, drawn, settings)
        module = copy.deepcopy(artifact.module).cpu().eval()
        prepared = prepare(artifact.file, target, module)
        trained = train_in_int8(
            prepared.simulation,
            settings.train,
            task,
            freeze_after=settings.freeze_observers_after,
            distill=None if settings.distill is None else (settings.distill, module),
            augment=self._augment(),
            progress=progress,
            keep_zeros=artifact.sparse,
            keep=folder / STEPS / "training",
        )
        batch = example_batch(task.splits.train.inputs, _PARITY_CASES)
        if not trained.curve.best_epoch and not _permits_untrained(task):
            why = tuple(note for note in (trained.stopped, _UNTRAINED) if note)
            return left_alone(artifact, target, why, (trained.curve,))
        if trained.curve.best_epoch:  # else the file stays what quantization alone made it
            module = finish(prepared, trained.model, module, target, batch)
        write_model(module, task.build(), folder)
        found = (
            trained.stopped,
            "" if trained.curve.best_epoch else _NO_BETTER,
            _untouched(prepared.left),
            _disagreement(trained.model, target, task),
        )
        notes = [note for note in found if note]
        for note in notes:
            progress.note(note)
        details = StageDetails(
            curves=(trained.curve,),
            calibration_samples=len(drawn.rows),
            notes=tuple(notes),
            **operators_of(target),
        )
        return StageResult(module=module, quantized=target, precision="int8", details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """A file in which something runs in int8, and a module of the same architecture."""
        if result.precision == "int8":
            require_int8(result, self.settings.scheme)
        if _shapes(before.module) != _shapes(result.module):
            raise StageError("stage 'quantize' must not change the architecture")

    def _augment(self) -> Augment | None:
        augment = self.settings.train.augment
        return load_callable(augment, self.base, key="augment") if augment else None


def _require_trainable(module: nn.Module) -> None:
    """Refuse what training cannot go through before anything is calibrated."""
    for name, inner in module.named_modules():
        if isinstance(inner, torch.nn.RNNBase):
            kind = inner.mode.partition("_")[0]  # RNN_TANH is operator RNN
            raise unsimulated(f"{kind} ({name})" if name else kind)


def _permits_untrained(task: Task) -> bool:
    """Whether the risk tier permits a file whose weights never knew of int8."""
    return TIERS[task.recipe.requirements.risk].post_training_quantization


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _untouched(left: tuple[str, ...]) -> str:
    """Which weights were not trained, in a sentence; "" if all were."""
    if not left:
        return ""
    names = ", ".join(left[:_NAMED]) + (", …" if len(left) > _NAMED else "")
    return f"training in int8 left {len(left)} weights as they were, which the file holds no copy of: {names}"


def _disagreement(trained: Simulation, file: Path, task: Task) -> str:
    """Where the file decides otherwise than its training did, in a sentence; "" if almost nowhere."""
    alike = equal_decisions(trained, file, task)
    if alike.mean() >= LEAST_AGREEMENT:
        return ""
    rows = ", ".join(str(row) for row in np.flatnonzero(~alike)[:_NAMED])
    return (
        f"the file decides like its training on {alike.mean():.2%} of {alike.size} answers to validation, "
        f"less than {LEAST_AGREEMENT:.1%}; it differs at {rows}{', …' if (~alike).sum() > _NAMED else ''}"
    )


def equal_decisions(trained: Simulation, file: Path, task: Task) -> np.ndarray:
    """Hold a file that was written against what was trained, on the validation split.

    Args:
        trained: In eval mode.
        file: Written from it.
        task: Its validation split is asked.

    Returns:
        Whether they decide alike, flat, for each case, label or pixel; numbers of a regression within a
        hundredth of the standard deviation of the file's.
    """
    split, cases, session = task.splits.validation, task.cases["validation"], load(file)
    simulated, answered = [], []
    for batch in batches(split.inputs, range(split.n), _BATCH):
        with torch.inference_mode():
            simulated.append(forward(trained, to_tensors(batch)).numpy())
        answered.append(session(batch)[session.outputs[0].name])
    return _alike(np.concatenate(simulated), np.concatenate(answered), cases).reshape(-1)


def _alike(one: np.ndarray, other: np.ndarray, cases: Cases) -> np.ndarray:
    if cases.kind == "regression":
        found: np.ndarray = np.abs(one - other) <= _ALIKE * other.std()
        return found
    same: np.ndarray = decide(one, cases) == decide(other, cases)
    return same
