"""Which of its 256 steps a quantized activation can take: fewer than all after a Clip or a Relu."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import numpy_helper

Span = tuple[int, int]  # of an unsigned 8-bit number

FULL: Span = (0, 255)
_UNBOUNDED = (-math.inf, math.inf)
# They pass on values of their first input and make none that lie outside of its range.
_MOVING = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"),
        *("MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Expand", "Tile"),
    }
)
_TO_ONE = frozenset({"Sigmoid", "HardSigmoid", "Softmax"})
_ROUNDING = 1e-3  # of a step: the kernels divide in single precision


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Who makes each tensor of a graph, and the constants among them."""

    makers: Mapping[str, Any]  # onnx.NodeProto
    constants: Mapping[str, Any]  # onnx.TensorProto

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant; None if it is none."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def maker(self, name: str, *kinds: str) -> Any | None:
        """The node that makes a tensor, if it is one of ``kinds``."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type in kinds else None


def view(graph: Any) -> View:
    """Index a graph.

    Args:
        graph: An ``onnx.GraphProto``.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    makers = {name: node for node in graph.node for name in node.output}
    return View(makers=makers, constants=constants)


def dequantized(seen: View, name: str) -> Any | None:
    """The DequantizeLinear that a tensor comes from, possibly moved since; None if there is none."""
    node = seen.makers.get(name)
    while node is not None and node.op_type in _MOVING:
        node = seen.makers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def quantized_span(seen: View, name: str) -> Span:
    """The steps that a quantized activation can take, padding included, counted as unsigned.

    Signed activations are shifted by 128, as the runtime does on x86.

    Args:
        seen: The graph.
        name: The 8-bit tensor: what a DequantizeLinear reads.

    Returns:
        (lowest, highest), within 0 and 255; never narrower than what can occur.
    """
    node = seen.maker(name, "QuantizeLinear")
    if node is None or len(node.input) < 3:
        return FULL
    scale, zero = seen.array(node.input[1]), seen.array(node.input[2])
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
        return FULL
    origin = int(zero.reshape(())) + (128 if zero.dtype == np.int8 else 0)
    low, high = (end / float(scale.reshape(())) for end in _interval(seen, node.input[0]))
    lowest = math.ceil(max(low + origin, 0.0) - 0.5 - _ROUNDING)
    highest = math.floor(min(high + origin, 255.0) + 0.5 + _ROUNDING)
    return max(min(lowest, origin), 0), min(max(highest, origin), 255)


def _interval(seen: View, name: str) -> tuple[float, float]:
    """Bounds of a float tensor that follow from the operator that makes it."""
    node = seen.makers.get(name)
    if node is None:
        return _UNBOUNDED
    if node.op_type in _TO_ONE:
        return 0.0, 1.0
    if node.op_type in _MOVING:
        return _interval(seen, node.input[0])
    if node.op_type == "DequantizeLinear":
        return _dequantized_interval(seen, node)
    if node.op_type == "Relu":
        low, high = _interval(seen, node.input[0])
        return max(low, 0.0), max(high, 0.0)
    return _clipped(seen, node) if node.op_type == "Clip" else _UNBOUNDED


def _clipped(seen: View, node: Any) -> tuple[float, float]:
    given = {a.name: float(a.f) for a in node.attribute}  # before opset 11
    low, high = _interval(seen, node.input[0])
    least, most = given.get("min", -math.inf), given.get("max", math.inf)
    if len(node.input) > 1:
        least = _bound(seen, node.input[1], -math.inf)
    if len(node.input) > 2:
        most = _bound(seen, node.input[2], math.inf)
    return min(max(low, least), most), min(max(high, least), most)


def _bound(seen: View, name: str, unknown: float) -> float:
    value = seen.array(name) if name else None
    return unknown if value is None or value.size != 1 else float(value.reshape(()))


def _dequantized_interval(seen: View, node: Any) -> tuple[float, float]:
    scale = seen.array(node.input[1])
    zero = seen.array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
        return _UNBOUNDED
    origin = int(zero.reshape(())) + (128 if zero.dtype == np.int8 else 0)
    low, high = quantized_span(seen, node.input[0])
    return (low - origin) * float(scale.reshape(())), (high - origin) * float(scale.reshape(()))
