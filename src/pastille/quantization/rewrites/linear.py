"""A linear layer of tokens: one Gemm over all of them, whose int8 kernel adds the bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.helper import make_node

from pastille.quantization.rewrites.edit import Replacement, View


def linear(node: Any, view: View) -> Replacement | None:
    """MatMul and Add are two int8 kernels and round twice.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        Reshape, Gemm and Reshape; None where more than one axis is of unknown size.
    """
    product = _product(node, view)
    if product is None:
        return None
    shape = view.shapes.get(node.output[0], ())
    width, output = len(view.constants[product.input[1]]), node.output[0]
    bias = next(name for name in node.input if name in view.constants)
    if len(shape) < 3 or shape.count(None) > 1 or view.constants[bias].shape != shape[-1:]:
        return None
    names = [f"{output}_rows_shape", f"{output}_shape"]
    shapes = (np.array([-1, width]), np.array([size or -1 for size in shape]))
    rows, answers = f"{output}_rows", f"{output}_gemm"
    nodes = (
        make_node("Reshape", [product.input[0], names[0]], [rows], name=rows),
        make_node("Gemm", [rows, product.input[1], bias], [answers], name=product.name),
        make_node("Reshape", [answers, names[1]], [output], name=f"{output}_unrows"),
    )
    return Replacement(nodes=nodes, tensors=dict(zip(names, shapes, strict=True)))


def _product(node: Any, view: View) -> Any:
    """The MatMul by a constant matrix that only this Add of a constant reads."""
    if node.op_type != "Add" or sum(name in view.constants for name in node.input) != 1:
        return None
    name = next(name for name in node.input if name not in view.constants)
    maker = view.makers.get(name)
    if maker is None or maker.op_type != "MatMul" or view.readers[name] != 1:
        return None
    weight = view.constants.get(maker.input[1])
    return maker if weight is not None and weight.ndim == 2 else None
