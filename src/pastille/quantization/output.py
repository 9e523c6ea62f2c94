"""Keeping a quantized model's answers in floating point: 256 steps would make classes tie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from pastille.quantization.nodes import drop_unused_

# What may stand between the last kernel and the output: it computes on one tensor, and constants.
_ANSWERING = frozenset(
    {
        *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Softplus"),
        *("Add", "Sub", "Mul", "Div", "Neg", "Exp", "Log", "BatchNormalization", "Identity", "Cast"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather"),
    }
)


def answering_nodes(graph: Any) -> Iterator[Any]:
    """The nodes between the last kernel and each output: activations, reshaping, scaling.

    Args:
        graph: An ``onnx.GraphProto``.
    """
    makers, constants = _makers(graph), {t.name for t in graph.initializer}
    for output in graph.output:
        node = makers.get(output.name)
        while node is not None and _answers(node, constants):
            yield node
            node = makers.get(_data(node, constants)[0])


def _answers(node: Any, constants: set[str]) -> bool:
    return node.op_type in _ANSWERING and len(_data(node, constants)) == 1


def _data(node: Any, constants: set[str]) -> list[str]:
    return [name for name in node.input if name and name not in constants]


def _makers(graph: Any) -> dict[str, Any]:
    return {name: node for node in graph.node for name in node.output}


def float_output(model: Any) -> Any:
    """Take away the Q/DQ pairs from the last kernel to each output; that kernel writes float itself.

    Whatever else reads a tensor on this way still reads it quantized.

    Args:
        model: An ``onnx.ModelProto``; not modified.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for output in new.graph.output:
        _free_output_(new.graph, output.name)
    makers = _makers(new.graph)
    constants = {t.name for t in new.graph.initializer}
    for node in answering_nodes(new.graph):
        (read,) = set(_data(node, constants))
        node.input[:] = [_before_pair(read, makers) if name == read else name for name in node.input]
    drop_unused_(new.graph)
    del new.graph.value_info[:]
    return new


def _free_output_(graph: Any, name: str) -> None:
    """Let the float tensor be the output, and what came after its Q/DQ pair go on under another name."""
    makers = _makers(graph)
    raw = _before_pair(name, makers)
    maker = makers.get(raw)
    if raw == name or maker is None:
        return
    quantized = f"{name}_quantized"
    for node in graph.node:
        node.input[:] = [{name: quantized, raw: name}.get(read, read) for read in node.input]
    makers[name].output[:] = [quantized]
    maker.output[:] = [name if made == raw else made for made in maker.output]


def _before_pair(name: str, makers: dict[str, Any]) -> str:
    """The float tensor that a Q/DQ pair makes ``name`` from; ``name`` itself where there is no pair."""
    dequantize = makers.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return name
    quantize = makers.get(dequantize.input[0])
    return str(quantize.input[0]) if quantize is not None and quantize.op_type == "QuantizeLinear" else name
