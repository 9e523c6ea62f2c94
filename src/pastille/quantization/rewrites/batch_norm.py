"""Batch norms: in images and signals a convolution of each channel by itself, of rows part of a product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from pastille.quantization.rewrites.edit import Replacement, View, attributes, channels, depthwise, rewrite_

_ROWS = 2  # axes of a batch of rows


@dataclass(frozen=True, kw_only=True)
class _Affine:
    """A batch norm as it answers, float64 ``(C,)`` both."""

    factor: np.ndarray
    shift: np.ndarray


def batch_norm(node: Any, view: View) -> Replacement | None:
    """BatchNormalization has no int8 kernel; after a ReLU or a concatenation it stays one by itself.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        Scale and shift as a depthwise 1x1 convolution, with which a ReLU that follows fuses.
    """
    affine = _affine(node, view)
    if affine is None or not channels(node.input[0], view):
        return None
    shape = view.shapes[node.input[0]]
    weight = affine.factor.reshape(-1, *(1 for _ in shape[2:]))
    return depthwise(node.input[0], node.output[0], weight, affine.shift, shape, name=node.name)


def batch_norm_after_product(node: Any, view: View) -> Replacement | None:
    """A batch norm of rows becomes part of the product that makes them: each output has a scale of its own.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        The product with other weights, where nothing else reads what it made.
    """
    affine = _of_rows(node, view)
    product = view.makers.get(node.input[0]) if affine else None
    if affine is None or product is None or view.readers[node.input[0]] != 1:
        return None
    weight, bias = _weight(product, view), _bias(product, view)
    if weight is None or bias is None:
        return None
    folded = weight * affine.factor, bias * affine.factor + affine.shift
    return _gemm(product, product.input[0], node.output[0], *folded)


def batch_norm_before_product(node: Any, view: View) -> Replacement | None:
    """A batch norm of rows becomes part of the product that reads it.

    No rewrite for its own sake: a column of the weights that is scaled up leaves the others of its row few
    steps. `pastille.quantization.recovery.equalization` spreads the scales again, over the layer before too.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        The product with other weights, where nothing else reads the batch norm.
    """
    weight, bias = _weight(node, view), _bias(node, view)
    norm = view.makers.get(node.input[0]) if weight is not None else None
    affine = None if norm is None or view.readers[node.input[0]] != 1 else _of_rows(norm, view)
    if affine is None or weight is None or bias is None:
        return None
    folded = weight * affine.factor[:, None], bias + affine.shift @ weight
    return _gemm(node, view.makers[node.input[0]].input[0], node.output[0], *folded)


def folded(model: Any) -> Any:
    """A graph without the batch norms of rows that a product can take over; it answers the same.

    Args:
        model: A float ``onnx.ModelProto`` whose nodes are named; not modified.

    Returns:
        A new one without inferred types, or the model itself where there is nothing to fold.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    found = False
    while rewrite_(new, batch_norm_after_product) + rewrite_(new, batch_norm_before_product):
        found = True  # and perhaps another batch norm has come to stand beside the product
    return new if found else model


def _affine(node: Any, view: View) -> _Affine | None:
    """What a batch norm does that is not in training; None for anything else."""
    if node.op_type != "BatchNormalization" or len(node.output) != 1:
        return None
    given = attributes(node)
    if given.get("training_mode") or any(name not in view.constants for name in node.input[1:]):
        return None
    scale, shift, mean, variance = (np.float64(view.constants[name]) for name in node.input[1:])
    factor = scale / np.sqrt(variance + given.get("epsilon", 1e-5))
    return _Affine(factor=factor, shift=shift - mean * factor)


def _of_rows(node: Any, view: View) -> _Affine | None:
    rows = node.op_type == "BatchNormalization" and len(view.shapes.get(node.input[0], ())) == _ROWS
    return _affine(node, view) if rows else None


def _weight(node: Any, view: View) -> np.ndarray | None:
    """Of a plain linear layer of rows, float64 ``(K, N)``; None for anything else."""
    if node.op_type not in ("Gemm", "MatMul") or len(view.shapes.get(node.input[0], ())) != _ROWS:
        return None
    given, weight = attributes(node), view.constants.get(node.input[1])
    scaled = given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1 or given.get("transA", 0)
    if weight is None or weight.ndim != _ROWS or scaled:
        return None
    return (weight.T if given.get("transB", 0) else weight).astype(np.float64)


def _bias(node: Any, view: View) -> np.ndarray | None:
    """Float64, one number or one per output; zero where there is none, None where it is no constant."""
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(1)
    bias = view.constants.get(node.input[2])
    return None if bias is None or bias.ndim > 1 else bias.astype(np.float64).reshape(-1)


def _gemm(product: Any, source: str, output: str, weight: np.ndarray, bias: np.ndarray) -> Replacement:
    """The product by ``(K, N)`` and a bias, under the name that it had."""
    names = [f"{product.input[1]}_folded_for_{output}", f"{output}_folded_bias"]
    arrays = (weight.astype(np.float32), bias.astype(np.float32))
    node = onnx.helper.make_node("Gemm", [source, *names], [output], name=product.name)
    return Replacement(nodes=(node,), tensors=dict(zip(names, arrays, strict=True)))
