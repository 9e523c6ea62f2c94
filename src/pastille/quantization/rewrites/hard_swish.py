"""Hard swish: its input times a hard sigmoid of it."""

from __future__ import annotations

from typing import Any

import onnx

from pastille.quantization.rewrites.edit import Replacement, View, channels


def hard_swish(node: Any, view: View) -> Replacement | None:
    """HardSwish has no int8 kernel, but both factors and the product have.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        The function as ONNX defines it: ``x · HardSigmoid(x; 1/6, 1/2)``.
    """
    if node.op_type != "HardSwish" or not channels(node.input[0], view):
        return None
    source, output = node.input[0], node.output[0]
    gate = f"{output}_gate"
    nodes = (
        onnx.helper.make_node("HardSigmoid", [source], [gate], name=gate, alpha=1 / 6, beta=0.5),
        onnx.helper.make_node("Mul", [source, gate], [output], name=f"{output}_product"),
    )
    return Replacement(nodes=nodes, tensors={})
