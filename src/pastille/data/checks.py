"""Whether targets and inputs can be used at all, and what a split holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pastille.data.split import Split, Splits
from pastille.errors import DataError
from pastille.recipe import TaskSection
from pastille.values import SplitName


def require_finite(array: np.ndarray, *, name: str, where: str) -> None:
    """Refuse NaN and infinity in one input.

    Args:
        array: The input, any shape.
        name: Of the model's input.
        where: Of the sample, e.g. ``"train[3]"``.

    Raises:
        DataError: With how many of its values are not finite.

    Example:
        >>> require_finite(np.array([1.0, np.nan]), name="ecg", where="train[3]")
        Traceback (most recent call last):
        pastille.errors.DataError: input 'ecg' of train[3] holds NaN or infinity in 1 of 2 values; ...
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    bad = array.size - int(np.isfinite(array).sum())
    raise DataError(
        f"input {name!r} of {where} holds NaN or infinity in {bad} of {array.size} values; "
        "fill in or remove such samples"
    )


def check_targets(splits: Splits, task: TaskSection) -> None:
    """Hold every split's targets against the task.

    Each split needs two different targets: with one class only, nothing can be learned from train, and
    neither a drop in sensitivity nor one in specificity can be judged on the others.

    Raises:
        DataError: A split is empty or has one class only; a target is of the wrong dtype or shape, out of
            the range of ``task.labels``, NaN or infinite. Names the split, the index and what is allowed.
    """
    for name, split in splits:
        if split.n == 0:
            raise DataError(f"split {name} is empty; it needs at least one case of two different targets")
        if split.targets.ndim != 1:
            shape = split.targets.shape
            raise DataError(f"targets of {name} must have shape (N,), one per case, got {shape}")
        if task.kind == "regression":
            _check_numbers(name, split.targets)
        else:
            _check_classes(name, split.targets, task.labels)


def _check_numbers(name: SplitName, targets: np.ndarray) -> None:
    if targets.dtype.kind not in "fiu":
        raise DataError(f"targets of {name} must be numbers for a regression task, got {targets.dtype}")
    bad = np.flatnonzero(~np.isfinite(targets))
    if bad.size:
        raise DataError(
            f"target {name}[{bad[0]}] is {targets[bad[0]]}, as {bad.size} of {targets.size} are not finite; "
            "remove such cases"
        )
    if np.all(targets == targets[0]):
        raise DataError(f"all {targets.size} targets of {name} are {targets[0]}; they must differ")


def _check_classes(name: SplitName, targets: np.ndarray, labels: Sequence[str]) -> None:
    if targets.dtype.kind not in "iu":
        raise DataError(
            f"targets of {name} must be integer class indices, got {targets.dtype}; convert them to int64"
        )
    bad = np.flatnonzero((targets < 0) | (targets >= len(labels)))
    if bad.size:
        raise DataError(
            f"target {name}[{bad[0]}] is {targets[bad[0]]}, but must be between 0 and {len(labels) - 1}, an "
            f"index into task.labels ({', '.join(labels)}); {bad.size} of {targets.size} targets are not"
        )
    if np.all(targets == targets[0]):
        raise DataError(
            f"split {name} has one class only: all {targets.size} cases are {labels[int(targets[0])]!r}; "
            "it needs cases of at least two labels"
        )


@dataclass(frozen=True, kw_only=True)
class SplitDescription:
    """One split, described without its rows."""

    n: int
    subjects: int | None
    classes: Mapping[str, int]  # label -> cases; empty for regression
    groups: Mapping[str, Mapping[str, int]]  # attribute -> group -> cases


def describe(split: Split, labels: Sequence[str]) -> SplitDescription:
    """Count what a split holds.

    Args:
        split: Checked by `check_targets`.
        labels: Index -> name; empty for regression.

    Example:
        >>> split = Split(inputs=np.zeros((3, 2)), targets=np.array([0, 1, 1]))
        >>> describe(split, ["benign", "malignant"]).classes
        {'benign': 1, 'malignant': 2}
    """
    counts = np.bincount(split.targets, minlength=len(labels)) if labels else ()
    return SplitDescription(
        n=split.n,
        subjects=None if split.subjects is None else len(np.unique(split.subjects)),
        classes={label: int(count) for label, count in zip(labels, counts, strict=True)},
        groups={name: _counts(column) for name, column in split.groups.items()},
    )


def _counts(column: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(column.astype(str), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
