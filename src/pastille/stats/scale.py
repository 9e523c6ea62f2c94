"""Logits or probabilities? Everything here speaks logits; what comes as probabilities is turned into them.

A softmax or sigmoid that is left out costs nothing, and logits keep cases apart that saturated
probabilities put together. Which of the two an array holds is recognised, never guessed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pastille.stats.decisions import check_shape, has_planes, sigmoid
from pastille.values import Kind

Scale = Literal["auto", "logits", "probabilities"]

SUM_TOLERANCE = 1e-3  # of a row of probabilities: they may have been rounded to three digits
_ROUNDING = 1e-6  # by which a softmax in single precision may leave [0, 1]
_IMPOSSIBLE = -746.0  # in place of log 0: below the log of every float, and its sigmoid is 0
_CERTAIN = 37.5  # in place of the log-odds of 1: above those of every float below 1, and its sigmoid is 1


def to_logits(kind: Kind, outputs: np.ndarray, given: Scale = "auto", *, name: str = "outputs") -> np.ndarray:
    """Logits, from logits or from probabilities.

    Args:
        kind: What the task is.
        outputs: Logits or probabilities, in any shape of `pastille.stats.decisions.output_problem`.
        given: Which of the two. ``"auto"`` takes values of which some are negative for logits, and rows
            inside ``[0, 1]`` that sum to 1 for probabilities; anything else it refuses.
        name: Of the array, for messages.

    Returns:
        Logits, as they are, or made from probabilities: log p of a softmax, log-odds of a sigmoid, finite
        for 0 and 1 too. They order cases as the probabilities do, and decide as these do at any threshold
        (`pastille.stats.decisions.decisions`). Regression and custom tasks have neither and come back
        as they are.

    Raises:
        ValueError: The outputs do not fit the kind, are not finite, or could be either; or they are said
            to be probabilities but are outside ``[0, 1]`` or do not sum to 1.

    Example:
        >>> to_logits("multiclass", np.array([[0.25, 0.75]])).round(3)
        array([[-1.386, -0.288]])
        >>> to_logits("binary", np.array([0.5, 1.0]), "probabilities")
        array([ 0. , 37.5])
        >>> to_logits("binary", np.array([0.2, 0.9]))
        Traceback (most recent call last):
        ValueError: outputs must be said to be logits or probabilities: all lie between 0 and 1, ...
    """
    values = np.asarray(outputs)
    if given not in ("auto", "logits", "probabilities"):
        raise ValueError(f"given must be 'auto', 'logits' or 'probabilities', got {given!r}")
    if kind in ("regression", "custom"):
        if given == "probabilities":
            raise ValueError(f"{name} of a {kind} task must not be probabilities")
        return values
    check_shape(kind, values, name=name)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity in {_first(~np.isfinite(values))}")
    found = _recognised(kind, values, name) if given == "auto" else given
    return values if found == "logits" else _from_probabilities(kind, values, name)


def looks_like_probabilities(kind: Kind, outputs: np.ndarray) -> bool:
    """Whether outputs could be probabilities: all in ``[0, 1]``, and rows of a softmax sum to 1.

    Where there is no row to sum this is a reason to ask, not a proof: see `to_logits`.

    Example:
        >>> looks_like_probabilities("multiclass", np.array([[0.25, 0.75]]))
        True
        >>> looks_like_probabilities("multiclass", np.array([[0.25, 0.95]]))
        False
    """
    values = np.asarray(outputs)
    if kind in ("regression", "custom") or values.size == 0 or not _inside(values).all():
        return False
    return not (_is_softmax(kind, values) and _wrong_sums(values).any())


def _recognised(kind: Kind, values: np.ndarray, name: str) -> Scale:
    if not _inside(values).all():
        if values.min() < 0:
            return "logits"
        why = f"none is negative, and they reach {values.max():.6g} (probabilities in per cent?)"
        raise ValueError(f"{name} must be said to be logits or probabilities: {why}")
    if not _is_softmax(kind, values):
        why = "all lie between 0 and 1"
    elif not (wrong := _wrong_sums(values)).any():
        return "probabilities"
    else:
        why = f"all lie between 0 and 1, but {_sum_of(values, wrong)}"
    raise ValueError(f"{name} must be said to be logits or probabilities: {why}, so they could be either")


def _is_softmax(kind: Kind, values: np.ndarray) -> bool:
    """Whether axis 1 holds one number for each class, of which one is right."""
    return (
        kind == "multiclass"
        or (kind == "binary" and values.shape[1:] == (2,))
        or (kind == "segmentation" and has_planes(values))
    )


def _inside(values: np.ndarray) -> np.ndarray:
    inside: np.ndarray = (values >= -_ROUNDING) & (values <= 1 + _ROUNDING)
    return inside


def _wrong_sums(values: np.ndarray) -> np.ndarray:
    wrong: np.ndarray = np.abs(values.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE
    return wrong


def _sum_of(values: np.ndarray, wrong: np.ndarray) -> str:
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    total = float(np.moveaxis(values, 1, -1)[at].sum(dtype=np.float64))
    more = int(np.count_nonzero(wrong)) - 1
    also = f" (and {more} more do not sum to 1)" if more else ""
    return f"{_place(at)} sums to {total:.6g}{also}"


def _first(mask: np.ndarray) -> str:
    """Say where a mask is first true, and how often."""
    more = int(np.count_nonzero(mask)) - 1
    where = _place(tuple(int(i) for i in np.argwhere(mask)[0]))
    return f"{where} and {more} more" if more else where


def _place(at: tuple[int, ...]) -> str:
    return f"row {at[0]}" + (f" at {at[1:]}" if len(at) > 1 else "")


def _from_probabilities(kind: Kind, values: np.ndarray, name: str) -> np.ndarray:
    outside = ~_inside(values)
    if outside.any():
        raise ValueError(
            f"{name} must be probabilities in [0, 1], got {values[outside][0]} in {_first(outside)}"
        )
    if not _is_softmax(kind, values):
        return _log_odds(values)
    wrong = _wrong_sums(values)
    if wrong.any():
        raise ValueError(f"{name} must be probabilities that sum to 1, but {_sum_of(values, wrong)}")
    if kind == "binary":  # the threshold speaks of a probability, so its log-odds must come out exact
        half = _log_odds(values[:, 1]) / 2
        return np.column_stack([-half, half])
    return _log(values)


def _log(values: np.ndarray) -> np.ndarray:
    """In the precision that is given: the masks of a segmentation are large."""
    known = values if values.dtype.kind == "f" else values.astype(np.float64)
    logs: np.ndarray = np.log(known, out=np.full_like(known, _IMPOSSIBLE), where=known > 0)
    return logs


def _log_odds(values: np.ndarray) -> np.ndarray:
    chances = np.asarray(values, np.float64)
    inner = (chances > 0) & (chances < 1)
    odds = np.where(chances >= 1, _CERTAIN, _IMPOSSIBLE)
    odds[inner] = _inner_log_odds(chances[inner])
    return odds


def _inner_log_odds(chances: np.ndarray) -> np.ndarray:
    odds: np.ndarray = np.log(chances) - np.log1p(-chances)
    # Rounded up: a probability that equals the threshold must still reach it on the way back.
    while (short := sigmoid(odds) < chances).any():
        at, wanted = odds[short], chances[short]
        step = (wanted - sigmoid(at)) / (wanted * (1 - wanted))
        odds[short] = np.maximum(at + step, np.nextafter(at, np.inf))
    return odds
