"""Fewer bits without fixed ranges: dynamic int8, weights in blocks, and 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from pastille.errors import PreconditionError, StageError
from pastille.progress import SILENT, Progress
from pastille.quantization.converting import Converting, conversion_words, converted, precision_of
from pastille.recipe import HalfPrecision, WeightQuantize
from pastille.record import StageDetails
from pastille.stages.calibration import Sample, require_layers, sample
from pastille.stages.contract import Artifact, StageResult
from pastille.stages.quantize import MODEL, operators_of
from pastille.task import Task


@final
@dataclass(frozen=True, kw_only=True)
class ConvertStage:
    """Write the exported file in fewer bits, by a method that measures no ranges of activations."""

    settings: Converting
    name: str = field(default="quantize", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Enough samples, where layers are solved for."""
        if not isinstance(self.settings, HalfPrecision):
            require_layers(artifact.module, self.settings.keep_float)
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
            notes=(conversion_words(done), *done.notes),
            **operators_of(target),
        )
        precision = precision_of(self.settings)
        return StageResult(module=artifact.module, quantized=target, precision=precision, details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """The same module, and another file."""
        if result.module is not before.module or result.quantized is None:
            raise StageError("stage 'quantize' must change the file alone")


def _calibration(settings: Converting, task: Task, progress: Progress = SILENT) -> Sample | None:
    if isinstance(settings, WeightQuantize) and settings.rounding == "gptq":
        return sample(task, settings.samples, progress=progress)
    return None
