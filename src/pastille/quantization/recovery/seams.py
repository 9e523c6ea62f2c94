"""Where a graph may be rescaled per channel without changing what it computes.

``f(x / s) = f(x) / s`` holds for Relu, LeakyRelu, pooling and reshaping. So what makes a tensor may be
divided by ``s`` per channel and what reads it multiplied: the graph answers the same, and its tensors are
easier to quantize. With powers of two for ``s`` not a bit of the answers changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import numpy_helper

from pastille.quantization.recovery.graph import Wiring, attribute, copied, replace_input_, wiring

_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Identity", "Dropout"})
_POOLING = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})
_MOST_DOUBLINGS = 24  # of a channel: more would only move noise
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class Place:
    """A constant input of a node whose ``axis`` runs over the channels of a seam.

    Attributes:
        node: The node's name.
        index: Of the input.
        axis: Along which channels lie.
        groups: Of a convolution whose input channels these are: channel ``c`` of group ``g`` is at ``c`` of
            the rows of ``g`` only.
        repeat: Consecutive entries that belong to one channel, where channels were flattened.
    """

    node: str
    index: int
    axis: int
    groups: int = 1
    repeat: int = 1


@dataclass(frozen=True, kw_only=True)
class Seam:
    """A tensor whose channels may be rescaled.

    Attributes:
        tensor: Read by the layers after the seam.
        channels: How many there are.
        axis: Of the channels in ``tensor``, 1 or -1.
        repeat: Consecutive entries of ``tensor`` along ``axis`` that belong to one channel.
        normalized: What makes it is a normalization's scale and shift, not the weights of a layer.
        above: To be divided.
        below: To be multiplied; weights all.
    """

    tensor: str
    channels: int
    axis: int
    repeat: int
    normalized: bool
    above: tuple[Place, ...]
    below: tuple[Place, ...]


def seams(model: Any) -> tuple[Seam, ...]:
    """Every place of a graph that may be rescaled per channel.

    Args:
        model: An ``onnx.ModelProto`` with inferred shapes and named nodes.
    """
    wires = wiring(model)
    read = dict.fromkeys(n.input[0] for n in model.graph.node if n.op_type in _WEIGHTED)
    return tuple(seam for tensor in read if (seam := _seam(wires, tensor)) is not None)


def _seam(wires: Wiring, tensor: str) -> Seam | None:
    layers = wires.readers[tensor]
    if tensor in wires.outputs or not all(_has_own_weight(wires, node, tensor) for node in layers):
        return None
    axes = {_channel_axis(node) for node in layers}
    if len(axes) != 1:
        return None
    above = _above(wires, tensor, axes.pop())
    if above is None:
        return None
    places, channels, axis, repeat, normalized = above
    below = tuple(_below(node, repeat) for node in layers)
    if any(_width(wires, node) != channels * repeat for node in layers):
        return None
    return Seam(
        tensor=tensor,
        channels=channels,
        axis=axis,
        repeat=repeat,
        normalized=normalized,
        above=places,
        below=below,
    )


def _has_own_weight(wires: Wiring, node: Any, tensor: str) -> bool:
    if node.op_type not in _WEIGHTED or node.input[0] != tensor or list(node.input).count(tensor) > 1:
        return False
    weight = node.input[1]
    if weight not in wires.constants or len(wires.readers[weight]) > 1:
        return False  # shared weights stay as they are
    rank = len(wires.constants[weight].dims)
    if node.op_type == "Gemm":
        return not attribute(node, "transA", 0)
    return rank == 2 if node.op_type == "MatMul" else rank >= 3


def _channel_axis(node: Any) -> int:
    return 1 if node.op_type == "Conv" else -1


def _width(wires: Wiring, node: Any) -> int:
    """Input channels of a layer."""
    dims = wires.constants[node.input[1]].dims
    if node.op_type == "Conv":
        return int(dims[1]) * int(attribute(node, "group", 1))
    return int(dims[_input_axis(node)])


def _input_axis(node: Any) -> int:
    if node.op_type == "Conv":
        return 1
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0


def _below(node: Any, repeat: int) -> Place:
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    return Place(node=node.name, index=1, axis=_input_axis(node), groups=groups, repeat=repeat)


_Above = tuple[tuple[Place, ...], int, int, int, bool]


def _above(wires: Wiring, tensor: str, axis: int) -> _Above | None:
    """Climb from a tensor to the layer or normalization that makes it, collecting what must be divided."""
    places: list[Place] = []
    flattened = 0  # entries of the flattened tensor, 0 while nothing was flattened
    while (node := wires.makers.get(tensor)) is not None:
        if node.op_type in ("Conv", "Gemm", "MatMul", "LayerNormalization"):
            return _source(wires, node, places, axis, flattened)
        if node.op_type == "Mul" and not flattened and (affine := _affine_source(wires, node, places, axis)):
            return affine
        if node.op_type in ("Add", "Mul") and not flattened:
            data = _climb_affine(wires, node, places, axis)
        else:
            data, axis, flattened = _climb(wires, node, axis, flattened)
        if data is None or not wires.private(data):
            return None
        tensor = data
    return None


def _climb(wires: Wiring, node: Any, axis: int, flattened: int) -> tuple[str | None, int, int]:
    data = node.input[0] if node.input else None
    if node.op_type in _HOMOGENEOUS or (node.op_type in _POOLING and axis == 1 and len(node.output) == 1):
        return data, axis, flattened
    if node.op_type in _FLATTENING and axis == -1 and not flattened:
        before, after = wires.shapes.get(node.input[0], ()), wires.shapes.get(node.output[0], ())
        if len(before) > 2 and len(after) == 2 and None not in before[1:] and after[1] is not None:
            sizes = [size for size in before[1:] if size is not None]
            if int(np.prod(sizes)) == after[1]:
                return data, 1, after[1]
    return None, axis, flattened


def _climb_affine(wires: Wiring, node: Any, places: list[Place], axis: int) -> str | None:
    """Past an Add, whose constant must be divided too, or a Mul, whose constant need not."""
    fixed = [i for i, name in enumerate(node.input) if name in wires.constants]
    if len(fixed) != 1:
        return None
    dims = list(wires.constants[node.input[fixed[0]]].dims)
    if node.op_type == "Add":
        at = _constant_axis(wires, node, fixed[0], axis)
        if at is None:
            return None
        places.append(Place(node=node.name, index=fixed[0], axis=at))
    elif len(dims) > len(wires.shapes.get(node.output[0], ())):
        return None
    return str(node.input[1 - fixed[0]])


def _constant_axis(wires: Wiring, node: Any, index: int, axis: int) -> int | None:
    """The only axis of a constant that is longer than one, if that is the channels'."""
    dims, shape = list(wires.constants[node.input[index]].dims), wires.shapes.get(node.output[0], ())
    if not dims or len(dims) > len(shape):
        return None
    at = (len(shape) if axis == -1 else 1) - (1 if axis == -1 else 0) - (len(shape) - len(dims))
    others = [size for i, size in enumerate(dims) if i != at]
    fits = 0 <= at < len(dims) and dims[at] == shape[axis] and all(size == 1 for size in others)
    return at if fits else None


def _affine_source(wires: Wiring, node: Any, places: list[Place], axis: int) -> _Above | None:
    """A product with one constant per channel: dividing that divides everything."""
    fixed = [i for i, name in enumerate(node.input) if name in wires.constants]
    at = _constant_axis(wires, node, fixed[0], axis) if len(fixed) == 1 else None
    if at is None:
        return None
    own = Place(node=node.name, index=fixed[0], axis=at)
    return (own, *places), _length(wires, own), axis, 1, True


def _source(wires: Wiring, node: Any, places: list[Place], axis: int, flattened: int) -> _Above | None:
    own = _own_places(wires, node, axis)
    if own is None:
        return None
    first = own[0]
    channels = int(wires.constants[node.input[first.index]].dims[first.axis])
    repeat = flattened // channels if flattened else 1
    if flattened and repeat * channels != flattened:
        return None
    fits = all(_length(wires, place) == channels for place in places)
    at = -1 if flattened else axis
    normalized = node.op_type == "LayerNormalization"
    return ((*own, *places), channels, at, repeat, normalized) if fits else None


def _length(wires: Wiring, place: Place) -> int:
    return int(wires.constants[wires.nodes[place.node].input[place.index]].dims[place.axis])


def _own_places(wires: Wiring, node: Any, axis: int) -> tuple[Place, ...] | None:
    """What of a node must be divided so that its output is, or None where it cannot."""
    inputs = [name for name in node.input[1:] if name]
    if any(name not in wires.constants for name in inputs) or not inputs:
        return None
    if node.op_type == "LayerNormalization":
        one_axis = attribute(node, "axis", -1) == -1 or len(wires.constants[node.input[1]].dims) == 1
        if axis != -1 or not one_axis or len(node.output) > 1:
            return None
        return tuple(Place(node=node.name, index=i, axis=0) for i in range(1, 1 + len(inputs)))
    if len(wires.readers[node.input[1]]) > 1 or (axis == 1) != (node.op_type == "Conv"):
        return None
    weight = Place(node=node.name, index=1, axis=_output_axis(node))
    if len(inputs) == 1:
        return (weight,)
    dims = wires.constants[node.input[2]].dims
    width = wires.constants[node.input[1]].dims[weight.axis]
    if not dims or dims[-1] != width or any(size != 1 for size in dims[:-1]):
        return None
    return (weight, Place(node=node.name, index=2, axis=len(dims) - 1))


def _output_axis(node: Any) -> int:
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1


def rescaled(model: Any, scales: Iterable[tuple[Seam, np.ndarray]]) -> Any:
    """Divide what is above each seam and multiply what is below.

    Args:
        model: An ``onnx.ModelProto``; not modified.
        scales: Seams with ``(channels,)`` positive factors each.

    Returns:
        A model that computes the same; to the bit where the factors are powers of two.
    """
    new = copied(model)
    nodes = {node.name: node for node in new.graph.node}
    for seam, scale in scales:
        sides = [(place, 1 / scale) for place in seam.above] + [(place, scale) for place in seam.below]
        for place, by in sides:
            _scale_(new.graph, nodes[place.node], place, by)
    return new


def _scale_(graph: Any, node: Any, place: Place, scale: np.ndarray) -> None:
    name = node.input[place.index]
    array = numpy_helper.to_array(next(t for t in graph.initializer if t.name == name))
    new = array * factors(array.shape, place, scale)
    replace_input_(graph, node, place.index, new.astype(array.dtype))


def powers_of_two(scale: np.ndarray) -> np.ndarray:
    """The nearest powers of two: multiplying by them is exact in floating point.

    Example:
        >>> powers_of_two(np.array([0.3, 1.1, 100.0]))
        array([  0.25,   1.  , 128.  ])
    """
    bounded = np.clip(np.round(np.log2(scale)), -_MOST_DOUBLINGS, _MOST_DOUBLINGS)
    powers: np.ndarray = np.exp2(bounded)
    return powers


def weight_maxima(array: np.ndarray, place: Place) -> np.ndarray:
    """The largest magnitude of each channel in the constant at a place, ``(channels,)``."""
    size = np.abs(array)
    if place.groups > 1:
        by_group = size.reshape(place.groups, -1, *size.shape[1:])  # (groups, O / groups, I / groups, ...)
        return np.asarray(by_group.max(axis=(1, *range(3, by_group.ndim)))).reshape(-1)
    rows = np.moveaxis(size, place.axis, 0).reshape(-1, place.repeat, size.size // size.shape[place.axis])
    found: np.ndarray = rows.max(axis=(1, 2))
    return found


def factors(shape: tuple[int, ...], place: Place, scale: np.ndarray) -> np.ndarray:
    """The factor of each entry of a constant, broadcastable to it.

    Args:
        shape: Of the constant.
        place: Where the channels lie in it.
        scale: ``(channels,)``.

    Example:
        >>> place = Place(node="conv", index=1, axis=1, groups=2)
        >>> factors((4, 1, 3), place, np.array([1.0, 2.0])).ravel()
        array([1., 1., 2., 2.])
    """
    each = np.repeat(scale, place.repeat)
    if place.groups > 1:
        by_group = each.reshape(place.groups, -1)  # (groups, input channels of one)
        rows = np.repeat(by_group, shape[0] // place.groups, axis=0)  # (O, I / groups)
        return rows.reshape(rows.shape + (1,) * (len(shape) - 2))
    return each.reshape([-1 if i == place.axis else 1 for i in range(len(shape))])
