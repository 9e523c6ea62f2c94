"""Average pooling: a convolution of each channel by itself, with equal weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from pastille.quantization.rewrites.edit import Replacement, View, attributes, channels, depthwise


def average_pool(node: Any, view: View) -> Replacement | None:
    """ONNX Runtime's int8 pooling wants channels first and takes ten times as long as a convolution.

    Equal weights are represented exactly in any number of bits.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        The convolution; None where padding is not counted as zeros, or the last window is cut off.
    """
    if node.op_type != "AveragePool" or not (width := channels(node.input[0], view)):
        return None
    given = attributes(node)
    padded = any(given.get("pads", ())) and not given.get("count_include_pad", 0)
    automatic = given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if padded or automatic or given.get("ceil_mode", 0):
        return None
    kernel = tuple(given["kernel_shape"])
    weight = np.full((width, *kernel), 1 / np.prod(kernel))
    how = {key: given[key] for key in ("strides", "pads", "dilations") if key in given}
    shape = view.shapes[node.input[0]]
    return depthwise(node.input[0], node.output[0], weight, np.zeros(width), shape, name=node.name, **how)
