"""Quantize, then train in int8: the file of post-training quantization, with weights that know it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from pastille.data.sampler import calibration_indices
from pastille.data.split import batches
from pastille.errors import PreconditionError, StageError
from pastille.progress import Progress
from pastille.pruning import write_model
from pastille.quantization import quantize_static
from pastille.quantization.qat import finish, prepare
from pastille.quantization.simulation import Simulation
from pastille.recipe import Quantize, Train
from pastille.record import StageDetails
from pastille.references import load_callable
from pastille.runtime import load, optimized_operators
from pastille.stages.contract import Artifact, StageResult
from pastille.stages.qat_training import Distillation, train_in_int8
from pastille.stats.decisions import decide
from pastille.task import Task, example_batch
from pastille.task.forward import forward, to_tensors
from pastille.train.loop import Augment
from pastille.train.losses import loss_problem
from pastille.values import Cases

if TYPE_CHECKING:
    from torch import nn

LEAST_AGREEMENT = 0.999
_ALIKE = 0.01  # numbers count as equal within this share of their spread
_BATCH = 32
_PARITY_CASES = 8


@final
@dataclass(frozen=True, kw_only=True)
class QatStage:
    """Quantize the exported file, then train the weights under its own rounding.

    Attributes:
        quantize: As for quantization after training.
        train: A tenth of its learning rate is taken.
        freeze_observers_after: Share of the epochs after which ranges stay as they are.
        distill: Answer like the float model too; None for the labels alone.
        base: The recipe's folder, which an ``augment`` is relative to.
    """

    quantize: Quantize
    train: Train
    freeze_observers_after: float = 0.6
    distill: Distillation | None = None
    base: Path
    name: str = field(default="quantize", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return {
            **self.quantize.model_dump(mode="json"),
            "method": "qat",
            "train": self.train.model_dump(mode="json"),
            "freeze_observers_after": self.freeze_observers_after,
            "distill": None if self.distill is None else asdict(self.distill),
        }

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
        self._augment()
        self._rows(task)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Quantize, train, write the same file with other numbers, and see that it decides alike."""
        target, rows = folder / "model.onnx", self._rows(task)
        quantize_static(artifact.file, target, _calibration(task, rows, progress), self.quantize)
        module = copy.deepcopy(artifact.module).cpu().eval()
        prepared = prepare(artifact.file, target, module)
        trained = train_in_int8(
            prepared.simulation,
            self.train,
            task,
            freeze_after=self.freeze_observers_after,
            distill=None if self.distill is None else (self.distill, module),
            augment=self._augment(),
            progress=progress,
        )
        batch = example_batch(task.splits.train.inputs, _PARITY_CASES)
        module = finish(prepared, trained.model, module, target, batch)
        write_model(module, task.build(), folder)
        notes = [n for n in (trained.stopped, _disagreement(trained.model, target, task)) if n]
        for note in notes:
            progress.note(note)
        operators = optimized_operators(target)
        details = StageDetails(
            curves=(trained.curve,),
            calibration_samples=len(rows),
            int8_operators=operators.int8,
            float_operators=operators.floating,
            notes=tuple(notes),
        )
        return StageResult(module=module, quantized=target, precision="int8", details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """A file in which something runs in int8, and a module of the same architecture."""
        if not result.details.int8_operators:
            raise PreconditionError(
                "quantize: no operator of this model has an int8 kernel; leave quantize out of the plan"
            )
        if _shapes(before.module) != _shapes(result.module):
            raise StageError("stage 'quantize' must not change the architecture")

    def _rows(self, task: Task) -> np.ndarray:
        return calibration_indices(
            task.splits.train, self.quantize.samples, seed=task.recipe.seed, kind=task.recipe.task.kind
        )

    def _augment(self) -> Augment | None:
        augment = self.train.augment
        return load_callable(augment, self.base, key="augment") if augment else None


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _calibration(
    task: Task, rows: np.ndarray, progress: Progress
) -> Callable[[], Iterable[dict[str, np.ndarray]]]:
    def read() -> Iterable[dict[str, np.ndarray]]:
        numbers = range(0, len(rows), _BATCH)
        parts = batches(task.splits.train.inputs, rows.tolist(), _BATCH)
        for _, batch in zip(progress.track(numbers, what="calibrating"), parts, strict=True):
            yield batch

    return read


def _disagreement(trained: Simulation, file: Path, task: Task) -> str:
    """Where the file decides otherwise than its training did, in a sentence; "" if almost nowhere."""
    alike = equal_decisions(trained, file, task)
    if alike.mean() >= LEAST_AGREEMENT:
        return ""
    rows = ", ".join(str(row) for row in np.flatnonzero(~alike)[:5])
    return (
        f"the file decides like its training on {alike.mean():.2%} of {alike.size} answers to validation, "
        f"less than {LEAST_AGREEMENT:.1%}; it differs at {rows}{', …' if (~alike).sum() > 5 else ''}"
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
