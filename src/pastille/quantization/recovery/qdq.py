"""Reading and writing the constants of a file with Q/DQ pairs, and running it up to some tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pastille.errors import CalibrationError
from pastille.quantization.recovery.graph import Wiring, attribute, replace_input_
from pastille.references import one_line

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant stored as whole numbers.

    Attributes:
        node: Name of the DequantizeLinear that reads it.
        steps: The whole numbers, int8, uint8 or int32.
        scale: Broadcastable to them.
        zero: The same.
    """

    node: str
    steps: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """What the numbers stand for, float64."""
        found: np.ndarray = (self.steps.astype(np.float64) - self.zero) * self.scale
        return found


def constant_behind(wires: Wiring, tensor: str) -> Constant | None:
    """The quantized constant that a tensor is dequantized from; None if it is none, or others read it too."""
    node = wires.makers.get(tensor)
    if node is None or node.op_type != "DequantizeLinear" or not wires.private(tensor):
        return None
    if any(name not in wires.constants for name in node.input) or attribute(node, "block_size", 0):
        return None
    steps, scale = wires.array(node.input[0]), wires.array(node.input[1]).astype(np.float64)
    zero = wires.array(node.input[2]).astype(np.float64) if len(node.input) > 2 else np.zeros_like(scale)
    axis = int(attribute(node, "axis", 1)) % max(steps.ndim, 1)
    return Constant(
        node=node.name,
        steps=steps,
        scale=_along(scale, steps.ndim, axis),
        zero=_along(zero, steps.ndim, axis),
    )


def _along(array: np.ndarray, rank: int, axis: int) -> np.ndarray:
    if array.size == 1:
        return array.reshape(())
    return array.reshape([-1 if i == axis else 1 for i in range(rank)])


def moved(constant: Constant, values: np.ndarray) -> Constant:
    """The same constant with other values: on its own steps if it has 32 bits, else on fitting ones."""
    info = np.iinfo(constant.steps.dtype)
    if info.bits == 32:
        steps = np.round(values / constant.scale) + constant.zero
        return Constant(
            node=constant.node,
            steps=np.clip(steps, info.min, info.max).astype(constant.steps.dtype),
            scale=constant.scale,
            zero=constant.zero,
        )
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = np.float64(np.float32((high - low) / (info.max - info.min) or 1.0))
    zero = np.clip(np.round(info.min - low / scale), info.min, info.max)
    steps = np.clip(np.round(values / scale) + zero, info.min, info.max).astype(constant.steps.dtype)
    return Constant(node=constant.node, steps=steps, scale=np.asarray(scale), zero=np.asarray(zero))


def store_(model: Any, constant: Constant) -> None:
    """Write a constant back; its scale and zero point too where they are one number."""
    node = next(n for n in model.graph.node if n.name == constant.node)
    replace_input_(model.graph, node, 0, constant.steps)
    if constant.scale.ndim == 0 and constant.steps.dtype != np.int32:
        replace_input_(model.graph, node, 1, constant.scale.astype(np.float32))
        replace_input_(model.graph, node, 2, constant.zero.astype(constant.steps.dtype))


def prober(model: Any, tensors: Sequence[str]) -> Callable[[Sequence[str], Feeds], list[np.ndarray]]:
    """Run a graph only as far as some of its inner tensors need.

    Args:
        model: An ``onnx.ModelProto``; not modified.
        tensors: Every float tensor that may be asked for.

    Returns:
        ``probe(names, feeds)`` -> arrays.
    """
    import onnx
    import onnxruntime as ort

    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    known = {o.name for o in seen.graph.output}
    float_ = onnx.TensorProto.FLOAT
    extra = [t for t in dict.fromkeys(tensors) if t not in known]
    seen.graph.output.extend(onnx.helper.make_tensor_value_info(t, float_, None) for t in extra)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
    partly = ort.RunOptions()
    partly.log_severity_level = 4
    partly.only_execute_path_to_fetches = True

    def probe(names: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
        try:
            return list(session.run(list(names), dict(feeds), partly))
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise CalibrationError(
                f"calibration: the model cannot run on a batch: {one_line(error)}"
            ) from error

    return probe
