"""Which values the tensors of a graph take: observed on calibration data, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from pastille.errors import CalibrationError
from pastille.references import one_line

Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]
Range = tuple[float, float]

_BINS = 4096


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Runs a graph with every float tensor as an output, one batch at a time, in the graph's order."""

    session: Any  # an onnxruntime.InferenceSession
    tensors: tuple[str, ...]

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Every float tensor of the graph for one batch, by name."""
        try:
            arrays = self.session.run(list(self.tensors), dict(batch))
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise CalibrationError(
                f"calibration: the model cannot run on a batch: {one_line(error)}"
            ) from error
        yield from ((name, array) for name, array in batch.items() if array.dtype == np.float32)
        yield from zip(self.tensors, arrays, strict=True)


def observer(model: Any) -> Observer:
    """Prepare a graph for observation.

    Args:
        model: An ``onnx.ModelProto`` with inferred types; not modified.
    """
    import onnxruntime as ort

    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    made = {name for node in seen.graph.node for name in node.output}
    known = {o.name for o in seen.graph.output}
    extra = [v for v in seen.graph.value_info if v.name in made - known and _is_float(v)]
    seen.graph.output.extend(extra)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Fusing would take the tensors between the fused operators away.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
    floats = {o.name for o in seen.graph.output if _is_float(o)}
    in_order = (name for node in seen.graph.node for name in node.output if name in floats)
    return Observer(session=session, tensors=tuple(in_order))


def _is_float(value: Any) -> bool:
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def minmax(observe: Observer, batches: Batches) -> dict[str, Range]:
    """The full range of each tensor.

    Args:
        observe: From `observer`.
        batches: Gives the calibration batches afresh each time it is called.

    Returns:
        Tensor name -> (smallest, largest).

    Raises:
        CalibrationError: There are no batches, or a tensor takes NaN or infinity; it is named.
    """
    ranges: dict[str, Range] = {}
    for batch in batches():
        for name, array in observe(batch):
            if not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            # Checked at once: a later minimum would forget a NaN.
            if not np.isfinite([low, high]).all():
                raise _not_finite(name, array)
            known = ranges.get(name, (low, high))
            ranges[name] = (min(low, known[0]), max(high, known[1]))
    if not ranges:
        raise CalibrationError("calibration needs at least one batch of samples, got none")
    return ranges


def _not_finite(name: str, array: np.ndarray) -> CalibrationError:
    value = array[~np.isfinite(array)].flat[0]
    return CalibrationError(
        f"calibration: tensor {name!r} takes the value {value}, but every activation must be finite; "
        "check the samples and the weights, or leave quantize out of the plan"
    )


def percentile(observe: Observer, batches: Batches, q: float) -> dict[str, Range]:
    """The range that holds the share ``q`` of each tensor's values on either side.

    Rare extremes are clipped so that the common values get finer steps. Two passes: the first finds
    the full range, the second counts in 4096 bins over it, so the result does not depend on the
    order of the batches.

    Args:
        observe: From `observer`.
        batches: Gives the calibration batches afresh each time it is called.
        q: Per cent, e.g. 99.99: at most 0.01 % is clipped below, and as much above.

    Returns:
        Tensor name -> (low, high), within the full range.

    References:
        Wu et al., "Integer Quantization for Deep Learning Inference", 2020, arXiv:2004.09602, section 3.2.
    """
    full = minmax(observe, batches)
    counts = {name: np.zeros(_BINS, np.int64) for name in full}
    for batch in batches():
        for name, array in observe(batch):
            if name in full:
                counts[name] += _histogram(array, full[name])
    varying = {name for name, (low, high) in full.items() if low < high}
    return {n: clipped(counts[n], full[n], q) if n in varying else full[n] for n in full}


def _histogram(array: np.ndarray, bounds: Range) -> np.ndarray:
    # In double precision: a narrow range has fewer than 4096 single-precision numbers.
    counts: np.ndarray = np.histogram(array.astype(np.float64), bins=_BINS, range=bounds)[0]
    return counts


def clipped(counts: np.ndarray, span: Range, q: float) -> Range:
    """Where the lower and the upper tail of a histogram begin.

    Args:
        counts: Values per bin, ``(B,)``, over equal bins of ``span``.
        span: Lower edge of the first bin, upper edge of the last.
        q: Per cent that lies below the upper end, and above the lower end.

    Example:
        >>> clipped(np.array([1, 49, 49, 1]), (0.0, 4.0), 98.0)
        (1.0, 3.0)
    """
    edges = np.linspace(*span, len(counts) + 1)
    tail = (1 - q / 100) * counts.sum()
    low = int(np.searchsorted(np.cumsum(counts), tail, side="right"))
    high = int(np.searchsorted(np.cumsum(counts[::-1]), tail, side="right"))
    return float(edges[low]), float(edges[len(counts) - high])
