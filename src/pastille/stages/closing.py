"""The loop that closes on a budget: choose widths, make the network, measure it, correct the prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pastille.progress import Progress
from pastille.pruning.budgeted import summary
from pastille.pruning.cost import Costs

ROUNDS: Final = 6
FINENESSES: Final = 3
WITHIN: Final = 0.05  # of the budget, from below
SIZE: Final = "max_size"
MACS: Final = "max_macs"
LATENCY: Final = "max_latency."

Prediction = Callable[[np.ndarray], np.ndarray]  # widths (B, G) -> cost (B,)
# Limit -> how many times its prediction is too low, and how much finer than usual widths are, from 0 on below
# `FINENESSES`; to widths (G,).
Choose = Callable[[Mapping[str, float], int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One network that the loop made.

    Attributes:
        kept: Units of each group.
        predicted: Limit -> what it was thought to cost, after what earlier rounds taught.
        measured: Limit -> what its file costs.
    """

    kept: Mapping[str, int]
    predicted: Mapping[str, float]
    measured: Mapping[str, float]

    def nearness(self, limits: Mapping[str, float]) -> float:
        """The largest share of any limit that is spent; above 1 it is broken."""
        return max(self.measured[name] / limit for name, limit in limits.items())


def closed(
    cost: Costs,
    choose: Choose,
    predict: Mapping[str, Prediction],
    measure: Callable[[Mapping[str, int]], Mapping[str, float]],
    limits: Mapping[str, float],
    progress: Progress,
    *,
    whole: Mapping[str, float],
) -> tuple[Trial, ...]:
    """Choose, make, measure; correct what is predicted by what was measured; again until it is near enough.

    Args:
        cost: Of the network before anything is removed.
        choose: Finds widths; those that are finer than usual are asked for where no others are left to try,
            and in the last round.
        predict: Limit -> what networks are thought to cost.
        measure: Units of each group -> what the file costs, by limit.
        limits: As asked.
        progress: Shown round by round.
        whole: What the network costs before anything is removed, of the limits where that was measured.

    Returns:
        At least one trial, at most `ROUNDS`.
    """
    factors = dict.fromkeys(limits, 1.0)
    trials: list[Trial] = []
    seen = {name: [(whole[name], whole[name])] if name in whole else [] for name in limits}
    before = cost.named(cost.widths)
    for number in progress.track(range(1, ROUNDS + 1), what="pruning to the budget"):
        kept = _untried(choose, factors, trials, cost, last=number == ROUNDS)
        if kept is None:
            break
        raw = {name: float(predict[name](kept[None])[0]) for name in limits}
        predicted = {name: raw[name] * factors[name] for name in limits}
        trial = Trial(kept=cost.named(kept), predicted=predicted, measured=measure(cost.named(kept)))
        trials.append(trial)
        progress.note(words(number, trial, limits, before))
        untouched = np.array_equal(kept, cost.widths)
        if (1 - WITHIN) * (not untouched) <= trial.nearness(limits) <= 1:
            break
        for name in limits:
            seen[name].append((raw[name], trial.measured[name]))
        factors = {name: corrected(seen[name], limit) for name, limit in limits.items()}
    return tuple(trials)


def _untried(
    choose: Choose, factors: Mapping[str, float], trials: Sequence[Trial], cost: Costs, *, last: bool
) -> np.ndarray | None:
    """Widths that no earlier round had; None where there are none: the same again would be no other."""
    for finer in range(1 if last else 0, FINENESSES):
        kept = choose(factors, finer)
        if not any(trial.kept == cost.named(kept) for trial in trials):
            return kept
    return None


def corrected(seen: Sequence[tuple[float, float]], limit: float) -> float:
    """How many times too low a prediction is near a limit.

    Args:
        seen: (predicted, measured) of each trial, in order.
        limit: What is asked.

    Returns:
        Between the nearest trials on both sides of the limit; of the last where there are none, or where
        they contradict one another.

    Example:
        >>> corrected([(1.0, 2.0)], 3.0)
        2.0
        >>> round(corrected([(1.0, 2.0), (2.0, 8.0)], 4.0), 3)  # 4 is half-way, where 1.414 is predicted
        2.828
    """
    below = max((pair for pair in seen if pair[1] <= limit), default=None)
    above = min((pair for pair in seen if pair[1] > limit), default=None)
    if below is None or above is None or below[0] >= above[0]:
        predicted, measured = seen[-1]
        return measured / predicted
    ends = np.log([below, above])
    return float(limit / np.exp(np.interp(np.log(limit), ends[:, 1], ends[:, 0])))


def best(trials: Sequence[Trial], limits: Mapping[str, float]) -> Trial:
    """The nearest from below, or else from above."""
    below = [trial for trial in trials if trial.nearness(limits) <= 1]
    if below:
        return max(below, key=lambda trial: trial.nearness(limits))
    return min(trials, key=lambda trial: trial.nearness(limits))


def words(number: int, trial: Trial, limits: Mapping[str, float], before: Mapping[str, int]) -> str:
    """One trial in a sentence.

    Args:
        number: Of the round, from 1.
        trial: What was made.
        limits: As asked.
        before: Units of each group before anything is removed.
    """
    return f"round {number}: {summary(before, trial.kept)}; {'; '.join(_each(trial, limits))}"


def _each(trial: Trial, limits: Mapping[str, float]) -> Iterator[str]:
    for name, limit in limits.items():
        found, thought = said(name, trial.measured[name]), said(name, trial.predicted[name])
        yield f"{name} {found} measured, {thought} predicted, {said(name, limit)} asked"


def percentile(name: str) -> float:
    """The percentile that a limit is about, in (0, 1).

    Example:
        >>> percentile("max_latency.p95")
        0.95
    """
    return float(name.removeprefix(f"{LATENCY}p")) / 100


def said(name: str, value: float) -> str:
    """What a limit allows or a file costs, with its unit.

    Example:
        >>> said("max_size", 25e6), said("max_macs", 3e8), said("max_latency.p95", 4.0)
        ('25 MB', '300 M', '4 ms')
    """
    if name == SIZE:
        return f"{value / 1e6:.3g} MB"
    return f"{value / 1e6:.4g} M" if name == MACS else f"{value:.3g} ms"
