"""Whom a calibration serves badly: whose values are clipped, and what another draw would have decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pastille.errors import CalibrationError
from pastille.quantization.ranges import Batches, Observer, Range
from pastille.quantization.recovery.graph import wiring

STRATUM = "stratum"

_NOTABLE = 0.005  # share of clipped values that is worth a warning
_TIMES = 3.0  # how many times more than the others
_FEWEST = 5  # cases of a label: fewer say nothing


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """How much of one tensor's values lies outside its range, for cases of one label and for the rest."""

    column: str  # "stratum", or a demographic attribute
    label: str
    tensor: str
    share: float  # of the values of this label's cases, in [0, 1]
    others: float  # of the values of all other cases
    cases: int  # of this label


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What the ranges leave out.

    Attributes:
        share: Tensor -> share of all its values that are clipped.
        worst: For each column and label the tensor that clips most, the worst label first.
        warnings: A sentence for each label that is clipped far more than the others.
    """

    share: Mapping[str, float]
    worst: tuple[Clipping, ...]
    warnings: tuple[str, ...]


def ranges_of(quantized: Any) -> dict[str, Range]:
    """The range that each tensor of an int8 graph is clipped to.

    Args:
        quantized: An ``onnx.ModelProto`` with Q/DQ pairs.

    Returns:
        Tensor name -> (low, high).
    """
    wires = wiring(quantized)
    found = {}
    for node in quantized.graph.node:
        parts = list(node.input[1:])
        if node.op_type == "QuantizeLinear" and len(parts) == 2 and all(p in wires.constants for p in parts):
            scale, zero = (wires.array(part) for part in parts)
            if scale.size == 1:
                info = np.iinfo(zero.dtype)
                bounds = (np.array([info.min, info.max], np.float64) - int(zero.item())) * float(scale.item())
                found[node.input[0]] = (float(bounds[0]), float(bounds[1]))
    return found


def coverage(
    observe: Observer,
    ranges: Mapping[str, Range],
    batches: Batches,
    *,
    strata: np.ndarray | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
) -> Coverage:
    """Count for each stratum and group which share of the values the ranges clip.

    With full ranges nothing of the calibration sample itself is clipped: ask this of other cases then.

    Args:
        observe: From `observer`, of the float graph.
        ranges: From `ranges_of`, or an estimator of `pastille.quantization.ranges`.
        batches: Cases in the order of ``strata`` and ``groups``; read once.
        strata: ``(N,)`` labels.
        groups: Attribute -> ``(N,)`` labels.

    Raises:
        CalibrationError: There are no batches.
        ValueError: A column has not one label per case.

    References:
        Hooker et al., "Characterising bias in compressed models", 2020, arXiv:2010.03058.
    """
    clipped = _clipped_shares(observe, ranges, batches)  # tensor -> (N,)
    columns = {**({} if strata is None else {STRATUM: strata}), **(groups or {})}
    n = len(next(iter(clipped.values())))
    for name, column in columns.items():
        if len(column) != n:
            raise ValueError(f"{name} must have one label per case, got {len(column)} for {n} cases")
    worst = [_worst(name, column.astype(str), clipped) for name, column in columns.items()]
    ordered = sorted((c for part in worst for c in part), key=lambda c: -c.share)
    return Coverage(
        share={name: float(each.mean()) for name, each in clipped.items()},
        worst=tuple(ordered),
        warnings=tuple(_warning(c) for c in ordered if _is_notable(c)),
    )


def _clipped_shares(
    observe: Observer, ranges: Mapping[str, Range], batches: Batches
) -> dict[str, np.ndarray]:
    """For each tensor the share of each case's values that lies outside its range, ``(N,)``."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches():
        rows = len(next(iter(batch.values())))
        for name, array in observe(batch):
            if name in ranges and array.ndim and len(array) == rows and array.size:
                parts.setdefault(name, []).append(_outside(array.reshape(rows, -1), ranges[name]))
    if not parts:
        raise CalibrationError("coverage needs at least one batch of samples, and a tensor with a range")
    return {name: np.concatenate(each) for name, each in parts.items()}


def _outside(rows: np.ndarray, bounds: Range) -> np.ndarray:
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    tolerance = (high - low) / 255 / 2  # less than half a step is rounding, not clipping
    share: np.ndarray = ((rows < low - tolerance) | (rows > high + tolerance)).mean(axis=1)
    return share


def _worst(name: str, labels: np.ndarray, clipped: Mapping[str, np.ndarray]) -> Iterable[Clipping]:
    """Each label with the tensor that clips its cases most, compared with all other cases."""
    tensors = list(clipped)
    shares = np.stack([clipped[tensor] for tensor in tensors])  # (tensors, N)
    for label in np.unique(labels):
        own = labels == label
        means = shares[:, own].mean(axis=1)
        at = int(means.argmax())
        rest = float(shares[at, ~own].mean()) if not own.all() else float(means[at])
        yield Clipping(
            column=name,
            label=str(label),
            tensor=tensors[at],
            share=float(means[at]),
            others=rest,
            cases=int(own.sum()),
        )


def _is_notable(found: Clipping) -> bool:
    return (
        found.cases >= _FEWEST and found.share >= _NOTABLE and found.share > _TIMES * max(found.others, 1e-4)
    )


def _warning(found: Clipping) -> str:
    return (
        f"inputs of {found.column} {found.label!r} clip {100 * found.share:.1f} % of values at "
        f"{found.tensor!r}, others {100 * found.others:.1f} %: calibrate on more of them"
    )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How much depends on which cases happened to calibrate.

    Attributes:
        draws: Files that were made, each from another sample.
        undecided: Share of cases that not all of them decide alike; None where nothing is decided.
        deviation: Standard deviation over draws of an output, root mean square over cases and outputs,
            as a share of the outputs' own.
        pairs: Differing decisions of each two draws, as shares of the cases.
    """

    draws: int
    undecided: float | None
    deviation: float
    pairs: tuple[float, ...] = ()


def spread(outputs: Sequence[np.ndarray], decide: Callable[[np.ndarray], np.ndarray] | None = None) -> Spread:
    """Compare what files that were calibrated on different draws answer to the same cases.

    Args:
        outputs: ``(N, ...)`` of each draw, two or more.
        decide: Outputs to decisions ``(N,)``, e.g. ``lambda x: x.argmax(axis=1)``.

    Raises:
        ValueError: There are fewer than two draws, or their shapes differ.

    Example:
        >>> a, b = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.4, 0.6]])
        >>> spread([a, a, b], lambda x: x.argmax(axis=1)).undecided
        0.5
    """
    if len(outputs) < 2 or len({x.shape for x in outputs}) > 1:
        shapes = [x.shape for x in outputs]
        raise ValueError(f"outputs must be of at least two draws and one shape, got {shapes}")
    stacked = np.stack(outputs).astype(np.float64)  # (draws, N, ...)
    signal = float(stacked.mean(axis=0).std()) or 1.0
    decisions = None if decide is None else np.stack([decide(x) for x in outputs])
    draws = len(outputs)
    pairs = [(i, j) for i in range(draws) for j in range(i + 1, draws)] if decisions is not None else []
    return Spread(
        draws=draws,
        undecided=None if decisions is None else float((decisions != decisions[0]).any(axis=0).mean()),
        deviation=float(np.sqrt(stacked.var(axis=0, ddof=1).mean())) / signal,
        pairs=tuple(float((decisions[i] != decisions[j]).mean()) for i, j in pairs if decisions is not None),
    )
