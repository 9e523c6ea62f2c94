"""An ONNX graph, quantized or not, read into a `Simulation`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from pastille.errors import PreconditionError
from pastille.quantization.fake import Activation
from pastille.quantization.onnx_operators import OPERATORS
from pastille.quantization.simulation import Simulation, Step, Stored, unsimulated

_LEVELS = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
_INTEGERS = "_quantized"  # what the quantizer calls them, behind the name of the constant
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
# They move integers as they would move the numbers that the integers stand for.
_MOVES = frozenset(
    {"Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Identity"}
)


def float_graph(model: Any) -> Simulation:
    """A float ONNX graph in torch.

    Args:
        model: An ``onnx.ModelProto``.

    Raises:
        PreconditionError: It holds an operator that training cannot go through; it is named.
    """
    steps = tuple(_step(node) for node in _ordered(model.graph))
    return Simulation(steps, _interface(model.graph), _arrays(model.graph), {}, ())


def simulation(model: Any, source: Any, *, half: int | None = None) -> Simulation:
    """A quantized ONNX graph in torch, its weights as they were before they were rounded.

    Args:
        model: An ``onnx.ModelProto`` with Q/DQ pairs.
        source: The float ``onnx.ModelProto`` that it was made from. A tensor that it does not have, or
            has in another shape, starts from its rounded values.
        half: Largest integer of every weight, instead of the file's, e.g. 8 for 4 bits.

    Raises:
        PreconditionError: It holds an operator that training cannot go through, or no weight in
            integers.
    """
    graph = model.graph
    reading = _Reading(
        held=_arrays(graph),
        before=_arrays(source.graph),
        bounds=_bounds(source.graph),
        inputs=frozenset(i.name for i in graph.input),
        makers={name: node for node in graph.node for name in node.output},
        biased={n.input[2]: n for n in graph.node if n.op_type in _BIASED and len(n.input) > 2},
        half=half,
    )
    steps = tuple(reading.step(node) for node in _ordered(graph))
    if not any(s.kind == "weight" for s in reading.stored):
        raise PreconditionError(
            "quantize: the model has no convolution or linear layer that runs in int8, so there is nothing "
            "to train; leave quantize out of the plan"
        )
    used = {name for step in steps for name in step.inputs}
    constants = {name: value for name, value in (reading.held | reading.exact).items() if name in used}
    return Simulation(steps, _interface(graph), constants, reading.roundings, tuple(reading.stored))


def _arrays(graph: Any) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A quantized graph while it is read; the last three grow.

    Attributes:
        biased: Name of a bias -> the node that adds it.
    """

    held: dict[str, np.ndarray]
    before: Mapping[str, np.ndarray]
    bounds: Mapping[str, tuple[float, float]]
    inputs: frozenset[str]
    makers: Mapping[str, Any]
    biased: Mapping[str, Any]
    half: int | None
    exact: dict[str, np.ndarray] = field(default_factory=dict)
    roundings: dict[str, Activation] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)

    def step(self, node: Any) -> Step:
        """What a node becomes."""
        if node.op_type == "QuantizeLinear":
            return self._round(node)
        if node.op_type == "DequantizeLinear":
            return self._constant(node) if node.input[0] in self.held else self._dequantize(node)
        if node.op_type == "Pad" and len(node.input) > 2 and node.input[2] == self._zero(node.input[0]):
            return _step(node, inputs=tuple(node.input[:2]))  # the zero point stands for zero
        return _step(node)

    def _round(self, node: Any) -> Step:
        name, scale = node.input[0], node.input[1]
        if scale not in self.roundings:
            moves = name not in self.inputs
            self.roundings[scale] = _activation(node, self.held, self.bounds.get(name), moves=moves)
        return _made("round", name, node, list(self.roundings).index(scale))

    def _constant(self, node: Any) -> Step:
        found = _stored(node, self.held, self.half)
        if found.kind == "bias":
            found = replace(found, factors=self._factors(node))
        self.exact[found.name] = _before(found, self.held, self.before)
        self.stored.append(found)
        return _made("stored", found.name, node, len(self.stored) - 1)

    def _factors(self, node: Any) -> tuple[str, str]:
        user = self.biased.get(node.output[0])
        makers = [self.makers[n] for n in user.input[:2] if n in self.makers] if user is not None else []
        if [m.op_type for m in makers] != ["DequantizeLinear"] * 2:
            raise unsimulated(f"DequantizeLinear of {node.input[0]}, which is the bias of no int8 layer")
        return makers[0].input[1], makers[1].input[0].removesuffix(_INTEGERS)

    def _dequantize(self, node: Any) -> Step:
        if not self._zero(node.input[0]):
            raise unsimulated(self.makers[node.input[0]].op_type)
        return _made("Identity", node.input[0], node)

    def _zero(self, name: str) -> str:
        """Name of the zero point of integers; "" for a tensor of numbers."""
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "QuantizeLinear":
            return str(maker.input[2])
        if maker is not None and maker.op_type in _MOVES:
            return self._zero(maker.input[0])
        return ""


def _interface(graph: Any) -> tuple[tuple[str, ...], str]:
    return tuple(i.name for i in graph.input), graph.output[0].name


def _ordered(graph: Any) -> list[Any]:
    """The nodes, each after what it reads; the static path appends its pairs at the end."""
    ready = {t.name for t in graph.initializer} | {i.name for i in graph.input} | {""}
    pending, ordered = list(graph.node), []
    while pending:
        late = []
        for node in pending:
            if all(name in ready for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                late.append(node)
        if len(late) == len(pending):
            raise unsimulated(late[0].op_type)
        pending = late
    return ordered


def _made(call: str, read: str, node: Any, number: int = -1) -> Step:
    outputs = tuple(node.output[:1])
    return Step(call=call, attributes={}, inputs=(read,), outputs=outputs, rounding=number)


def _step(node: Any, inputs: tuple[str, ...] | None = None) -> Step:
    if node.op_type not in OPERATORS:
        raise unsimulated(node.op_type)
    attributes = {a.name: _attribute(a) for a in node.attribute}
    return Step(
        call=node.op_type,
        attributes=attributes,
        inputs=inputs or tuple(node.input),
        outputs=tuple(node.output),
    )


def _attribute(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    return value


def _activation(
    node: Any, held: Mapping[str, np.ndarray], bounds: tuple[float, float] | None, *, moves: bool
) -> Activation:
    zero, scale = held[node.input[2]], float(held[node.input[1]])
    if zero.dtype not in _LEVELS or zero.ndim:
        raise unsimulated(f"QuantizeLinear to {zero.dtype} of {node.input[0]}")
    first, last = _LEVELS[zero.dtype]
    symmetric = bool(zero.dtype == np.int8 and zero == 0)
    first = -last if symmetric else first
    span = ((first - int(zero)) * scale, (last - int(zero)) * scale)
    return Activation(
        span, (first, last), symmetric=symmetric, bounds=bounds or (-math.inf, math.inf), moves=moves
    )


def _bounds(graph: Any) -> dict[str, tuple[float, float]]:
    """What a Relu or a Clip lets through; the quantizer may have put a range in its place."""
    constants, found = _arrays(graph), {}
    for node in graph.node:
        if node.op_type == "Relu":
            found[node.output[0]] = (0.0, math.inf)
        elif node.op_type == "Clip":
            ends = [*node.input[1:], "", ""][:2]
            low, high = (float(constants[n]) if n in constants else None for n in ends)
            found[node.output[0]] = (-math.inf if low is None else low, math.inf if high is None else high)
    return found


def _stored(node: Any, held: Mapping[str, np.ndarray], half: int | None) -> Stored:
    integers, scale = held[node.input[0]], held[node.input[1]]
    zero = held[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), integers.dtype)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % max(integers.ndim, 1)
    middle = {"uint8": 128, "int8": 0}.get(integers.dtype.name)
    kind: Literal["weight", "constant", "bias"] = "constant"
    if integers.dtype == np.int32:
        kind = "bias"
    elif (zero == middle).all():
        kind = "weight"
    elif scale.ndim or integers.dtype not in _LEVELS:
        raise unsimulated(f"DequantizeLinear of {node.input[0]}, {integers.dtype}")
    largest = int(np.abs(integers.astype(np.int64) - int(middle or 0)).max(initial=0))
    return Stored(
        name=node.input[0].removesuffix(_INTEGERS),
        kind=kind,
        axis=axis if scale.ndim and scale.size == integers.shape[axis] else None,
        half=half or min(max(largest, 1), 127),
        levels=_LEVELS.get(integers.dtype, (0, 0)),
        tensors=(node.input[0], node.input[1], node.input[2] if len(node.input) > 2 else ""),
    )


def _before(stored: Stored, held: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> np.ndarray:
    """The constant before it was rounded, as far as the float file has it."""
    integers, scale, zero = (held[name] if name else np.zeros((), np.int8) for name in stored.tensors)
    shape = [-1 if i == stored.axis else 1 for i in range(integers.ndim)]
    scale = scale.reshape(shape) if scale.ndim else scale
    zero = zero.astype(np.float64).reshape(shape) if zero.ndim else zero.astype(np.float64)
    rounded = ((integers - zero) * scale).astype(np.float32)
    exact = before.get(stored.name)
    if exact is None or exact.shape != rounded.shape:
        return rounded
    return exact.astype(np.float32)
