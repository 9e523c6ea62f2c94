"""Whether an outcome piles up in a part of the cases, where subjects have several cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 9_999
_LIKE_SIZES = 1.25  # subjects change places with those of like size: up to this ratio
_FEW = 16  # below one in so many, drawing again what was drawn twice is faster than shuffling all
_AT_ONCE = 4_000_000  # numbers that are held at a time


def permuted_p_values(
    outcomes: Sequence[np.ndarray],
    parts: Sequence[np.ndarray],
    subjects: np.ndarray,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> list[list[np.ndarray]]:
    """Chance of at least so many hits in each part, were subjects unlike each other by chance alone.

    What became of a subject's cases is kept together and handed to another subject with as many cases:
    cases of one subject may be alike, subjects are independent. This is exact; subjects with six cases or
    more also change places with those of nearly as many (a ratio up to 1.25), which is nearly so.

    Args:
        outcomes: ``(N,)`` bool each: the cases that have the outcome.
        parts: ``(N,)`` int each: the part that a case is in, from 0; -1 for none.
        subjects: ``(N,)``.
        permutations: How many; the smallest p-value is one over one more.
        seed: The same seed gives the same p-values.

    Returns:
        For each outcome, for each of ``parts``, ``(values,)`` one-sided p-values in ``(0, 1]``.

    Example:
        >>> ill = np.repeat([True, False], [10, 190])
        >>> person, sex = np.repeat(np.arange(100), 2), np.repeat([0, 1], [20, 180])
        >>> (p,), = permuted_p_values([ill], [sex], person)
        >>> p.tolist()
        [0.0001, 1.0]

    References:
        Winkler et al., "Multi-level block permutation", NeuroImage 123, 2015 (whole-block exchange);
        Phipson and Smyth, "Permutation p-values should never be zero", 2010.
    """
    union = np.logical_or.reduce(outcomes)
    observed = [[_counts(codes[hits][None], _values(codes))[0] for codes in parts] for hits in outcomes]
    reached = [[np.zeros(len(counts), np.int64) for counts in row] for row in observed]
    within = [hits[union] for hits in outcomes]  # (M,) each
    widest = max(map(_values, parts), default=0)
    step = max(1, _AT_ONCE // max(1, widest, len(subjects)))
    for landed in _landings(union, subjects, permutations, step, seed):  # (r, M) case that each lands on
        for part, codes in enumerate(parts):
            there = codes[landed]
            for row, mask in enumerate(within):
                counts = _counts(there[:, mask], _values(codes))
                reached[row][part] += (counts >= observed[row][part]).sum(axis=0)
    return [[(1 + times) / (1 + permutations) for times in row] for row in reached]


def _values(codes: np.ndarray) -> int:
    return int(codes.max(initial=-1)) + 1


def _counts(codes: np.ndarray, values: int) -> np.ndarray:
    """How often each value is in each row: ``(r, M)`` codes from -1 to ``(r, values)`` counts."""
    rows = len(codes)
    flat = (codes + 1 + (values + 1) * np.arange(rows)[:, None]).ravel()
    counts = np.bincount(flat, minlength=rows * (values + 1)).reshape(rows, values + 1)
    return np.asarray(counts[:, 1:])


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Subjects of like size, and their cases that have an outcome."""

    members: np.ndarray  # (S,) subjects
    carriers: np.ndarray  # (C,) those of them that have such a case
    holder: np.ndarray  # (M,) index into carriers
    position: np.ndarray  # (M,) of the case among its subject's
    slots: np.ndarray  # (M,) where these cases stand among all that have an outcome


def _landings(
    hits: np.ndarray, subjects: np.ndarray, permutations: int, step: int, seed: int
) -> Iterator[np.ndarray]:
    """Permute ``step`` times at once."""
    rng = np.random.default_rng(seed)
    _, owner, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    order = np.argsort(owner, kind="stable")  # cases, subject by subject
    starts = np.cumsum(sizes) - sizes
    blocks = _blocks(hits, owner, order, starts, sizes)
    total = int(hits.sum())
    for first in range(0, permutations, step):
        rows = min(step, permutations - first)
        landed = np.empty((rows, total), np.int64)
        for block in blocks:
            chosen = _distinct(rng, rows, len(block.members), len(block.carriers))  # (r, C)
            target = block.members[chosen][:, block.holder]  # (r, M) the subject that each case is handed to
            own = sizes[block.carriers[block.holder]]
            landed[:, block.slots] = order[starts[target] + block.position * sizes[target] // own]
        yield landed


def _blocks(
    hits: np.ndarray, owner: np.ndarray, order: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> list[_Block]:
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    cases = np.flatnonzero(hits)
    position = rank[cases] - starts[owner[cases]]
    likeness = np.floor(np.log(sizes) / np.log(_LIKE_SIZES)).astype(np.int64)  # (subjects,)
    blocks = []
    for kind in np.unique(likeness[owner[cases]]):
        members = np.flatnonzero(likeness == kind)
        slots = np.flatnonzero(likeness[owner[cases]] == kind)
        carriers, holder = np.unique(owner[cases[slots]], return_inverse=True)
        blocks.append(
            _Block(members=members, carriers=carriers, holder=holder, position=position[slots], slots=slots)
        )
    return blocks


def _distinct(rng: np.random.Generator, rows: int, n: int, count: int) -> np.ndarray:
    """In each row, ``count`` different ones of the numbers below ``n``, all choices being as likely."""
    if _FEW * count > n:
        return rng.permuted(np.tile(np.arange(n), (rows, 1)), axis=1)[:, :count]
    drawn = rng.integers(0, n, (rows, count))
    while (again := _repeats(drawn)).any():
        drawn[again] = rng.integers(0, n, int(again.sum()))
    return drawn


def _repeats(rows: np.ndarray) -> np.ndarray:
    """Where a row ``(r, C)`` has a number that it had before."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    found = np.zeros(rows.shape, bool)
    np.put_along_axis(found, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return found
