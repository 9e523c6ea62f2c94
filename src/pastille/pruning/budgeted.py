"""Widths under a budget: as little lost importance as possible for what the network may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_SHARE: Final = 1e-6  # of a group's importance that counts as left once nothing is
_SWAPS: Final = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Limit:
    """One thing that a network may cost.

    Attributes:
        name: As it is called in the recipe, e.g. ``"max_latency.p95"``.
        value: The largest permitted.
        cost: Widths of ``B`` networks ``(B, G)`` -> what they cost, ``(B,)``.
    """

    name: str
    value: float
    cost: Callable[[np.ndarray], np.ndarray]


class OutOfReach(Exception):  # noqa: N818, it names a result
    """Even the narrowest network costs more than is permitted."""

    def __init__(self, limit: Limit, smallest: float) -> None:
        super().__init__(f"{limit.name}: {limit.value:g} asked, {smallest:g} is the smallest")
        self.limit, self.smallest = limit, smallest


def lost_by_scores(scores: Tensor, *, layers: int = 1, comparable: bool = False) -> np.ndarray:
    """What is lost with the ``n`` least important units of a group: ``-log`` of the share that is left.

    For few units it is the importance that goes; it rises without bound as the group runs empty, or a
    whole layer would go to spare another.

    Args:
        scores: Of each unit, ``(C,)``; shifted where some are negative.
        layers: That the units run through: a stream that many layers share is dearer than one's own.
        comparable: Whether scores mean the same in every group: importance then counts as it is, and else
            as a share of the group's, once for each layer.

    Returns:
        ``(C + 1,)``, of ``n = 0 … C``.

    Example:
        >>> import torch
        >>> lost_by_scores(torch.tensor([1.0, 2.0, 1.0]))[:3].round(3).tolist()
        [0.0, 0.288, 0.693]
    """
    held = np.sort(np.asarray(scores.double()))
    held = held - min(held[0], 0.0)
    total = held.sum()
    share = (held if total else np.ones_like(held)) / (total or len(held))
    gone = np.minimum(np.concatenate([[0.0], np.cumsum(share)]), 1 - _LEAST_SHARE)
    lost: np.ndarray = np.abs(np.log1p(-gone)) * (total if comparable else layers)
    return lost


def lost_by_harm(curve: Sequence[tuple[float, float]], width: int) -> np.ndarray:
    """What is lost with ``n`` units of a group, from what a sensitivity scan found.

    Args:
        curve: (sparsity, rise of the loss), ascending by sparsity.
        width: Units of the group, ``C``.

    Returns:
        ``(C + 1,)``, of ``n = 0 … C``: never falling, and rising on beyond the last level as ``-log`` of
        the share that is left does.

    Example:
        >>> lost_by_harm([(0.25, 0.1), (0.5, 0.4)], 4)[:3].round(3).tolist()
        [0.0, 0.1, 0.4]
    """
    levels = np.array([0.0, *(level for level, _ in curve)])
    harm = np.maximum.accumulate([0.0, *(rise for _, rise in curve)])
    share = np.arange(width + 1) / width
    barrier = -np.log(np.maximum(1 - share, _LEAST_SHARE))
    beyond = harm[-1] * np.maximum(0.0, barrier / max(-np.log(1 - min(levels[-1], 0.999)), 1e-9) - 1)
    # A little of the barrier everywhere: where a scan saw no harm at all, less is still better than more.
    lost: np.ndarray = np.interp(share, levels, harm) + beyond + 1e-6 * barrier
    return lost


def widths_of(width: int, multiple: int) -> np.ndarray:
    """The widths that a group may keep, descending: its own, and the multiples below it.

    Example:
        >>> widths_of(20, 8).tolist(), widths_of(6, 8).tolist()
        ([20, 16, 8], [6])
    """
    below = np.arange(multiple, width, multiple)
    return np.concatenate([below, [width]])[::-1]


def with_narrow(widths: np.ndarray, multiple: int, *, least: int = 1) -> np.ndarray:
    """The same, and below the multiple every half of it, down to the least there can be: a last resort.

    Example:
        >>> with_narrow(np.array([16, 8]), 8).tolist()
        [16, 8, 4, 2, 1]
    """
    halves = {multiple >> k for k in range(1, multiple.bit_length())} | {least}
    fitting = (half for half in halves if half < widths[-1] and half % least == 0)
    return np.array([*widths, *sorted(fitting, reverse=True)])


def allocate(widths: Sequence[np.ndarray], lost: Sequence[np.ndarray], limits: Sequence[Limit]) -> np.ndarray:
    """Choose a width for every group: step by step what costs most for what it loses, then swaps.

    Args:
        widths: Of each group, those it may keep, descending; the first is what it has.
        lost: Of each group, what is lost with its ``n`` least important units, ``(C + 1,)``.
        limits: What the network may cost.

    Returns:
        Widths ``(G,)`` within every limit.

    Raises:
        OutOfReach: Not even the last width of every group is.
    """
    choice = _Choice(widths, lost, limits)
    for limit in limits:
        smallest = float(limit.cost(choice.kept(choice.last[None]))[0])
        if smallest > limit.value:
            raise OutOfReach(limit, smallest)
    found: np.ndarray = choice.kept(_swapped(choice, _narrowed(choice))[None])[0]
    return found


class _Choice:
    """Points are positions on the groups' lists of widths, ``(B, G)``."""

    def __init__(
        self, widths: Sequence[np.ndarray], lost: Sequence[np.ndarray], limits: Sequence[Limit]
    ) -> None:
        most = max(map(len, widths))
        # Padded with the last width, so that a step beyond it changes nothing.
        self._widths = np.stack([np.pad(w, (0, most - len(w)), mode="edge") for w in widths])
        removed = self._widths[:, :1] - self._widths
        self._lost = np.stack([curve[n] for curve, n in zip(lost, removed, strict=True)])
        self._limits = limits
        self._groups = np.arange(len(widths))
        self.last = np.array([len(w) - 1 for w in widths])

    def kept(self, points: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._widths[self._groups, points]
        return found

    def lost(self, points: np.ndarray) -> np.ndarray:
        total: np.ndarray = self._lost[self._groups, points].sum(axis=1)
        return total

    def excess(self, points: np.ndarray) -> np.ndarray:
        """How far points are over the limits, as a share of each, together; ``(B,)``."""
        kept = self.kept(points)
        over = [np.maximum(0.0, limit.cost(kept) / limit.value - 1) for limit in self._limits]
        total: np.ndarray = np.sum(over, axis=0)
        return total


def _narrowed(choice: _Choice) -> np.ndarray:
    """From everything, down to the limits: the step that saves most for what it loses, each time."""
    point = np.zeros_like(choice.last)
    while (over := choice.excess(point[None])[0]) > 0:
        free = np.flatnonzero(point < choice.last)
        steps = np.repeat(point[None], len(free), axis=0)
        steps[np.arange(len(free)), free] += 1
        saves = over - choice.excess(steps)
        price = np.maximum(choice.lost(steps) - choice.lost(point[None]), 1e-12)
        point = steps[np.argmax(saves / price)]
    return point


def _swapped(choice: _Choice, point: np.ndarray) -> np.ndarray:
    """Give back a step where there is room, or take one elsewhere for it, while less is lost that way."""
    for _ in range(_SWAPS):
        steps = _neighbours(choice, point)
        gain = choice.lost(point[None])[0] - choice.lost(steps)
        gain[choice.excess(steps) > 0] = 0.0
        if not len(steps) or gain.max() < 1e-9:
            break
        point = steps[np.argmax(gain)]
    return point


def _neighbours(choice: _Choice, point: np.ndarray) -> np.ndarray:
    """One group a step wider, alone or with another a step narrower; ``(B, G)``."""
    count = len(point)
    wider = np.eye(count, dtype=int)[point > 0]
    narrower = np.concatenate([np.zeros((1, count), int), np.eye(count, dtype=int)[point < choice.last]])
    moves = (narrower[None] - wider[:, None]).reshape(-1, count)
    found: np.ndarray = point + moves[np.abs(moves).any(axis=1)]
    return found


def summary(before: Mapping[str, int], kept: Mapping[str, int]) -> str:
    """How much stays, in a few words.

    Example:
        >>> summary({"a": 64, "b": 32}, {"a": 16, "b": 32})
        '48 of 96 units of 2 groups stay'
    """
    return f"{sum(kept.values())} of {sum(before.values())} units of {len(kept)} groups stay"
