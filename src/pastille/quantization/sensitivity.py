"""How much of the error of a quantized graph is one layer's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pastille.progress import SILENT, Progress
from pastille.quantization.layers import Layer
from pastille.quantization.ranges import Batches
from pastille.quantization.recovery.auto import answers, sqnr_db
from pastille.quantization.recovery.graph import copied


def gains_db(
    model: Any, quantized: Any, held: Batches, known: Sequence[Layer], *, progress: Progress = SILENT
) -> dict[str, float]:
    """How much nearer to float the answers come when one layer alone is float, and all others int8.

    Spared are its weights and the tensors that it reads and writes: what an outlier in a tensor costs is
    charged to the layer that makes it and to those that read it.

    Args:
        model: The float ``onnx.ModelProto`` that ``quantized`` was made from; not modified.
        quantized: With Q/DQ pairs; not modified.
        held: Batches that the ranges were not made with.
        known: The layers in question.
        progress: Shows each of them.

    Returns:
        Name of the layer -> decibels of `pastille.quantization.recovery.auto.sqnr_db`; negative where
        errors of this layer happened to cancel others.

    Raises:
        CalibrationError: There are no batches, or an answer is not finite.
    """
    wanted = answers(model, held)
    before = sqnr_db(wanted, answers(quantized, held))
    return {
        layer.name: sqnr_db(wanted, answers(spared(quantized, model, layer), held)) - before
        for layer in progress.track(known, what="measuring the sensitivity of layers")
    }


def spared(quantized: Any, model: Any, layer: Layer) -> Any:
    """The quantized graph without any rounding in and around one layer: to be measured, not to be shipped.

    Args:
        quantized: With Q/DQ pairs; not modified.
        model: The float graph that it was made from.
        layer: Of the float graph.

    Returns:
        An ``onnx.ModelProto``.
    """
    new = copied(quantized)
    floats = {node.name: node for node in model.graph.node if node.name in layer.nodes}
    constants = {t.name: t for t in model.graph.initializer}
    around = {name for node in floats.values() for name in (*node.input, *node.output)} - set(constants)
    _bound_again_(new.graph, model.graph, around)
    _unrounded_(new.graph, around)
    for node in new.graph.node:
        if node.name in floats and node.op_type == floats[node.name].op_type:
            # Only as many inputs: a bias that was added to correct the rounding goes with it.
            node.input[:] = [
                _constant_(new.graph, constants[b]) if b in constants else a
                for a, b in zip(node.input, floats[node.name].input, strict=False)
            ]
    return new


def _bound_again_(graph: Any, original: Any, tensors: set[str]) -> None:
    """Put back each Relu or Clip that the quantizer dropped because the range of its answer expresses it."""
    makers = {name: node for node in original.node for name in node.output}
    constants = {t.name: t for t in original.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        bound = makers.get(node.output[0]) if node.output and node.output[0] in tensors else None
        if bound is not None and bound.op_type in {"Relu", "Clip"} and node.op_type != bound.op_type:
            again = type(bound)()
            again.CopyFrom(bound)
            node.output[0] = f"{bound.output[0]}_unbounded"
            limits = [_constant_(graph, constants[name]) if name else "" for name in bound.input[1:]]
            again.input[:] = [node.output[0], *limits]
            nodes.append(again)
    graph.node.clear()
    graph.node.extend(nodes)


def _constant_(graph: Any, tensor: Any) -> str:
    """Store a float constant under a name of its own: what undoes its rounding may have taken the old one."""
    name = f"{tensor.name}_in_float"
    if all(known.name != name for known in graph.initializer):
        graph.initializer.append(tensor)
        graph.initializer[-1].name = name
    return name


def _unrounded_(graph: Any, tensors: set[str]) -> None:
    """Let whatever reads one of these tensors through a Q/DQ pair read the tensor itself."""
    quantizers = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    raw = {
        node.output[0]: quantizers[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and quantizers.get(node.input[0]) in tensors
    }
    for node in graph.node:
        node.input[:] = [raw.get(name, name) for name in node.input]
