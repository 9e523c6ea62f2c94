"""What ``pastille scan`` wrote, read for the model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pastille.errors import PreconditionError
from pastille.files import read_bounded
from pastille.stages.contract import state_digest
from pastille.values import from_json
from pastille.values.scanned import Effect, Scan, Technique

if TYPE_CHECKING:
    from torch import nn

SCHEMA: Final = 1
_MAX_SCAN_BYTES: Final = 64 << 20
_BITS: Final = range(2, 9)
_ABSURD: Final = 1e100  # no sum of such overflows
_KEYS: Final[Mapping[Technique, str]] = MappingProxyType(
    {"pruning": "prune.scan", "quantization": "quantize.scan"}
)


def read_scan(path: Path, model: nn.Module, technique: Technique) -> Scan:
    """Read a sensitivity scan.

    Args:
        path: Written by ``pastille scan``.
        model: The trained model that the recipe brings.
        technique: That it must have tried.

    Raises:
        PreconditionError: It is no scan, or one of another model.
        IntegrityError: It cannot be read.
    """
    again = "scan this model again with pastille scan"
    try:
        scan = from_json(Scan, read_bounded(path, _MAX_SCAN_BYTES, what="scan"))
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise PreconditionError(f"{_KEYS[technique]}: {path} is not a scan ({problem}); {again}") from None
    if scan.schema != SCHEMA:
        raise PreconditionError(
            f"{_KEYS[technique]}: {path} has schema {scan.schema}, but this Pastille reads {SCHEMA}; {again}"
        )
    if wrong := next((words for effect in scan.effects if (words := _problem(effect))), ""):
        raise PreconditionError(f"{_KEYS[technique]}: {path} is not a scan ({wrong}); {again}")
    if scan.model_digest != state_digest(model):
        raise PreconditionError(
            f"{_KEYS[technique]}: {path} was made of a model with other weights than task.weights; {again}"
        )
    if not scan.harm(technique):
        raise PreconditionError(
            f"{_KEYS[technique]}: {path} holds no effect of {technique}; scan with --technique {technique}"
        )
    return scan


def _problem(effect: Effect) -> str:
    """What no scan writes; empty if there is nothing."""
    layer, found = repr(effect.layer[:80]), (effect.loss, effect.metric, effect.group_loss, effect.group_low)
    if not all(number is None or abs(number) < _ABSURD for number in found):
        return f"an effect on {layer} is not finite"
    if effect.technique == "pruning" and not 0 < effect.level < 1:
        return f"sparsities lie between 0 and 1, but {layer} was tried at {effect.level:g}"
    if effect.technique == "quantization" and effect.level not in _BITS:
        return f"bits are 2 to 8, but {layer} was tried in {effect.level:g}"
    return ""
