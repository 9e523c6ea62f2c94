"""Multiply-accumulates of one operator of an optimised graph, from shapes that were seen."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from pastille.runtime.onnx_graph import Node

Shape = tuple[int, ...]

# Operator -> which inputs are multiplied, for the plain, the fused and the quantized forms.
CONVOLUTIONS: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "DeformConv", "ConvInteger"), (0, 1)),
    "ConvIntegerToFloat": (0, 1),
    "QLinearConv": (0, 3),
}
_TRANSPOSED: Final = frozenset({"ConvTranspose", "ConvTransposeWithDynamicPads"})
_MATRICES: Final = frozenset(
    {
        *("MatMul", "FusedMatMul", "FusedMatMulActivation", "QLinearMatMul", "MatMulInteger"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "MatMulBnb4"),
        *("Gemm", "FusedGemm", "QGemm"),
    }
)
_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
_QUERIES: Final = frozenset({"MultiHeadAttention"})  # query, key, value
_PACKED: Final = frozenset({"QAttention"})  # data, weights of query, key and value
FAMILIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(_TRANSPOSED, "transposed conv"),
    **dict.fromkeys(_MATRICES, "matmul"),
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm"), "linear"),
    **dict.fromkeys(_RECURRENT, "recurrent"),
    **dict.fromkeys((*_QUERIES, *_PACKED, "Attention"), "attention"),
    "Einsum": "einsum",
}


def macs(node: Node, shapes: Mapping[str, Shape], weight: Shape | None = None) -> int | None:
    """Multiply-accumulates of one call; 0 for what multiplies no matrices.

    Args:
        node: Of an optimised graph.
        shapes: Tensor -> shape, of all that are known.
        weight: Shape of a convolution's weight as the file has it, where the runtime pads it to whole blocks.

    Returns:
        None where a shape is not known.

    Example:
        >>> node = Node(
        ...     op="MatMul", name="", inputs=("x", "w"), outputs=("y",), numbers={}, domain="", texts={}
        ... )
        >>> macs(node, {"x": (2, 3), "w": (3, 4), "y": (2, 4)})
        24
    """
    if node.op not in FAMILIES:
        return 0
    try:
        return _macs(node, shapes, weight)
    except (KeyError, IndexError, ValueError):  # a shape is missing, or not what the operator takes
        return None


def _macs(node: Node, shapes: Mapping[str, Shape], weight: Shape | None) -> int:
    op, inputs = node.op, node.inputs
    result, data = shapes[node.outputs[0]], shapes[inputs[0]]
    if op in CONVOLUTIONS:  # weight (O, I / groups, *kernel), wherever the channels of the result lie
        stored = shapes[inputs[CONVOLUTIONS[op][1]]]
        return prod(result) // stored[0] * prod(weight or stored)
    if op in _TRANSPOSED:  # data (N, I, *size), weight (I, O / groups, *kernel)
        return prod(data) * prod(shapes[inputs[1]][1:])
    if op in _MATRICES:
        return prod(result) * data[-2 if _flag(node, "transA") else -1]
    if op in _RECURRENT:  # data (T, N, I), weights (D, gates * H, I) and (D, gates * H, H)
        return prod(data[:2]) * (prod(shapes[inputs[1]]) + prod(shapes[inputs[2]]))
    if op in _PACKED or (op == "Attention" and node.domain == "com.microsoft"):
        batch, tokens, _ = data  # (N, T, E), weight (E, 3E)
        return batch * tokens * prod(shapes[inputs[1]]) + 2 * tokens * prod(result)
    if op == "Einsum":
        return _einsum(node, data, shapes[inputs[1]])
    return (prod(data) + prod(result)) * shapes[inputs[1]][-2]  # every query meets every key, then value


def _flag(node: Node, name: str) -> bool:
    return node.numbers.get(name, (0,)) == (1,)


def _einsum(node: Node, left: Shape, right: Shape) -> int:
    labels = "".join(node.texts["equation"].replace(" ", "").partition("->")[0].split(","))
    return prod(dict(zip(labels, left + right, strict=True)).values())
