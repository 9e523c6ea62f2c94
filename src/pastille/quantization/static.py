"""Static post-training quantization of an ONNX file to int8 with Q/DQ pairs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pastille.errors import CalibrationError
from pastille.files import produce_atomic
from pastille.quantization.output import answering_nodes, float_output
from pastille.quantization.placement import (
    answer_in_float_,
    fuse_silus_,
    quantize_before_padding_,
    stays_float,
)
from pastille.quantization.ranges import Batches, Range, estimated, observer
from pastille.quantization.rewrites import rewritten
from pastille.recipe import Quantize
from pastille.references import one_line

# Operators that ONNX Runtime has an int8 CPU kernel for. Others get no Q/DQ pairs: around a float
# kernel they would only cost time and accuracy.
INT8_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "LeakyRelu", "Sigmoid", "Relu", "Clip"),
    *("GlobalAveragePool", "AveragePool", "MaxPool", "Resize", "Reshape", "Flatten", "Transpose"),
    *("Squeeze", "Unsqueeze", "Slice", "Split"),
)


def quantize_static(source: Path, target: Path, calibration: Batches, settings: Quantize) -> None:
    """Quantize activations to unsigned 8 bit and weights to signed 7 bit per output channel.

    The scheme is what CPU kernels run fastest and every x86 CPU computes alike: with 8-bit weights a
    CPU without VNNI adds pairs of products in saturating 16-bit arithmetic and decides differently;
    with 7 bits no pair can saturate (255 · 2 · 64 < 32768), and VNNI loses no speed.
    The model's output stays float, so that no two classes tie for want of steps.

    Args:
        source: A float ONNX file with folded batch norms.
        target: Written whole or not at all; self-contained.
        calibration: Gives the calibration batches ``{name: (N, ...)}`` afresh each time.
        settings: Ranges and bits.

    Raises:
        CalibrationError: There are no batches, or the activations are not finite.
        OutputError: The file cannot be written.

    References:
        Jacob et al., CVPR 2018, arXiv:1712.05877 (affine scheme).
        Nagel et al., 2021, arXiv:2106.08295 (calibration).
    """
    model = onnx.shape_inference.infer_shapes(rewritten(onnx.load(source, load_external_data=False)))
    observe = observer(model)
    ranges = estimated(observe, calibration, settings.calibration, q=settings.percentile)
    quantized = with_ranges(model, ranges, bits=settings.weight_bits)
    data = quantized.SerializeToString(deterministic=True)
    produce_atomic(target, lambda draft: draft.write_bytes(data))


def with_ranges(model: Any, ranges: dict[str, Range], *, bits: int) -> Any:
    """Quantize by ranges that are known; see `quantize_static`.

    Args:
        model: A float ``onnx.ModelProto`` with inferred types; not modified.
        ranges: Of every tensor that is quantized.
        bits: Of the weights, 7 or 8.
    """
    quantized = float_output(_with_qdq(model, ranges, bits=bits))
    fuse_silus_(quantized)
    answer_in_float_(quantized)
    quantize_before_padding_(quantized)
    return quantized


def _with_qdq(model: Any, ranges: dict[str, Range], *, bits: int) -> Any:
    with _quiet():
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=bits == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, bounds),
            nodes_to_quantize=[],
            # The quantizer drops a Relu or Clip that it finds expressed by the range after it; a float
            # output has no such range.
            nodes_to_exclude=[
                node.name for node in (*answering_nodes(model.graph), *stays_float(model.graph))
            ],
            op_types_to_quantize=list(INT8_OPERATORS),
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
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
