"""What ``pastille scan`` wrote, read for the model that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pastille.errors import PreconditionError
from pastille.files import read_bounded
from pastille.stages.contract import state_digest
from pastille.values import from_json
from pastille.values.scanned import Scan

if TYPE_CHECKING:
    from torch import nn

SCHEMA: Final = 1
_MAX_SCAN_BYTES: Final = 64 << 20


def read_scan(path: Path, model: nn.Module) -> Scan:
    """Read a sensitivity scan.

    Args:
        path: Written by ``pastille scan``.
        model: The trained model that the recipe brings.

    Raises:
        PreconditionError: It is no scan, or one of another model.
        IntegrityError: It cannot be read.
    """
    again = "scan this model again with pastille scan"
    try:
        scan = from_json(Scan, read_bounded(path, _MAX_SCAN_BYTES, what="scan"))
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise PreconditionError(f"prune.scan: {path} is not a scan ({problem}); {again}") from None
    if scan.schema != SCHEMA:
        raise PreconditionError(
            f"prune.scan: {path} has schema {scan.schema}, but this Pastille reads {SCHEMA}; {again}"
        )
    if scan.model_digest != state_digest(model):
        raise PreconditionError(
            f"prune.scan: {path} was made of a model with other weights than task.weights; {again}"
        )
    if not scan.harm("pruning"):
        raise PreconditionError(
            f"prune.scan: {path} holds no effect of pruning; scan with --technique pruning"
        )
    return scan
