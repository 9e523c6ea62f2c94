"""Which arithmetic a training runs in."""

from __future__ import annotations

from typing import Final

import torch

from pastille.errors import PreconditionError
from pastille.recipe import Precision

_AMPERE: Final = (8, 0)  # compute capability of the first GPUs with units for bfloat16
_INSTRUCTIONS: Final = ("avx512_bf16", "amx_bf16")


def dtype_for(precision: Precision, device: str) -> torch.dtype | None:
    """The lower precision that a training's products are computed in; None for float32.

    Args:
        precision: As asked; ``auto`` is bfloat16 where this machine has instructions for it: elsewhere it
            is emulated, and slower than float32.
        device: ``cpu`` or ``cuda``.

    Raises:
        PreconditionError: fp16 was asked on a device that has no fast one.

    Example:
        >>> dtype_for("bf16", "cpu"), dtype_for("fp32", "cpu")
        (torch.bfloat16, None)
    """
    if precision == "fp16" and device != "cuda":
        raise PreconditionError(
            f"precision: fp16 needs a CUDA device, but this training runs on {device}; use bf16, auto or fp32"
        )
    if precision == "auto":
        return torch.bfloat16 if has_bf16(device) else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def has_bf16(device: str) -> bool:
    """Whether a device has instructions for bfloat16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= _AMPERE
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in _INSTRUCTIONS)
