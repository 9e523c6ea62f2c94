"""Which samples calibrate a quantizer: as many of each label and stratum as there are."""

from __future__ import annotations

import numpy as np

from pastille.data.split import Split
from pastille.data.splitting import codes, stratification
from pastille.errors import CalibrationError
from pastille.values import Kind

MIN_CALIBRATION = 16


def calibration_indices(split: Split, n: int, *, seed: int, kind: Kind) -> np.ndarray:
    """Sample cases without replacement, balanced over label and stratum.

    Every cell of label and stratum gives equally many; what a small cell cannot give, the others do. What
    stands for the label where a case has none or several: see `pastille.data.splitting.stratification`.

    Args:
        split: Usually train.
        n: How many to sample; all where the split has no more.
        seed: The same seed gives the same sample.
        kind: Of the task.

    Returns:
        Sorted int64 indices, ``(min(n, N),)``.

    Raises:
        CalibrationError: There are, or it asks for, fewer than `MIN_CALIBRATION`.

    Example:
        >>> split = Split(inputs=np.zeros((40, 1)), targets=np.repeat([0, 1], [32, 8]))
        >>> np.bincount(split.targets[calibration_indices(split, 16, seed=0, kind="binary")])
        array([8, 8])
    """
    _require_enough(split.n, n)
    if n >= split.n:
        return np.arange(split.n)
    rng = np.random.default_rng(seed)
    cell = _cells(split, kind)  # (N,)
    sizes = np.bincount(cell)
    take = allocate(sizes, n, order=rng.permutation(len(sizes)))
    drawn = [rng.permutation(np.flatnonzero(cell == i))[:count] for i, count in enumerate(take)]
    return np.sort(np.concatenate(drawn))


def allocate(sizes: np.ndarray, n: int, *, order: np.ndarray) -> np.ndarray:
    """Share n out over cells as equally as their sizes allow.

    Args:
        sizes: ``(cells,)`` cases of each.
        n: At most their sum.
        order: A permutation of the cells: which of them come first to the last few that are left over.

    Returns:
        ``(cells,)`` cases to take of each, summing to n.

    Example:
        >>> allocate(np.array([2, 10, 10]), 11, order=np.array([2, 1, 0]))
        array([2, 4, 5])
    """
    level = 0  # of the water: the largest whole share that all cells can be filled to with n
    while np.minimum(sizes, level + 1).sum() <= n and level < sizes.max():
        level += 1
    take: np.ndarray = np.minimum(sizes, level)
    larger = order[sizes[order] > level]
    take[larger[: n - take.sum()]] += 1
    return take


def _require_enough(available: int, n: int) -> None:
    if available < MIN_CALIBRATION:
        raise CalibrationError(
            f"calibration must have at least {MIN_CALIBRATION} samples, but the split holds {available}: "
            "ranges measured on so few would clip the rest; bring more training data"
        )
    if n < MIN_CALIBRATION:
        raise CalibrationError(
            f"calibration must have at least {MIN_CALIBRATION} samples, got {n}; raise quantize.samples"
        )


def _cells(split: Split, kind: Kind) -> np.ndarray:
    label = stratification(split.targets, kind)
    stratum = np.zeros(split.n, np.int64)
    if split.strata is not None:
        stratum = codes(split.strata.astype(str))
    return codes(label * (stratum.max() + 1) + stratum)
