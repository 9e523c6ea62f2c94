"""How many cases a limit needs, and what limit a number of cases can prove.

`cases_needed` and `cases_by_width` are closed formulas. The others are exact: they add up the probability
of every pair of counts (newly wrong, newly right) that Tango's interval would approve. Beyond `EXACT_CASES`
they are the closed formula too: its error no longer shows, and the sum would take minutes and gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import bdtr

from pastille.stats.normal import NORMAL, critical_value
from pastille.stats.proportions import score_variance
from pastille.stats.tables import binomial, last_true, likely_counts

EXACT_CASES = 500_000
_STEP = 1e-6  # to which limits and discordances are searched
_FINE = 1e-3  # and relative to a limit that is itself as small
_CELLS = 2**19  # of numbers of cases and of changed ones, that are added up at once


def cases_needed(
    discordance: float, limit: float, *, confidence: float, power: float = 0.8, drop: float = 0.0
) -> int:
    """Cases that a split must have to show that a drop stays within a limit.

    ``N = (z_a + z_b)^2 * discordance / (limit - drop)^2``, and never fewer than two models that do not
    disagree even once would need: there Tango's upper bound is ``z_a^2 / (N + z_a^2)``.

    Args:
        discordance: Share of cases that one model gets right and the other wrong, in ``[0, 1]``.
        limit: Largest permitted drop, absolute, in ``(0, 1]``.
        confidence: Of the two-sided interval whose upper end decides.
        power: Chance that the interval ends below the limit.
        drop: The true drop that is assumed, below ``limit``.

    Returns:
        Cases in all.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cases_needed(0.02, 0.01, confidence=0.95)
        1570
        >>> cases_needed(0.0, 0.01, confidence=0.95)  # they never disagree
        381

    References:
        Nam, "Establishing equivalence of two treatments and sample size requirements in matched-pairs
        design", Biometrics 53, 1997; Tango, Statistics in Medicine 17, 1998.
    """
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance must be in [0, 1], got {discordance}")
    if not (0 < limit <= 1 and drop < limit):
        raise ValueError(f"limit must be in (0, 1] and above the drop, got limit={limit}, drop={drop}")
    z_a, z_b = critical_value(confidence), _power_quantile(power)
    room = limit - drop
    never_disagreeing = z_a**2 * (1 / limit - 1)
    return max(1, math.ceil(never_disagreeing), math.ceil((z_a + z_b) ** 2 * discordance / room**2))


def cases_by_width(n: int, reach: float, room: float, *, confidence: float, power: float = 0.8) -> int:
    """Cases that would bring an interval's upper end below a limit, its width shrinking as ``1 / sqrt(N)``.

    Args:
        n: Cases that the interval rests on.
        reach: From the estimate to the upper end.
        room: From the estimate to the limit, positive.
        confidence: Of the two-sided interval.
        power: Chance that it then ends below the limit, if the estimate is the truth.

    Returns:
        Cases in all.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cases_by_width(100, 0.02, 0.01, confidence=0.95)
        818
    """
    if not (n > 0 and reach >= 0 and room > 0):
        raise ValueError(f"n and room must be positive, reach at least 0, got {n}, {room} and {reach}")
    z_a, z_b = critical_value(confidence), _power_quantile(power)
    return max(1, math.ceil(n * (reach * (1 + z_b / z_a) / room) ** 2))


def _power_quantile(power: float) -> float:
    if not 0.5 <= power < 1:
        raise ValueError(f"power must be in [0.5, 1), got {power}")
    return NORMAL.inv_cdf(power)


def power_of(
    n: int,
    discordance: float,
    limit: float,
    *,
    confidence: float,
    drop: float = 0.0,
    design_effect: float = 1.0,
) -> float:
    """Chance that ``n`` cases approve a candidate: that Tango's interval ends at or below the limit.

    Exact: the sum over all counts of newly wrong and newly right cases, which are trinomial. With ``drop``
    at the limit it is the chance of a wrong approval.

    Args:
        n: Cases.
        discordance: Share of cases that one model gets right and the other wrong, in ``[0, 1]``.
        limit: Largest permitted drop, absolute, in ``(0, 1]``.
        confidence: Of the two-sided interval whose upper end decides.
        drop: The true drop that is assumed; its size is at most ``discordance``.
        design_effect: Variance of the drop relative to that of independent cases, at least 1: how many
            cases are worth one, where subjects repeat.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(power_of(1570, 0.02, 0.01, confidence=0.95), 3)
        0.76
        >>> power_of(380, 0.0, 0.01, confidence=0.95), power_of(381, 0.0, 0.01, confidence=0.95)
        (0.0, 1.0)

    References:
        Tango, Statistics in Medicine 17, 1998.
    """
    _check(n, discordance, limit, drop, design_effect)
    return _power(_independent(n, design_effect), discordance, limit, critical_value(confidence), drop)


def exact_cases_needed(
    discordance: float,
    limit: float,
    *,
    confidence: float,
    power: float = 0.8,
    drop: float = 0.0,
    design_effect: float = 1.0,
) -> int:
    """Cases from which on the chance of approval is at least ``power``, by `power_of`.

    Counts are whole, so that chance climbs in teeth: it falls a little from one case to the next, and
    jumps up every ``1 / limit`` cases or so. This is the smallest number after which it stays above.
    The closed formula of `cases_needed` asks for fewer, by about ``3.4 / discordance``: hardly any of
    15,698, but 170 of 1,740, and a quarter where fewer than ten cases are discordant.

    Args:
        discordance: As in `power_of`.
        limit: As in `power_of`.
        confidence: As in `power_of`.
        power: In ``[0.5, 1)``.
        drop: As in `power_of`, below ``limit``.
        design_effect: As in `power_of`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> exact_cases_needed(0.02, 0.01, confidence=0.95)
        1740
        >>> exact_cases_needed(0.0, 0.01, confidence=0.95) == cases_needed(0.0, 0.01, confidence=0.95)
        True
    """
    _check(1, discordance, limit, drop, design_effect)
    if drop >= limit:
        raise ValueError(f"drop must be below the limit, got limit={limit}, drop={drop}")
    _power_quantile(power)
    z, tooth = critical_value(confidence), math.ceil(1 / limit)
    start = cases_needed(discordance, limit, confidence=confidence, power=power, drop=drop)
    if start <= EXACT_CASES:
        start = _first_enough(discordance, limit, z, power, drop)
        while last := _last_short(np.arange(start, start + tooth), discordance, limit, z, power, drop):
            start = last + 1
    return math.ceil(start * design_effect)


def _last_short(
    sizes: np.ndarray, discordance: float, limit: float, z: float, power: float, drop: float
) -> int | None:
    """The last of some numbers of cases that is not enough; in chunks, which bounds the memory."""
    low, high = likely_counts(int(sizes[-1]), discordance)
    rows = max(1, _CELLS // (high - low + 1))
    for end in range(len(sizes), 0, -rows):
        chunk = sizes[max(0, end - rows) : end]
        short = np.flatnonzero(_powers(chunk, discordance, limit, z, drop) < power)
        if short.size:
            return int(chunk[short[-1]])
    return None


def _first_enough(discordance: float, limit: float, z: float, power: float, drop: float) -> int:
    """Some number of cases that is enough where one fewer is not, by bisection."""

    def enough(n: int) -> bool:
        return bool(_powers(np.array([n]), discordance, limit, z, drop)[0] >= power)

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def smallest_provable_limit(
    n: int,
    discordance: float,
    *,
    confidence: float,
    power: float = 0.8,
    drop: float = 0.0,
    design_effect: float = 1.0,
) -> float:
    """The smallest limit that ``n`` cases approve with a chance of ``power``: what a test set can prove.

    Args:
        n: Cases.
        discordance: As in `power_of`.
        confidence: As in `power_of`.
        power: In ``[0.5, 1)``.
        drop: As in `power_of`.
        design_effect: As in `power_of`.

    Returns:
        In ``(0, 1]``; 1 means nothing.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(smallest_provable_limit(1000, 0.02, confidence=0.95), 4)
        0.0135
        >>> round(smallest_provable_limit(100, 0.0, confidence=0.95), 4)  # they never disagree
        0.037
    """
    _check(n, discordance, 1.0, drop, design_effect)
    _power_quantile(power)
    z, independent = critical_value(confidence), _independent(n, design_effect)
    low, high = 0.0, 1.0
    while high - low > min(_STEP, _FINE * high):
        middle = (low + high) / 2
        enough = _power(independent, discordance, middle, z, drop) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def bearable_discordance(
    n: int, limit: float, *, confidence: float, power: float = 0.8, design_effect: float = 1.0
) -> float | None:
    """How often two models may disagree for ``n`` cases still to approve with a chance of ``power``.

    The candidate is taken to be as good as the baseline: newly wrong and newly right are equally likely.

    Args:
        n: Cases.
        limit: As in `power_of`.
        confidence: As in `power_of`.
        power: In ``[0.5, 1)``.
        design_effect: As in `power_of`.

    Returns:
        Share of cases, in ``[0, 1]``; None if ``n`` cases approve nothing, even if no decision changes.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(bearable_discordance(1000, 0.01, confidence=0.95), 4)
        0.0098
        >>> bearable_discordance(380, 0.01, confidence=0.95) is None
        True
    """
    _check(n, 0.0, limit, 0.0, design_effect)
    _power_quantile(power)
    z, independent = critical_value(confidence), _independent(n, design_effect)

    def enough(discordance: float) -> bool:
        return _power(independent, discordance, limit, z, 0.0) >= power

    if not enough(0.0):
        return None
    low, high = 0.0, 1.0
    if enough(high):
        return high
    while high - low > _STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def _check(n: int, discordance: float, limit: float, drop: float, design_effect: float) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance must be in [0, 1], got {discordance}")
    if not 0 < limit <= 1:
        raise ValueError(f"limit must be in (0, 1], got {limit}")
    if not abs(drop) <= discordance:
        raise ValueError(f"drop must not exceed the discordance {discordance}, got {drop}")
    if not design_effect >= 1:
        raise ValueError(f"design_effect must be at least 1, got {design_effect}")


def _independent(n: int, design_effect: float) -> int:
    return max(1, math.floor(n / design_effect))


def _power(n: int, discordance: float, limit: float, z: float, drop: float) -> float:
    """Chance of approval for one number of cases."""
    if n <= EXACT_CASES:
        return float(_powers(np.array([n]), discordance, limit, z, drop)[0])
    if n < z**2 * (1 / limit - 1):  # too few if they never disagree
        return 0.0
    if discordance == 0:
        return 1.0
    return NORMAL.cdf((limit - drop) * math.sqrt(n / discordance) - z)


def _powers(sizes: np.ndarray, discordance: float, limit: float, z: float, drop: float) -> np.ndarray:
    """Chance of approval for each number of cases ``(S,)``, which ascend."""
    low, high = (likely_counts(int(n), discordance) for n in (sizes[0], sizes[-1]))
    changed, n = np.arange(low[0], high[1] + 1), sizes[:, None]  # (M,) and (S, 1)
    most = _most_newly_wrong(changed, n, limit, z)  # (S, M)
    wrong = (discordance + drop) / (2 * discordance) if discordance else 0.5
    approved = np.where(most < 0, 0.0, bdtr(np.maximum(most, 0.0), changed, wrong))
    powers: np.ndarray = np.minimum(1.0, (binomial(changed, n, discordance) * approved).sum(axis=1))
    return powers


def _most_newly_wrong(changed: np.ndarray, n: np.ndarray, limit: float, z: float) -> np.ndarray:
    """Most newly wrong among ``changed`` ``(M,)`` cases that are approved, -1 if none, for ``n`` ``(S, 1)``.

    More cases never approve less, so the first and the last ``n`` leave little to search for the others.
    """

    def approves(cases: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda wrong: _approves(wrong, changed - wrong, cases, limit, z)

    none, every = np.full((2, len(changed)), -1.0), np.tile(changed + 1.0, (2, 1))
    ends = last_true(approves(n[[0, -1]]), none, every)
    shape = (len(n), len(changed))
    return last_true(approves(n), np.broadcast_to(ends[0], shape), np.broadcast_to(ends[1] + 1, shape))


def _approves(b: np.ndarray, c: np.ndarray, n: np.ndarray, limit: float, z: float) -> np.ndarray:
    """Whether Tango's upper end is within the limit: whether his score test rejects a drop of that size."""
    deviation = np.sqrt(score_variance(b, c, n, np.array(limit)))
    inside: np.ndarray = n * limit - (b - c) >= z * deviation
    return inside
