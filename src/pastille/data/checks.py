"""Whether targets and inputs can be used at all, and what a split holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pastille.data.ids import at, called
from pastille.data.split import Split, Splits
from pastille.data.splitting import presence
from pastille.errors import DataError
from pastille.values import SplitName

if TYPE_CHECKING:  # a server prepares inputs without recipes, which take a third of its start
    from pastille.recipe import TaskSection


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
    neither a drop in sensitivity nor one in specificity can be judged on the others. Each label of a
    multilabel task needs a positive and a negative case in train; in validation and test it may lack them,
    and is then left out of what is judged there: see `one_sided_labels`. Targets of a custom task may be
    anything but objects: only the user's metric reads them.

    Raises:
        DataError: A split is empty or has one class only; a target is of the wrong dtype or shape, out of
            the range of ``task.labels``, NaN or infinite. Names the split, the index and what is allowed.
    """
    for name, split in splits:
        if split.n == 0:
            raise DataError(f"split {name} is empty; it needs at least one case of two different targets")
        check_shape(split.targets, task, what=f"targets of {name}")
        match task.kind:
            case "regression":
                _check_numbers(name, split)
            case "multilabel":
                _check_labels(name, split, task.labels)
            case "custom":
                _check_plain(name, split.targets)
            case _:
                _check_classes(name, split, task.labels)


def check_shape(targets: np.ndarray, task: TaskSection, *, what: str) -> None:
    """Refuse targets of a shape that the kind of task does not have.

    Args:
        targets: ``(N, ...)``.
        task: Says what targets mean.
        what: They are called in the error.

    Raises:
        DataError: Names the shape that is allowed.

    Example:
        >>> from pastille.recipe import TaskSection
        >>> task = TaskSection(kind="multilabel", labels=["nodule", "effusion"])
        >>> check_shape(np.zeros((5, 3)), task, what="targets of train")
        Traceback (most recent call last):
        pastille.errors.DataError: targets of train must have shape (N, 2), 0 or 1 for each label, got (5, 3)
    """
    match task.kind:
        case "custom":
            return
        case "multilabel":
            labels = len(task.labels)
            fits, wanted = targets.shape[1:] == (labels,), f"(N, {labels}), 0 or 1 for each label"
        case "segmentation":
            fits, wanted = targets.ndim == 3 and 0 not in targets.shape[1:], "(N, H, W), a label per pixel"
        case _:
            fits, wanted = targets.ndim == 1, "(N,), one per case"
    if not fits:
        raise DataError(f"{what} must have shape {wanted}, got {targets.shape}")


def _check_numbers(name: SplitName, split: Split) -> None:
    targets = split.targets
    if targets.dtype.kind not in "fiu":
        raise DataError(f"targets of {name} must be numbers for a regression task, got {targets.dtype}")
    bad = np.flatnonzero(~np.isfinite(targets))
    if bad.size:
        raise DataError(
            f"target {at(name, bad[0], split.ids)} is {targets[bad[0]]}, as {bad.size} of {targets.size} "
            "are not finite; remove such cases"
        )
    if np.all(targets == targets[0]):
        raise DataError(f"all {targets.size} targets of {name} are {targets[0]}; they must differ")


def _check_plain(name: SplitName, targets: np.ndarray) -> None:
    if targets.dtype.kind == "O":
        raise DataError(
            f"targets of {name} must be an array of numbers or text, got objects; pad rows to one length"
        )


def _check_labels(name: SplitName, split: Split, labels: Sequence[str]) -> None:
    targets = split.targets
    if targets.dtype.kind not in "iub":
        raise DataError(f"targets of {name} must be 0 or 1, got {targets.dtype}; convert them to int64")
    bad = np.argwhere((targets != 0) & (targets != 1))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"target {at(name, row, split.ids)} is {targets[row, column]} for {labels[column]!r}, "
            "but must be 0 or 1"
        )
    one_sided = one_sided_labels(targets, labels) if name == "train" else {}
    for label, side in one_sided.items():
        raise DataError(
            f"label {label!r} has no {side} case in train ({len(targets)} cases); it needs both to be "
            "learned and judged: add cases, or leave the label out"
        )


def one_sided_labels(
    targets: np.ndarray, labels: Sequence[str]
) -> dict[str, Literal["positive", "negative"]]:
    """Labels of a multilabel task that no case has, or that every case has: they cannot be judged.

    Args:
        targets: ``(N, L)``, 0 or 1.
        labels: Index -> name.

    Returns:
        Label -> what there is no case of.

    Example:
        >>> one_sided_labels(np.array([[0, 1, 1], [0, 0, 1]]), ["effusion", "nodule", "opacity"])
        {'effusion': 'positive', 'opacity': 'negative'}
    """
    share = targets.mean(axis=0)
    return {
        label: "negative" if value else "positive"
        for label, value in zip(labels, share.tolist(), strict=True)
        if value in (0.0, 1.0)
    }


def _check_classes(name: SplitName, split: Split, labels: Sequence[str]) -> None:
    targets = split.targets
    if targets.dtype.kind not in "iu":
        raise DataError(
            f"targets of {name} must be integer class indices, got {targets.dtype}; convert them to int64"
        )
    bad = np.argwhere((targets < 0) | (targets >= len(labels)))
    if len(bad):
        place = ", ".join(map(str, bad[0]))
        raise DataError(
            f"target {name}[{place}]{called(split.ids, bad[0][0])} is {targets[tuple(bad[0])]}, "
            f"but must be between 0 and {len(labels) - 1}, an index into task.labels ({', '.join(labels)}); "
            f"{len(bad)} of {targets.size} targets are not"
        )
    first = targets.flat[0]
    if np.all(targets == first):
        what = "cases" if targets.ndim == 1 else "pixels"
        raise DataError(
            f"split {name} has one class only: all {targets.size} {what} are {labels[int(first)]!r}; "
            f"it needs {what} of at least two labels"
        )


@dataclass(frozen=True, kw_only=True)
class SplitDescription:
    """One split, described without its rows."""

    n: int
    subjects: int | None
    classes: Mapping[str, int]  # label -> cases that have it; empty without labels
    groups: Mapping[str, Mapping[str, int]]  # attribute -> group -> cases


def describe(split: Split, labels: Sequence[str]) -> SplitDescription:
    """Count what a split holds.

    A case counts for its class; of a multilabel task for every label that it has; of a segmentation for
    every class that it has a pixel of.

    Args:
        split: Checked by `check_targets`.
        labels: Index -> name; empty for regression and custom tasks.

    Example:
        >>> split = Split(inputs=np.zeros((3, 2)), targets=np.array([0, 1, 1]))
        >>> describe(split, ["benign", "malignant"]).classes
        {'benign': 1, 'malignant': 2}
    """
    present = presence(split.targets, len(labels))  # (N, K)
    return SplitDescription(
        n=split.n,
        subjects=None if split.subjects is None else len(np.unique(split.subjects)),
        classes=dict(zip(labels, present.sum(axis=0).tolist(), strict=True)),
        groups={name: _counts(column) for name, column in split.groups.items()},
    )


def _counts(column: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(column.astype(str), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
