"""Which stage carries out which method of quantization."""

from __future__ import annotations

from pathlib import Path

from pastille.recipe import (
    AutoQuantize,
    DynamicQuantize,
    HalfPrecision,
    MixedQuantize,
    QatQuantize,
    Quantization,
    Quantize,
    WeightQuantize,
)
from pastille.stages.automatic import AutoStage
from pastille.stages.contract import Stage
from pastille.stages.convert import ConvertStage
from pastille.stages.mixed import MixedStage
from pastille.stages.qat import QatStage
from pastille.stages.quantize import QuantizeStage


def quantize_stage(settings: Quantization, base: Path) -> Stage:
    """The stage for a section ``quantize`` of a recipe.

    Args:
        settings: The section.
        base: The recipe's folder, which an ``augment`` and a ``scan`` are relative to.
    """
    match settings:
        case Quantize():
            return QuantizeStage(settings=settings)
        case QatQuantize():
            return QatStage(settings=settings, base=base)
        case MixedQuantize():
            return MixedStage(settings=settings, base=base)
        case AutoQuantize():
            return AutoStage(settings=settings)
        case DynamicQuantize() | WeightQuantize() | HalfPrecision():
            return ConvertStage(settings=settings)
