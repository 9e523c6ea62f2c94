"""Bias correction: the mean of every channel is what it was in float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from pastille.quantization.ranges import Batches
from pastille.quantization.recovery.graph import Wiring, copied, wiring
from pastille.quantization.recovery.qdq import Constant, constant_behind, moved, prober, store_

_BATCHES = 8  # means settle quickly, and every layer is run anew


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """A bias of the int8 graph, and the tensors whose channel means it must make equal."""

    tensor: str  # of the int8 graph, that the bias is dequantized to
    constant: Constant
    reference: str  # of the float graph
    quantized: str  # of the int8 graph
    axis: int  # of the channels


def bias_corrected(model: Any, quantized: Any, batches: Batches) -> Any:
    """Fold into each bias what its layer's outputs deviate by in the mean.

    Rounding weights and clipping activations shift the mean of a channel, and shifts add up from layer to
    layer. Layers are corrected in order, each on the answers of those before it as corrected. A layer
    without a bias is left as it is.

    Args:
        model: The float ``onnx.ModelProto`` that was quantized, with named nodes.
        quantized: The same with Q/DQ pairs; not modified.
        batches: Calibration batches; the first 8 are used.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, section 4.2 (empirical, on pre-activations).
    """
    slots = tuple(_slots(wiring(model), quantized))
    few = [batch for _, batch in zip(range(_BATCHES), batches(), strict=False)]
    if not slots or not few:
        return copied(quantized)
    wanted = _means(prober(model, [s.reference for s in slots]), {s.reference: s.axis for s in slots}, few)
    open_model = _with_open_biases(quantized, slots)
    probe = prober(open_model, [s.quantized for s in slots])
    biases: dict[str, np.ndarray] = {s.tensor: s.constant.values.astype(np.float32) for s in slots}
    corrected = copied(quantized)
    for slot in slots:
        fed = [{**batch, **biases} for batch in few]
        found = _means(probe, {slot.quantized: slot.axis}, fed)[slot.quantized]
        shift = wanted[slot.reference] - found
        if shift.size != slot.constant.steps.size:
            continue
        new = moved(slot.constant, slot.constant.values + shift.reshape(slot.constant.steps.shape))
        biases[slot.tensor] = new.values.astype(np.float32)
        store_(corrected, new)
    return corrected


def _slots(reference: Wiring, quantized: Any) -> Iterator[_Slot]:
    """Every bias that can be corrected, in the order in which layers run."""
    wires = wiring(quantized)
    for node in quantized.graph.node:
        index = _bias_index(wires, node)
        original = reference.nodes.get(node.name)
        if index is None or original is None or original.op_type != node.op_type:
            continue
        constant = constant_behind(wires, node.input[index])
        if constant is not None and constant.steps.size > 1:
            yield _Slot(
                tensor=node.input[index],
                constant=constant,
                reference=original.output[0],
                quantized=node.output[0],
                axis=1 if node.op_type in ("Conv", "ConvTranspose") else -1,
            )


def _bias_index(wires: Wiring, node: Any) -> int | None:
    """Which input of a node is its bias: the third of a layer, or what is added to a MatMul."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return 2 if len(node.input) > 2 and node.input[2] else None
    if node.op_type != "Add":
        return None
    for index in (0, 1):
        before = wires.makers.get(_raw(wires, node.input[1 - index]))
        if before is not None and before.op_type == "MatMul" and constant_behind(wires, node.input[index]):
            return index
    return None


def _raw(wires: Wiring, tensor: str) -> str:
    """The float tensor before a Q/DQ pair."""
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        maker = wires.makers.get(tensor)
        if maker is not None and maker.op_type == operator:
            tensor = str(maker.input[0])
    return tensor


def _with_open_biases(quantized: Any, slots: Sequence[_Slot]) -> Any:
    """The int8 graph with its biases as inputs, so that one session serves while they change."""
    new = copied(quantized)
    closed = {slot.constant.node for slot in slots}
    kept = [node for node in new.graph.node if node.name not in closed]
    del new.graph.node[:]
    new.graph.node.extend(kept)
    for slot in slots:
        shape = slot.constant.steps.shape
        value = onnx.helper.make_tensor_value_info(slot.tensor, onnx.TensorProto.FLOAT, shape)
        new.graph.input.append(value)
    return new


def _means(
    probe: Any, axes: Mapping[str, int], batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The mean of each channel of some tensors over all cases and positions, float64."""
    sums, counts = dict.fromkeys(axes, 0.0), dict.fromkeys(axes, 0)
    totals: dict[str, Any] = dict(sums)
    for batch in batches:
        for name, array in zip(axes, probe(tuple(axes), batch), strict=True):
            rows = np.moveaxis(array, axes[name], 0).reshape(array.shape[axes[name]], -1)
            totals[name] = totals[name] + rows.sum(axis=1, dtype=np.float64)
            counts[name] += rows.shape[1]
    return {name: np.asarray(total / max(counts[name], 1)) for name, total in totals.items()}
