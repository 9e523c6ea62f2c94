"""A concatenation that begins like another one: continued from that, with fewer pieces to copy."""

from __future__ import annotations

from typing import Any

import onnx

from pastille.quantization.rewrites.edit import Replacement, View, attributes


def concat(node: Any, view: View) -> Replacement | None:
    """A dense block joins all its features again for each layer; most were joined by the layer before.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        The concatenation of what was joined before with the rest.
    """
    if node.op_type != "Concat" or len(node.input) < 3:
        return None
    axis = attributes(node)["axis"]
    for size in range(len(node.input) - 1, 1, -1):
        joined = _joined(list(node.input[:size]), axis, view)
        if joined:
            rest = [joined, *node.input[size:]]
            new = onnx.helper.make_node("Concat", rest, list(node.output), name=node.name, axis=axis)
            return Replacement(nodes=(new,), tensors={})
    return None


def _joined(parts: list[str], axis: int, view: View) -> str | None:
    """The output of a node that concatenates just these."""
    candidates = {id(maker): maker for maker in view.makers.values() if maker.op_type == "Concat"}
    for maker in candidates.values():
        if list(maker.input) == parts and attributes(maker)["axis"] == axis:
            return str(maker.output[0])
    return None
