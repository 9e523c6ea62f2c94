"""Which cases two models decide differently, for every kind of task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pastille.values import Cases

SAME_DICE = 0.9  # two masks that overlap less are different answers
MOVED = 0.1  # of the targets' standard deviation: predictions further apart are different answers

Transition = tuple[str, str, int]  # baseline, candidate, cases


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What became of the decision on each case; every array is ``(N,)`` bool."""

    changed: np.ndarray
    newly_wrong: np.ndarray  # among the changed
    newly_right: np.ndarray  # among the changed
    lost: np.ndarray | None  # a positive turned negative; None without positive classes
    gained: np.ndarray | None  # a negative turned positive
    transitions: tuple[Transition, ...]  # most frequent first


def changes(before: np.ndarray, after: np.ndarray, cases: Cases) -> Changes | None:
    """Hold the decisions of a candidate against those of its baseline.

    * Binary, multiclass: a case is changed if its class is. *Newly wrong* is right before, wrong after.
    * Multilabel: changed if any label is. A case is right if all its labels are, so that a changed case
      may be neither newly wrong nor newly right; it may have lost one positive label and gained another.
    * Segmentation: changed if the two masks of any class but the first, which is the background, have a
      Dice below `SAME_DICE`; a class that only one of them has, has a Dice of 0, be it one pixel.
    * Regression: changed if the prediction moves by more than `MOVED` standard deviations of the targets.
    * A segmentation and a number are never quite right: there *newly wrong* is changed for the worse, by
      the mean Dice over classes or the absolute error against the truth.

    Args:
        before: What the baseline decides: class indices ``(N,)``, 0 or 1 for each label ``(N, L)``, class
            indices of pixels ``(N, H, W)``, or numbers ``(N,)``.
        after: What the candidate decides.
        cases: The right answers.

    Returns:
        The changes; None for a custom task, whose answers only the user's metric can read.

    Raises:
        ValueError: If the decisions do not have the shape of the targets.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([1, 1, 0]), labels=("well", "ill"),
        ...               positive=(1,))
        >>> found = changes(np.array([1, 1, 0]), np.array([1, 0, 0]), cases)
        >>> found.lost, found.transitions
        (array([False,  True, False]), (('ill', 'well', 1),))
    """
    if cases.kind == "custom":
        return None
    before, after = np.asarray(before), np.asarray(after)
    for name, decided in (("before", before), ("after", after)):
        if decided.shape != cases.targets.shape:
            raise ValueError(
                f"{name} must be decisions of shape {cases.targets.shape} like the targets, "
                f"got {decided.shape}"
            )
    match cases.kind:
        case "multilabel":
            return _of_labels(before.astype(bool), after.astype(bool), cases)
        case "segmentation":
            return _of_masks(before, after, cases)
        case "regression":
            return _of_numbers(before, after, cases.targets)
        case _:
            return _of_classes(before, after, cases)


def mask_dice(one: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """Dice of two masks of each case and class but the first.

    Args:
        one: ``(N, H, W)`` class indices.
        other: The same, by somebody else.
        classes: K, with the background.

    Returns:
        ``(N, K - 1)``; 1 where neither has the class.

    Example:
        >>> mask_dice(np.array([[[0, 1], [1, 1]]]), np.array([[[0, 1], [0, 2]]]), 3)
        array([[0.5, 0. ]])
    """
    dice = np.ones((len(one), classes - 1))
    for index in range(1, classes):
        ours, theirs = one == index, other == index
        size = ours.sum(axis=(1, 2)) + theirs.sum(axis=(1, 2))
        both = (ours & theirs).sum(axis=(1, 2))
        np.divide(2.0 * both, size, out=dice[:, index - 1], where=size > 0)
    return dice


def present_classes(masks: np.ndarray, classes: int) -> np.ndarray:
    """Which classes each mask ``(N, H, W)`` has a pixel of, ``(N, K)`` bool."""
    return np.stack([(masks == index).any(axis=(1, 2)) for index in range(classes)], axis=1)


def _of_classes(before: np.ndarray, after: np.ndarray, cases: Cases) -> Changes:
    right_before, right_after = before == cases.targets, after == cases.targets
    was, is_now = (np.isin(decided, cases.positive) for decided in (before, after))
    changed = before != after
    pairs = Counter(zip(before[changed].tolist(), after[changed].tolist(), strict=True))
    named = ((cases.labels[a], cases.labels[b], count) for (a, b), count in pairs.items())
    return Changes(
        changed=changed,
        newly_wrong=right_before & ~right_after,
        newly_right=right_after & ~right_before,
        lost=was & ~is_now if cases.positive else None,
        gained=is_now & ~was if cases.positive else None,
        transitions=_ordered(named),
    )


def _of_labels(before: np.ndarray, after: np.ndarray, cases: Cases) -> Changes:
    truth = cases.targets.astype(bool)
    right_before, right_after = (before == truth).all(axis=1), (after == truth).all(axis=1)
    lost, gained = before & ~after, after & ~before  # (N, L)
    return Changes(
        changed=(before != after).any(axis=1),
        newly_wrong=right_before & ~right_after,
        newly_right=right_after & ~right_before,
        lost=_any_positive(lost, cases),
        gained=_any_positive(gained, cases),
        transitions=_ordered(_presence_transitions(lost, gained, cases.labels)),
    )


def _of_masks(before: np.ndarray, after: np.ndarray, cases: Cases) -> Changes:
    count = len(cases.labels)
    apart = mask_dice(before, after, count) < SAME_DICE  # (N, K - 1)
    changed = np.asarray(apart.any(axis=1))
    good_before, good_after = (mask_dice(x, cases.targets, count).mean(axis=1) for x in (before, after))
    was, is_now = present_classes(before, count), present_classes(after, count)
    redrawn = (was & is_now)[:, 1:] & apart
    outlines = zip(cases.labels[1:], redrawn.sum(axis=0).tolist(), strict=True)
    return Changes(
        changed=changed,
        newly_wrong=changed & (good_after < good_before),
        newly_right=changed & (good_after > good_before),
        lost=_any_positive(was & ~is_now & changed[:, None], cases),
        gained=_any_positive(is_now & ~was & changed[:, None], cases),
        transitions=_ordered(
            [
                *_presence_transitions((was & ~is_now)[:, 1:], (is_now & ~was)[:, 1:], cases.labels[1:]),
                *((name, f"{name}, another outline", count) for name, count in outlines),
            ]
        ),
    )


def _of_numbers(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> Changes:
    changed = np.abs(after - before) > MOVED * targets.std()
    error_before, error_after = np.abs(before - targets), np.abs(after - targets)
    higher = int((changed & (after > before)).sum())
    return Changes(
        changed=changed,
        newly_wrong=changed & (error_after > error_before),
        newly_right=changed & (error_after < error_before),
        lost=None,
        gained=None,
        transitions=_ordered(
            [
                ("prediction", "higher prediction", higher),
                ("prediction", "lower prediction", int(changed.sum()) - higher),
            ]
        ),
    )


def _any_positive(of_class: np.ndarray, cases: Cases) -> np.ndarray | None:
    return np.asarray(of_class[:, cases.positive].any(axis=1)) if cases.positive else None


def _presence_transitions(
    lost: np.ndarray, gained: np.ndarray, labels: tuple[str, ...]
) -> Iterable[Transition]:
    for index, name in enumerate(labels):
        yield name, f"no {name}", int(lost[:, index].sum())
        yield f"no {name}", name, int(gained[:, index].sum())


def _ordered(found: Iterable[Transition]) -> tuple[Transition, ...]:
    return tuple(sorted((x for x in found if x[2]), key=lambda x: (-x[2], x[0], x[1])))
