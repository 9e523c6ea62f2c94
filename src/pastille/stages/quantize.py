"""Static quantization after training: plain, recovered where that loses something, and looked over."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import onnx

from pastille.errors import PreconditionError
from pastille.progress import Progress
from pastille.quantization.coverage import coverage, ranges_of, spread
from pastille.quantization.layers import left_out
from pastille.quantization.post_training import write_graph
from pastille.quantization.ranges import observer
from pastille.quantization.recovery import Choice, Recovery, choice_of, prepared, quantized_by, recovered
from pastille.quantization.recovery.auto import float_side
from pastille.recipe import Quantize, Scheme
from pastille.record import Curve, StageDetails
from pastille.runtime import optimized_operators
from pastille.stages.calibration import Sample, others, require_calibration, sample
from pastille.stages.contract import Artifact, StageResult
from pastille.stages.looking import Look, answers_of, looking
from pastille.stats.decisions import decide
from pastille.task import Task
from pastille.values import Cases

MODEL: Final = "model.onnx"
_LOOKED_OVER = 256  # cases of train that did not calibrate


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeStage:
    """Quantize the exported file after training."""

    settings: Quantize
    name: str = field(default="quantize", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Layers that are there, and enough samples to calibrate on."""
        require_calibration(artifact.module, task, self.settings)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Quantize by a stratified sample of train, win back what is lost, and look over the result."""
        graph = prepared(onnx.load(artifact.file, load_external_data=False))
        drawn = sample(task, self.settings.samples, progress=progress)
        target = folder / MODEL
        choice, notes = _made(graph, drawn, self.settings, artifact, target, progress)
        notes += (
            *(note for note in (left_out(graph),) if note),
            *clipped(graph, drawn, choice, target),
            *self._spread(graph, task, choice, target, progress),
        )
        for note in notes:
            progress.note(note)
        details = StageDetails(calibration_samples=len(drawn.rows), notes=notes, **operators_of(target))
        return StageResult(module=artifact.module, quantized=target, precision="int8", details=details)

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """A file in which something runs in int8."""
        require_int8(result, self.settings.scheme)

    def _spread(
        self, graph: Any, task: Task, choice: Choice, target: Path, progress: Progress
    ) -> Iterator[str]:
        """What other calibration samples of the same size would have decided."""
        settings = self.settings
        if settings.draws < 2 or settings.samples >= task.splits.train.n:
            return
        # Rounding is solved for layer by layer, which takes minutes; ranges are what a sample decides.
        quick = replace(choice, techniques=choice.techniques - {"rounding"})
        outputs = [answers_of(target, task)] if quick == choice else []
        scratch = target.with_name("draw.onnx")
        missing = range(len(outputs), settings.draws)
        for draw in progress.track(missing, what="drawing calibration samples"):
            write_graph(quantized_by(graph, sample(task, settings.samples, draw=draw), quick), scratch)
            outputs.append(answers_of(scratch, task))
        scratch.unlink()
        yield spread_words(outputs, task.cases["validation"])


def _made(
    graph: Any, drawn: Sample, settings: Quantize, artifact: Artifact, target: Path, progress: Progress
) -> tuple[Choice, tuple[str, ...]]:
    """Write the int8 file; how it was made, and what was tried, in sentences."""
    choice = choice_of(settings)
    if settings.recover != "auto":
        write_graph(quantized_by(graph, drawn, choice), target)
        return choice, (f"made by {choice.words}",) if choice.techniques else ()
    plain = quantized_by(graph, drawn, choice)
    write_graph(plain, target)
    seen = looking(artifact, drawn.task, progress)
    first = seen.at(target)
    if not seen.loses(first):
        return choice, ()
    mended, account = recovered(graph, Sample(task=drawn.task, rows=drawn.rows), choice, progress=progress)
    write_graph(mended, target)
    second = seen.at(target)
    if account.choice == choice or second.rank > first.rank:
        write_graph(plain, target)
        return choice, (_no_gain(account, choice, first, second),)
    return account.choice, (_gain(account, first, second),)


def _gain(account: Recovery, first: Look, second: Look) -> str:
    return (
        f"plain quantization lost {_of_limit(first)} on validation, so recovery was tried: made by "
        f"{account.choice.words}, which brings answers to the calibration cases that chose it "
        f"{account.gained_db:.1f} dB nearer to the float model's and loses {_of_limit(second)}"
    )


def _no_gain(account: Recovery, choice: Choice, first: Look, second: Look) -> str:
    if account.choice == choice:
        return f"plain quantization lost {_of_limit(first)} on validation, and nothing that was tried helps"
    return (
        f"plain quantization lost {_of_limit(first)} on validation; {account.choice.words} lose "
        f"{_of_limit(second)} though {account.gained_db:.1f} dB nearer to the float model, so plain "
        "quantization stays"
    )


def _of_limit(look: Look) -> str:
    broken = ", one of which is broken" if look.rejected else ""
    return f"{'any' if math.isinf(look.spent) else f'{look.spent:.0%}'} of what limits allow{broken}"


def clipped(graph: Any, drawn: Sample, choice: Choice, target: Path) -> tuple[str, ...]:
    """Which strata and groups the ranges clip most, among cases that did not calibrate; a warning each."""
    task = drawn.task
    rest = others(drawn, _LOOKED_OVER)
    strata, groups = task.splits.train.strata, task.cases["train"].groups
    if not len(rest.rows) or (strata is None and not groups):
        return ()
    ranges = ranges_of(onnx.load(target))
    if not ranges:
        return ()
    found = coverage(
        observer(float_side(graph, Sample(task=task, rows=drawn.rows), choice)),
        ranges,
        rest,
        strata=None if strata is None else strata[rest.rows],
        groups={name: np.asarray(column)[rest.rows] for name, column in groups.items()},
    )
    return found.warnings


def spread_words(outputs: list[np.ndarray], cases: Cases) -> str:
    """How much hangs on which cases happened to calibrate, in a sentence."""
    decides = cases.kind not in ("regression", "custom")
    found = spread(outputs, (lambda answers: decide(answers, cases)) if decides else None)
    said = f"{found.draws} calibration samples: answers vary by {found.deviation:.1%} of their spread"
    if found.undecided is None:
        return said
    if not found.undecided:
        return f"{said}, and all decisions on validation are the same"
    return f"{said}, and {found.undecided:.2%} of the decisions on validation differ between them"


def left_alone(
    artifact: Artifact, target: Path, notes: tuple[str, ...], curves: tuple[Curve, ...] = ()
) -> StageResult:
    """The result of a stage that found nothing better than what it was given.

    Args:
        artifact: What it was given.
        target: Gets a copy of the file.
        notes: Why.
        curves: Of a training that came to nothing.
    """
    shutil.copyfile(artifact.file, target)
    details = StageDetails(notes=notes, curves=curves)
    return StageResult(
        module=artifact.module, quantized=target, precision=artifact.precision, details=details
    )


def operators_of(file: Path) -> dict[str, Any]:
    """What runs in int8 and what stayed float, as `StageDetails` holds it."""
    found = optimized_operators(file)
    return {"int8_operators": found.int8, "float_operators": found.floating}


def require_int8(result: StageResult, scheme: Scheme) -> None:
    """Make sure that something runs in int8; of a file for TensorRT, this machine's kernels say nothing.

    Raises:
        PreconditionError: Nothing does.
    """
    if scheme != "tensorrt" and not result.details.int8_operators:
        raise PreconditionError(
            "quantize: no operator of this model has an int8 kernel; leave quantize out of the plan"
        )
