"""Channels to a multiple of 16: on others the int8 kernels fall back to slow code for the remainder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from onnx import numpy_helper

from pastille.quantization.nodes import drop_unused_
from pastille.quantization.rewrites.edit import View, attributes, view_of

WIDTH: Final = 16
_ALIKE: Final = frozenset(  # their output has the channels of their input
    {
        *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Softplus"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "Identity"),
    }
)
_PAIRWISE: Final = frozenset({"Add", "Mul", "Sub"})


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution, and how it takes part in the channels of the tensors around it."""

    node: Any
    depthwise: bool


def align_(model: Any) -> int:
    """Add channels of zeros between convolutions, in place; the answers are exactly the same.

    A depthwise kernel takes 72 channels three times as long as 80, and a convolution 17 as long as 32.
    Only channels that are made and read by convolutions are added; what they are in between does not
    matter, since the weights that read them are zero.

    Args:
        model: A float ``onnx.ModelProto``.

    Returns:
        How many tensors have become wider.
    """
    view = view_of(model)
    convolutions = _convolutions(model.graph, view)
    groups = _groups(model.graph, view, convolutions)
    narrow = {c.node.input[0] for c in convolutions if c.depthwise}
    wider = {
        name: -(-size // WIDTH) * WIDTH
        for group in groups
        for size in [view.shapes[next(iter(group))][1]]
        if size and size % WIDTH and (size % 8 or narrow & group)
        for name in group
    }
    for convolution in convolutions:
        _widen_(model.graph, convolution, view, wider)
    if wider:
        del model.graph.value_info[:]
        drop_unused_(model.graph)
    return len(wider)


def _convolutions(graph: Any, view: View) -> list[Convolution]:
    found = []
    for node in graph.node:
        constant = all(name in view.constants for name in node.input[1:])
        if node.op_type == "Conv" and constant and len(view.shapes.get(node.input[0], ())) > 2:
            group, outputs = attributes(node).get("group", 1), len(view.constants[node.input[1]])
            inputs = view.constants[node.input[1]].shape[1] * group
            if group == 1 or group == inputs == outputs:
                found.append(Convolution(node=node, depthwise=group > 1))
    return found


def _groups(graph: Any, view: View, convolutions: list[Convolution]) -> list[set[str]]:
    """Sets of tensors with the same channels, of which every maker and every reader can be widened."""
    known = {id(c.node): c for c in convolutions}
    joined = {name: {name} for name in view.shapes}
    fixed = {t.name for t in (*graph.input, *graph.output)}
    for node in graph.node:
        together = _together(node, view, known)
        if together is None:
            if id(node) not in known:
                fixed.update((*node.input, *node.output))
            continue
        merged = set[str]().union(*(joined[name] for name in together))
        joined.update(dict.fromkeys(merged, merged))
    seen = {id(group): group for group in joined.values()}
    return [group for group in seen.values() if not group & fixed and _even(group, view)]


def _together(node: Any, view: View, known: dict[int, Convolution]) -> list[str] | None:
    """The tensors whose channels a node keeps together; None where it does not keep them."""
    convolution = known.get(id(node))
    if convolution:
        return [node.input[0], node.output[0]] if convolution.depthwise else None
    data = [name for name in node.input if name and name not in view.constants]
    scalars = all(view.constants[name].size == 1 for name in node.input if name in view.constants)
    images = all(len(view.shapes.get(name, ())) > 2 for name in (*data, *node.output))
    if (
        images
        and len(node.output) == 1
        and (node.op_type in _ALIKE or (node.op_type in _PAIRWISE and scalars))
    ):
        return [*data, *node.output]
    return None


def _even(group: set[str], view: View) -> bool:
    return len({view.shapes[name][1] for name in group}) == 1


def _widen_(graph: Any, convolution: Convolution, view: View, wider: dict[str, int]) -> None:
    node = convolution.node
    inputs, outputs = wider.get(node.input[0], 0), wider.get(node.output[0], 0)
    if not inputs and not outputs:
        return
    arrays = [view.constants[name] for name in node.input[1:]]
    arrays = [_longer(array, 0, outputs) for array in arrays]
    if not convolution.depthwise:
        arrays[0] = _longer(arrays[0], 1, inputs)
    names = [f"{name}_wide_for_{node.output[0]}" for name in node.input[1:]]  # it still says whose it was
    node.input[1:] = names
    graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True))
    for attribute in _groups_of(node) if convolution.depthwise else ():
        attribute.i = outputs


def _groups_of(node: Any) -> Iterator[Any]:
    yield from (attribute for attribute in node.attribute if attribute.name == "group")


def _longer(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    more = max(size - array.shape[axis], 0)
    return np.pad(array, [(0, more if i == axis else 0) for i in range(array.ndim)])
