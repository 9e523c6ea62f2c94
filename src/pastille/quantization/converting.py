"""The methods that measure no ranges of activations, as a recipe asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pastille.quantization.conversion import Conversion
from pastille.quantization.dynamic import quantize_dynamic
from pastille.quantization.half import convert_half
from pastille.quantization.ranges import Batches
from pastille.quantization.weight_only import quantize_weights
from pastille.recipe import DynamicQuantize, HalfPrecision, WeightQuantize
from pastille.values import ModelPrecision

Converting = DynamicQuantize | WeightQuantize | HalfPrecision

_BITS: Final = {"int4": 4, "int8-weights": 8}


def converted(source: Path, target: Path, settings: Converting, calibration: Batches | None) -> Conversion:
    """Convert a file as a section of a recipe asks.

    Args:
        source: A float ONNX file.
        target: Written whole or not at all.
        settings: Which method, and how.
        calibration: For ``gptq``; else None.

    Raises:
        PreconditionError: There is nothing to convert, or it cannot be.
        CalibrationError: The samples do not fit.
    """
    match settings:
        case DynamicQuantize():
            return quantize_dynamic(
                source,
                target,
                ranges=settings.ranges,
                embeddings=settings.embeddings,
                keep_float=settings.keep_float,
            )
        case WeightQuantize():
            return quantize_weights(
                source,
                target,
                bits=_BITS[settings.method],
                block_size=settings.block_size,
                method=settings.rounding,
                symmetric=settings.symmetric,
                activations=settings.activations,
                embeddings=settings.embeddings,
                keep_float=settings.keep_float,
                calibration=calibration,
                mask=settings.mask,
            )
        case HalfPrecision():
            return convert_half(source, target, kind=settings.method, compute=settings.compute)


def precision_of(settings: Converting) -> ModelPrecision:
    """What the weights are then stored in."""
    match settings:
        case HalfPrecision():
            return settings.method
        case WeightQuantize(method="int4"):
            return "int4"
        case _:
            return "int8"


def is_solved(settings: Converting) -> bool:
    """Whether weights are rounded so that the layers' answers to calibration data stay."""
    return isinstance(settings, WeightQuantize) and settings.rounding == "gptq"


def conversion_words(done: Conversion) -> str:
    """What was converted, and how much was not, in a sentence."""
    hows = sorted(set(done.changed.values()))
    left = f"; {len(done.left)} left as they were" if done.left else ""
    return f"{len(done.changed)} converted ({', '.join(hows)}){left}"
