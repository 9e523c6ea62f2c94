"""A trained `Simulation` written back into the file that it was read from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from pastille.quantization.fake import Activation, constant_grid, weight_scales
from pastille.quantization.simulation import Simulation, Stored

if TYPE_CHECKING:
    from torch import Tensor


def written(model: Any, trained: Simulation) -> Any:
    """The file's graph with what was learned: the same nodes, other integers, scales and zero points.

    Args:
        model: The ``onnx.ModelProto`` that `simulation` was given; not modified.
        trained: That simulation, trained.

    Returns:
        A new ``onnx.ModelProto``.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    made = _grids(new.graph, trained) | _weights(new.graph, trained) | _biases(trained)
    held = {t.name: t for t in new.graph.initializer}
    for name, value in made.items():
        known = held[name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(known.data_type)
        known.CopyFrom(numpy_helper.from_array(value.astype(dtype).reshape(tuple(known.dims)), name))
    return new


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _grids(graph: Any, trained: Simulation) -> dict[str, np.ndarray]:
    zeros = {n.input[1]: n.input[2] for n in graph.node if n.op_type == "QuantizeLinear"}
    made: dict[str, np.ndarray] = {}
    for name, rounding in zip(trained.grids, trained.roundings, strict=True):
        assert isinstance(rounding, Activation)
        scale, zero = rounding.grid()
        made |= {name: _array(scale), zeros[name]: _array(zero)}
    return made


def _weights(graph: Any, trained: Simulation) -> dict[str, np.ndarray]:
    """Every constant but the biases: plain ones as they are, stored ones in integers."""
    plain = {t.name for t in graph.initializer} & set(trained.names)
    made = {name: _array(trained.constant(name)) for name in plain}
    for stored in trained.stored:
        value = trained.constant(stored.name)
        integers, scale, zero = stored.tensors
        if stored.kind == "weight":
            middle = 128 if stored.levels == (0, 255) else 0
            steps = _array(weight_scales(value, stored.axis, stored.half))
            made |= {integers: _integers(_array(value), steps, stored) + middle, scale: steps}
        elif stored.kind == "constant":
            step, offset = constant_grid(value, stored.levels)
            found = np.round(_array(value) / float(step)) + int(offset)
            made |= {integers: found.clip(*stored.levels), scale: _array(step), zero: _array(offset)}
    return made


def _integers(value: np.ndarray, steps: np.ndarray, stored: Stored) -> np.ndarray:
    shape = [-1 if i == stored.axis else 1 for i in range(value.ndim)]
    found: np.ndarray = np.round(value / (steps.reshape(shape) if steps.ndim else steps))
    return found.clip(-stored.half, stored.half)


def _biases(trained: Simulation) -> dict[str, np.ndarray]:
    """A bias is added to sums of products: its step is that of the input times that of the weight."""
    limits = np.iinfo(np.int32)
    made: dict[str, np.ndarray] = {}
    for stored in trained.stored:
        if stored.factors is None:
            continue
        integers, scale, _ = stored.tensors
        steps = _array(trained.bias_steps(*stored.factors))
        value = _array(trained.constant(stored.name)).astype(np.float64)
        made |= {integers: np.round(value / steps).clip(limits.min, limits.max), scale: steps}
    return made
