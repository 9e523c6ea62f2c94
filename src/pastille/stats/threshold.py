"""Choose the operating threshold of a binary task, once, on validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pastille.recipe import ThresholdGoal
from pastille.stats.decisions import check_rows, decide, log_odds, sigmoid
from pastille.stats.shares import class_shares, estimate_share, positive_classes
from pastille.stats.validity import check_cases
from pastille.values import Cases, Estimate

Goal = Literal["youden"] | ThresholdGoal


@dataclass(frozen=True, kw_only=True)
class ChosenThreshold:
    """A threshold, and what it reaches on the cases that it was chosen on."""

    threshold: float  # probability of the positive label from which a case is called positive
    sensitivity: Estimate
    specificity: Estimate
    sentence: str


def choose_threshold(
    outputs: np.ndarray, cases: Cases, goal: Goal, *, confidence: float = 0.95
) -> ChosenThreshold:
    """Choose the threshold that a goal asks for.

    It lies half way between the probabilities of the two cases that it parts, so that rounding, in
    another runtime or after quantization, is least likely to carry a case over it. Only thresholds that
    call some case positive and some case not are considered. What it reaches is measured on the cases that
    it was chosen on, and is a little too good.

    Args:
        outputs: Logits, ``(N,)``, ``(N, 1)`` or ``(N, 2)``.
        cases: Of validation; without ``positive`` the second label is it.
        goal: ``"youden"``: the largest sum of sensitivity and specificity, the most sensitive of equals;
            a sensitivity: the highest threshold that reaches it; a specificity: the lowest.
        confidence: Of the two intervals, in ``(0, 1)``.

    Raises:
        ValueError: The task is not binary, the outputs or cases do not fit, one class is absent, all cases
            have the same probability, or no threshold reaches the goal.

    Example:
        >>> cases = Cases(kind="binary", split="validation", targets=np.arange(4) // 2, labels=("a", "b"))
        >>> found = choose_threshold(np.array([-2.0, -1.0, 0.5, 3.0]), cases, "youden")
        >>> round(found.threshold, 3), found.sensitivity.value, found.specificity.value
        (0.446, 1.0, 1.0)

    References:
        Youden, "Index for rating diagnostic tests", Cancer 3, 1950.
    """
    truth, chances = _positive_chances(outputs, cases)
    cuts = _cuts(truth, chances)
    at = _chosen(cuts, goal)
    found = replace(cases, threshold=_between(float(cuts.below[at]), float(cuts.above[at])))
    reached = {
        name: estimate_share(share, subjects=cases.subjects, confidence=confidence)
        for name, share in class_shares(decide(outputs, found), found).items()
    }
    sensitivity, specificity = reached["sensitivity"], reached["specificity"]
    assert sensitivity is not None, "both classes are there"
    assert specificity is not None, "both classes are there"
    return ChosenThreshold(
        threshold=found.threshold,
        sensitivity=sensitivity,
        specificity=specificity,
        sentence=_sentence(found, goal, sensitivity, specificity),
    )


def _positive_chances(outputs: np.ndarray, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Which cases are positive, and how probable each is called, both ``(N,)``."""
    if cases.kind != "binary":
        raise ValueError(f"cases must be of a binary task for a threshold to be chosen, got {cases.kind}")
    check_cases(cases)
    check_rows(outputs, cases)
    positive = positive_classes(cases)[0]
    truth = cases.targets == positive
    if truth.all() or not truth.any():
        raise ValueError(
            "cases must hold both labels for a threshold to be chosen, "
            f"got {int(truth.sum())} of {len(truth)} positive"
        )
    odds = log_odds(outputs)
    return truth, sigmoid(odds if positive == 1 else -odds)


@dataclass(frozen=True, kw_only=True)
class _Cuts:
    """Every way to part the cases by probability, from the lowest threshold up; ``M`` of them."""

    below: np.ndarray  # (M,) the highest probability that is not called positive
    above: np.ndarray  # (M,) the lowest that is
    sensitivity: np.ndarray  # (M,) falls
    specificity: np.ndarray  # (M,) rises


def _cuts(truth: np.ndarray, chances: np.ndarray) -> _Cuts:
    levels, level = np.unique(chances, return_inverse=True)
    if len(levels) < 2:
        raise ValueError(
            f"outputs must tell cases apart for a threshold to be chosen, but all {len(chances)} have the "
            f"probability {chances[0]:.6g}"
        )
    ill, well = (np.bincount(level[mask], minlength=len(levels))[:-1].cumsum() for mask in (truth, ~truth))
    return _Cuts(
        below=levels[:-1],
        above=levels[1:],
        sensitivity=1 - ill / truth.sum(),
        specificity=well / (~truth).sum(),
    )


def _chosen(cuts: _Cuts, goal: Goal) -> int:
    if goal == "youden":
        return _most(cuts)
    assert isinstance(goal, ThresholdGoal), "the recipe knows no other goal"
    if goal.sensitivity is not None:
        return _reaching(cuts.sensitivity, goal.sensitivity, "sensitivity", np.max)
    assert goal.specificity is not None, "a goal names one of the two"
    return _reaching(cuts.specificity, goal.specificity, "specificity", np.min)


def _most(cuts: _Cuts) -> int:
    index = cuts.sensitivity + cuts.specificity - 1
    best = float(index.max())
    if best <= _ROUNDING:
        raise ValueError("outputs must do better than chance for a threshold to be chosen by youden")
    return int(np.flatnonzero(index >= best - _ROUNDING)[0])


_ROUNDING = 1e-9  # of a share


def _reaching(shares: np.ndarray, goal: float, name: str, choose: Callable[[np.ndarray], np.integer]) -> int:
    reaching = np.flatnonzero(shares >= goal - _ROUNDING)
    if reaching.size == 0:
        raise ValueError(
            f"no threshold reaches a {name} of {100 * goal:g} % without calling every case alike; "
            f"the most is {100 * float(shares.max()):.1f} %"
        )
    return int(choose(reaching))


def _between(below: float, above: float) -> float:
    """Half way; what is called positive is at least the threshold, so it may be ``above`` itself."""
    middle = (below + above) / 2
    return middle if middle > below else above


def _sentence(cases: Cases, goal: Goal, sensitivity: Estimate, specificity: Estimate) -> str:
    positive = cases.labels[positive_classes(cases)[0]]
    return (
        f"A case is called {positive} from a probability of {cases.threshold:.4g} on, chosen on "
        f"{cases.split} for {_spoken(goal)}: sensitivity {_percent(sensitivity)}, "
        f"specificity {_percent(specificity)}"
    )


def _spoken(goal: Goal) -> str:
    if not isinstance(goal, ThresholdGoal):
        return "the largest sum of sensitivity and specificity"
    if goal.sensitivity is not None:
        return f"a sensitivity of at least {100 * goal.sensitivity:g} %"
    return f"a specificity of at least {100 * (goal.specificity or 0):g} %"


def _percent(found: Estimate) -> str:
    shown = f"{100 * found.value:.1f} %"
    if found.interval is None:
        return shown
    low, high = 100 * found.interval.low, 100 * found.interval.high
    return f"{shown} ({100 * found.interval.confidence:.6g} % CI {low:.1f} to {high:.1f}, {found.n} cases)"
