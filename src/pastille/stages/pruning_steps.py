"""What a step of pruning came to: looked at on validation, and kept on disk for a run that is killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pastille.errors import IntegrityError, UsageError
from pastille.export import export_onnx
from pastille.files import read_bounded, write_atomic
from pastille.measure.counts import macs
from pastille.processes import here
from pastille.pruning import read_model, write_model
from pastille.record import Curve, PrunedStep
from pastille.stages.looking import Looking
from pastille.task import Task, example_batch
from pastille.values import from_json, to_json

if TYPE_CHECKING:
    from torch import nn

STEP, MODEL = "step.json", "model.onnx"
_MAX_STEP_BYTES: Final = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Done:
    """What is kept of a step beside its model.

    Attributes:
        step: For the record; None of the training before the first removal.
        curve: Of its fine-tuning.
        left_whole: Layer -> why it lost nothing.
    """

    step: PrunedStep | None
    curve: Curve | None = None
    left_whole: Mapping[str, str] = field(default_factory=dict)


def looked_at(step: PrunedStep, module: nn.Module, looking: Looking, folder: Path) -> PrunedStep:
    """Export a model and hold its file against the baseline on validation.

    Args:
        step: What is known of it.
        module: The pruned and fine-tuned model.
        looking: Begun with the file before the stage.
        folder: Where the file goes.
    """
    task = looking.task
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(module, example_batch(task.splits.validation.inputs), folder / MODEL)
    look = looking.at(folder / MODEL)
    return replace(
        step,
        macs=_macs(folder / MODEL),
        spent=look.spent,
        rejected=look.rejected,
        note=look.broken,
    )


def _macs(file: Path) -> int | None:
    try:
        return macs(file)
    except UsageError:  # an open size, or an operator that is not counted
        return None


def keep(done: Done, module: nn.Module, task: Task, folder: Path) -> None:
    """Write a step's model in its safe form, and last what says that it is complete.

    Raises:
        OutputError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_model(module, task.build(), folder)
    write_atomic(folder / STEP, to_json(done))


def kept(task: Task, folder: Path) -> tuple[Done, nn.Module] | None:
    """A step that an earlier process finished; None if it did not.

    Raises:
        IntegrityError: What it left is damaged.
    """
    # Of several processes the main one keeps steps, and all read them.
    whole = here().agreed(lambda: folder.resolve() if (folder / STEP).is_file() else None)
    return None if whole is None else _read(task, whole)


def _read(task: Task, folder: Path) -> tuple[Done, nn.Module]:
    try:
        done = from_json(Done, read_bounded(folder / STEP, _MAX_STEP_BYTES, what="pruning step"))
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{folder / STEP} is not a pruning step: {problem}; start a new run") from None
    return done, read_model(task.build, folder).eval()
