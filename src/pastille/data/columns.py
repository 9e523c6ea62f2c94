"""What stands in the columns of a table, as targets, groups, bands and splits."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pastille.data.split import SPLIT_NAMES
from pastille.errors import DataError
from pastille.values import SplitName

Where = Callable[[int], str]  # row, counted from 0 -> e.g. "metadata.csv row 7: 'dx'"

UNKNOWN = "unknown"  # the group of a case whose attribute is missing
OTHER = "other"  # in a label map: every value that it does not name

_MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", UNKNOWN})
_SPLIT_ALIASES: Mapping[str, SplitName] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}


def is_missing(value: str) -> bool:
    """Whether a cell stands for "not known".

    Example:
        >>> [is_missing(value) for value in ("", "NaN", "0")]
        [True, True, False]
    """
    return value.strip().lower() in _MISSING


def closest(given: str, allowed: Sequence[str], *, shown: int = 10) -> str:
    """What is allowed instead of ``given``, the nearest first.

    Example:
        >>> closest("meningoma", ["glioma", "meningioma"])
        "did you mean 'meningioma'? allowed: glioma, meningioma"
    """
    near = difflib.get_close_matches(given, allowed, n=1)
    listed = ", ".join(allowed[:shown]) + (
        f" and {len(allowed) - shown} more" if len(allowed) > shown else ""
    )
    return (f"did you mean {near[0]!r}? " if near else "") + f"allowed: {listed or 'none'}"


def class_indices(
    values: Sequence[str], labels: Sequence[str], *, label_map: Mapping[str, str], where: Where
) -> np.ndarray:
    """Turn names into class indices.

    Args:
        values: One per case.
        labels: Index -> name.
        label_map: Value -> label; ``other`` for every value that it does not name. Empty: a value is a
            label itself.
        where: Names a row.

    Returns:
        ``(N,)`` int64.

    Raises:
        DataError: A value is no label, or is not in the map; or the map leads to something that is no
            label.

    Example:
        >>> class_indices(["mel", "nv"], ["benign", "malignant"], where=str,
        ...               label_map={"mel": "malignant", "other": "benign"})
        array([1, 0])
    """
    for label in label_map.values():
        if label not in labels:
            raise DataError(
                f"data.label_map leads to {label!r}, which task.labels lacks; {closest(label, labels)}"
            )
    index = {name: i for i, name in enumerate(labels)}
    known = {value: index[label] for value, label in label_map.items()} if label_map else index
    rest = known.get(OTHER) if label_map else None
    found = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        code = known.get(value, rest)
        if code is None:
            source = "data.label_map" if label_map else "task.labels"
            raise DataError(f"{where(row)} is {value!r}, not in {source}; {closest(value, list(known))}")
        found[row] = code
    return found


def numbers(values: Sequence[str], *, where: Where, may_miss: bool = False) -> np.ndarray:
    """Read a column of numbers.

    Args:
        values: One per case.
        where: Names a row.
        may_miss: Whether a missing value is NaN; otherwise it is an error.

    Returns:
        ``(N,)`` float64.

    Raises:
        DataError: A value is no finite number.

    Example:
        >>> numbers(["1.5", ""], where=str, may_miss=True)
        array([1.5, nan])
    """
    return np.array([_number(value, row, where, may_miss) for row, value in enumerate(values)], np.float64)


def _number(value: str, row: int, where: Where, may_miss: bool) -> float:
    if may_miss and is_missing(value):
        return float("nan")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        empty = ", or empty" if may_miss else ""
        raise DataError(f"{where(row)} must be a finite number{empty}, got {value!r}")
    return number


def band_names(bins: Sequence[float]) -> list[str]:
    """Name the bands that ``bins`` cuts a number into; each begins at its bin.

    Raises:
        DataError: The bins do not ascend.

    Example:
        >>> band_names([45, 65]), band_names([0.5, 1.5])
        (['<45', '45-64', '>=65'], ['<0.5', '0.5-<1.5', '>=1.5'])
    """
    if any(high <= low for low, high in itertools.pairwise(bins)):
        raise DataError(f"bins of a group must ascend, got {[f'{x:g}' for x in bins]}")
    whole = all(float(edge).is_integer() for edge in bins)
    middle = [_band(low, high, whole) for low, high in itertools.pairwise(bins)]
    return [f"<{bins[0]:.12g}", *middle, f">={bins[-1]:.12g}"]


def _band(low: float, high: float, whole: bool) -> str:
    if not whole:
        return f"{low:.12g}-<{high:.12g}"
    return f"{low:.12g}" if high - low == 1 else f"{low:.12g}-{high - 1:.12g}"


def banded(values: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """The band of each number.

    Args:
        values: ``(N,)``; NaN where it is missing.
        bins: Where a new band begins, ascending.

    Returns:
        ``(N,)`` str; ``unknown`` where it is missing.

    Raises:
        DataError: The bins do not ascend.

    Example:
        >>> banded(np.array([44.9, 45, 65, np.nan]), [45, 65]).tolist()
        ['<45', '45-64', '>=65', 'unknown']
    """
    names = np.array([*band_names(bins), UNKNOWN])
    missing = np.isnan(values)
    return names[np.where(missing, len(bins) + 1, np.digitize(np.where(missing, 0, values), bins))]


def groups_of(values: Sequence[str]) -> np.ndarray:
    """A column as group names, missing ones as ``unknown``.

    Example:
        >>> groups_of(["F", ""]).tolist()
        ['F', 'unknown']
    """
    return np.array([UNKNOWN if is_missing(value) else value for value in values], dtype=str)


def subjects_of(values: Sequence[str], *, where: Where) -> np.ndarray:
    """A column as subject ids.

    Raises:
        DataError: One is missing: nothing would tell whom the case belongs to.
    """
    for row, value in enumerate(values):
        if is_missing(value):
            raise DataError(
                f"{where(row)} must name a subject, got {value!r}; give the case an id of its own"
            )
    return np.array(values, dtype=str)


def split_parts(values: Sequence[str], *, where: Where) -> dict[SplitName, np.ndarray]:
    """The rows of each split, from a column that names it.

    Args:
        values: ``train``, ``validation`` (or ``val``) or ``test``, one per case.
        where: Names a row.

    Raises:
        DataError: A value is none of these.

    Example:
        >>> parts = split_parts(["train", "test", "val"], where=str)
        >>> {name: indices.tolist() for name, indices in parts.items()}
        {'train': [0], 'validation': [2], 'test': [1]}
    """
    rows: dict[SplitName, list[int]] = {name: [] for name in SPLIT_NAMES}
    for row, value in enumerate(values):
        name = _SPLIT_ALIASES.get(value.strip().lower())
        if name is None:
            raise DataError(f"{where(row)} must be train, validation (or val) or test, got {value!r}")
        rows[name].append(row)
    return {name: np.array(indices, np.int64) for name, indices in rows.items()}
