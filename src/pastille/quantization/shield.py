"""Keeping the runtime from quantizing what was left in float on purpose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pastille.quantization.nodes import drop_unused_
from pastille.quantization.rewrites.edit import attributes


def shield_(model: Any, nodes: Collection[str]) -> None:
    """Let float layers stay float in ONNX Runtime, in place.

    Between a DequantizeLinear and a QuantizeLinear the runtime rounds a layer's float weights to 8 bits
    itself, with one step for all channels (its ``WeightBiasQuantization``). It leaves alone what reads an
    input that was dequantized channel by channel, even where the steps of all channels are the same.

    Args:
        model: An ``onnx.ModelProto`` with Q/DQ pairs.
        nodes: Names of those that are to stay float.
    """
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    shielded = []
    for node in graph.node:
        before = makers.get(node.input[0]) if node.input and node.name in nodes else None
        width = _width(node, constants)
        if before is not None and before.op_type == "DequantizeLinear" and width:
            name = f"{node.name}_input"
            inputs = [before.input[0], *_repeated_(graph, name, before.input[1:], width, constants)]
            shielded.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=1))
            node.input[0] = name
        shielded.append(node)
    graph.node.clear()
    graph.node.extend(shielded)
    drop_unused_(graph)


def _width(node: Any, constants: Mapping[str, Any]) -> int:
    """How many channels a layer reads; 0 of what the runtime leaves alone anyway."""
    weight = constants.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None or node.op_type not in {"Conv", "ConvTranspose", "Gemm"}:
        return 0
    given = attributes(node)
    axis = 1 if node.op_type == "Conv" or given.get("transB", 0) else 0
    return int(weight.dims[axis] * (given.get("group", 1) if node.op_type == "Conv" else 1))


def _repeated_(
    graph: Any, prefix: str, names: Collection[str], width: int, constants: Mapping[str, Any]
) -> list[str]:
    """Store a step and a zero point once per channel."""
    fresh = [f"{prefix}_{part}" for part in ("scale", "zero_point")][: len(names)]
    for old, name in zip(names, fresh, strict=True):
        value = numpy_helper.to_array(constants[old])
        graph.initializer.append(numpy_helper.from_array(np.full(width, value.item(), value.dtype), name))
    return fresh
