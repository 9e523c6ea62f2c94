"""Where int8 begins to pay: on the large maps of few channels at a network's beginning it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pastille.quantization.rewrites.silu import silus

# In multiply-adds that take as much longer in float as this takes; fitted to EfficientNet-B0 with AVX512-VNNI
# on one thread. What they miss on another network or machine, method `mixed` measures.
_SILU: Final = 16  # per number: it is dequantized before and quantized after
_GATE: Final = 16  # per number that is multiplied by its channel's gate: the int8 kernel is the slower one
_CROSSING: Final = 20  # per number: it is quantized and laid out anew where int8 begins
_PRODUCTS: Final = frozenset({"Conv", "Gemm", "MatMul"})


def beginning(graph: Any) -> frozenset[str]:
    """What is made before int8 begins to pay; nothing, where it pays from the first node on.

    A SiLU has no int8 kernel. An int8 convolution saves time in proportion to its multiply-adds, a depthwise
    one none. Where each number takes few of them, as in EfficientNet's first blocks, the conversions around
    the SiLUs cost more than all of it.

    Args:
        graph: An ``onnx.GraphProto`` in topological order, with inferred types.

    Returns:
        Names of tensors, with all that they are made from.
    """
    sizes = _sizes(graph)
    activations = {silu.product.output[0] for silu in silus(graph)}
    known = all(sizes[node.output[0]] for node in graph.node if node.op_type in _PRODUCTS)
    if not activations or not known:
        return frozenset()
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    gains = [_gain(node, weights, sizes, activations) for node in graph.node]
    lost = np.cumsum(gains) + _CROSSING * _crossing(graph, sizes)  # (nodes,), by all up to each in float
    last = int(lost.argmin())
    made = graph.node[: last + 1] if lost[last] < 0 else ()
    return frozenset(name for node in made for name in node.output)


def _sizes(graph: Any) -> dict[str, int]:
    """Numbers per example in each float tensor; 0 where that is unknown."""
    tensors = (*graph.value_info, *graph.output)
    shapes = {t.name: [d.dim_value for d in t.type.tensor_type.shape.dim] for t in tensors}
    sizes = {name: int(np.prod(shape[1:])) for name, shape in shapes.items()}
    return {name: sizes.get(name, 0) for node in graph.node for name in node.output}


def _gain(
    node: Any, weights: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], activations: set[str]
) -> int:
    """By which a node is faster in int8."""
    made = sizes[node.output[0]]
    if node.output[0] in activations:
        return -_SILU * made
    if node.op_type == "Mul":
        return -_GATE * made * (len({sizes.get(name, made) for name in node.input}) > 1)
    shape = weights.get(node.input[1], ()) if node.op_type in _PRODUCTS else ()
    depthwise = node.op_type == "Conv" and shape[1:2] == (1,)
    return 0 if depthwise else made * _depth(node, shape)


def _depth(node: Any, shape: tuple[int, ...]) -> int:
    """Multiply-adds per number that is made; none of a product of two computed tensors."""
    across = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
    return int(np.prod(shape[1:] if across else shape[-2:-1])) if shape else 0


def _crossing(graph: Any, sizes: Mapping[str, int]) -> np.ndarray:
    """Numbers that are made up to each node and read after it, ``(nodes,)``."""
    read = {name: at for at, node in enumerate(graph.node) for name in node.input}  # the last place
    steps = np.zeros(len(graph.node) + 1, np.int64)
    for at, node in enumerate(graph.node):
        for name in node.output:
            steps[at] += sizes[name]
            steps[max(read.get(name, at), at)] -= sizes[name]
    crossing: np.ndarray = np.cumsum(steps)[:-1]
    return crossing
