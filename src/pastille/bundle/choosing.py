"""Which cases become golden."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pastille.bundle.golden import DECIDING, MASK_SHARE, MAX_GOLDEN_BYTES, equal_share
from pastille.data.splitting import stratification
from pastille.stats.decisions import decisions, probabilities
from pastille.values import Kind

DEFAULT_CASES = 16
_MAX_ANSWER_BYTES = MAX_GOLDEN_BYTES // 2  # of all variants to all golden cases: masks are large


def choose_cases(
    outputs: Sequence[np.ndarray],
    *,
    kind: Kind,
    threshold: float = 0.5,
    positive: int = 1,
    count: int = DEFAULT_CASES,
) -> np.ndarray:
    """Choose which cases become golden: typical ones, taken in turn from every decision.

    A case that lies on the edge between two classes may flip when another CPU rounds differently, and
    would then condemn a sound file; so cases come from the middle of their class, where a real fault
    shows and rounding does not. Only cases that all variants decide alike are taken.

    Of several labels the rarest that a case is given stands for its class, and the label nearest to its
    threshold for the case. A mask has pixels on an edge wherever an object ends, and no two variants draw
    it alike: there the images with the fewest such pixels are taken, in turn from every set of classes that
    occurs. Tasks that decide nothing have their cases spread over the (first) number of the answers.

    Args:
        outputs: Logits or numbers of each variant, ``(N, ...)`` each; the first sets what is typical.
        kind: Of the task.
        threshold: Of a binary or multilabel task.
        positive: Of a binary task: the label that ``threshold`` speaks of, 0 or 1.
        count: How many to choose; fewer, but one, where answers are too large to ship so many.

    Returns:
        Sorted indices, shape ``(min(count, N'),)``, where N' cases are decided alike.

    Raises:
        ValueError: No case is decided alike by all variants.

    Example:
        >>> logits = np.array([[0.1, 0.0], [3.0, 0.0], [9.0, 0.0], [0.0, 2.0]])
        >>> choose_cases([logits], kind="multiclass", count=2)
        array([1, 3])
    """
    count = min(count, max(1, _MAX_ANSWER_BYTES // sum(x[0].nbytes for x in outputs)))
    if kind not in DECIDING:
        order = np.argsort(_first_numbers(outputs[0]), kind="stable")
        return np.sort(order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))])
    if kind == "segmentation":
        sets = stratification(decisions(kind, outputs[0], threshold=threshold), kind)
        clear = _clearness(outputs[0], threshold)  # (N,)
        return _in_turn([_clearest_first(cases, clear) for cases in _members(sets)], count)
    decided = [decisions(kind, x, threshold=threshold, positive=positive) for x in outputs]
    alike = np.all([equal_share(d, decided[0]) == 1 for d in decided], axis=0)  # (N,)
    if not alike.any():
        raise ValueError("outputs must be decided alike in at least one case, got none")
    margin = _margins(kind, probabilities(kind, outputs[0]), threshold=threshold, positive=positive)  # (N,)
    classes = stratification(decided[0], kind)
    return _in_turn([_typical_first(cases[alike[cases]], margin) for cases in _members(classes)], count)


def _first_numbers(outputs: np.ndarray) -> np.ndarray:
    while outputs.ndim > 1:  # a view of each: answers may be large
        outputs = outputs[:, 0]
    return outputs


def _margins(kind: Kind, probability: np.ndarray, *, threshold: float, positive: int) -> np.ndarray:
    """How far each case is from another decision, ``(N,)``, in units of probability."""
    if kind == "binary":  # of the second label
        return np.abs(probability - (threshold if positive == 1 else 1 - threshold))
    if kind == "multilabel":
        return np.asarray(np.abs(probability - threshold).min(axis=1))
    ordered = np.sort(probability, axis=1)  # (N, K)
    margin: np.ndarray = ordered[:, -1] - ordered[:, -2]
    return margin


def _clearness(outputs: np.ndarray, threshold: float) -> np.ndarray:
    """Log-odds by which all but a few pixels of each image are clear of another class, ``(N,)``."""
    return np.array([np.quantile(_pixel_margins(image, threshold), 1 - MASK_SHARE) for image in outputs])


def _pixel_margins(image: np.ndarray, threshold: float) -> np.ndarray:
    if image.ndim == 2 or len(image) == 1:  # one logit
        with np.errstate(divide="ignore"):
            return np.asarray(np.abs(image - (np.log(threshold) - np.log1p(-threshold))))
    top = np.partition(image, -2, axis=0)
    margin: np.ndarray = top[-1] - top[-2]
    return margin


def _members(classes: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(classes == c) for c in np.unique(classes)]


def _typical_first(cases: np.ndarray, margin: np.ndarray) -> list[int]:
    if not len(cases):
        return []
    distance = np.abs(margin[cases] - np.median(margin[cases]))
    return [int(i) for i in cases[np.argsort(distance, kind="stable")]]


def _clearest_first(cases: np.ndarray, clear: np.ndarray) -> list[int]:
    return [int(i) for i in cases[np.argsort(-clear[cases], kind="stable")]]


def _in_turn(ranked: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """The first of each, then the second of each, until there are enough; sorted."""
    longest = max(len(cases) for cases in ranked)
    taken = [cases[turn] for turn in range(longest) for cases in ranked if turn < len(cases)]
    return np.sort(taken[:count])
