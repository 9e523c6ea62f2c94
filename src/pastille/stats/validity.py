"""Whether cases can be used at all: targets, and whom they belong to, fit the task and each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pastille.values import Cases

_AXES = {"binary": 1, "multiclass": 1, "regression": 1, "multilabel": 2, "segmentation": 3}


def check_cases(cases: Cases) -> None:
    """See that targets fit the kind and the labels, and that every column has one entry per case.

    Raises:
        ValueError: There is no case; targets have another number of axes, are no whole numbers (or, of
            a regression, not finite), or are outside the list of labels; a column has another length.

    Example:
        >>> check_cases(Cases(kind="binary", split="test", targets=np.array([0, 1, 2]), labels=("a", "b")))
        Traceback (most recent call last):
        ValueError: targets must be between 0 and 1, indices of the labels a, b, got 2 at case 2 ...
    """
    if len(cases.targets) == 0:
        raise ValueError("cases must hold at least one case")
    _check_axes(cases)
    if cases.kind == "regression":
        _check_numbers(cases.targets)
    elif cases.kind != "custom":
        _check_indices(cases)
    for name, column in _columns(cases):
        if np.shape(column)[:1] != (len(cases.targets),):
            raise ValueError(
                f"{name} must have one entry per case, got {np.shape(column)} for {len(cases.targets)} cases"
            )


def _check_axes(cases: Cases) -> None:
    axes = _AXES.get(cases.kind, np.ndim(cases.targets))
    if np.ndim(cases.targets) != axes:
        raise ValueError(
            f"targets of a {cases.kind} task must have {axes} {'axis' if axes == 1 else 'axes'}, "
            f"got shape {np.shape(cases.targets)}"
        )
    if cases.kind == "multilabel" and cases.targets.shape[1] != len(cases.labels):
        raise ValueError(
            f"targets must have one column per label, got {cases.targets.shape} for {len(cases.labels)}"
        )


def _check_numbers(targets: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(targets))
    if bad.size:
        raise ValueError(
            f"targets must be finite, got {targets[bad[0]]} at case {bad[0]} ({bad.size} of {targets.size})"
        )


def _check_indices(cases: Cases) -> None:
    targets, labels = cases.targets, cases.labels
    if targets.dtype.kind not in "iub":
        raise ValueError(f"targets of a {cases.kind} task must be whole numbers, got {targets.dtype}")
    last = 1 if cases.kind == "multilabel" else len(labels) - 1
    if targets.min() >= 0 and targets.max() <= last:
        return
    outside = (targets < 0) | (targets > last)
    first = tuple(int(i) for i in np.argwhere(outside)[0])
    meaning = (
        "absent or present" if cases.kind == "multilabel" else f"indices of the labels {_listed(labels)}"
    )
    raise ValueError(
        f"targets must be between 0 and {last}, {meaning}, got {targets[first]} at case {first[0]} "
        f"({int(outside.sum())} of {targets.size})"
    )


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")


def _columns(cases: Cases) -> Iterator[tuple[str, np.ndarray]]:
    yield from ((f"groups[{attribute!r}]", column) for attribute, column in cases.groups.items())
    optional = {"subjects": cases.subjects, "strata": cases.strata, "ids": cases.ids}
    yield from ((name, column) for name, column in optional.items() if column is not None)
