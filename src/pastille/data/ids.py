"""What cases are called in the user's own files, so that errors and lists speak of those."""

from __future__ import annotations

import numpy as np

from pastille.data.split import Splits
from pastille.errors import DataError
from pastille.stats.alignment import first_repeat, shown
from pastille.values import SplitName

MAX_ID = 1000  # characters; an array of text is as wide as its longest entry
_TEXT_OR_WHOLE = "UTOiu"  # dtype kinds; bytes would need an encoding


def at(split: SplitName, index: int, ids: np.ndarray | None = None) -> str:
    """One case, as errors name it.

    Example:
        >>> at("train", 1, np.array(["img_3.jpg", "img_7.jpg"])), at("test", 4)
        ('train[1] (img_7.jpg)', 'test[4]')
    """
    return f"{split}[{index}]{called(ids, index)}"


def called(ids: np.ndarray | None, index: int) -> str:
    """What follows the place of a case in an error: its id, where there is one.

    Example:
        >>> called(np.array(["img_3.jpg", "img_7.jpg"]), 1), called(None, 1)
        (' (img_7.jpg)', '')
    """
    return "" if ids is None else f" ({shown(ids[index])})"


def row_ids(n: int) -> np.ndarray:
    """Names for the rows of a file that names none itself.

    Example:
        >>> row_ids(2).tolist()
        ['row 0', 'row 1']
    """
    return np.strings.add("row ", np.arange(n).astype(str))


def checked_ids(values: np.ndarray, *, what: str) -> np.ndarray:
    """Ids as text, once they are known to name one case each.

    Args:
        values: ``(N,)`` text or whole numbers.
        what: They are, e.g. ``"ids of train"``.

    Returns:
        ``(N,)`` str.

    Raises:
        DataError: They are something else, one is empty or longer than `MAX_ID`, or one occurs twice.

    Example:
        >>> checked_ids(np.array([7, 8, 7]), what="ids of train")
        Traceback (most recent call last):
        pastille.errors.DataError: ids of train must differ, but '7' names both case 0 and case 2; ...
    """
    if values.ndim != 1 or values.dtype.kind not in _TEXT_OR_WHOLE:
        raise DataError(
            f"{what} must be text or whole numbers of shape (N,), got {values.dtype} {values.shape}"
        )
    lengths = _lengths(values)
    wrong = np.flatnonzero((lengths == 0) | (lengths > MAX_ID))
    if wrong.size:
        row = wrong[0]
        raise DataError(
            f"{what} must have 1 to {MAX_ID} characters, but that of case {row} has {lengths[row]}"
        )
    text = values.astype(str)
    repeat = first_repeat(text)
    if repeat is not None:
        raise DataError(
            f"{what} must differ, but {shown(text[repeat[1]])!r} names both case {repeat[0]} and "
            f"case {repeat[1]}; remove one, or give each a name of its own"
        )
    return text


def _lengths(values: np.ndarray) -> np.ndarray:
    """Characters of each, ``(N,)``, without widening all to the longest."""
    if values.dtype.kind == "O":
        return np.fromiter((len(str(value)) for value in values), np.int64, len(values))
    return np.strings.str_len(values if values.dtype.kind in "UT" else values.astype(str))


def check_ids(splits: Splits) -> None:
    """Refuse ids that do not name one case of their split each.

    The same id in two splits is a leak: see `pastille.data.leakage`.

    Raises:
        DataError: As `checked_ids`; names the split.
    """
    for name, split in splits:
        if split.ids is not None:
            checked_ids(split.ids, what=f"ids of {name}")
