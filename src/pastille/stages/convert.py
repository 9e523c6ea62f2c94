"""Fewer bits without fixed ranges: dynamic int8, weights in blocks, and 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from pastille.errors import PreconditionError, StageError
from pastille.progress import SILENT, Progress
from pastille.quantization.conversion import Conversion
from pastille.quantization.dynamic import quantize_dynamic
from pastille.quantization.half import convert_half
from pastille.quantization.weight_only import quantize_weights
from pastille.recipe import DynamicQuantize, HalfPrecision, WeightQuantize
from pastille.record import StageDetails
from pastille.stages.calibration import Sample, sample
from pastille.stages.contract import Artifact, StageResult
from pastille.stages.quantize import MODEL, operators_of
from pastille.task import Task
from pastille.values import ModelPrecision

Settings = DynamicQuantize | WeightQuantize | HalfPrecision

_BITS: Final = {"int4": 4, "int8-weights": 8}
_LISTED = 6  # layers left float that are named


@final
@dataclass(frozen=True, kw_only=True)
class ConvertStage:
    """Write the exported file in fewer bits, by a method that measures no ranges of activations."""

    settings: Settings
    name: str = field(default="quantize", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Enough samples, where layers are solved for."""
        _calibration(self.settings, task)
        mask = self.settings.mask if isinstance(self.settings, WeightQuantize) else None
        if mask is not None and mask not in {spec.name for spec in task.inputs}:
            known = ", ".join(spec.name for spec in task.inputs)
            raise PreconditionError(f"quantize.mask must be one of the inputs {known}, got {mask!r}")

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Convert the file, and say which layers stayed as they were."""
        target, drawn = folder / MODEL, _calibration(self.settings, task, progress)
        for _ in progress.track(range(1), what=f"converting to {self.settings.method}"):
            done = converted(artifact.file, target, self.settings, drawn)
        details = StageDetails(
            left_whole=done.left,
            calibration_samples=None if drawn is None else len(drawn.rows),
            notes=(_words(done), *done.notes),
            **operators_of(target),
        )
        precision = precision_of(self.settings)
        return StageResult(module=artifact.module, quantized=target, precision=precision, details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """The same module, and another file."""
        if result.module is not before.module or result.quantized is None:
            raise StageError("stage 'quantize' must change the file alone")


def converted(source: Path, target: Path, settings: Settings, calibration: Sample | None) -> Conversion:
    """Convert a file as a section of a recipe asks.

    Args:
        source: A float ONNX file.
        target: Written whole or not at all.
        settings: Which method, and how.
        calibration: For ``gptq``; else None.

    Raises:
        PreconditionError: There is nothing to convert, or it cannot be.
        CalibrationError: The samples do not fit.
    """
    match settings:
        case DynamicQuantize():
            return quantize_dynamic(
                source,
                target,
                ranges=settings.ranges,
                embeddings=settings.embeddings,
                keep_float=settings.keep_float,
            )
        case WeightQuantize():
            return quantize_weights(
                source,
                target,
                bits=_BITS[settings.method],
                block_size=settings.block_size,
                method=settings.rounding,
                symmetric=settings.symmetric,
                activations=settings.activations,
                embeddings=settings.embeddings,
                keep_float=settings.keep_float,
                calibration=calibration,
                mask=settings.mask,
            )
        case HalfPrecision():
            return convert_half(source, target, kind=settings.method, compute=settings.compute)


def precision_of(settings: Settings) -> ModelPrecision:
    """What the weights are then stored in."""
    match settings:
        case HalfPrecision():
            return settings.method
        case WeightQuantize(method="int4"):
            return "int4"
        case _:
            return "int8"


def _calibration(settings: Settings, task: Task, progress: Progress = SILENT) -> Sample | None:
    if isinstance(settings, WeightQuantize) and settings.rounding == "gptq":
        return sample(task, settings.samples, progress=progress)
    return None


def _words(done: Conversion) -> str:
    hows = sorted(set(done.changed.values()))
    left = f"; {len(done.left)} left as they were" if done.left else ""
    return f"{len(done.changed)} converted ({', '.join(hows[:_LISTED])}){left}"
