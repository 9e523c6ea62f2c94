"""How far a new file's answers lie from the float file's, and when that is too far to say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from pastille.quantization.converting import Converting
from pastille.quantization.recovery.auto import sqnr_db
from pastille.recipe import DynamicQuantize, HalfPrecision, Quantize, WeightQuantize

LEAST_ALIKE: Final = 0.98  # share of decisions: the loss that the medium risk tier permits
LEAST_DB: Final = 15.0  # the error's amplitude is then a sixth of what the outputs vary by
FAR: Final = 1000.0  # times a typical case: eight bits that reach so far leave it no level of its own

_KEEP: Final = "keep_float for the layers that lose most"


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far the new file's answers lie from the float file's, on cases that it was not made with."""

    cases: int
    sqnr_db: float  # how far the error lies below what the outputs vary by
    max_abs_error: float
    same_decisions: float | None  # share of cases; None where the first output is no row of scores


def deviation(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Deviation:
    """Compare two files' answers.

    Args:
        wanted: Output name -> ``(N, ...)``, of the float file; the first output decides.
        found: The same of the new file.

    Example:
        >>> scores = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> deviation({"y": scores}, {"y": scores[:, ::-1]}).same_decisions
        0.0
    """
    first = next(iter(wanted))
    scores = wanted[first].ndim == 2 and wanted[first].shape[1] > 1
    same = (wanted[first].argmax(axis=-1) == found[first].argmax(axis=-1)).mean() if scores else None
    return Deviation(
        cases=len(wanted[first]),
        sqnr_db=sqnr_db(wanted, found),
        max_abs_error=max(float(np.abs(found[name] - wanted[name]).max(initial=0.0)) for name in wanted),
        same_decisions=None if same is None else float(same),
    )


def too_far(found: Deviation, settings: Quantize | Converting) -> tuple[str, ...]:
    """A warning where fewer than 98 % of the decisions are alike, or the error is above -15 dB.

    Args:
        found: From `deviation`.
        settings: What the file was made by; what it has already is not advised.

    Returns:
        One sentence, or none.

    Example:
        >>> bad = Deviation(cases=50, sqnr_db=31.0, max_abs_error=0.1, same_decisions=0.8)
        >>> too_far(bad, HalfPrecision(method="bf16"))
        ('20 % of the answers changed (10 of 50 held-out cases): try method: fp16',)
    """
    said = []
    if found.same_decisions is not None and found.same_decisions < LEAST_ALIKE:
        changed = 1 - found.same_decisions
        count = round(changed * found.cases)
        said.append(f"{100 * changed:.3g} % of the answers changed ({count} of {found.cases} held-out cases)")
    if found.sqnr_db <= 0:
        said.append("the error is as large as the signal")
    elif found.sqnr_db < LEAST_DB:
        said.append(f"the error lies only {found.sqnr_db:.1f} dB below the signal")
    return (f"{' and '.join(said)}: try {', '.join(_advice(settings))}",) if said else ()


def _advice(settings: Quantize | Converting) -> list[str]:
    """What else there is, the last one introduced by an "or"."""
    match settings:
        case Quantize():
            ways = [*([] if settings.recover == "auto" else ["recover: auto"]), _KEEP]
            return [*ways, "or, with labels, method: qat or mixed in a recipe (pastille run)"]
        case DynamicQuantize():
            return [*([] if settings.ranges == "row" else ["ranges: row"]), _KEEP, "or method: ptq"]
        case WeightQuantize():
            ways = [*([] if settings.activations == "float" else ["activations: float"]), _KEEP]
            return [*ways, "or method: int8-weights" if settings.method == "int4" else "or method: bf16"]
        case HalfPrecision():
            return ["method: bf16" if settings.method == "fp16" else "method: fp16"]


def far_out(batches: Iterable[Mapping[str, np.ndarray]], rows: Iterable[int]) -> tuple[str, ...]:
    """A warning for each float input of which one case is a thousand times as large as a typical one.

    Args:
        batches: The cases; of integers, such as token ids, the size says nothing.
        rows: Numbers of the cases, in the order of the batches.

    Returns:
        A sentence per such input.

    Example:
        >>> x = np.array([[3.2], [-3.0], [1e30], [3.1]])
        >>> far_out([{"x": x}], range(4))
        ("input 'x' of case 2 reaches 1e+30, a typical one 3.15: if that is a fault, leave the case out",)
    """
    largest: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, array in batch.items():
            if np.issubdtype(array.dtype, np.floating) and array.size:
                flat = np.abs(array).reshape(len(array), -1)
                largest.setdefault(name, []).append(flat.max(axis=1))
    numbers = list(rows)
    found = {name: np.concatenate(parts) for name, parts in largest.items()}
    return tuple(_far(name, sizes, numbers) for name, sizes in found.items() if _is_far(sizes))


def _is_far(sizes: np.ndarray) -> bool:
    typical = float(np.median(sizes))
    return 0 < typical < float(sizes.max()) / FAR


def _far(name: str, sizes: np.ndarray, numbers: list[int]) -> str:
    typical, worst = float(np.median(sizes)), int(sizes.argmax())
    others = int((sizes > FAR * typical).sum()) - 1
    more = f" ({others} more are far out too)" if others else ""
    return (
        f"input {name!r} of case {numbers[worst]} reaches {sizes[worst]:.3g}, a typical one {typical:.3g}"
        f"{more}: if that is a fault, leave the case out"
    )
