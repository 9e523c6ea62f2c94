"""SmoothQuant: outlier channels of activations are moved into the weights that read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pastille.quantization.ranges import Batches, Observer
from pastille.quantization.recovery.graph import wiring
from pastille.quantization.recovery.seams import Seam, powers_of_two, rescaled, seams, weight_maxima

STRENGTH = 0.5


def smoothed(model: Any, observe: Observer, batches: Batches, *, strength: float = STRENGTH) -> Any:
    """Divide each channel of an activation by what makes it easy to quantize, and multiply its weights.

    Works wherever what makes the activation has a scale to fold the division into: a LayerNormalization
    or a layer, with a Relu, pooling or reshaping in between. The graph computes the same to the bit: the
    factors are powers of two.

    Args:
        model: A float ``onnx.ModelProto`` with inferred shapes and named nodes; not modified.
        observe: From `observer`, of this model.
        batches: Calibration batches.
        strength: In [0, 1]: 0 leaves the difficulty with the activations, 1 moves it into the weights.

    Raises:
        ValueError: ``strength`` is outside [0, 1].

    References:
        Xiao et al., ICML 2023, arXiv:2211.10438, equation 4.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    found = seams(model)
    maxima = channel_maxima(observe, batches, found)
    wires = wiring(model)
    scales = []
    for seam in found:
        arrays = [(wires.array(wires.nodes[p.node].input[p.index]), p) for p in seam.below]
        after = np.max([weight_maxima(array, place) for array, place in arrays], axis=0)
        scales.append((seam, smoothing(maxima[seam.tensor], after, strength)))
    return rescaled(model, scales)


def smoothing(activations: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """What each channel is divided by: powers of two around 1.

    Args:
        activations: ``(channels,)`` largest magnitudes.
        weights: ``(channels,)`` the same of the weights that read them.
        strength: In [0, 1].

    Example:
        >>> smoothing(np.array([64.0, 1.0, 1.0]), np.ones(3), 0.5)
        array([4. , 0.5, 0.5])
    """
    alive = (activations > 0) & (weights > 0)
    if not alive.any():
        return np.ones(len(activations))
    doublings = strength * np.log2(activations[alive]) - (1 - strength) * np.log2(weights[alive])
    scale = np.ones(len(activations))
    scale[alive] = np.exp2(doublings - doublings.mean())
    return powers_of_two(scale)


def channel_maxima(observe: Observer, batches: Batches, found: Iterable[Seam]) -> Mapping[str, np.ndarray]:
    """The largest magnitude that each channel of the seams' tensors takes.

    Returns:
        Tensor name -> ``(channels,)``.
    """
    wanted = {seam.tensor: seam for seam in found}
    maxima = {name: np.zeros(seam.channels) for name, seam in wanted.items()}
    for batch in batches():
        for name, array in observe(batch):
            if name in wanted:
                maxima[name] = np.maximum(maxima[name], _maxima(array, wanted[name]))
    return maxima


def _maxima(array: np.ndarray, seam: Seam) -> np.ndarray:
    rows = np.moveaxis(np.abs(array), seam.axis, 0).reshape(seam.channels, -1)
    found: np.ndarray = rows.max(axis=1, initial=0.0)
    return found
