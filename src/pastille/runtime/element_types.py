"""In which numbers each operator of an optimised graph computes: 8-bit integers, floats, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pastille.runtime.onnx_graph import Graph, Node
from pastille.values import Precision

# Element types of onnx.TensorProto.
FLOAT: Final = 1
UINT8: Final = 2
INT8: Final = 3
_INT32: Final = 6
_INT64: Final = 7
_BOOL: Final = 9
FLOATS: Final = frozenset({FLOAT, 10, 11, 16})  # float, float16, double, bfloat16
EIGHT_BITS: Final = frozenset({UINT8, INT8})
CONVERSIONS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

_INT8_KERNELS: Final = frozenset(
    {
        "ConvInteger",
        "ConvIntegerToFloat",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QMoE",
    }
)  # and every QLinear*
_FLOAT_RESULTS: Final = frozenset(
    {
        "ConvIntegerToFloat",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QMoE",
    }
)
_INDEX_RESULTS: Final = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})
_TRUTHS: Final = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"})
_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


def element_types(graph: Graph, seen: Mapping[str, int] = _NOTHING) -> dict[str, int]:
    """Type of the elements of every tensor that can be known.

    Args:
        graph: In topological order.
        seen: Tensor -> type, of tensors that were seen while the graph ran; the others are inferred: most
            operators give what they are given.
    """
    known = {name: tensor.type for name, tensor in graph.stored.items()} | dict(graph.types) | dict(seen)
    for node in graph.nodes:
        result = _result_type(node, _data_type(node, known))
        if result is not None:
            known |= {name: result for name in node.outputs if name not in known}
    return known


def precision(node: Node, types: Mapping[str, int]) -> Precision:
    """In which numbers an operator computes; "other" is arithmetic on shapes and indices.

    What decides is the type that reaches the kernel, never the quantization that stands around it.

    Args:
        node: Of an optimised graph.
        types: From `element_types`.

    Example:
        >>> conv = Node(
        ...     op="Conv", name="", inputs=("x", "w"), outputs=("y",), numbers={}, domain="", texts={}
        ... )
        >>> precision(conv, {"x": FLOAT, "w": FLOAT, "y": FLOAT})
        'float'
    """
    first = _data_type(node, types)
    result = types.get(node.outputs[0]) if node.outputs else None
    if node.op in CONVERSIONS or (node.op == "Cast" and first in EIGHT_BITS):
        return "conversion"
    if is_int8_kernel(node) or first in EIGHT_BITS:
        return "int8"
    return "float" if result in FLOATS else "other"


def is_int8_kernel(node: Node) -> bool:
    """Whether an operator's name alone says that it computes on 8-bit integers."""
    if node.op == "MatMulNBits":  # of 4-bit weights; level 4 asks for products of 8-bit integers
        return node.numbers.get("accuracy_level") == (4,)
    return node.op.startswith("QLinear") or node.op in _INT8_KERNELS


def _data_type(node: Node, types: Mapping[str, int]) -> int | None:
    data = node.inputs[1:] if node.op == "Where" else node.inputs  # Where's first is its condition
    return types.get(data[0]) if data else None


def _result_type(node: Node, first: int | None) -> int | None:
    """Element type of a node's outputs: most give what they are given."""
    op = node.op
    if op == "Cast":
        return next(iter(node.numbers.get("to", ())), None)
    if op in _INDEX_RESULTS:
        return _INT64
    if op in _TRUTHS:
        return _BOOL
    if op in _FLOAT_RESULTS or (op == "QGemm" and len(node.inputs) < 9):  # QGemm without an output scale
        return FLOAT
    if op in CONVERSIONS or is_int8_kernel(node):
        return _INT32 if op.endswith("Integer") else UINT8
    return first
