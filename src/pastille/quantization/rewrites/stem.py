"""The first convolution: its few input channels padded to four, by which the kernels read memory."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx.helper import make_node

from pastille.quantization.rewrites.edit import Replacement, View, attributes, channels

_WORD: Final = 4  # int8 dot products take four numbers at a time
_WORTH: Final = 64 * 64  # positions; on fewer, the padding costs more than it saves


def stem(node: Any, view: View) -> Replacement | None:
    """A convolution of three colours takes twice as long as one of four.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        The convolution of the input with channels of zeros beside it; None for what is
        no input or a small one, and for a convolution that stays or answers in float itself.
    """
    if node.op_type != "Conv" or node.input[0] in view.makers or node.output[0] in view.answers:
        return None
    if node.input[1] not in view.constants or node.output[0] in view.beginning:
        return None
    width = channels(node.input[0], view)
    if width % _WORD == 0 or attributes(node).get("group", 1) != 1:
        return None
    sizes = [size or 0 for size in view.shapes[node.input[0]][2:]]
    if np.prod(sizes) < _WORTH:
        return None
    rank, more = len(view.shapes[node.input[0]]), -width % _WORD
    weight = view.constants[node.input[1]]
    prefix = node.output[0]
    names = [f"{prefix}_padding", f"{prefix}_padded", f"{node.input[1]}_padded_for_{prefix}"]
    padding = np.zeros(2 * rank, np.int64)
    padding[rank + 1] = more
    padded = np.pad(weight, [(0, more if axis == 1 else 0) for axis in range(rank)])
    pad = make_node("Pad", [node.input[0], names[0]], [names[1]], name=names[1])
    conv = make_node("Conv", [names[1], names[2], *node.input[2:]], list(node.output), name=node.name)
    conv.attribute.extend(node.attribute)
    return Replacement(nodes=(pad, conv), tensors={names[0]: padding, names[2]: padded})
