"""Temperature scaling: one number that makes probabilities mean what they say, and moves no decision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import expit

from pastille.stats.decisions import probabilities
from pastille.stats.statements import as_label_odds, checked_multiclass
from pastille.values import Cases

COLDEST, HOTTEST = 0.05, 20.0

Rising = Callable[[float], tuple[float, float]]  # x -> a value that rises with x, and its slope
CaseScores = Callable[[float], tuple[np.ndarray, np.ndarray]]  # factor -> (M,) and (M,)


def fit_temperature(outputs: np.ndarray, cases: Cases) -> float:
    """The temperature at which the targets are most likely: outputs divided by it are calibrated best.

    Multiclass decisions stay as they are, and so do binary and multilabel ones at threshold 0.5. Another
    threshold must move with the probabilities; see `moved_threshold`. A multilabel model gets one
    temperature for all its labels.

    Args:
        outputs: Logits: binary ``(N,)``, ``(N, 1)`` or ``(N, 2)``; multiclass ``(N, K)``; multilabel
            ``(N, L)``. Of cases that the model was not trained on.
        cases: The right answers.

    Returns:
        In ``[0.05, 20]``. Above 1 softens a model that is too sure, below 1 sharpens one that is not sure
        enough. A bound means that the cases cannot tell (`is_bound`): outputs that decide every case
        rightly have no best temperature, since colder is always more likely. 1 if no temperature matters.

    Raises:
        ValueError: If the kind has no probabilities, or outputs do not fit, or are not finite.

    Example:
        >>> cases = Cases(kind="binary", split="validation", targets=np.arange(100) % 5 != 0,
        ...               labels=("healthy", "ill"))
        >>> round(fit_temperature(np.full(100, 2.77), cases), 2)  # says 94 %, comes true in 80 %
        2.0

    References:
        Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599.
    """
    scores = case_scores(outputs, cases)

    def score(factor: float) -> tuple[float, float]:
        value, slope = scores(factor)
        return float(value.mean()), float(slope.mean())

    if score(1.0)[0] == 0.0:
        return 1.0
    low, high = 1 / HOTTEST, 1 / COLDEST
    if score(low)[0] >= 0:
        return HOTTEST
    if score(high)[0] <= 0:
        return COLDEST
    return 1 / root(score, low, high)


def is_bound(temperature: float) -> bool:
    """Whether a fitted temperature is at an end of what was searched, so that the cases cannot tell it.

    Example:
        >>> is_bound(0.05), is_bound(1.3)
        (True, False)
    """
    return not COLDEST < temperature < HOTTEST


def moved_threshold(threshold: float, temperature: float) -> float:
    """Where a threshold on the probability lies after temperature scaling, so that no decision changes.

    Args:
        threshold: In ``[0, 1]``.
        temperature: Positive; of all that the outputs were divided by.

    Returns:
        ``sigmoid(logit(threshold) / temperature)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> moved_threshold(0.5, 3.0), round(moved_threshold(0.9, 2.0), 4)
        (0.5, 0.75)
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    if not (0 < temperature < math.inf):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if threshold in {0.0, 1.0}:
        return threshold
    odds = math.log(threshold) - math.log1p(-threshold)
    tail = math.exp(-abs(odds) / temperature)
    return (1.0 if odds >= 0 else tail) / (1.0 + tail)


def settled_threshold(
    before_outputs: np.ndarray, after_outputs: np.ndarray, cases: Cases, temperature: float
) -> float:
    """The moved threshold, corrected where rounding would change a decision on these cases.

    A threshold is often the probability of one of the cases itself; then the last digit decides.

    Args:
        before_outputs: Logits before scaling, as in `fit_temperature`.
        after_outputs: The same divided by the temperature, as the scaled file answers.
        cases: The right answers, with the threshold before scaling.
        temperature: Positive.

    Returns:
        `moved_threshold`, or the nearest number that decides every case as before; for multiclass the
        threshold as it was, which nothing depends on.

    Raises:
        ValueError: As `fit_temperature`.
    """
    if cases.kind == "multiclass":
        return cases.threshold
    moved = moved_threshold(cases.threshold, temperature)
    called = thresholded(before_outputs, cases)
    chance = _chances(after_outputs, cases)
    lowest = float(chance[called].min(initial=2.0))
    above = float(np.nextafter(chance[~called].max(initial=-1.0), 2.0))
    return min(max(moved, above), lowest)


def thresholded(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    """What is decided: the class of each multiclass case ``(N,)``, else whether each is called positive.

    Raises:
        ValueError: As `fit_temperature`.
    """
    if cases.kind == "multiclass":
        return np.asarray(checked_multiclass(outputs, cases).argmax(axis=1), np.int64)
    return np.asarray(_chances(outputs, cases) >= cases.threshold)


def _chances(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    odds, _ = as_label_odds(outputs, cases)
    return probabilities("binary", odds.ravel()).reshape(odds.shape)


def case_scores(outputs: np.ndarray, cases: Cases) -> CaseScores:
    """How each case's negative log-likelihood changes with a factor on the outputs: two derivatives.

    It is convex in the factor, so the mean first derivative rises and has at most one root: the inverse of
    the best temperature.

    Raises:
        ValueError: As `fit_temperature`.
    """
    if cases.kind == "multiclass":
        return _multiclass_scores(checked_multiclass(outputs, cases), cases.targets)
    odds, came = as_label_odds(outputs, cases)
    return _binary_scores(odds.ravel(), came.ravel())


def _multiclass_scores(logits: np.ndarray, targets: np.ndarray) -> CaseScores:
    beyond = logits - logits[np.arange(len(logits)), targets][:, None]  # (N, K), 0 at the target
    beyond_most = beyond.max(axis=1, keepdims=True)

    def scores(factor: float) -> tuple[np.ndarray, np.ndarray]:
        weights = np.exp(factor * (beyond - beyond_most))
        weights /= weights.sum(axis=1, keepdims=True)
        means = (weights * beyond).sum(axis=1)
        return means, (weights * (beyond - means[:, None]) ** 2).sum(axis=1)

    return scores


def _binary_scores(odds: np.ndarray, came: np.ndarray) -> CaseScores:
    against = np.where(came, -odds, odds)  # log-odds of what did not come true

    def scores(factor: float) -> tuple[np.ndarray, np.ndarray]:
        chances = expit(factor * against)
        return chances * against, chances * (1 - chances) * against**2

    return scores


def root(rising: Rising, low: float, high: float, *, steps: int = 200) -> float:
    """Where a rising function is 0: Newton's steps, and halving where they would leave or crawl.

    Args:
        rising: Gives value and slope; not positive at ``low``, not negative at ``high``.
        low: Lower end of the bracket.
        high: Upper end.
        steps: After which the bracket is narrow enough in any case.

    Example:
        >>> round(root(lambda x: (x**3 - 8, 3 * x**2), 0.0, 100.0), 12)
        2.0
    """
    x, last = (low + high) / 2, high - low
    for _ in range(steps):
        value, slope = rising(x)
        low, high = (x, high) if value < 0 else (low, x)
        newton = x - value / slope if slope > 0 else low
        quick = low < newton < high and abs(newton - x) <= last / 2
        following = newton if quick else (low + high) / 2
        last = abs(following - x)
        if value == 0 or last <= 1e-14 * abs(x):
            return x
        x = following
    return x
