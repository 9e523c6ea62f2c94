"""Hard sigmoid: an affine map cut off at 0 and 1, which is what quantizing to [0, 1] does by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from pastille.quantization.rewrites.edit import Replacement, View, attributes, channels, depthwise


def hard_sigmoid(node: Any, view: View) -> Replacement | None:
    """HardSigmoid has no int8 kernel; a convolution followed by a Clip is one.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        A depthwise 1x1 convolution and a Clip that its quantization makes superfluous.
    """
    if node.op_type != "HardSigmoid" or not (width := channels(node.input[0], view)):
        return None
    given = attributes(node)
    shape, output = view.shapes[node.input[0]], node.output[0]
    weight = np.full((width, *(1 for _ in shape[2:])), given.get("alpha", 0.2))
    bias = np.full(width, given.get("beta", 0.5))
    affine = depthwise(node.input[0], f"{output}_affine", weight, bias, shape)
    bounds = {f"{output}_low": np.array(0, np.float32), f"{output}_high": np.array(1, np.float32)}
    clip = onnx.helper.make_node("Clip", [f"{output}_affine", *bounds], [output], name=f"{output}_clip")
    return Replacement(nodes=(*affine.nodes, clip), tensors={**affine.tensors, **bounds})
