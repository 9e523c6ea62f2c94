"""Weights that cannot saturate: only the channels concerned get a coarser step, only as coarse as needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from pastille.quantization.saturation import (
    Layer,
    along,
    saturates,
    signed_layers,
    worst_sums,
)
from pastille.quantization.spans import View, view

_NO_FLOATS: Final[Mapping[str, np.ndarray]] = MappingProxyType({})
_STEP = 1 / 64  # by which a scale is widened from one attempt to the next
_MENDED = "_mended"


def repaired(model: Any, floats: Mapping[str, np.ndarray] = _NO_FLOATS) -> Any:
    """Widen the scales of the channels that can saturate until none can.

    A channel whose heaviest neighbours add up to 160 needs a step 1.25 times as wide; 7-bit weights for
    the whole file would double every step. Weights that share one scale are widened together.

    Args:
        model: An ``onnx.ModelProto`` with Q/DQ pairs; not modified.
        floats: int8 tensor -> the float weights that it was rounded from, in the same layout. Others are
            rounded a second time from their int8 values, at most a quarter of a step worse.

    Returns:
        A new model that `saturating` finds nothing in, apart from what it cannot mend: tensors that no
        DequantizeLinear with a constant scale reads (integer operators), or whose zero point is not 0.

    Raises:
        ValueError: Float weights have another shape than the int8 ones.

    Example:
        >>> from onnx import parser
        >>> repaired(parser.parse_model('<ir_version: 10, opset_import: ["" : 18]> g () => () {}')).ir_version
        10
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    seen = view(new.graph)
    layers: dict[str, list[Layer]] = defaultdict(list)
    for layer in signed_layers(new):
        layers[layer.weight] += [] if layer.deep else [layer]
    for name, readers in layers.items():
        _mend_(new.graph, seen, name, readers, floats.get(name))
    return new


def rounded_from(source: Any, suffix: str = "_quantized") -> dict[str, np.ndarray]:
    """The float weights of a model under the names that ONNX Runtime's quantizer gives the int8 ones.

    Args:
        source: The float ``onnx.ModelProto``.
        suffix: What the quantizer appends.
    """
    arrays = ((t.name, numpy_helper.to_array(t)) for t in source.graph.initializer)
    return {f"{name}{suffix}": a for name, a in arrays if a.dtype == np.float32 and a.ndim > 1}


def _mend_(graph: Any, seen: View, name: str, readers: Sequence[Layer], floats: np.ndarray | None) -> None:
    pairs = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == name]
    weights = seen.array(name)
    scale = _shared_scale(seen, pairs)
    if weights is None or scale is None:
        return
    if floats is not None and floats.shape != weights.shape:
        raise ValueError(f"floats of {name!r} must have the shape {weights.shape}, got {floats.shape}")
    axis = next((a.i for a in pairs[0].attribute if a.name == "axis"), 1)
    exact = weights * along(scale, axis, weights.ndim) if floats is None else floats
    factors = _factors(exact, scale, axis, readers)
    if (factors == 1.0).all():
        return
    wider = (scale * factors).astype(np.float32)
    for pair in pairs:
        _feed_(graph, pair, 0, f"{name}{_MENDED}", _rounded(exact, wider, axis))
        _feed_(graph, pair, 1, f"{name}_scale{_MENDED}", wider)
    _rescale_biases_(graph, seen, [reader.node for reader in readers], factors.reshape(-1))


def _shared_scale(seen: View, pairs: Sequence[Any]) -> np.ndarray | None:
    """The constant scale of one symmetric int8 tensor; None where it cannot be widened."""
    scales = {pair.input[1]: seen.array(pair.input[1]) for pair in pairs}
    zeros = [seen.array(pair.input[2]) for pair in pairs if len(pair.input) > 2 and pair.input[2]]
    if len(scales) != 1 or any(zero is None or zero.any() for zero in zeros):
        return None
    return next(iter(scales.values()))


def _factors(exact: np.ndarray, scale: np.ndarray, axis: int, readers: Iterable[Layer]) -> np.ndarray:
    """How much wider each scale must be, like ``scale``; 1 where nothing can saturate."""
    needed = np.ones(scale.size)
    for layer in readers:
        alone = scale.size > 1 and axis % exact.ndim == layer.channel_axis
        while (over := _over(layer, _rounded(exact, scale * needed.reshape(scale.shape), axis))).any():
            needed[over if alone else slice(None)] += _STEP
    return needed.reshape(scale.shape)


def _over(layer: Layer, steps: np.ndarray) -> np.ndarray:
    """Which channels can saturate, ``(C,)``; with every weight within -64 and 64 none can."""
    sums = worst_sums(layer.rows(steps), layer.span, paired=layer.exact)
    return np.asarray(saturates(sums).reshape(-1, steps.shape[layer.channel_axis]).any(axis=0))


def _rounded(exact: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    steps = np.rint(exact / along(scale, axis, exact.ndim))
    clipped: np.ndarray = np.clip(steps, -128, 127).astype(np.int8)
    return clipped


def _rescale_biases_(graph: Any, seen: View, nodes: Iterable[Any], factors: np.ndarray) -> None:
    """An int32 bias counts in products of the two scales, so it follows that of the weights."""
    pairs = [seen.maker(node.input[2], "DequantizeLinear") for node in nodes if len(node.input) > 2]
    for pair in {id(pair): pair for pair in pairs if pair is not None}.values():
        name, scale_name = pair.input[:2]
        bias, scale = seen.array(name), seen.array(scale_name)
        if bias is not None and scale is not None and bias.dtype == np.int32:
            _feed_(graph, pair, 0, f"{name}{_MENDED}", np.rint(bias / factors).astype(np.int32))
            _feed_(graph, pair, 1, f"{name}_scale{_MENDED}", (scale * factors).astype(np.float32))


def _feed_(graph: Any, node: Any, operand: int, name: str, array: np.ndarray) -> None:
    """Let a node read a new constant; others may share the old one."""
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    old, node.input[operand] = node.input[operand], name
    _drop_unread_(graph, old)


def _drop_unread_(graph: Any, name: str) -> None:
    if any(name in node.input for node in graph.node):
        return
    kept = [tensor for tensor in graph.initializer if tensor.name != name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
