"""Where int8 does not pay: operators that stay float, and what fuses there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import onnx

from pastille.quantization.nodes import drop_unused_
from pastille.quantization.rewrites.beginning import beginning
from pastille.quantization.rewrites.silu import silus

_FLOAT_ANSWERS: Final = frozenset({"Gemm", "MatMul"})  # whose int8 kernels can answer in float
_FLOAT_ONLY: Final = frozenset(
    {"Softmax", "Gelu", "QuickGelu", "Tanh", "Erf", "HardSwish", "LayerNormalization"}
)
CONTRIB: Final = "com.microsoft"


def stays_float(graph: Any) -> Iterator[Any]:
    """The nodes that get no Q/DQ pairs although they have int8 kernels: float ones are faster.

    Args:
        graph: An ``onnx.GraphProto`` with inferred types.
    """
    for silu in silus(graph):
        yield silu.sigmoid
        yield silu.product
    begun = beginning(graph)
    yield from (node for node in graph.node if begun.intersection(node.output))


def fuse_silus_(model: Any) -> None:
    """Write each SiLU that stands in float as ONNX Runtime's one kernel for it, in place.

    The runtime fuses them by itself in float graphs only: between Q/DQ pairs it gives each of the two
    nodes a DequantizeLinear of its own.

    Args:
        model: An ``onnx.ModelProto``.
    """
    graph = model.graph
    found = list(silus(graph))
    gone = {silu.sigmoid.output[0] for silu in found}
    for silu in found:
        source, output = silu.sigmoid.input[0], silu.product.output[0]
        silu.product.CopyFrom(
            onnx.helper.make_node("QuickGelu", [source], [output], name=output, domain=CONTRIB, alpha=1.0)
        )
    kept = [node for node in graph.node if not gone.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    if found and all(entry.domain != CONTRIB for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))


def quantize_before_padding_(model: Any) -> None:
    """Let each Pad that a quantizer reads pad bytes instead of floats, in place.

    Quantizing zeros gives the zero point, so the order does not matter; ONNX Runtime does not swap
    the two by itself.

    Args:
        model: An ``onnx.ModelProto`` with Q/DQ pairs.
    """
    graph = model.graph
    reads = Counter(name for node in graph.node for name in node.input)
    reads.update(output.name for output in graph.output)
    makers = {name: node for node in graph.node for name in node.output}
    for quantize in graph.node:
        pad = makers.get(quantize.input[0]) if quantize.op_type == "QuantizeLinear" else None
        if pad is not None and reads[pad.output[0]] == 1 and _pads_with_zeros(pad):
            _swap_(pad, quantize)


def _pads_with_zeros(node: Any) -> bool:
    constant = all(a.name != "mode" or a.s == b"constant" for a in node.attribute)
    return node.op_type == "Pad" and constant and len(node.input) == 2


def _swap_(pad: Any, quantize: Any) -> None:
    """The two nodes change places, and the tensor between them holds bytes."""
    between, scale = pad.output[0], list(quantize.input[1:])
    padding, names = pad.input[1], (pad.name, quantize.name)
    attributes = list(quantize.attribute)
    made = quantize.output[0]
    quantize.CopyFrom(onnx.helper.make_node("Pad", [between, padding, scale[1]], [made], name=names[0]))
    pad.CopyFrom(onnx.helper.make_node("QuantizeLinear", [pad.input[0], *scale], [between], name=names[1]))
    pad.attribute.extend(attributes)


def answer_in_float_(model: Any) -> None:
    """Take away the Q/DQ pair between a matrix product and a float operator, in place.

    The product's kernel then answers in float itself: nothing is rounded, and two passes are saved.
    It also keeps ONNX Runtime from its QLinearSoftmax, which is several times slower than Softmax.

    Args:
        model: An ``onnx.ModelProto`` with Q/DQ pairs, and what `fuse_silus_` has left of them.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    raw = {
        name: quantize.input[0]
        for name, node in makers.items()
        if (quantize := _quantizer(node, makers)) is not None
        and quantize.input[0] in makers
        and _needs_no_rounding(makers[quantize.input[0]].op_type, readers.get(name, []))
    }
    for node in graph.node:
        node.input[:] = [raw.get(name, name) for name in node.input]
    drop_unused_(graph)


def _quantizer(node: Any, makers: dict[str, Any]) -> Any:
    """The QuantizeLinear that a DequantizeLinear undoes, where it is one."""
    before = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    return before if before is not None and before.op_type == "QuantizeLinear" else None


def _needs_no_rounding(maker: str, readers: list[str]) -> bool:
    masked = maker == "Add" and set(readers) == {"Softmax"}  # a mask is added to the scores
    return masked or (maker in _FLOAT_ANSWERS and bool(readers) and _FLOAT_ONLY.issuperset(readers))
