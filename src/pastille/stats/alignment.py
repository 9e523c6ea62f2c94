"""Whether two lists of ids speak of the same cases in the same order."""

from __future__ import annotations

import numpy as np

_NAMED = 3  # ids that an error names
_SHOWN = 40  # characters of an id that an error shows


def check_same_order(ids: np.ndarray, other_ids: np.ndarray) -> None:
    """Refuse to compare predictions that are not of the same cases, row by row.

    Args:
        ids: ``(N,)`` what the cases of the first predictions are called; text, or numbers.
        other_ids: ``(N,)`` of the second.

    Raises:
        ValueError: An id occurs twice, the two name different cases, or the same in another order.

    Example:
        >>> check_same_order(np.array(["a", "b"]), np.array(["b", "a"]))
        Traceback (most recent call last):
        ValueError: ids must come in the same order, but row 0 is 'a' in one and 'b' in the other; ...
    """
    first, second = _checked(ids, other_ids)
    differing = np.flatnonzero(first != second)
    if differing.size:
        row = int(differing[0])
        raise ValueError(
            f"ids must come in the same order, but row {row} is {shown(first[row])!r} in one and "
            f"{shown(second[row])!r} in the other; reorder with pastille.stats.alignment.align"
        )


def align(ids: np.ndarray, other_ids: np.ndarray) -> np.ndarray:
    """Where each case of one list stands in another list of the same cases.

    Args:
        ids: ``(N,)`` the order that is wanted.
        other_ids: ``(N,)`` the order that is at hand.

    Returns:
        ``(N,)`` int64 permutation, with ``other_ids[align(ids, other_ids)]`` equal to ``ids``.

    Raises:
        ValueError: An id occurs twice, or the two name different cases.

    Example:
        >>> at_hand, predictions = np.array(["c", "a", "b"]), np.array([0.3, 0.1, 0.2])
        >>> predictions[align(np.array(["a", "b", "c"]), at_hand)]
        array([0.1, 0.2, 0.3])
    """
    first, second = _checked(ids, other_ids)
    order = np.argsort(second)
    return np.asarray(order[np.searchsorted(second, first, sorter=order)], np.int64)


def first_repeat(ids: np.ndarray) -> tuple[int, int] | None:
    """The first row whose id was there before, and where it was; None if all differ.

    Example:
        >>> first_repeat(np.array(["a", "b", "a"])), first_repeat(np.array(["a", "b"]))
        ((0, 2), None)
    """
    _, firsts, inverse = np.unique(ids, return_index=True, return_inverse=True)
    repeats = np.flatnonzero(firsts[inverse] != np.arange(len(ids)))
    return (int(firsts[inverse[repeats[0]]]), int(repeats[0])) if repeats.size else None


def shown(name: object) -> str:
    r"""An id as an error shows it: short, on one line, and nothing in it that steers a terminal.

    Example:
        >>> shown("img_7.png"), shown("a\n\x1b[2J"), len(shown("x" * 10_000))
        ('img_7.png', 'a\\n\\x1b[2J', 41)
    """
    text = str(name)
    cut = text[:_SHOWN] + "…" if len(text) > _SHOWN else text
    return cut if cut.isprintable() else repr(cut)[1:-1]


def _checked(ids: np.ndarray, other_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as text, once they are known to name the same cases."""
    first, second = (_distinct(values) for values in (ids, other_ids))
    _require_all_of(first, second, "in the first but not in the second")
    _require_all_of(second, first, "in the second but not in the first")
    return first, second


def _distinct(ids: np.ndarray) -> np.ndarray:
    values = np.asarray(ids)
    if values.ndim != 1:
        raise ValueError(f"ids must have shape (N,), got {values.shape}")
    values = values.astype(str)
    repeat = first_repeat(values)
    if repeat is not None:
        before, row = repeat
        raise ValueError(
            f"ids must differ from each other, but {shown(values[row])!r} is in rows {before} and {row}"
        )
    return values


def _require_all_of(wanted: np.ndarray, found: np.ndarray, what: str) -> None:
    missing = wanted[~np.isin(wanted, found)]
    if missing.size:
        named = ", ".join(repr(shown(name)) for name in missing[:_NAMED])
        more = f" and {missing.size - _NAMED} more" if missing.size > _NAMED else ""
        raise ValueError(f"ids must be of the same cases, but {missing.size} are {what}: {named}{more}")
