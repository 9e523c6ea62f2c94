"""Cutting one table into train, validation and test: by subject, and alike in labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from pastille.data.split import SPLIT_NAMES
from pastille.errors import DataError
from pastille.values import Kind, SplitName

if TYPE_CHECKING:  # a bundle is opened with `stratification` alone: recipes take a third of its start
    from pastille.recipe import Fractions

QUANTILE_BINS = 10
_LEAST_PER_BIN = 10
_OVERALL = (
    0.1  # weight of a split's size beside its share of the label: less lets sizes drift, more lets shares
)


def stratification(targets: np.ndarray, kind: Kind) -> np.ndarray:
    """What splits are made alike in.

    The class; the quantile of a number; of several labels the rarest that a case has, or that it has none,
    since the rare ones are what a split may come to lack; of a mask the set of classes that occur in it.
    Targets of a custom task mean nothing that is known here: all of them are alike.

    Args:
        targets: ``(N,)``; multilabel ``(N, L)``, segmentation ``(N, H, W)``, custom ``(N, ...)``.
        kind: Of the task.

    Returns:
        ``(N,)`` int64. For regression at most `QUANTILE_BINS` bins of at least ten cases.

    Example:
        >>> stratification(np.arange(20.0), "regression").tolist()
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        >>> stratification(np.array([[1, 0], [1, 1], [1, 0], [0, 0]]), "multilabel").tolist()
        [1, 2, 1, 0]
    """
    match kind:
        case "regression":
            return _quantiles(targets)
        case "multilabel":
            return _rarest(targets != 0)
        case "segmentation":
            return _sets(presence(targets, int(targets.max(initial=0)) + 1))
        case "custom":
            return np.zeros(len(targets), np.int64)
        case _:
            return codes(targets)


def presence(targets: np.ndarray, classes: int) -> np.ndarray:
    """Which classes each case has.

    Args:
        targets: ``(N,)`` classes, ``(N, L)`` 0 or 1 for each label, or ``(N, H, W)`` masks.
        classes: How many there are.

    Returns:
        ``(N, classes)`` bool.

    Example:
        >>> presence(np.array([[[0, 2], [2, 2]]]), 3)
        array([[ True, False,  True]])
    """
    if targets.ndim == 2:
        return np.asarray(targets[:, :classes] != 0)
    pixels = tuple(range(1, targets.ndim))
    found = [(targets == c).any(axis=pixels) for c in range(classes)]  # never (N, H, W, classes) at once
    return np.stack(found, axis=1) if found else np.zeros((len(targets), 0), bool)


def _quantiles(targets: np.ndarray) -> np.ndarray:
    bins = max(1, min(QUANTILE_BINS, len(targets) // _LEAST_PER_BIN))
    edges = np.quantile(targets, np.arange(1, bins) / bins) if bins > 1 else np.empty(0)
    return np.asarray(np.digitize(targets, np.unique(edges)))


def _rarest(present: np.ndarray) -> np.ndarray:
    """1 + the rarest label of each row of ``(N, L)``; 0 where it has none."""
    order = np.argsort(present.sum(axis=0), kind="stable")
    first: np.ndarray = order[present[:, order].argmax(axis=1)] + 1
    return np.where(present.any(axis=1), first, 0)


def _sets(present: np.ndarray) -> np.ndarray:
    return np.asarray(np.unique(present, axis=0, return_inverse=True)[1]).reshape(-1)


def split_indices(
    n: int,
    *,
    labels: np.ndarray | None,
    fractions: Fractions,
    subjects: np.ndarray | None,
    seed: int,
) -> dict[SplitName, np.ndarray]:
    """Deal n cases out to train, validation and test, whole subjects at a time.

    Greedy: from the rarest label to the commonest, and from the subject with the most cases of it to the
    one with the fewest, each goes where most is missing of its label, and a little of everything. No split
    is empty. A label whose subjects have no other label is in each split if it has three subjects.

    Args:
        n: Cases.
        labels: ``(N,)`` to be alike in, see `stratification`; None to be alike in nothing.
        fractions: Of validation and test; the rest is train.
        subjects: ``(N,)`` ids, no one of which is put into two splits; None if each case is its own.
        seed: Decides between equals. The same seed gives the same splits.

    Returns:
        Sorted int64 indices of each split: disjoint, and together ``0 … n - 1``.

    Raises:
        DataError: There are fewer than three subjects.

    Example:
        >>> from pastille.recipe import Fractions
        >>> halves = Fractions(validation=0.25, test=0.25)
        >>> parts = split_indices(8, labels=None, fractions=halves, subjects=None, seed=0)
        >>> {name: len(indices) for name, indices in parts.items()}
        {'train': 4, 'validation': 2, 'test': 2}

    References:
        Sechidis, Tsoumakas & Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011.
    """
    owner = codes(np.arange(n) if subjects is None else subjects)  # (N,) subject of each case
    label = np.zeros(n, np.int64) if labels is None else codes(labels)
    total = int(owner.max(initial=-1)) + 1
    if total < len(SPLIT_NAMES):
        what = "cases" if subjects is None else "subjects"
        raise DataError(
            f"the data must have at least {len(SPLIT_NAMES)} {what} to be split in three, got {total}"
        )
    assigned = np.asarray(_deal(_contents(owner, label, total), label, fractions, seed))[owner]
    return {name: np.flatnonzero(assigned == i) for i, name in enumerate(SPLIT_NAMES)}


def codes(values: np.ndarray) -> np.ndarray:
    """Number the different values of ``(N,)`` from 0, in their order.

    Example:
        >>> codes(np.array(["b", "a", "b"]))
        array([1, 0, 1])
    """
    inverse: np.ndarray = np.unique(values, return_inverse=True)[1]
    return inverse


def _contents(owner: np.ndarray, label: np.ndarray, total: int) -> list[Counter[int]]:
    contents: list[Counter[int]] = [Counter() for _ in range(total)]
    for who, what in zip(owner.tolist(), label.tolist(), strict=True):
        contents[who][what] += 1
    return contents


@final
class _Tally:
    """Cases of one label, or of all, that each split has been dealt."""

    def __init__(self) -> None:
        self.got = [0] * len(SPLIT_NAMES)

    def missing(self) -> list[int]:
        """Splits that have none."""
        return [split for split, got in enumerate(self.got) if got == 0]

    def lack(self, split: int, wanted: Sequence[float], arriving: int) -> float:
        """How short of cases the split is once ``arriving`` more are dealt, in units of ``arriving``."""
        return (wanted[split] * (sum(self.got) + arriving) - self.got[split]) / arriving


def _deal(contents: list[Counter[int]], label: np.ndarray, fractions: Fractions, seed: int) -> list[int]:
    """The split of each subject."""
    wanted = (1 - fractions.validation - fractions.test, fractions.validation, fractions.test)
    sizes = Counter(label.tolist())
    tallies = {key: _Tally() for key in sizes}
    overall = _Tally()
    shuffled = np.random.default_rng(seed).permutation(len(contents)).tolist()
    dealt: dict[int, int] = {}
    for key in sorted(sizes, key=lambda key: (sizes[key], key)):
        queue = [who for who in shuffled if key in contents[who] and who not in dealt]
        queue.sort(key=lambda who: -contents[who][key])  # stable: equals stay shuffled
        for done, who in enumerate(queue):
            arriving = contents[who]
            lack = [
                tallies[key].lack(split, wanted, arriving[key])
                + _OVERALL * overall.lack(split, wanted, arriving.total())
                for split in range(len(SPLIT_NAMES))
            ]
            open_to = _open_splits(tallies[key], len(queue) - done, overall, len(contents) - len(dealt))
            dealt[who] = max(open_to, key=lack.__getitem__)
            overall.got[dealt[who]] += arriving.total()
            for what, count in arriving.items():
                tallies[what].got[dealt[who]] += count
    return [dealt[who] for who in range(len(contents))]


def _open_splits(tally: _Tally, left: int, overall: _Tally, left_overall: int) -> Sequence[int]:
    """The splits that may be dealt to, so that none is empty, or without the label, in the end.

    A label with too few subjects to be everywhere is left to chance: forced apart, many such labels would
    fill the small splits.

    Args:
        tally: Of the label.
        left: Subjects with the label that are still to be dealt.
        overall: Of all cases.
        left_overall: Subjects that are still to be dealt.
    """
    if left_overall == len(overall.missing()):
        return overall.missing()  # these lack the label too
    if left == len(tally.missing()):
        return tally.missing()
    return range(len(SPLIT_NAMES))
