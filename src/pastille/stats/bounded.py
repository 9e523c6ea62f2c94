"""The mean of changes that are bounded, and how far the true one may lie from it.

Balanced accuracy, the area under the ROC curve and their like are means of parts that a case gains or
loses: none can lose more than all of its own. `Losses` says how much each subject moves such a mean and
how much one could; `score_interval` bounds the true drop from that alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pastille.stats.normal import critical_value
from pastille.values import Interval


@dataclass(frozen=True, kw_only=True)
class Part:
    """Cases that are averaged: all that a share asks, or one class of a ranking.

    The metric is the mean of ``1 / weight`` parts (a ranking's two classes are one).
    """

    rows: np.ndarray  # (N,) bool, not empty
    change: np.ndarray  # (N,) how much each of them lost, in [-1, 1]
    weight: float  # of the part's mean in the metric


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How much subjects moved a metric, and how much one might."""

    drop: float
    variance: float  # of the drop, over subjects
    jump: float  # by how much one subject may move the metric


def losses(drop: float, parts: Iterable[Part], *, subjects: np.ndarray | None) -> Losses:
    """Sum what cases lost by subject.

    Args:
        drop: How much the metric lost.
        parts: What it is the mean of; they may share cases and subjects.
        subjects: ``(N,)``, or None if every case is a subject of its own.

    Returns:
        The variance is that of influences summed by subject, whatever their dependence (for one area:
        DeLong's, and Obuchowski's by subject). The jump is that of the subjects of the part in which one
        counts most, larger subjects counting more, as they do in a variance.
    """
    held = list(parts)
    size = len(held[0].rows)
    unit = np.arange(size) if subjects is None else np.unique(subjects, return_inverse=True)[1]
    influence, stakes = np.zeros(size), np.zeros(size)  # of each case
    for part in held:
        each = part.weight / np.count_nonzero(part.rows)
        mean = float(part.change[part.rows].mean())
        units = int(np.count_nonzero(np.bincount(unit[part.rows])))
        spread = math.sqrt(units / (units - 1)) if units > 1 else 1.0
        influence += np.where(part.rows, (part.change - mean) * (each * spread), 0.0)
        stakes += np.where(part.rows, each, 0.0)
    totals = np.bincount(unit, weights=influence)
    # A subject that has any case in a part may lose all of its cases, in whichever part they are.
    at_stake = np.bincount(unit, weights=stakes)[unit]
    return Losses(
        drop=drop,
        variance=float((totals**2).sum()),
        jump=max(float(at_stake[part.rows].mean()) for part in held),
    )


def score_interval(found: Losses, confidence: float) -> Interval:
    """The drops that the cases do not rule out, seen and unseen losses counted.

    A drop beyond the one observed needs something that the cases did not show. What they can rule out
    least is that a few subjects lose everything: if the true drop is ``e`` beyond the observed one, and the
    largest possible is ``room`` beyond it, such subjects add up to ``e * jump * (room - e)`` to its variance.
    The upper end is where ``e^2 = z^2 * (variance + e * jump * (room - e))``; the lower end likewise.

    Without any change, and with one case per subject, this is Tango's interval, ``z^2 / (n + z^2)``; of an
    area it is DeLong's with room for a few cases that fall out of order altogether, which the observed
    variance knows nothing of (`tests/stats/test_stats_bounded.py` counts how often DeLong's alone would
    approve those).

    Args:
        found: From `losses`.
        confidence: In ``(0, 1)``.

    Returns:
        The interval of the drop, inside ``[-1, 1]``; it always has a width.

    Example:
        >>> score_interval(Losses(drop=0.0, variance=0.0, jump=1 / 100), 0.95)
        Interval(low=-0.0369..., high=0.0369..., confidence=0.95)

    References:
        DeLong et al., Biometrics 44, 1988; Obuchowski, Biometrics 53, 1997; Tango, Statistics in
        Medicine 17, 1998.
    """
    z, error = critical_value(confidence), math.sqrt(found.variance)

    def reach(room: float) -> float:
        """Towards an end that is ``room`` away for every case."""
        return score_reach(error, found.jump * room, bound=room, z=z) if room > 0 else 0.0

    return Interval(
        low=max(-1.0, found.drop - reach(1 + found.drop)),
        high=min(1.0, found.drop + reach(1 - found.drop)),
        confidence=confidence,
    )


def score_reach(error: float, jump: float, *, bound: float, z: float) -> float:
    """Solve ``e^2 = z^2 * (error^2 + e * jump * (1 - e / bound))`` for the positive ``e``.

    Args:
        error: Standard error of what was seen.
        jump: By how much one subject may move the metric.
        bound: The most that all subjects together may; infinite if nothing bounds it.
        z: Standard errors to one side.

    Example:
        >>> round(score_reach(0.01, 0.0, bound=1.0, z=1.96), 4)  # nothing unseen
        0.0196
        >>> round(score_reach(0.01, 0.001, bound=1.0, z=1.96), 4)
        0.0216
    """
    unseen = z * z * jump
    stretch = 1 + unseen / bound
    return (unseen + math.sqrt(unseen**2 + 4 * stretch * (z * error) ** 2)) / (2 * stretch)
