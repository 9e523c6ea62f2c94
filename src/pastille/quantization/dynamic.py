"""Dynamic quantization: weights in 8 bits, activations rounded to 8 bits while the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pastille.quantization.blocks import round_to_nearest
from pastille.quantization.conversion import (
    CONTRIB,
    Conversion,
    Part,
    applied,
    constant_values,
    convert,
    first_output,
    float_model,
    node_name,
)
from pastille.quantization.embeddings import int8_embeddings
from pastille.quantization.layers import left_out
from pastille.quantization.linear import Found, Linear, linear_layers, replacements
from pastille.quantization.weight_only import blockwise

Ranges = Literal["batch", "row"]

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_ROW_BLOCK: Final = 128
_BATCH_NOTE: Final = (
    "a range covers the whole batch, padding included: an answer depends a little on what else is in the "
    "batch; judge at the batch size that is served, or use ranges='row'"
)
_LSTM_NOTE: Final = (
    "a range of an LSTM covers the whole batch, with ranges='row' too: an answer depends a little on what "
    "else is in the batch; judge at the batch size that is served, or keep it float (keep_float: {})"
)


def quantize_dynamic(
    source: Path,
    target: Path,
    *,
    ranges: Ranges = "batch",
    embeddings: bool = False,
    keep_float: Sequence[str] = (),
) -> Conversion:
    """Write linear layers and LSTMs of a float ONNX file so that they compute in 8 bits; no calibration.

    Weights are symmetric, with one scale per output, such that no x86 CPU saturates (`int8_columns`). ONNX
    Runtime has no 8-bit GRU; a
    product of two computed tensors, as in attention, stays float too.

    Args:
        source: A float ONNX file, self-contained; an opset before 18 is raised.
        target: Written whole or not at all, once ONNX Runtime has taken it; self-contained.
        ranges: Of a linear layer's input: one over the batch (DynamicQuantizeLinear, MatMulInteger), or
            one for every 128 values of a row (MatMulNBits with 8 bits), so that an answer does not
            depend on the rest of its batch. An LSTM has one over the batch in either case.
        embeddings: Also write tables of embeddings in 8 bits, one scale per row.
        keep_float: Nodes to leave: names of linear layers as in `linear.linear_layers`, or of LSTMs.

    Raises:
        PreconditionError: The file has nothing to convert, is quantized already, has an unknown domain
            or an opset that cannot be raised; ``keep_float`` names nothing; ONNX Runtime does not take the
            result.
        IntegrityError: ``source`` is not a self-contained ONNX model.
        OutputError: The file cannot be written.
        UsageError: ``target`` is ``source``.
        ValueError: ``ranges`` is unknown.

    References:
        Jacob et al., CVPR 2018, arXiv:1712.05877 (affine scheme).
        ONNX DynamicQuantizeLinear; com.microsoft.DynamicQuantizeLSTM.
    """
    if ranges not in get_args(Ranges):
        raise ValueError(f"ranges must be batch or row, got {ranges!r}")
    model = float_model(source)
    recurrent = [n for n in model.graph.node if n.op_type in _RECURRENT and not n.domain]
    linear = linear_layers(model, keep_float=keep_float, others=[node_name(node) for node in recurrent])
    lstms = _lstms(recurrent, model, keep_float)
    parts = [_in_batches(linear) if ranges == "batch" else _in_rows(linear), lstms]
    parts += [int8_embeddings(applied(model, parts))] if embeddings else []
    notes = _notes(linear, lstms, ranges) + tuple(filter(None, [left_out(model, "dynamic")]))
    return convert(model, parts, source, target, what="linear layer or LSTM", notes=notes)


def _notes(linear: Found, lstms: Part, ranges: Ranges) -> tuple[str, ...]:
    """On what makes an answer depend on the rest of its batch."""
    batchwise = (_BATCH_NOTE,) if linear.layers and ranges == "batch" else ()
    return (*batchwise, *([_LSTM_NOTE.format(", ".join(lstms.changed))] if lstms.changed else []))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A weight with one scale per output.

    Attributes:
        values: As the weight, ``(..., K, N)`` int8.
        scale: ``(..., N)`` float32.
    """

    values: np.ndarray
    scale: np.ndarray


def int8_columns(weight: np.ndarray) -> Columns:
    """Round a weight as finely as no x86 CPU saturates on.

    A CPU without VNNI multiplies unsigned activations with pairs of weights, neighbours along K, and
    adds each pair in saturating 16 bits. Halving every step (7 bits) avoids that; it is enough that no
    pair of one sign adds up to more than 128 steps, since 255 · 128 < 2^15 <= 255 · 129. The largest such
    sum, then, takes 127 steps, and rounding adds at most one: between 7 and 8 bits, as the weights allow.

    Args:
        weight: ``(..., K, N)`` float32.

    Example:
        >>> int8_columns(np.array([[1.0, 1.0], [1.0, -0.9]], np.float32)).values.tolist()
        [[64, 127], [64, -114]]
    """
    largest = np.max([_largest_sums(np.maximum(part, 0)) for part in (weight, -weight)], axis=0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return Columns(values=np.rint(weight / scale[..., None, :]).astype(np.int8), scale=scale)


def _largest_sums(part: np.ndarray) -> np.ndarray:
    """The largest sum of neighbours, ``(..., N)``, of weights that are not negative ``(..., K, N)``."""
    following = np.concatenate([part[..., 1:, :], np.zeros_like(part[..., :1, :])], axis=-2)
    largest: np.ndarray = (part + following).max(axis=-2)
    return largest


def _in_batches(found: Found) -> Part:
    layers = found.layers
    weights = {key: int8_columns(w) for key, w in {x.key: x.weight for x in layers}.items()}
    first = {layer.data: layer.name for layer in reversed(layers)}  # who quantizes what several read
    made = {x.name: _integer_nodes(x, quantizes=first[x.data] == x.name) for x in layers}
    tensors = [t for key, columns in weights.items() for t in _column_tensors(key, columns)]
    biases = [numpy_helper.from_array(x.bias, f"{x.name}_bias") for x in layers if x.bias is not None]
    return Part(
        nodes=replacements(layers, made),
        tensors=[*tensors, *biases],
        changed={x.name: "MatMulInteger, 8 bits" for x in layers},
        left=found.left,
    )


def _column_tensors(key: str, columns: Columns) -> list[Any]:
    return [
        numpy_helper.from_array(columns.values, f"{key}_q8"),
        numpy_helper.from_array(columns.scale, f"{key}_scale"),
    ]


def _integer_nodes(layer: Linear, *, quantizes: bool) -> list[Any]:
    """The pattern of standard operators that ONNX Runtime fuses into one kernel."""
    name, data, scaled = layer.name, layer.data, f"{layer.name}_scaled"
    quantized = [f"{data}_q8", f"{data}_q8_scale", f"{data}_q8_zero"]
    product = [quantized[0], f"{layer.key}_q8", quantized[2]]
    scales = [quantized[1], f"{layer.key}_scale"]
    out = layer.output if layer.bias is None else scaled
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [data], quantized, name=f"{name}_quantize"),
        helper.make_node("MatMulInteger", product, [f"{name}_sum"], name=name),
        helper.make_node(
            "Cast", [f"{name}_sum"], [f"{name}_float"], name=f"{name}_cast", to=onnx.TensorProto.FLOAT
        ),
        helper.make_node("Mul", scales, [f"{name}_factor"], name=f"{name}_factor"),
        helper.make_node("Mul", [f"{name}_float", f"{name}_factor"], [out], name=f"{name}_mul"),
    ]
    if layer.bias is not None:
        nodes.append(helper.make_node("Add", [out, f"{name}_bias"], [layer.output], name=f"{name}_add"))
    return nodes if quantizes else nodes[1:]


def _in_rows(found: Found) -> Part:
    weights = {
        key: round_to_nearest(weight, _ROW_BLOCK, bits=8, symmetric=True)
        for key, weight in {layer.key: layer.weight for layer in found.layers}.items()
    }
    how = f"MatMulNBits, 8 bits, blocks of {_ROW_BLOCK}"
    return blockwise(found, weights, symmetric=True, activations="int8", how=how)


def _lstms(recurrent: Sequence[Any], model: Any, keep_float: Sequence[str]) -> Part:
    constants = constant_values(model, {name for node in recurrent for name in node.input[1:3]})
    reasons = {node_name(node): _unfit_lstm(node, constants, keep_float) for node in recurrent}
    fit = [node for node in recurrent if not reasons[node_name(node)]]
    return Part(
        nodes={first_output(node): [_lstm_node(node)] for node in fit},
        tensors=[tensor for node in fit for tensor in _lstm_tensors(node, constants)],
        changed={node_name(node): "DynamicQuantizeLSTM, 8 bits" for node in fit},
        left={name: why for name, why in reasons.items() if why},
    )


def _unfit_lstm(node: Any, constants: Mapping[str, np.ndarray], keep_float: Sequence[str]) -> str:
    """Why a recurrent layer stays float; "" where it need not."""
    if node.op_type != "LSTM":
        return f"ONNX Runtime has no 8-bit {node.op_type}"
    if node_name(node) in keep_float:
        return "asked to stay float"
    weights = [constants.get(name) for name in node.input[1:3]]
    if any(w is None for w in weights):
        return "its weights are computed"
    if any(w.dtype != np.float32 or not np.isfinite(w).all() for w in weights if w is not None):
        return "its weights are not float32, or not finite"
    batchwise = next((a.i for a in node.attribute if a.name == "layout"), 0)
    return "the 8-bit LSTM takes the sequence axis first only (layout 0)" if batchwise else ""


def _by_input(weight: np.ndarray) -> np.ndarray:
    """``(directions, 4 * hidden, K)`` as ``(directions, K, 4 * hidden)``, as the 8-bit LSTM wants it."""
    return np.ascontiguousarray(weight.transpose(0, 2, 1))


def _lstm_node(node: Any) -> Any:
    name = node_name(node)
    data, _, _, *rest = node.input
    weights = [f"{name}_w", f"{name}_r"]
    scales = [f"{weight}_{what}" for weight in weights for what in ("scale", "zero")]
    new = helper.make_node(
        "DynamicQuantizeLSTM",
        [data, *weights, *rest, *([""] * (5 - len(rest))), *scales],
        list(node.output),
        name=name,
        domain=CONTRIB,
    )
    new.attribute.extend(a for a in node.attribute if a.name != "layout")
    return new


def _lstm_tensors(node: Any, constants: Mapping[str, np.ndarray]) -> list[Any]:
    """Values, scales and zero points of the weights for the input and for the recurrence."""
    name = node_name(node)
    weights = {
        which: int8_columns(_by_input(constants[w])) for which, w in zip("wr", node.input[1:3], strict=True)
    }
    return [
        numpy_helper.from_array(array, f"{name}_{which}{suffix}")
        for which, columns in weights.items()
        for suffix, array in (
            ("", columns.values),
            ("_scale", columns.scale),
            ("_zero", np.zeros(columns.scale.shape, np.int8)),
        )
    ]
