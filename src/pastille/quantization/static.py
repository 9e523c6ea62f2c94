"""Static post-training quantization of an ONNX file to int8 with Q/DQ pairs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from pastille.devices import isa
from pastille.errors import CalibrationError
from pastille.quantization.nodes import sort_
from pastille.quantization.output import answering_nodes, float_output
from pastille.quantization.placement import (
    answer_in_float_,
    fuse_silus_,
    quantize_before_padding_,
    stays_float,
)
from pastille.quantization.ranges import Range
from pastille.quantization.repair import repaired, rounded_from
from pastille.quantization.shield import shield_
from pastille.recipe import Scheme
from pastille.references import one_line

WeightBits = Literal[7, 8, "auto"]

# Operators that ONNX Runtime has an int8 CPU kernel for. Others get no Q/DQ pairs: around a float
# kernel they would only cost time and accuracy.
INT8_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "LeakyRelu", "Sigmoid", "Relu", "Clip"),
    *("GlobalAveragePool", "AveragePool", "MaxPool", "Resize", "Reshape", "Flatten", "Transpose"),
    *("Squeeze", "Unsqueeze", "Slice", "Split"),
)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What the kernels of one kind of processor want."""

    activations: str  # name of a `QuantType`
    operators: Collection[str]  # that get Q/DQ pairs
    options: Mapping[str, Any]  # of the quantizer


_AFFINE: Final = {"ActivationSymmetric": False, "WeightSymmetric": True}
# TensorRT quantizes what a layer reads, not what it answers: that is how it fuses a convolution with the
# addition and the activation behind it. It wants zero points of 0 and adds a float bias.
_TENSORRT_OPERATORS: Final = ("Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool")
_TARGETS: Final[Mapping[str, _Target]] = {
    "x86": _Target(activations="QUInt8", operators=INT8_OPERATORS, options=_AFFINE),
    "arm": _Target(activations="QInt8", operators=INT8_OPERATORS, options=_AFFINE),
    "tensorrt": _Target(
        activations="QInt8",
        operators=_TENSORRT_OPERATORS,
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(_TENSORRT_OPERATORS),
        },
    ),
}


def with_ranges(
    model: Any,
    ranges: dict[str, Range],
    *,
    bits: WeightBits = 7,
    keep_float: Collection[str] = (),
    scheme: Scheme = "auto",
) -> Any:
    """Quantize by ranges that are known, for the kernels of one kind of processor.

    =========  ===========  ==========  =======  =======================================================
    scheme     activations  zero point  weights  why
    =========  ===========  ==========  =======  =======================================================
    x86        unsigned     any         ``bits`` the one signature of VNNI and `vpmaddubsw`
    arm        signed       any         8        what ARM's dot product multiplies; it cannot saturate
    tensorrt   signed       0           8        symmetric only, pairs on what layers read, float biases,
                                                 no operator of ONNX Runtime's own
    =========  ===========  ==========  =======  =======================================================

    Unsigned weights (U8U8) are no scheme here: they cannot saturate either, but on x86 they lose all the
    speed that int8 gains, and ``bits="auto"`` is as exact.

    Args:
        model: A float ``onnx.ModelProto`` with inferred types, as `rewritten` leaves it; not modified.
        ranges: Of every tensor that is quantized.
        bits: Of the weights, on x86 alone: 7, 8, or ``"auto"``: 8, with a wider step for the channels that
            could saturate.
        keep_float: Names of nodes that stay float.
        scheme: ``"auto"`` is that of this machine; see `scheme_here`.

    References:
        ONNX Runtime, "Quantize ONNX models", section on data type selection.
        NVIDIA TensorRT documentation, "Explicit Quantization".
    """
    chosen = scheme_here() if scheme == "auto" else scheme
    quantized = float_output(
        _with_qdq(
            model,
            ranges,
            _TARGETS[chosen],
            narrow=bits == 7 and chosen == "x86",
            keep_float=keep_float,
        )
    )
    if chosen != "tensorrt":  # which places by itself, and knows no operator of ONNX Runtime's own
        fuse_silus_(quantized)
        answer_in_float_(quantized)
        quantize_before_padding_(quantized)
        shield_(quantized, keep_float)
    sort_(quantized.graph)
    # Last, so that it is decided on the graph that ships.
    return unsaturated(quantized, rounded_from(model), bits=bits, scheme=chosen)


def unsaturated(
    quantized: Any, floats: Mapping[str, np.ndarray], *, bits: WeightBits, scheme: Scheme = "auto"
) -> Any:
    """Repair what could saturate, where that is asked for: ``bits="auto"`` on x86; see `repaired`.

    Args:
        quantized: An ``onnx.ModelProto`` of `with_ranges`, perhaps with weights rounded anew; not modified.
        floats: As of `repaired`.
        bits: As of `with_ranges`.
        scheme: As of `with_ranges`.
    """
    x86 = (scheme_here() if scheme == "auto" else scheme) == "x86"
    return repaired(quantized, floats) if bits == "auto" and x86 else quantized


def scheme_here() -> Literal["x86", "arm"]:
    """The scheme of this machine's own kernels."""
    return "arm" if isa().startswith(("neon", "arm", "aarch64")) else "x86"


def _with_qdq(
    model: Any, ranges: dict[str, Range], target: _Target, *, narrow: bool, keep_float: Collection[str]
) -> Any:
    with _quiet():
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=narrow,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType[target.activations],
            tensors_range=TensorsData(CalibrationMethod.MinMax, bounds),
            nodes_to_quantize=[],
            # The quantizer drops a Relu or Clip that it finds expressed by the range after it; a float
            # output has no such range.
            nodes_to_exclude=[
                *(node.name for node in (*answering_nodes(model.graph), *stays_float(model.graph))),
                *keep_float,
            ],
            op_types_to_quantize=list(target.operators),
            extra_options=dict(target.options),
        )
        try:
            return quantizer.quantize_model()
        except ValueError as error:
            raise CalibrationError(f"quantize: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice for its own command line through the root logger, and gives it a handler."""
    root = logging.getLogger()
    before, handlers = logging.root.manager.disable, list(root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers
