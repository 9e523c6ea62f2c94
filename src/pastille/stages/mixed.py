"""int8 where it pays and float elsewhere, as measured layer by layer on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import onnx

from pastille.data.split import batches
from pastille.progress import Progress
from pastille.quantization.layers import by_layer, kept_float
from pastille.quantization.mixed import LayerChoice, Means, Mixed, search_mixed
from pastille.quantization.post_training import write_graph
from pastille.quantization.ranges import estimated, observer
from pastille.quantization.recovery import choice_of, prepared
from pastille.quantization.recovery.auto import float_side
from pastille.quantization.static import with_ranges
from pastille.quantization.timing import node_times
from pastille.recipe import MixedQuantize
from pastille.record import StageDetails
from pastille.stages.calibration import Sample, others, require_calibration, sample
from pastille.stages.contract import Artifact, StageResult
from pastille.stages.looking import Looking, looking
from pastille.stages.quantize import MODEL, clipped, left_alone, operators_of, require_int8
from pastille.stages.scan_file import read_scan
from pastille.task import Task
from pastille.values import Speedup

_NOTHING_GAINED: Final = (
    "no layer of this model is better in int8 on this machine, so the float file stays as it was"
)
_HELD_OUT: Final = 64  # cases of train that show how sensitive a layer is
_PAIRS = 0.2  # of the recipe's time for one measurement, for each pair of files
_PATIENCE = 100.0  # times that: for all trials together


@final
@dataclass(frozen=True, kw_only=True)
class MixedStage:
    """Choose the precision of each layer by its measured sensitivity and latency.

    Attributes:
        settings: As asked in the recipe.
        base: The recipe's folder, which ``scan`` is relative to.
    """

    settings: MixedQuantize
    base: Path = Path()
    name: str = field(default="quantize", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Layers that are there, enough samples to calibrate on, and a scan of this model."""
        require_calibration(artifact.module, task, self.settings)
        self._scanned(task)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Search, then write the chosen assignment."""
        settings, target, choice = self.settings, folder / MODEL, choice_of(self.settings)
        drawn = sample(task, settings.samples, progress=progress)
        graph = prepared(onnx.load(artifact.file, load_external_data=False))
        model = float_side(graph, drawn, choice)
        asked = kept_float(model, settings.keep_float)
        harm = None if settings.scan is None else by_layer(model, self._scanned(task), what="quantize.scan")
        ranges = estimated(observer(model), drawn, choice.calibration, q=choice.percentile)
        seen = looking(artifact, task, progress)

        def quantize(kept: frozenset[str]) -> Any:
            return with_ranges(model, ranges, bits=choice.bits, keep_float=kept, scheme=choice.scheme)

        found = search_mixed(
            model,
            _held(drawn),
            replace(_means(quantize, seen, folder), harm=harm),
            goal=settings.goal,
            asked=asked,
            budget_s=_PATIENCE * task.recipe.measure.seconds * _PAIRS,
            progress=progress,
        )
        write_graph(found.model, target)
        operators = operators_of(target)
        if not operators["int8_operators"]:
            return left_alone(artifact, target, (_NOTHING_GAINED, *_words(found)))
        if settings.goal == "fastest" and (over := seen.speed(target, share=_PAIRS)).slower:
            why = f"every mixture of int8 and float is slower than float ({over.ratio:.2f} times its speed)"
            return left_alone(artifact, target, (f"{why}, so the float file stays", *_words(found)))
        details = StageDetails(
            calibration_samples=len(drawn.rows),
            left_whole={x.name: _why(x, harm or {}) for x in found.layers if x.precision == "float"},
            notes=(*_words(found), *_unknown(found, harm), *clipped(graph, drawn, choice, target)),
            **operators,
        )
        return StageResult(module=artifact.module, quantized=target, precision="int8", details=details)

    def _scanned(self, task: Task) -> dict[str, float]:
        """Module -> what it costs to have it in as many bits as the scan tried at most."""
        if self.settings.scan is None:
            return {}
        found = read_scan(self.base / self.settings.scan, task.model, "quantization")
        return {name: levels[-1][1] for name, levels in found.harm("quantization").items()}

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """A file in which something runs in int8, or the float one as it was."""
        if result.precision == "int8":
            require_int8(result, "auto")


def _held(drawn: Sample) -> Sample:
    """Cases that the ranges were not made with; where there are none, those that they were made with."""
    rest = others(drawn, _HELD_OUT)
    if len(rest.rows):
        return rest
    return replace(drawn, rows=drawn.rows[:_HELD_OUT])


def _means(quantize: Any, seen: Looking, folder: Path) -> Means:
    """What the search measures with: files as they would ship, on this machine and on validation."""
    files = folder / "first.onnx", folder / "second.onnx"

    def passes(model: Any) -> bool:
        write_graph(model, files[0])
        found = seen.passes(seen.at(files[0]))
        files[0].unlink()
        return found

    def speed(one: Any, other: Any) -> Speedup:
        for model, file in zip((one, other), files, strict=True):
            write_graph(model, file)
        found = replace(seen, file=files[0]).speed(files[1], share=_PAIRS)
        for file in files:
            file.unlink()
        return found

    (batch,) = batches(seen.task.splits.validation.inputs, [0], 1)
    times = node_times(batch, threads=seen.task.recipe.measure.threads)
    return Means(quantize=quantize, passes=passes, speed=speed, times=times)


def _why(layer: LayerChoice, harm: Mapping[str, float]) -> str:
    """Why a layer stays float, with what was measured of it."""
    seen = []
    if layer.speed_ratio is not None:
        seen.append(f"its kernels take {layer.speed_ratio:.2f} times as long in float")
    if layer.sqnr_gain_db is not None:
        seen.append(f"alone in float it brings {layer.sqnr_gain_db:.1f} dB")
    if layer.name in harm:
        seen.append(f"the scan found that it alone in int8 changes the loss by {harm[layer.name]:+.2g}")
    return f"{layer.reason} ({', '.join(seen)})" if seen else layer.reason


def _unknown(found: Mixed, harm: Mapping[str, float] | None) -> Iterator[str]:
    """Layers that a scan says nothing of, in a sentence."""
    names = [layer.name for layer in found.layers if harm is not None and layer.name not in harm]
    if names:
        yield f"the scan knows nothing of {len(names)} layers, which go to float last: {', '.join(names[:3])}"


def _words(found: Mixed) -> Iterator[str]:
    floats = [layer for layer in found.layers if layer.precision == "float"]
    yield f"{len(floats)} of {len(found.layers)} layers stay float, after {len(found.trials)} trials"
    if found.speedup is not None:
        ratio, (low, high) = found.speedup.ratio, (found.speedup.interval.low, found.speedup.interval.high)
        yield f"{ratio:.2f} times as fast as with all layers in int8 ({low:.2f} to {high:.2f})"
    if not found.passes:
        yield "no assignment passes on validation, not even all layers in float"
