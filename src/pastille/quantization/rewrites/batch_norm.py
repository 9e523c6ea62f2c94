"""A batch norm that no convolution stands before: a convolution of each channel by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from pastille.quantization.rewrites.edit import Replacement, View, attributes, channels, depthwise


def batch_norm(node: Any, view: View) -> Replacement | None:
    """BatchNormalization has no int8 kernel; after a ReLU or a concatenation it stays one by itself.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        Scale and shift as a depthwise 1x1 convolution, with which a ReLU that follows fuses.
    """
    if node.op_type != "BatchNormalization" or len(node.output) != 1 or not channels(node.input[0], view):
        return None
    given = attributes(node)
    if given.get("training_mode") or any(name not in view.constants for name in node.input[1:]):
        return None
    scale, shift, mean, variance = (np.float64(view.constants[name]) for name in node.input[1:])
    factor = scale / np.sqrt(variance + given.get("epsilon", 1e-5))
    shape = view.shapes[node.input[0]]
    weight = factor.reshape(-1, *(1 for _ in shape[2:]))
    return depthwise(node.input[0], node.output[0], weight, shift - mean * factor, shape)
