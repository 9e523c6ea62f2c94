"""Which values the tensors of a graph take: observed on calibration data, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import onnx

from pastille.errors import CalibrationError
from pastille.runtime.faults import reason

Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]
Range = tuple[float, float]
Estimator = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]

ESTIMATORS: Final[tuple[Estimator, ...]] = get_args(Estimator)

_BINS = 4096
_LEVELS = 256  # of an 8-bit activation
_AVERAGING = 0.1  # weight of a new batch in a moving average
_SHRUNK = np.arange(4, 65) / 64  # shares of the full range that a search tries


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
                f"calibration: the model cannot run on a batch: {reason(error)}"
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
    options.log_severity_level = 4  # what fails is raised, and need not be printed as well
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


def estimated(
    observe: Observer, batches: Batches, method: Estimator, *, q: float = 99.99
) -> dict[str, Range]:
    """The range of each tensor by one of `ESTIMATORS`.

    Args:
        observe: From `observer`.
        batches: Gives the calibration batches afresh each time it is called.
        method: ``minmax`` clips nothing of what was seen; the others trade rare extremes for finer steps.
        q: Per cent, of ``percentile`` alone.

    Returns:
        Tensor name -> (low, high), within what was seen.

    Raises:
        CalibrationError: There are no batches, or a tensor takes NaN or infinity.
        ValueError: The method is none of `ESTIMATORS`.
    """
    match method:
        case "minmax":
            return minmax(observe, batches)
        case "moving_average":
            return moving_average(observe, batches)
        case "percentile":
            return percentile(observe, batches, q)
        case "entropy":
            return _from_histograms(observe, batches, least_divergent)
        case "mse":
            return _from_histograms(observe, batches, least_squared)
    raise ValueError(f"method must be one of {', '.join(ESTIMATORS)}, got {method!r}")


def moving_average(observe: Observer, batches: Batches) -> dict[str, Range]:
    """The exponential average of the batches' ranges: an outlier in one batch counts for little.

    Unlike the others it depends on the order of the batches and on their size.

    Args:
        observe: From `observer`.
        batches: Gives the calibration batches afresh each time it is called.

    References:
        Jacob et al., CVPR 2018, arXiv:1712.05877, section 3.1.
    """
    known: dict[str, Range] = {}
    for batch in batches():
        for name, (low, high) in minmax(observe, _only(batch)).items():
            before = known.get(name, (low, high))
            known[name] = (_toward(before[0], low), _toward(before[1], high))
    if not known:
        raise CalibrationError("calibration needs at least one batch of samples, got none")
    return known


def _only(batch: Mapping[str, np.ndarray]) -> Batches:
    return lambda: [batch]


def _toward(before: float, new: float) -> float:
    return before + _AVERAGING * (new - before)


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
    return _from_histograms(observe, batches, lambda counts, span: clipped(counts, span, q))


def _from_histograms(
    observe: Observer, batches: Batches, choose: Callable[[np.ndarray, Range], Range]
) -> dict[str, Range]:
    """Two passes: the full range, then counts over it, from which a range is chosen where values vary."""
    full = minmax(observe, batches)
    counts = {name: np.zeros(_BINS, np.int64) for name in full}
    for batch in batches():
        for name, array in observe(batch):
            if name in full:
                counts[name] += _histogram(array, full[name])
    varying = {name for name, (low, high) in full.items() if low < high}
    return {n: choose(counts[n], full[n]) if n in varying else full[n] for n in full}


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


def least_squared(counts: np.ndarray, span: Range) -> Range:
    """The range whose 8-bit steps and clipping together lose the least squared error.

    Args:
        counts: Values per bin, ``(B,)``, over equal bins of ``span``.
        span: Lower edge of the first bin, upper edge of the last.

    Example:
        >>> counts = np.ones(4096); counts[2048:] = 0; counts[-1] = 1e-3
        >>> low, high = least_squared(counts, (0.0, 2.0))
        >>> 1.0 <= high < 1.1
        True

    References:
        Banner et al., NeurIPS 2019, arXiv:1810.05723 (ACIQ; here on the histogram itself).
    """
    edges = np.linspace(*span, len(counts) + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    return _searched(span, lambda ends: _squared_error(centers, counts, ends))


def _squared_error(values: np.ndarray, counts: np.ndarray, ends: Range) -> float:
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = (high - low) / (_LEVELS - 1)
    zero = np.round(-low / scale)
    steps = np.clip(np.round(values / scale) + zero, 0, _LEVELS - 1) - zero
    return float(counts @ (steps * scale - values) ** 2)


def least_divergent(counts: np.ndarray, span: Range) -> Range:
    """The range after which the distribution of values, in 256 steps, has changed least.

    Args:
        counts: Values per bin, ``(B,)``, over equal bins of ``span``.
        span: Lower edge of the first bin, upper edge of the last.

    References:
        Migacz, "8-bit inference with TensorRT", GTC 2017 (Kullback-Leibler calibration).
    """
    edges = np.linspace(*span, len(counts) + 1)
    # Zero is a step of every range: the many zeros after a Relu lose nothing, wherever it ends.
    counts = np.where((edges[:-1] <= 0) & (edges[1:] > 0), np.minimum(counts, np.roll(counts, -1)), counts)
    return _searched(span, lambda ends: _divergence(counts, *np.searchsorted(edges, ends).tolist()))


def _divergence(counts: np.ndarray, first: int, last: int) -> float:
    """Kullback-Leibler divergence of bins ``first`` to ``last`` in 256 levels from the clipped counts."""
    first = min(first, len(counts) - 1)  # both ends may lie within the last bin
    inside = counts[first : max(last, first + 1)].astype(float)
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[first + len(inside) :].sum()
    level = np.arange(len(inside)) * _LEVELS // len(inside)
    filled = np.bincount(level, weights=inside > 0)[level]
    spread = np.where(inside > 0, np.bincount(level, weights=inside)[level] / np.maximum(filled, 1), 0.0)
    total, present = reference.sum(), reference > 0
    # A bin that only clipped values fill has no counterpart; a tiny share keeps the logarithm finite.
    share = np.maximum(spread / max(spread.sum(), 1.0), 1e-9)[present]
    true = reference[present] / total
    return float((true * np.log(true / share)).sum())


def _searched(span: Range, loss: Callable[[Range], float]) -> Range:
    """The best upper end, then the best lower end for it, then both again; the wider of equals."""
    low, high = span
    for _ in range(2):
        low, high = min(((low, end) for end in _ends(span[1]) if end > low), key=loss)
        low, high = min(((end, high) for end in _ends(-span[0], sign=-1.0) if end < high), key=loss)
    return low, high


def _ends(end: float, *, sign: float = 1.0) -> list[float]:
    """What a search tries for one end, the widest first; an end on the far side of zero stays."""
    shares = _SHRUNK[::-1] if end > 0 else np.ones(1)
    return [float(x) for x in sign * end * shares]
