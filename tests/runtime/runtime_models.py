"""Small ONNX models for the tests of the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def linear_model(*, batch: str = "batch") -> onnx.ModelProto:
    """y = x @ w with w = [[1, 0], [0, 2], [0, 0]]."""
    return parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        linear (float[{batch}, 3] input) => (float[{batch}, 2] output)
        <float[3, 2] w = {{1, 0, 0, 2, 0, 0}}> {{ output = MatMul(input, w) }}"""
    )


def quantized_model() -> onnx.ModelProto:
    """Convolution, max-pooling and addition between Q/DQ pairs, then a Sin, which has no int8 kernel."""
    nodes = [
        *_pair("input", "x"),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        *_pair("conv", "c"),
        helper.make_node("MaxPool", ["c"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        *_pair("pool", "p"),
        helper.make_node("Sin", ["p"], ["output"]),
    ]
    weight = np.random.default_rng(0).integers(-64, 64, (8, 4, 3, 3)).astype(np.int8)
    arrays = {
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "w_q": weight,
        "w_scale": np.full(8, 0.01, np.float32),
        "w_zero": np.zeros(8, np.int8),
    }
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 8, 4, 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _pair(source: str, result: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{result}_q"]),
        helper.make_node("DequantizeLinear", [f"{result}_q", "scale", "zero"], [result]),
    ]
