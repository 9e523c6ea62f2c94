"""Per-channel normalization: measured on the train split only, and applied to each input as it is read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pastille.data.checks import require_finite
from pastille.data.ids import at
from pastille.data.split import Inputs, batches
from pastille.errors import DataError
from pastille.progress import Progress
from pastille.values import Normalization

if TYPE_CHECKING:  # a server prepares inputs without recipes, which take a third of its start
    from pastille.recipe import Normalize

# Of ImageNet's train split, RGB in [0, 1]: what torchvision's and most of timm's models were trained with.
IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_BATCH = 32
_Moments = tuple[int, np.ndarray, np.ndarray]  # count, mean (C,), sum of squared deviations (C,)


def normalized(x: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    """Compute ``(x - mean) / std`` per channel.

    Args:
        x: ``(C, ...)``.
        normalization: One mean and one standard deviation per channel; None changes nothing.

    Returns:
        ``x`` itself for None, else float32 of the same shape.

    Example:
        >>> normalized(np.array([[1.0, 3.0]]), Normalization(mean=(1.0,), std=(2.0,)))
        array([[0., 1.]], dtype=float32)
    """
    if normalization is None:
        return x
    per_channel = (-1,) + (1,) * (x.ndim - 1)
    mean = np.asarray(normalization.mean, np.float32).reshape(per_channel)
    std = np.asarray(normalization.std, np.float32).reshape(per_channel)
    scaled: np.ndarray = (x.astype(np.float32, copy=False) - mean) / std
    return scaled


def normalization_for(
    asked: Normalize,
    train: Inputs,
    *,
    channels: int,
    progress: Progress,
    ids: np.ndarray | None = None,
) -> Normalization | None:
    """What ``data.normalize`` of a recipe asks for.

    Args:
        asked: ``auto`` measures ``train``; ``imagenet``, ``none`` and given numbers do not read it.
        train: Inputs of the train split, not yet normalized, ``(C, ...)`` each.
        channels: C.
        progress: Shows the pass over ``train``.
        ids: ``(N,)`` what the cases of ``train`` are called, for errors.

    Raises:
        DataError: The numbers given, or ImageNet's three, do not fit the channels; or ``train`` is empty
            or holds NaN or infinity.
    """
    if asked == "none":
        return None
    if asked == "auto":
        return measure_normalization(train, progress=progress, ids=ids)
    if asked == "imagenet":
        return _fitting(IMAGENET, channels)
    return _fitting(Normalization(mean=tuple(asked.mean), std=tuple(asked.std)), channels)


def _fitting(normalization: Normalization, channels: int) -> Normalization:
    given = (len(normalization.mean), len(normalization.std))
    if given != (channels, channels):
        raise DataError(
            f"data.normalize must give one mean and one std for each of {channels} channels, "
            f"got {given[0]} and {given[1]}"
        )
    return normalization


def measure_normalization(
    train: Inputs, *, progress: Progress, ids: np.ndarray | None = None
) -> Normalization:
    """Mean and standard deviation of each channel, in one pass.

    Args:
        train: Inputs of the train split, ``(C, ...)`` each, all of one shape.
        progress: Shows the pass.
        ids: ``(N,)`` what the cases are called, for errors.

    Returns:
        Population mean and standard deviation to six digits, so that machines whose sums differ in the
        last bit agree; a standard deviation of 0 is given as 1.

    Raises:
        DataError: ``train`` is empty, or holds NaN or infinity.

    Example:
        >>> from pastille.progress import SILENT
        >>> measure_normalization(np.array([[0.0, 5.0], [2.0, 5.0]]), progress=SILENT)
        Normalization(mean=(1.0, 5.0), std=(1.0, 1.0))

    References:
        Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983 (merging).
    """
    if len(train) == 0:
        raise DataError("split train is empty: there is nothing to measure data.normalize on")
    chunks = batches(train, range(len(train)), _BATCH)
    count = -(-len(train) // _BATCH)
    tracked = progress.track(chunks, what="measuring normalization", total=count)
    n, mean, squares = functools.reduce(
        _merged, (_finite_moments(batch, number * _BATCH, ids) for number, batch in enumerate(tracked))
    )
    std = np.sqrt(squares / n)
    return Normalization(mean=_rounded(mean), std=_rounded(np.where(std > 0, std, 1.0)))


def _finite_moments(batch: Mapping[str, np.ndarray], first: int, ids: np.ndarray | None) -> _Moments:
    ((name, array),) = batch.items()
    if not np.isfinite(array).all():
        for i, row in enumerate(array):
            require_finite(row, name=name, where=at("train", first + i, ids))
    return _moments(array)


def _moments(batch: np.ndarray) -> _Moments:
    flat = batch.astype(np.float64).reshape(*batch.shape[:2], -1)  # (N, C, rest)
    mean = flat.mean(axis=(0, 2))
    return flat.shape[0] * flat.shape[2], mean, np.square(flat - mean[:, None]).sum(axis=(0, 2))


def _merged(a: _Moments, b: _Moments) -> _Moments:
    n = a[0] + b[0]
    shift = b[1] - a[1]
    mean = a[1] + shift * (b[0] / n)
    return n, mean, a[2] + b[2] + np.square(shift) * (a[0] * b[0] / n)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
