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
from pastille.quantization.ranges import Batches, Range, minmax, observer, percentile
from pastille.recipe import Quantize

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
    model = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False))
    observe = observer(model)
    if settings.calibration == "minmax":
        ranges = minmax(observe, calibration)
    else:
        ranges = percentile(observe, calibration, settings.percentile)
    quantized = float_output(_with_qdq(model, ranges, bits=settings.weight_bits))
    data = quantized.SerializeToString(deterministic=True)
    produce_atomic(target, lambda draft: draft.write_bytes(data))


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
            nodes_to_exclude=[],
            op_types_to_quantize=list(INT8_OPERATORS),
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        try:
            return quantizer.quantize_model()
        except ValueError as error:
            raise CalibrationError(f"quantize: {' '.join(str(error).split())}") from error


def float_output(model: Any) -> Any:
    """Take the last Q/DQ pair off each graph output; the kernel before it writes float itself.

    Args:
        model: An ``onnx.ModelProto``; not modified.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    makers = {name: node for node in new.graph.node for name in node.output}
    for output in new.graph.output:
        dequantize = makers[output.name]
        quantize = makers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        maker = makers.get(quantize.input[0])
        users = [n for n in new.graph.node if quantize.input[0] in n.input]
        if maker is None or len(users) > 1:
            continue
        maker.output[list(maker.output).index(quantize.input[0])] = output.name
        new.graph.node.remove(dequantize)
        new.graph.node.remove(quantize)
    used = {name for n in new.graph.node for name in n.input}
    kept = [t for t in new.graph.initializer if t.name in used]
    del new.graph.initializer[:]
    new.graph.initializer.extend(kept)
    del new.graph.value_info[:]
    return new


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice for its own command line through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
