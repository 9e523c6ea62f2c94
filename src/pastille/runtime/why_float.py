"""Why an operator of a quantized file runs in floating point, as exactly as the graph shows it.

References:
    ONNX Runtime 1.31, ``core/optimizer/qdq_transformer/selectors_actions``: which operators between Q/DQ
    pairs are replaced by an int8 kernel, and on which conditions. The tests hold the tables below against
    the installed version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pastille.runtime.element_types import CONVERSIONS, EIGHT_BITS, FLOATS
from pastille.runtime.onnx_graph import Node
from pastille.runtime.wiring import PLAIN, Wiring

# Kernels that compute in int8 on the CPU, between Q/DQ pairs.
COMPUTING: Final = frozenset(
    {
        *("Conv", "MatMul", "Gemm", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"),
        *("LeakyRelu", "Sigmoid", "Softmax", "Where"),
    }
)
# What passes int8 data on as it is, if it is quantized alike before and after.
MOVING: Final = frozenset(
    {
        *("MaxPool", "Resize", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
        *("Slice", "Split", "Gather", "DepthToSpace", "Tile", "Expand", "Identity"),
    }
)
# What costs nothing where the quantization after it cuts off the same values, and has no kernel elsewhere.
_ABSORBED: Final = frozenset({"Relu", "Clip"})
_QUANTIZABLE: Final = COMPUTING | MOVING | _ABSORBED
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_WITH_BODIES: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_FAR: Final = 16


def why_float(
    node: Node, executed: Wiring, types: Mapping[str, int], source: Node | None, *, runtime: str
) -> str:
    """Say why a node is not executed in int8.

    Args:
        node: Of the optimised graph, executed in float.
        executed: The optimised graph.
        types: Tensor -> type of its elements; see `pastille.runtime.element_types`.
        source: What it stems from in the file, if that is known.
        runtime: With its version, e.g. "ONNX Runtime 1.31.1".
    """
    if node.op == "MatMulNBits":
        return "its weights have 4 bits, but it is told to compute in float (accuracy_level is not 4)"
    if not any(n.op in CONVERSIONS for n in executed.graph.nodes):
        return "nothing in the file is quantized"
    if node.op in _WITH_BODIES:
        return "its branches are not looked into"
    if node.op.startswith("Reorder") or node.domain == "com.microsoft.nchwc.reorder":
        return "it lays data out for a float kernel beside it"
    asked = source.op if source is not None and source.op not in CONVERSIONS else node.op
    op = PLAIN.get(node.op, node.op)
    if asked not in _QUANTIZABLE:
        return f"no int8 kernel for {asked} in {runtime}"
    said = list(_surroundings(node, op, executed, types)) or [_conditions(node, op, executed, runtime)]
    return "; ".join(said[:3])


def _surroundings(node: Node, op: str, executed: Wiring, types: Mapping[str, int]) -> Iterator[str]:
    """What around it is float."""
    yield from _weights(node, op, executed)
    yield from _inputs(node, executed, types)
    yield from _outputs(node, executed)


def _weights(node: Node, op: str, executed: Wiring) -> Iterator[str]:
    if op in MOVING and node.inputs and node.inputs[0] in executed.graph.stored:
        yield "the constant that it takes from is not quantized"
    if op not in _WEIGHTED or len(node.inputs) < 2:
        return
    weight = node.inputs[1]
    if weight in executed.graph.stored:
        yield "its weights are not quantized"
    elif op in {"Conv", "ConvTranspose"} and not executed.is_constant(weight):
        yield "its weights are not constant"


def _inputs(node: Node, executed: Wiring, types: Mapping[str, int]) -> Iterator[str]:
    floats = [x for x in dict.fromkeys(node.inputs) if types.get(x) in FLOATS]
    data = [x for x in floats if not executed.is_constant(x)]
    plain = [x for x in data if executed.made_by(x, "DequantizeLinear") is None]
    if not plain:
        return
    which = "its input is" if len(data) == 1 else "an input is" if len(plain) == 1 else "its inputs are"
    maker = executed.makers.get(plain[0])
    where = f"{maker.op} before it gives float" if maker is not None else "the model is fed float"
    yield f"{which} not quantized: {where}"


def _outputs(node: Node, executed: Wiring) -> Iterator[str]:
    answers = frozenset(executed.graph.outputs)
    if answers.intersection(node.outputs):
        yield "its output is the model's answer, kept float"
        return
    readers = [r for x in node.outputs for r in executed.readers.get(x, ()) if r.op != "QuantizeLinear"]
    if not readers:
        return
    if _leads_to_answer(readers[0], executed, answers):
        yield "its output leads to the model's answer, kept float"
    else:
        yield f"its output is not quantized: {readers[0].op} after it reads float"


def _leads_to_answer(node: Node, executed: Wiring, answers: frozenset[str]) -> bool:
    """Whether nothing stands between here and the model's answer but float operators one after another."""
    for _ in range(_FAR):
        if node.op in CONVERSIONS:
            return False
        if answers.intersection(node.outputs):
            return True
        after = [r for x in node.outputs for r in executed.readers.get(x, ())]
        if len(after) != 1:
            return False
        node = after[0]
    return False


def _conditions(node: Node, op: str, executed: Wiring, runtime: str) -> str:
    """What keeps a node that stands between Q/DQ pairs from being fused with them."""
    before = [m for x in node.inputs if (m := executed.made_by(x, "DequantizeLinear")) is not None]
    after = [r for x in node.outputs for r in executed.readers.get(x, ()) if r.op == "QuantizeLinear"]
    stored = executed.graph.stored
    data = [d for d in before if d.inputs[0] not in stored]
    around = [*data, *after]
    if any(p not in stored for c in around for p in c.inputs[1:] if p):
        return "not fused: a scale or zero point around it is not constant"
    if any(stored[c.inputs[1]].dims not in {(), (1,)} for c in around):
        return "not fused: activations around it are quantized per channel"
    kinds = {stored[c.inputs[2]].type for c in around if len(c.inputs) > 2 and c.inputs[2]}
    if kinds - EIGHT_BITS:
        return "not fused: its activations are quantized to other than 8 bits"
    if len(kinds) > 1:
        return "not fused: signed before it and unsigned after it, or the reverse"
    if op in MOVING and len({c.inputs[1:] for c in around}) > 1:
        return "not fused: the scales before and after it differ"
    if op in _WEIGHTED and len(node.inputs) > 2 and node.inputs[2] in stored:
        return "not fused: its bias is not quantized to int32"
    if op in _ABSORBED:
        return f"no int8 kernel for {op} in {runtime}, and the range after it does not cut off the same"
    if op in MOVING:
        return f"no int8 kernel for {op} in this mode in {runtime}"
    return f"{runtime} did not fuse it with the quantization around it"
