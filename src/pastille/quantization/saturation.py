"""Which layers of an int8 file can saturate 16-bit sums on x86 CPUs without int8 dot products.

Without VNNI the kernels multiply with `vpmaddubsw`: it multiplies unsigned activations by signed weights
and adds two neighbouring products in saturating 16-bit arithmetic. Whether that can happen is decided
here from the weights alone, for the worst activations. Weights are neighbours as ONNX Runtime packs
them: a convolution's in the order (kernel position, input channel) within its group, a matrix's along
its rows; the first with the second, the third with the fourth. Depthwise convolutions have kernels of
their own, which add in 32 bits; so have unsigned weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pastille.quantization.spans import FULL, Span, View, dequantized, quantized_span, view
from pastille.runtime.onnx_file import check_self_contained

_HIGHEST, _LOWEST = 32767, -32768


@dataclass(frozen=True, kw_only=True)
class Saturating:
    """A layer that some input can drive into saturation."""

    node: str  # its name, or its first output where it has none
    operator: str
    weight: str  # name of the int8 tensor
    channels: tuple[int, ...]  # output channels concerned
    of: int  # output channels in all
    worst_sum: int  # largest magnitude of two added products; more than 32767
    exact: bool  # False where the packing is not known, and any two weights count as neighbours


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """An operator that multiplies unsigned activations by signed weights."""

    node: Any  # onnx.NodeProto
    weight: str
    span: Span  # of the activations
    order: tuple[int, ...]  # axes of the stored weights, as the kernel sees them
    exact: bool
    deep: bool  # a depthwise convolution

    def rows(self, weights: np.ndarray) -> np.ndarray:
        """The stored weights as ``(C, K)``, each row in the order in which its products are added.

        A stack of B matrices gives ``(B · C, K)``, all channels of one matrix after another.
        """
        seen = weights.transpose(self.order)
        if self.node.op_type in _CONVOLUTIONS:
            return np.moveaxis(seen, 1, -1).reshape(len(seen), -1)
        return np.moveaxis(seen, -2, -1).reshape(-1, seen.shape[-2])

    @property
    def channel_axis(self) -> int:
        """Which axis of the stored weights counts output channels."""
        return self.order[0 if self.node.op_type in _CONVOLUTIONS else -1]


_CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger"})
_BETWEEN_PAIRS = frozenset({"Conv", "MatMul", "Gemm"})
# Operator -> its activations (None: quantized inside), its weights.
_INTEGER: dict[str, tuple[int | None, tuple[int, ...]]] = {
    "QLinearConv": (0, (3,)),
    "QLinearMatMul": (0, (3,)),
    "QGemm": (0, (3,)),
    "ConvInteger": (0, (1,)),
    "MatMulInteger": (0, (1,)),
    "MatMulIntegerToFloat": (0, (1,)),
    "DynamicQuantizeMatMul": (None, (1,)),
    "DynamicQuantizeLSTM": (None, (1, 2)),
    "QAttention": (0, (1,)),
}
_UNKNOWN_PACKING = frozenset({"ConvInteger", "QAttention"})


def saturating_layers(path: Path) -> tuple[Saturating, ...]:
    """Find the layers of a quantized file that can saturate 16-bit sums on a CPU without VNNI.

    Args:
        path: An ONNX file with Q/DQ pairs or integer operators.

    Returns:
        In the order of the graph; none if every such CPU computes what this one does.

    Raises:
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.

    References:
        Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW.
        Jacob et al., CVPR 2018, arXiv:1712.05877, appendix B (why other kernels avoid -128).
    """
    check_self_contained(path)
    return saturating(onnx.load(path, load_external_data=False))


def saturating(model: Any) -> tuple[Saturating, ...]:
    """Find the layers that can saturate; see `saturating_layers`.

    Args:
        model: An ``onnx.ModelProto``.
    """
    seen = view(model.graph)
    found = ((layer, stored_weights(seen, layer.weight)) for layer in signed_layers(model))
    judged = (_judged(layer, weights) for layer, weights in found if weights is not None)
    return tuple(layer for layer in judged if layer.channels)


def _judged(layer: Layer, weights: np.ndarray) -> Saturating:
    rows = layer.rows(weights)
    channels = weights.shape[layer.channel_axis]
    sums = worst_sums(rows, layer.span, paired=layer.exact)
    over = np.flatnonzero(saturates(sums).reshape(-1, channels).any(axis=0))
    return Saturating(
        node=layer.node.name or layer.node.output[0],
        operator=layer.node.op_type,
        weight=layer.weight,
        channels=() if layer.deep else tuple(int(c) for c in over),
        of=channels,
        worst_sum=int(np.abs(sums).max(initial=0)),
        exact=layer.exact,
    )


def worst_sums(rows: np.ndarray, span: Span = FULL, *, paired: bool = True) -> np.ndarray:
    """The largest and the smallest sum of two products that any activations give.

    Args:
        rows: int8 weights ``(C, K)`` in the order in which they are packed.
        span: Lowest and highest unsigned activation.
        paired: Whether only (0, 1), (2, 3), ... are added; any two otherwise.

    Returns:
        ``(C, 2)`` int64: largest, smallest.

    Example:
        >>> worst_sums(np.array([[127, 127, 64, -128]], np.int8)).tolist()
        [[64770, -32640]]
    """
    wide = rows.astype(np.int64)
    padded = np.pad(wide, ((0, 0), (0, max(2 - wide.shape[1], wide.shape[1] % 2))))
    pairs = padded.reshape(len(padded), -1, 2) if paired else _likeliest(padded)
    above, below = np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2)
    low, high = span
    largest = (high * above - low * below).max(axis=1)
    smallest = (low * above - high * below).min(axis=1)
    return np.stack([largest, smallest], axis=1)


def _likeliest(rows: np.ndarray) -> np.ndarray:
    """The two largest and the two smallest weights of each row, ``(C, 2, 2)``."""
    ranked = np.sort(rows, axis=1)
    return np.stack([ranked[:, -2:], ranked[:, :2]], axis=1)


def saturates(sums: np.ndarray) -> np.ndarray:
    """Which rows of `worst_sums` do not fit into 16 bits, ``(C,)``.

    Example:
        >>> saturates(worst_sums(np.array([[64, 64], [64, 65]], np.int8))).tolist()
        [False, True]
    """
    over: np.ndarray = (sums[:, 0] > _HIGHEST) | (sums[:, 1] < _LOWEST)
    return over


def signed_layers(model: Any) -> Iterator[Layer]:
    """The operators of the main graph that multiply unsigned activations by constant signed weights.

    Args:
        model: An ``onnx.ModelProto``.
    """
    seen = view(model.graph)
    for node in model.graph.node:
        if node.op_type in _BETWEEN_PAIRS:
            yield from _between_pairs(seen, node)
        elif node.op_type in _INTEGER:
            yield from _integer(seen, node)


def _between_pairs(seen: View, node: Any) -> Iterator[Layer]:
    """A float operator between Q/DQ pairs, which the runtime turns into an integer one."""
    data = dequantized(seen, node.input[0])
    moves, name = [], node.input[1]
    while (move := seen.maker(name, "Transpose", "Identity")) is not None:
        moves += [move] if move.op_type == "Transpose" else []
        name = move.input[0]
    pair = seen.maker(name, "DequantizeLinear")
    if data is not None and pair is not None:
        yield from _layer(seen, node, pair.input[0], quantized_span(seen, data.input[0]), moves)


def _integer(seen: View, node: Any) -> Iterator[Layer]:
    data, operands = _INTEGER[node.op_type]
    span = FULL if data is None else quantized_span(seen, node.input[data])
    for operand in operands:
        yield from _layer(seen, node, node.input[operand], span, [])


def _layer(seen: View, node: Any, weight: str, span: Span, moves: list[Any]) -> Iterator[Layer]:
    weights = stored_weights(seen, weight)
    if weights is None or weights.dtype != np.int8 or weights.ndim < 2:
        return
    numbers = {a.name: a.i for a in node.attribute}
    order = tuple(range(weights.ndim))
    for move in reversed(moves):  # that nearest to the stored weights first
        taken = next((tuple(a.ints) for a in move.attribute if a.name == "perm"), order[::-1])
        order = tuple(order[axis] for axis in taken)
    if numbers.get("transB"):
        order = order[::-1]
    first, second = (weights.shape[axis] for axis in order[:2])
    yield Layer(
        node=node,
        weight=weight,
        span=span,
        order=order,
        exact=node.op_type not in _UNKNOWN_PACKING,
        deep=node.op_type in {"Conv", "QLinearConv"} and (first, second) == (numbers.get("group", 1), 1),
    )


def stored_weights(seen: View, name: str) -> np.ndarray | None:
    """Quantized weights: a constant, or a constant that the file quantizes itself.

    Args:
        seen: The graph.
        name: What a DequantizeLinear or an integer operator reads.
    """
    array = seen.array(name)
    node = seen.maker(name, "QuantizeLinear")
    if array is not None or node is None or len(node.input) < 3:
        return array
    floats, scale, zero = (seen.array(given) for given in node.input[:3])
    if floats is None or scale is None or zero is None or zero.dtype != np.int8:
        return None
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    steps = np.rint(floats / along(scale, axis, floats.ndim)) + along(zero, axis, floats.ndim)
    clipped: np.ndarray = np.clip(steps, -128, 127).astype(np.int8)
    return clipped


def along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """One number per channel, ready to be broadcast over an array; a single number as it is.

    Example:
        >>> along(np.array([1.0, 2.0]), 1, 4).shape
        (1, 2, 1, 1)
    """
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
