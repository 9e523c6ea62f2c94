"""Does the exported file answer like the module that it was exported from?"""

from __future__ import annotations

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
        ParityError: They differ by more.
    """
    expected = torch_answers(model, batch)
    session = load(path)
    arrays = {name: x.numpy() for name, x in batch.items()}
    tolerance = RELATIVE_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    error = max(_difference(session, arrays, expected, size) for size in _BATCHES)
    if not error <= tolerance:
        raise ParityError(
            f"{path.name} does not answer like the model: it differs by {error:.3g}, "
            f"tolerated {tolerance:.3g}",
            max_abs_error=error,
            tolerance=tolerance,
        )
    return Parity(max_abs_error=error, tolerance=tolerance)


def _difference(session: Session, arrays: Mapping[str, np.ndarray], expected: np.ndarray, size: int) -> float:
    out = session({name: x[:size] for name, x in arrays.items()})
    answer = next(iter(out.values()))
    return float(np.abs(answer.reshape(expected[:size].shape) - expected[:size]).max())
