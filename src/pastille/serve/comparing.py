"""Where two answers to the same cases differ, and whether a positive was lost by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pastille.bundle import Answer, Manifest
from pastille.bundle.golden import MASK_SHARE, equal_share


@dataclass(frozen=True, kw_only=True, eq=False)
class Differences:
    """Two answers, case by case.

    Attributes:
        disagree: ``(N,)`` bool: they decide differently.
        lost: ``(N,)`` bool: the served one calls negative what the other calls positive.
        gained: ``(N,)`` bool: the other way round.
    """

    disagree: np.ndarray
    lost: np.ndarray
    gained: np.ndarray


def compare(served: Answer, other: Answer, manifest: Manifest) -> Differences:
    """Hold two answers to the same cases against each other.

    A multilabel case is lost where the served answer lacks a positive label that the other has; a mask is
    lost where it has no positive pixel and the other has one. Where no label is named as positive, that is
    the second one of a binary task, each one of a multilabel task, and none otherwise.

    Args:
        served: What the client got, N cases.
        other: What it is held against, N cases.
        manifest: Says what is decided, and which labels must not be missed.

    Returns:
        ``(N,)`` each. Regression and custom tasks decide nothing, so there none disagree.

    Raises:
        ValueError: The answers have different numbers of cases.
    """
    if len(served.outputs) != len(other.outputs):
        raise ValueError(f"answers must have one length, got {len(served.outputs)}, {len(other.outputs)}")
    if served.masks is not None and other.masks is not None:
        disagree = equal_share(served.masks, other.masks) < MASK_SHARE
    elif served.decisions:
        disagree = _flags([a != b for a, b in zip(served.decisions, other.decisions, strict=True)])
    else:
        disagree = np.zeros(len(served.outputs), bool)
    ours, theirs = _found(served, manifest), _found(other, manifest)
    return Differences(
        disagree=disagree,
        lost=disagree & _flags([bool(b - a) for a, b in zip(ours, theirs, strict=True)]),
        gained=disagree & _flags([bool(a - b) for a, b in zip(ours, theirs, strict=True)]),
    )


def positive_labels(manifest: Manifest) -> frozenset[str]:
    """Labels that must not be missed, also where the bundle names none."""
    if manifest.positive:
        return frozenset(manifest.positive)
    match manifest.kind:
        case "binary":
            return frozenset({manifest.labels[manifest.positive_class]})
        case "multilabel":
            return frozenset(manifest.labels)
        case _:
            return frozenset()


def _found(answer: Answer, manifest: Manifest) -> list[frozenset[str]]:
    """What each case was found to have; which of several classes it is makes no difference."""
    positive = positive_labels(manifest)
    if answer.masks is not None:
        classes = [i for i, label in enumerate(manifest.labels) if label in positive]
        pixels = np.isin(answer.masks, classes).reshape(len(answer.masks), -1)  # (N, H * W)
        return [_ANY if case.any() else _NONE for case in pixels]
    if manifest.kind == "multilabel":
        return [positive.intersection(labels) for labels in answer.decisions]
    if not answer.decisions:
        return [_NONE] * len(answer.outputs)
    return [_ANY if label in positive else _NONE for label in answer.decisions]


_ANY, _NONE = frozenset({""}), frozenset[str]()


def _flags(values: Sequence[bool]) -> np.ndarray:
    return np.array(values, bool)
