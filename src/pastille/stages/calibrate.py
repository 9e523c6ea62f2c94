"""The stage that makes probabilities mean what they say, in the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from pastille.data.split import collate
from pastille.errors import PreconditionError, StageError
from pastille.export.temperature import scale_output, temperature_of
from pastille.measure.evaluate import answer
from pastille.progress import Progress
from pastille.recipe import Calibrate
from pastille.record import StageDetails
from pastille.runtime import load
from pastille.stages.contract import Artifact, StageResult
from pastille.stats.calibration import expected_calibration_error
from pastille.stats.statements import PROBABLE_KINDS, statements
from pastille.stats.temperature import fit_temperature, is_bound, settled_threshold, thresholded
from pastille.task import Task
from pastille.values import Cases

_COMPARED = 8  # inputs that the two files are compared on, beside all decisions on validation


@final
@dataclass(frozen=True, kw_only=True)
class CalibrateStage:
    """Divide the answers by the temperature that suits validation best; the last stage of a plan."""

    settings: Calibrate
    name: str = field(default="calibrate", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """A task with probabilities, and a model that answers with their logits."""
        section = task.recipe.task
        if section.kind not in PROBABLE_KINDS:
            raise PreconditionError(
                f"calibrate: a {section.kind} task gives no probabilities; leave calibrate out of the plan"
            )
        if section.outputs == "probabilities":
            raise PreconditionError(
                "calibrate: a temperature divides logits, but the model answers with probabilities; end it "
                "before its softmax or sigmoid and set task.outputs to logits, or leave calibrate out of "
                "the plan"
            )

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Fit on validation, write the scaled file, and see that it decides as before."""
        target, cases = folder / "model.onnx", task.cases["validation"]
        before = _answers(artifact.file, task, progress, "fitting the temperature")
        fitted = fit_temperature(before, cases)
        used = 1.0 if is_bound(fitted) else fitted
        inputs = task.splits.validation.inputs
        batch = collate([inputs[i % len(inputs)] for i in range(_COMPARED)])
        total = scale_output(artifact.file, target, used, batch)
        after = _answers(target, task, progress, "evaluating calibrated")
        threshold = settled_threshold(before, after, cases, used)
        moved = replace(cases, threshold=threshold)
        changed = int((thresholded(before, cases) != thresholded(after, moved)).sum())
        if changed:
            raise StageError(f"stage 'calibrate' must leave every decision as it was, but changed {changed}")
        return StageResult(
            module=artifact.module,
            quantized=target,
            precision=artifact.precision,
            details=StageDetails(
                temperature=total,
                threshold=None if threshold == cases.threshold else threshold,
                notes=(_fit_note(fitted, before, after, cases), *_threshold_note(cases.threshold, threshold)),
            ),
        )

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """The same module, and a file that says what it was divided by."""
        if result.module is not before.module or result.quantized is None:
            raise StageError("stage 'calibrate' must change the file alone")
        if temperature_of(result.quantized) != result.details.temperature:
            raise StageError("stage 'calibrate' must write the temperature that it records into the file")


def _answers(file: Path, task: Task, progress: Progress, what: str) -> np.ndarray:
    session = load(file, threads=task.recipe.measure.threads)
    return answer(session, task.splits.validation, progress=progress, what=what)


def _fit_note(fitted: float, before: np.ndarray, after: np.ndarray, cases: Cases) -> str:
    if is_bound(fitted):
        return (
            f"no temperature between the bounds suits the {len(cases.targets)} validation cases best "
            f"({_WHY_AT_BOUND[fitted < 1]}), so the probabilities were left as they are"
        )
    first, last = (100 * expected_calibration_error(statements(x, cases)) for x in (before, after))
    return (
        f"temperature {fitted:.4g}: the expected calibration error on the {len(cases.targets)} validation "
        f"cases that it was fitted on went from {first:.1f} to {last:.1f} points"
    )


_WHY_AT_BOUND = {
    True: "the model decides nearly all of them rightly, and colder is ever more likely",
    False: "its answers tell nearly nothing about them, and hotter is ever more likely",
}


def _threshold_note(before: float, after: float) -> tuple[str, ...]:
    if after == before:
        return ()
    return (
        f"the threshold moved with the probabilities from {before:.6g} to {after:.6g}; no decision changed",
    )
