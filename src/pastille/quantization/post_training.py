"""Static post-training quantization of an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from pastille.files import produce_atomic
from pastille.quantization.ranges import Batches
from pastille.quantization.recovery import choice_of, prepared, quantized_by
from pastille.recipe import StaticRanges


def quantize_static(source: Path, target: Path, calibration: Batches, settings: StaticRanges) -> None:
    """Quantize activations to 8 bit and weights to signed 7 or 8 bit per output channel.

    The scheme is what the kernels of the target run fastest; see `with_ranges`. On x86 unsigned activations
    meet signed weights, and with 8-bit weights a CPU without VNNI adds pairs of products in saturating 16-bit
    arithmetic and decides differently; with 7 bits no pair can saturate (255 · 2 · 64 < 32768), and VNNI
    loses no speed.
    The model's output stays float, so that no two classes tie for want of steps.

    Args:
        source: A float ONNX file with folded batch norms.
        target: Written whole or not at all; self-contained.
        calibration: Gives the calibration batches ``{name: (N, ...)}`` afresh each time.
        settings: Ranges, bits, scheme.

    Raises:
        CalibrationError: There are no batches, or the activations are not finite.
        PreconditionError: ``settings.keep_float`` names no layer.
        OutputError: The file cannot be written.

    References:
        Jacob et al., CVPR 2018, arXiv:1712.05877 (affine scheme).
        Nagel et al., 2021, arXiv:2106.08295 (calibration).
    """
    graph = prepared(onnx.load(source, load_external_data=False))
    write_graph(quantized_by(graph, calibration, choice_of(settings)), target)


def write_graph(model: Any, target: Path) -> None:
    """Write a graph whole or not at all; equal graphs give equal bytes.

    Args:
        model: An ``onnx.ModelProto``.
        target: The file.

    Raises:
        OutputError: It cannot be written.
    """
    data = model.SerializeToString(deterministic=True)
    produce_atomic(target, lambda draft: draft.write_bytes(data))
