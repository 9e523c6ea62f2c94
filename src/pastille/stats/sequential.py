"""Two bundles compared by labels as they come in: looked at any day, with no more false alarms for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

Side = Literal["different", "b_worse", "b_better"]
Arm = Literal["a", "b"]

_PRIOR = 0.18  # of the estimates: Turner, Ly and Grünwald's choice for small samples
_MOST_WAITING = 10_000  # labels of one arm that the other has no partners for yet
_MOST_PER_BLOCK = 99


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Labels of complete blocks, and the evidence in them; numbers, or arrays of them for many runs."""

    correct_a: float | np.ndarray = 0.0
    correct_b: float | np.ndarray = 0.0
    n_a: int = 0
    n_b: int = 0
    log_evidence: float | np.ndarray = 0.0


def after_block(
    tally: Tally,
    yes_a: float | np.ndarray,
    yes_b: float | np.ndarray,
    *,
    per_block: tuple[int, int],
    side: Side,
) -> Tally:
    """Add one block: as many labels of either arm as a block has.

    The block's evidence is the likelihood of its labels if the two rates were those estimated from earlier
    blocks, over that if both arms had their mean. Its expectation is at most 1 whenever the rates are
    equal, and for a side whenever they differ the other way.

    Args:
        tally: Of earlier blocks.
        yes_a: How many of the block's answers of a were correct; a number, or ``(runs,)``.
        yes_b: And of b.
        per_block: How many answers of a and of b make a block.
        side: What there shall be evidence for.

    Returns:
        With the block.

    References:
        Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for
        optional stopping", Journal of Statistical Planning and Inference 230, 2024.
    """
    a = (tally.correct_a + _PRIOR) / (tally.n_a + 2 * _PRIOR)
    b = (tally.correct_b + _PRIOR) / (tally.n_b + 2 * _PRIOR)
    n_a, n_b = per_block
    mean = (n_a * a + n_b * b) / (n_a + n_b)
    gained = _log_ratio(a, mean, yes_a, n_a) + _log_ratio(b, mean, yes_b, n_b)
    return Tally(
        correct_a=tally.correct_a + yes_a,
        correct_b=tally.correct_b + yes_b,
        n_a=tally.n_a + n_a,
        n_b=tally.n_b + n_b,
        log_evidence=tally.log_evidence + gained * _bet(a, b, side),
    )


def _log_ratio(
    rate: float | np.ndarray, mean: float | np.ndarray, yes: float | np.ndarray, n: int
) -> float | np.ndarray:
    found: float | np.ndarray = yes * np.log(rate / mean) + (n - yes) * np.log((1 - rate) / (1 - mean))
    return found


def _bet(a: float | np.ndarray, b: float | np.ndarray, side: Side) -> float | np.ndarray:
    """1 where the estimates lie on the side that evidence is sought for, else 0: no bet on this block."""
    match side:
        case "different":
            return 1.0
        case "b_worse":
            return np.less(b, a) * 1.0
        case "b_better":
            return np.greater(b, a) * 1.0


def labels_per_block(share_b: float) -> tuple[int, int]:
    """How many labels of a and of b make a block, so that few have to wait for the other arm's.

    Args:
        share_b: Of the labels that b gets, in ``(0, 1)``.

    Raises:
        ValueError: If ``share_b`` is out of range.

    Example:
        >>> labels_per_block(0.5), labels_per_block(0.1), labels_per_block(0.75)
        ((1, 1), (9, 1), (1, 3))
    """
    if not 0 < share_b < 1:
        raise ValueError(f"share_b must be in (0, 1), got {share_b}")
    ratio = (1 - share_b) / share_b
    if ratio >= 1:
        return min(_MOST_PER_BLOCK, round(ratio)), 1
    return 1, min(_MOST_PER_BLOCK, round(1 / ratio))


@final
class TwoSampleTest:
    """Tests whether two bundles are right equally often, label by label, for as long as one likes.

    If they are (for a side: if the difference is none, or the other way), the chance that there is ever an
    alarm is at most ``significance``, however often it is looked at and whenever it is stopped. Labels may
    come late and in any order that does not depend on whether the answer was correct.

    Args:
        share_b: Of the subjects that b gets, in ``(0, 1)``; it sets the sizes of a block.
        side: What there shall be evidence for.
        significance: Chance of a false alarm, in ``(0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> test = TwoSampleTest(side="b_worse")
        >>> for _ in range(30):
        ...     test.update("a", True)
        ...     test.update("b", False)
        >>> test.alarm
        True
    """

    def __init__(self, *, share_b: float = 0.5, side: Side = "different", significance: float = 0.05) -> None:
        if not 0 < significance < 1:
            raise ValueError(f"significance must be in (0, 1), got {significance}")
        sizes = labels_per_block(share_b)
        self.side: Side = side
        self.alarm_at = 1 / significance
        self.alarm = False
        self.labelled: dict[Arm, int] = {"a": 0, "b": 0}
        self.correct: dict[Arm, int] = {"a": 0, "b": 0}
        self._sizes: dict[Arm, int] = {"a": sizes[0], "b": sizes[1]}
        self._waiting: dict[Arm, deque[bool]] = {"a": deque(), "b": deque()}
        self._tally = Tally()

    @property
    def evidence(self) -> float:
        """What a bettor who began with 1 holds now."""
        return float(np.exp(min(self._tally.log_evidence, 600.0)))

    def update(self, arm: Arm, correct: bool) -> None:
        """Look at one more label.

        Args:
            arm: Who gave the answer.
            correct: Whether the label says so too. Where 10,000 wait for labels of the other arm, it is
                counted but not tested.
        """
        self.labelled[arm] += 1
        self.correct[arm] += correct
        waiting = self._waiting[arm]
        if len(waiting) < _MOST_WAITING:
            waiting.append(correct)
        if all(len(self._waiting[each]) >= size for each, size in self._sizes.items()):
            self._tally = after_block(
                self._tally,
                self._taken("a"),
                self._taken("b"),
                per_block=(self._sizes["a"], self._sizes["b"]),
                side=self.side,
            )
            self.alarm = self.alarm or self.evidence >= self.alarm_at

    def _taken(self, arm: Arm) -> int:
        return sum(self._waiting[arm].popleft() for _ in range(self._sizes[arm]))
