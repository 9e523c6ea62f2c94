"""What wins back accuracy that 8 bits lost, without training."""

from __future__ import annotations

from pastille.quantization.recovery.auto import (
    TECHNIQUES,
    Choice,
    Recovery,
    Trial,
    choice_of,
    prepared,
    quantized_by,
    recovered,
)

__all__ = [
    "TECHNIQUES",
    "Choice",
    "Recovery",
    "Trial",
    "choice_of",
    "prepared",
    "quantized_by",
    "recovered",
]
