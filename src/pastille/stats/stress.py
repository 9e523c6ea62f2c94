"""How much faster the candidate degrades than the baseline when inputs are perturbed.

Of each case there are four answers: both models, untouched and perturbed. What one case adds to the excess
of a share is a whole number from -2 to 2: ``baseline right - candidate right`` when perturbed, less the same
when untouched. Most cases add 0, and that is what makes the interval difficult: with few changes a bootstrap
or a normal interval is far too narrow, and with none it has no width. So the bounds are found as Tango's
are: the means that a score test, with the likelihood maximised under that mean, just does not reject.

A candidate exactly at the limit is approved in at most 2.6 % of 20,000 simulated test sets (nominal 2.5 %,
100 to 1000 cases, limits of 2 and 5 points, from hardly any change to 15 %). The obvious alternatives are
not safe: two Tango intervals joined by MOVER approve it in up to 6.6 %, since the two drops need not be
positively correlated, and a score test that thinks changes by two impossible until it sees one in up to
8.1 % (`tests/stats/test_stats_stress.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from pastille.stats.clusters import effective_cases, has_repeats
from pastille.stats.forms import Form, OfSums, OfWeights, Share
from pastille.stats.normal import critical_value
from pastille.stats.resampled import resampled
from pastille.stats.shares import subject_method
from pastille.values import Interval

STRESSABLE = (Share, OfSums, OfWeights)  # the forms of which an excess can be had
# An excess of these would be in the units of the targets, which no share can limit.
_IN_UNITS_OF_THE_TARGETS = frozenset({"rmse", "mae", "bias"})
_USUAL = frozenset({"accuracy", "sensitivity", "r2", "dice"})
_VALUES = (-2, -1, 0, 1, 2)  # what one case can add
_TOLERANCE = 1e-10
_FEWEST_FOR_BOOTSTRAP = 20  # below, its interval is far too narrow to approve anything

_F = TypeVar("_F", Share, OfSums, OfWeights)
_Counts = tuple[float, ...]  # cases of each of _VALUES


@dataclass(frozen=True, kw_only=True)
class Excess:
    """How much more the candidate lost than the baseline; positive is worse."""

    value: float
    interval: Interval | None  # None: the cases cannot tell
    n: int
    method: str


def stressed_rows(n: int, count: int, seed: int) -> np.ndarray:
    """Which of ``n`` cases are asked under perturbed inputs: sorted rows of ``count``, taken at random.

    Example:
        >>> stressed_rows(5, 20, seed=0)
        array([0, 1, 2, 3, 4])
    """
    return np.sort(np.random.default_rng(seed).permutation(n)[:count])


def stressed_metrics(known: Mapping[str, Form], asked: Collection[str], own: Collection[str]) -> list[str]:
    """Which metrics are judged under perturbed inputs: those with a limit that can be, or the usual ones.

    Args:
        known: Every metric of a model, and what it is made of.
        asked: Those that a limit is set on.
        own: Those of the user's own.

    Example:
        >>> share = Share(hits=np.ones(3, bool), among=np.ones(3, bool))
        >>> stressed_metrics({"accuracy": share, "specificity": share}, asked=["auroc"], own=[])
        ['accuracy']
    """
    possible = [
        name
        for name, form in known.items()
        if isinstance(form, STRESSABLE) and name not in _IN_UNITS_OF_THE_TARGETS
    ]
    wanted = ([name for name in possible if name in group] for group in (asked, _USUAL, own))
    return next((chosen for chosen in wanted if chosen), possible)


def excess(
    untouched: tuple[Form, Form],
    perturbed: tuple[Form, Form],
    *,
    subjects: np.ndarray | None,
    confidence: float,
) -> Excess | None:
    """Compare how much two models lose of a metric.

    A share, such as accuracy, has a score interval. A metric of sums or of weights, such as R², Dice or
    one of the user's own, has a BCa bootstrap interval of all four figures together.

    Args:
        untouched: Baseline and candidate, asked the inputs as they are.
        perturbed: Both, asked the same inputs perturbed.
        subjects: ``(N,)``, or None if every case is a subject of its own. Where one has several, shares rest
            on the number of independent cases that they are worth, and others are resampled by subject.
        confidence: Of the two-sided interval, in ``(0, 1)``.

    Returns:
        ``(candidate's loss) - (baseline's loss)``, or None if the cases cannot define the metric.

    Raises:
        ValueError: If the four are not of one of `STRESSABLE`, or not put to the same cases.

    Example:
        >>> asked = np.ones(500, bool)
        >>> def right(wrong: int) -> Share:
        ...     return Share(hits=np.arange(500) >= wrong, among=asked)
        >>> excess((right(10), right(12)), (right(20), right(31)), subjects=None, confidence=0.95)
        Excess(value=0.018, interval=Interval(low=0.00..., high=0.03..., ...), n=500, method='score interval')

    References:
        Tango, Statistics in Medicine 17, 1998; Rao and Scott, Biometrics 48, 1992; Efron, JASA 82, 1987.
    """
    forms = (*untouched, *perturbed)
    if shares := _alike(Share, forms):
        return _share_excess(shares, subjects, confidence)
    if sums := _alike(OfSums, forms):
        return _resampled_excess(_joined_sums(sums), subjects, confidence)
    if weights := _alike(OfWeights, forms):
        return _resampled_excess(_joined_weights(weights), subjects, confidence)
    kinds = sorted({type(form).__name__ for form in forms})
    raise ValueError(f"the four forms must all be shares, sums or weights, got {', '.join(kinds)}")


def _alike(kind: type[_F], forms: Sequence[Form]) -> list[_F]:
    """All forms if they are of one kind, else none."""
    found = [form for form in forms if isinstance(form, kind)]
    if len(found) < len(forms):
        return []
    if any(not np.array_equal(form.among, found[0].among) for form in found):
        raise ValueError("the four forms must be put to the same cases")
    return found


def _share_excess(shares: Sequence[Share], subjects: np.ndarray | None, confidence: float) -> Excess | None:
    among, n = shares[0].among, shares[0].n
    if n == 0:
        return None
    baseline, candidate, perturbed_baseline, perturbed_candidate = (
        share.hits[among].astype(np.int64) for share in shares
    )
    change = (perturbed_baseline - perturbed_candidate) - (baseline - candidate)  # (n,) in -2..2
    worth, method = float(n), "score interval"
    if subjects is not None and has_repeats(subjects[among]):
        worth = effective_cases(change, subjects[among], rare=change != 0, confidence=confidence)
        method = subject_method(method, subjects[among], worth)
    counts = {value: np.count_nonzero(change == value) * worth / n for value in _VALUES}
    interval = mean_change_interval(counts, confidence)
    return Excess(value=float(change.mean()), interval=interval, n=n, method=method)


def _resampled_excess(
    joined: OfSums | OfWeights, subjects: np.ndarray | None, confidence: float
) -> Excess | None:
    found = resampled({"": joined}, subjects=subjects, confidence=confidence).get("")
    if found is None:
        return None
    units = found.n if subjects is None else len(np.unique(subjects[joined.among]))
    enough = units >= _FEWEST_FOR_BOOTSTRAP
    interval = found.interval if enough else None
    return Excess(value=found.value, interval=interval, n=found.n, method=f"paired {found.method}")


def _joined_sums(forms: Sequence[OfSums]) -> OfSums:
    """The excess as one metric, of the columns of all four."""

    def statistic(sums: np.ndarray) -> np.ndarray:
        parts = zip(forms, np.split(sums, len(forms), axis=-1), strict=True)
        return _excess_of_values([form.statistic(part) for form, part in parts], forms[0])

    return replace(forms[0], columns=np.hstack([form.columns for form in forms]), statistic=statistic)


def _joined_weights(forms: Sequence[OfWeights]) -> OfWeights:
    """The excess as one metric, of the same weights for all four."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _excess_of_values([form.statistic(weights) for form in forms], forms[0])

    return replace(forms[0], statistic=statistic)


def _excess_of_values(values: Sequence[np.ndarray], form: OfSums | OfWeights) -> np.ndarray:
    """From a metric of baseline and candidate, untouched, and of both, perturbed."""
    baseline, candidate, perturbed_baseline, perturbed_candidate = values
    growth = (perturbed_baseline - perturbed_candidate) - (baseline - candidate)
    return np.asarray(growth if form.higher_is_better else -growth)


def mean_change_interval(counts: Mapping[int, float], confidence: float) -> Interval:
    """Score interval of the mean of whole numbers from -2 to 2.

    Of -1, 0 and 1 alone it would be Tango's. A bound must also allow for changes by two that were not seen,
    so it is wider than Tango's where hardly anything changes, and the same where enough does.

    Args:
        counts: Value -> how many cases have it, at least one case in all. Need not be whole: an effective
            number of cases may stand for correlated ones.
        confidence: In ``(0, 1)``.

    Returns:
        The interval, inside ``[-2, 2]``; it has a width even where all cases are alike.

    Raises:
        ValueError: If a value is not between -2 and 2, a count is negative, or there are no cases.

    Example:
        >>> mean_change_interval({0: 500}, 0.95)
        Interval(low=-0.0152..., high=0.0152..., confidence=0.95)

    References:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design", Statistics in Medicine 17, 1998.
        Owen, "Empirical Likelihood", 2001, section 2.9 (the maximisation under a mean).
    """
    unknown = sorted(set(counts) - set(_VALUES))
    if unknown or min(counts.values(), default=0) < 0 or sum(counts.values()) <= 0:
        raise ValueError(f"counts must be at least 0, of values from -2 to 2, and not all 0, got {counts}")
    z = critical_value(confidence)
    upwards = tuple(float(counts.get(value, 0)) for value in _VALUES)
    return Interval(low=-_upper(upwards[::-1], z), high=_upper(upwards, z), confidence=confidence)


def _upper(counts: _Counts, z: float) -> float:
    """The largest mean that is not rejected, by bisection between the observed one and 2."""
    n = sum(counts)
    low, high = _observed_mean(counts), 2.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        distance = middle - _observed_mean(counts)
        rejected = n * distance * distance > z * z * _constrained_variance(counts, middle)
        low, high = (low, middle) if rejected else (middle, high)
    return high


def _observed_mean(counts: _Counts) -> float:
    return sum(count * value for count, value in zip(counts, _VALUES, strict=True)) / sum(counts)


def _constrained_variance(counts: _Counts, mean: float) -> float:
    """Variance of one case under the likeliest distribution that has this mean."""
    pairs = zip(_likeliest(counts, mean), _VALUES, strict=True)
    return max(0.0, sum(share * value * value for share, value in pairs) - mean * mean)


def _likeliest(counts: _Counts, mean: float) -> list[float]:
    """Probabilities of `_VALUES`: the largest likelihood under a mean that is above the observed one."""
    n, tilt = sum(counts), _tilt(counts, mean)
    mass = [
        count / n / (1 + tilt * (value - mean)) if count else 0.0
        for count, value in zip(counts, _VALUES, strict=True)
    ]
    mass[-1] += max(0.0, 1 - sum(mass))  # what no observed value can carry lies at 2
    return mass


def _tilt(counts: _Counts, mean: float) -> float:
    """The Lagrange multiplier of the mean, in ``[-1 / (2 - mean), 0]``; the left end puts mass at 2."""
    low, high = -1 / (2 - mean), 0.0
    if counts[-1] == 0 and _slope(counts, mean, low) <= 0:
        return low
    while high - low > _TOLERANCE * -low:
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(counts, mean, middle) > 0 else (low, middle)
    return high


def _slope(counts: _Counts, mean: float, tilt: float) -> float:
    """Zero at the maximum of the likelihood, and falling with the tilt."""
    pairs = zip(counts, _VALUES, strict=True)
    return sum(count * (value - mean) / (1 + tilt * (value - mean)) for count, value in pairs if count)
