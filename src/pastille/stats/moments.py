"""Mean and deviation within each case: what an input is known again by."""

from __future__ import annotations

import numpy as np

MAX_CHANNELS = 16
MAX_FEATURES = 1024


def channels_of(shape: tuple[int, ...]) -> int:
    """How many channels of a case are looked at on their own, else 1 for all of it.

    Args:
        shape: Of a case, without the batch axis.

    Example:
        >>> [channels_of(shape) for shape in ((3, 8, 8), (64, 8, 8), (30,), ())]
        [3, 1, 30, 1]
    """
    most = MAX_FEATURES if len(shape) == 1 else MAX_CHANNELS
    return shape[0] if shape and shape[0] <= most else 1


def moments(x: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each case and channel.

    Args:
        x: ``(N, ...)`` floats.
        channels: Entries of axis 1, or 1 for all of a case.

    Returns:
        Two arrays ``(N, channels)``, float32.

    Example:
        >>> moments(np.array([[[1.0, 3.0], [5.0, 5.0]]]), 2)
        (array([[2., 5.]], dtype=float32), array([[1., 0.]], dtype=float32))
    """
    flat = x.reshape(len(x), channels, -1).astype(np.float32, copy=False)
    if flat.shape[2] == 1:
        return flat[:, :, 0], np.zeros(flat.shape[:2], np.float32)
    mean = flat.mean(axis=2)
    off = flat - mean[..., None]  # centred first: squares of large means would swamp a small deviation
    return mean, np.sqrt(np.einsum("ncx,ncx->nc", off, off) / np.float32(flat.shape[2]))
