"""Which way each weight is rounded, so that a layer's outputs change least rather than its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pastille.quantization.ranges import Batches
from pastille.quantization.recovery.graph import attribute, copied, wiring
from pastille.quantization.recovery.qdq import Constant, constant_behind, prober, store_

_ROWS = 512  # of a layer's inputs, taken from each batch
_BATCHES = 16
_DAMPING = 0.01  # of the mean energy, added to each input's
_BLOCK = 128  # columns corrected at once
_WIDEST = 8192  # inputs of one output: a Hessian of this size takes half a gigabyte


@dataclass(frozen=True, kw_only=True)
class _Layer:
    node: Any  # of the int8 graph
    weight: np.ndarray  # float, as stored
    constant: Constant


def rounded(model: Any, quantized: Any, batches: Batches) -> Any:
    """Round the weights of each layer anew: an error in one is made good by the next.

    Every weight stays on the steps that its channel has, and within the largest that it uses, so the kernels
    and what they can saturate stay the same. A channel keeps its nearest rounding where that is better.

    Args:
        model: The float ``onnx.ModelProto`` that was quantized, with named nodes.
        quantized: The same with Q/DQ pairs; not modified.
        batches: Calibration batches; of the first 16, 512 rows each for a layer.

    References:
        Frantar et al., "GPTQ", ICLR 2023, arXiv:2210.17323 (here per channel, and convolutions too).
        Nagel et al., "Up or Down?", ICML 2020, arXiv:2004.10568 (why rounding is a choice).
    """
    new = copied(quantized)
    few = [batch for _, batch in zip(range(_BATCHES), batches(), strict=False)]
    layers = tuple(_layers(model, quantized))
    probe = prober(quantized, [layer.node.input[0] for layer in layers])
    for layer in layers:
        inputs = (probe([layer.node.input[0]], batch)[0] for batch in few)
        hessian = _hessian(layer, inputs)
        steps = _rounded_layer(layer, hessian)
        constant = Constant(
            node=layer.constant.node, steps=steps, scale=layer.constant.scale, zero=layer.constant.zero
        )
        store_(new, constant)
    return new


def _layers(model: Any, quantized: Any) -> Iterator[_Layer]:
    """Layers whose int8 weights are the float ones on symmetric steps."""
    wires, reference = wiring(quantized), wiring(model)
    for node in quantized.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or attribute(node, "transA", 0):
            continue
        original = reference.nodes.get(node.name)
        if (
            original is None
            or original.op_type != node.op_type
            or original.input[1] not in reference.constants
        ):
            continue
        constant = constant_behind(wires, node.input[1])
        weight = reference.array(original.input[1])
        if constant is not None and _fits(node, weight, constant):
            yield _Layer(node=node, weight=weight, constant=constant)


def _fits(node: Any, weight: np.ndarray, constant: Constant) -> bool:
    if weight.shape != constant.steps.shape or constant.steps.dtype != np.int8 or constant.zero.any():
        return False
    if node.op_type == "Conv" and attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return False
    if node.op_type == "MatMul" and weight.ndim != 2:
        return False
    inputs = weight.size // weight.shape[0] if node.op_type == "Conv" else max(weight.shape)
    return inputs <= _WIDEST and bool((np.abs(weight - constant.values) <= 1.01 * constant.scale).all())


def _groups(node: Any) -> int:
    return int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1


def _as_rows(node: Any, array: np.ndarray) -> np.ndarray:
    """Weights as ``(groups, outputs of one, inputs of one)``."""
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    rows = array.T if transposed else array.reshape(len(array), -1)
    return rows.reshape(_groups(node), -1, rows.shape[1])


def _from_rows(node: Any, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    flat = rows.reshape(-1, rows.shape[-1])
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    return np.ascontiguousarray(flat.T if transposed else flat.reshape(shape))


def _rounded_layer(layer: _Layer, hessian: np.ndarray) -> np.ndarray:
    """The new whole numbers of a layer, in the shape and dtype that they are stored in."""
    stored = layer.constant.steps
    scale = _as_rows(layer.node, np.broadcast_to(layer.constant.scale, stored.shape))[..., :1]
    nearest = _as_rows(layer.node, stored).astype(np.float64)
    weight = _as_rows(layer.node, layer.weight).astype(np.float64) / scale
    bound = np.abs(nearest).max(axis=2, keepdims=True)
    found = rounded_in_turn(weight, hessian, bound)
    better = _loss(found - weight, hessian) < _loss(nearest - weight, hessian)
    best = np.where(better[..., None], found, nearest)
    return _from_rows(layer.node, best, stored.shape).astype(stored.dtype)


def _loss(error: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    found: np.ndarray = ((error @ hessian) * error).sum(axis=2)
    return found


def rounded_in_turn(weight: np.ndarray, hessian: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Whole numbers near a weight, each error made good by the inputs still to come.

    What is zero stays so: of a sparse layer it was set to zero on purpose.

    Args:
        weight: ``(groups, outputs, inputs)`` in steps.
        hessian: ``(groups, inputs, inputs)`` mean of ``x x^T`` over a layer's inputs.
        bound: ``(groups, outputs, 1)`` largest magnitude allowed.

    Returns:
        Whole numbers, ``(groups, outputs, inputs)``.

    Example:
        >>> together = np.ones((1, 2, 2))  # both inputs are always equal: only the sum of weights counts
        >>> rounded_in_turn(np.array([[[0.4, 0.4]]]), together, np.full((1, 1, 1), 63.0)).tolist()
        [[[0.0, 1.0]]]
    """
    factor = _factor(hessian)
    left, steps = weight.copy(), np.empty_like(weight)
    inputs = weight.shape[2]
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty((*weight.shape[:2], stop - start))
        for i in range(start, stop):
            nearest = np.clip(np.round(left[..., i]), -bound[..., 0], bound[..., 0])
            steps[..., i] = np.where(weight[..., i] == 0, 0, nearest)
            error = (left[..., i] - steps[..., i]) / factor[:, i, i, None]
            left[..., i + 1 : stop] -= error[..., None] * factor[:, None, i, i + 1 : stop]
            errors[..., i - start] = error
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return steps


def _factor(hessian: np.ndarray) -> np.ndarray:
    """Upper Cholesky factors of the inverses of damped Hessians, ``(groups, inputs, inputs)``."""
    energy = np.einsum("gii->gi", hessian).mean(axis=1)
    damping = np.where(energy > 0, _DAMPING * energy, 1.0)
    inverse = np.linalg.inv(hessian + damping[:, None, None] * np.eye(hessian.shape[1]))
    lower = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2)
    return np.asarray(lower.transpose(0, 2, 1))


def _hessian(layer: _Layer, inputs: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of ``x x^T`` over sampled rows of a layer's inputs, ``(groups, inputs, inputs)``."""
    total, count = np.zeros(()), 0
    for number, x in enumerate(inputs):
        rows = input_rows(layer.node, layer.weight.shape, x, seed=number).astype(np.float64)
        total = total + rows.transpose(0, 2, 1) @ rows
        count += rows.shape[1]
    return np.asarray(total / max(count, 1))


def input_rows(node: Any, weight: tuple[int, ...], x: np.ndarray, *, seed: int) -> np.ndarray:
    """What a layer multiplies its weights by: one row per output position, at most 512 of them.

    Args:
        node: A Conv, Gemm or MatMul.
        weight: Shape of its weights.
        x: Its input, ``(N, C, ...)`` of a Conv, else ``(..., C)``.
        seed: Of the choice of rows.

    Returns:
        ``(groups, rows, inputs of one group)``.
    """
    if node.op_type != "Conv":
        flat = x.reshape(1, -1, x.shape[-1])
        return flat[:, _chosen(flat.shape[1], seed)]
    windows = _windows(node, weight[2:], x)
    at = (0, *range(2, x.ndim))
    sizes = [windows.shape[i] for i in at]
    first, *others = np.unravel_index(_chosen(int(np.prod(sizes)), seed), sizes)
    index: tuple[Any, ...] = (first, slice(None), *others)
    rows = windows[index]  # (rows, C, kernel...)
    by_group: np.ndarray = rows.reshape(len(rows), x.shape[1] // weight[1], -1).transpose(1, 0, 2)
    return by_group


def _windows(node: Any, kernel: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """What a convolution sees at each position, ``(N, C, positions..., kernel...)``; a view."""
    rank = len(kernel)
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    pads = attribute(node, "pads", [0] * 2 * rank)
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    axes = tuple(range(2, 2 + rank))
    whole = np.lib.stride_tricks.sliding_window_view(np.pad(x, around), spans, axis=axes)
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    seen: np.ndarray = whole[(slice(None), slice(None), *steps)]
    return seen


def _chosen(count: int, seed: int) -> np.ndarray:
    if count <= _ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, _ROWS, replace=False))
