"""Cross-layer equalization: two layers with a Relu between them share their ranges channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pastille.quantization.recovery.graph import wiring
from pastille.quantization.recovery.seams import (
    Place,
    Seam,
    factors,
    powers_of_two,
    rescaled,
    seams,
    weight_maxima,
)

_SWEEPS = 20
_SETTLED = 0.05  # of a doubling: the result is rounded to whole ones

_Weights = dict[tuple[str, int], np.ndarray]


def equalized(model: Any) -> Any:
    """Rescale the channels between layers until the weights before and after have equal ranges.

    A channel that is a hundred times larger than the others takes all steps of an 8-bit tensor; after
    this none is. No data is needed, and the graph computes the same to the bit: the factors are powers
    of two.

    Args:
        model: A float ``onnx.ModelProto`` with inferred shapes and named nodes; not modified.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, section 4.1.
    """
    between = tuple(seam for seam in seams(model) if not seam.normalized)
    wires = wiring(model)
    places = {place for seam in between for place in (seam.above[0], *seam.below)}
    weights = {_key(p): wires.array(wires.nodes[p.node].input[p.index]).astype(np.float64) for p in places}
    return rescaled(model, _settled(between, weights).items())


def _settled(between: tuple[Seam, ...], weights: _Weights) -> Mapping[Seam, np.ndarray]:
    """Sweep over the seams until nothing moves; a layer between two seams is changed by both."""
    doublings = {seam: np.zeros(seam.channels) for seam in between}
    for _ in range(_SWEEPS):
        moved = 0.0
        for seam in between:
            step = _step(seam, weights)
            doublings[seam] += np.log2(step)
            moved = max(moved, float(np.abs(np.log2(step)).max()))
            weights = _moved(weights, seam, step)
        if moved < _SETTLED:
            break
    return {seam: powers_of_two(np.exp2(total)) for seam, total in doublings.items()}


def _step(seam: Seam, weights: _Weights) -> np.ndarray:
    """The square root of (range before / range after) of each channel; 1 where a channel is dead."""
    before = weight_maxima(weights[_key(seam.above[0])], seam.above[0])
    after = np.max([weight_maxima(weights[_key(place)], place) for place in seam.below], axis=0)
    alive = (before > 0) & (after > 0)
    ratio = np.divide(before, after, out=np.ones(seam.channels), where=alive)
    return np.asarray(np.sqrt(ratio))


def _moved(weights: _Weights, seam: Seam, step: np.ndarray) -> _Weights:
    sides = [(seam.above[0], 1 / step), *((place, step) for place in seam.below)]
    new = dict(weights)
    for place, by in sides:
        new[_key(place)] = new[_key(place)] * factors(new[_key(place)].shape, place, by)
    return new


def _key(place: Place) -> tuple[str, int]:
    return place.node, place.index
