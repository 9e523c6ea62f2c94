"""Does the exported file answer like the module that it was exported from?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pastille.errors import ParityError
from pastille.export.onnx import torch_answers
from pastille.runtime import Session, load

if TYPE_CHECKING:
    from torch import Tensor, nn

RELATIVE_TOLERANCE = 1e-3
_SMALLEST_TOLERANCE = 1e-6  # rounding, where all answers are nearly zero
_BATCHES = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a file's answers are from the module's, over all batch sizes that were tried."""

    max_abs_error: float
    tolerance: float


def check_parity(model: nn.Module, path: Path, batch: Mapping[str, Tensor]) -> Parity:
    """Compare module and file on real inputs, at several batch sizes.

    Args:
        model: In eval mode.
        path: The exported file.
        batch: Real inputs ``{name: (N, ...)}``, N at least 4.

    Returns:
        The largest difference found. The tolerance is a thousandth of the answers' largest magnitude.

    Raises:
        ParityError: They differ by more or in shape, or the model's answers are not finite.
    """
    expected = torch_answers(model, batch)
    largest = float(np.abs(expected).max())
    if not np.isfinite(largest):
        raise _mismatch(f"{path.name} cannot be compared: the model itself answers NaN or infinity")
    session = load(path)
    arrays = {name: x.numpy() for name, x in batch.items()}
    tolerance = max(RELATIVE_TOLERANCE * largest, _SMALLEST_TOLERANCE)
    # Not Python's max: it forgets a NaN that comes second.
    error = float(np.max([_difference(session, arrays, expected[:size], size) for size in _BATCHES]))
    if not error <= tolerance:
        raise _mismatch(
            f"{path.name} does not answer like the model: it differs by {error:.3g}, "
            f"tolerated {tolerance:.3g}",
            error,
            tolerance,
        )
    return Parity(max_abs_error=error, tolerance=tolerance)


def _difference(session: Session, arrays: Mapping[str, np.ndarray], expected: np.ndarray, size: int) -> float:
    out = session({name: x[:size] for name, x in arrays.items()})
    answer = next(iter(out.values()))
    if answer.shape != expected.shape:
        raise _mismatch(f"the file answers with shape {answer.shape} where the model has {expected.shape}")
    with np.errstate(invalid="ignore"):  # infinity in the file's answer: an infinite or NaN difference
        return float(np.abs(answer - expected).max())


def _mismatch(message: str, error: float = math.inf, tolerance: float = 0.0) -> ParityError:
    return ParityError(message, max_abs_error=error, tolerance=tolerance)
