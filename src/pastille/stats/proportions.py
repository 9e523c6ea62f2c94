"""Intervals for one proportion, and for the difference of two that were measured on the same cases."""

from __future__ import annotations

import math

from scipy.special import bdtr

from pastille.stats.normal import critical_value
from pastille.values import Interval

_TOLERANCE = 1e-12


def wilson(successes: float, n: float, confidence: float) -> Interval:
    """Score interval of a proportion: the values that a test at ``1 - confidence`` does not reject.

    Args:
        successes: Cases that have the property, in ``[0, n]``. Need not be whole: an effective number
            of cases may stand for correlated ones.
        n: Cases looked at, positive.
        confidence: In ``(0, 1)``.

    Returns:
        The interval, inside ``[0, 1]``; it has a width even for 0 or ``n`` successes.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> wilson(98, 100, 0.95)
        Interval(low=0.929..., high=0.994..., confidence=0.95)

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"successes must be in [0, n] with n positive, got {successes} of {n}")
    z2 = critical_value(confidence) ** 2
    center = (successes + z2 / 2) / (n + z2)
    reach = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    low = 0.0 if successes == 0 else max(0.0, center - reach)
    high = 1.0 if successes == n else min(1.0, center + reach)
    return Interval(low=low, high=high, confidence=confidence)


def tango(b: float, c: float, n: float, confidence: float) -> Interval:
    """Score interval of a paired difference of proportions, ``(b - c) / n``.

    The bounds are the differences that a score test at ``1 - confidence`` just does not reject; unlike
    Wald's interval it has a width when the two models never disagree.

    Args:
        b: Cases that the baseline gets right and the candidate wrong.
        c: Cases that the candidate gets right and the baseline wrong.
        n: Cases in all; ``b + c <= n``.
        confidence: In ``(0, 1)``.

    Returns:
        The interval of the drop, inside ``[-1, 1]``; positive is worse.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tango(1, 7, 21, 0.95)
        Interval(low=-0.517..., high=-0.026..., confidence=0.95)

    References:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design", Statistics in Medicine 17, 1998.
    """
    if not (n > 0 and b >= 0 and c >= 0 and b + c <= n):
        raise ValueError(f"b and c must be at least 0 and b + c at most n, got b={b}, c={c}, n={n}")
    z = critical_value(confidence)
    return Interval(low=-_upper(c, b, n, z), high=_upper(b, c, n, z), confidence=confidence)


def _upper(b: float, c: float, n: float, z: float) -> float:
    """The largest difference that is not rejected, by bisection between the estimate and 1."""
    low, high = (b - c) / n, 1.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        distance = n * middle - (b - c)
        rejected = distance * distance > z * z * _score_variance(b, c, n, middle)
        low, high = (low, middle) if rejected else (middle, high)
    return high


def _score_variance(b: float, c: float, n: float, difference: float) -> float:
    """Variance of ``b - c`` if the true difference were ``difference``, by constrained likelihood."""
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    # The larger root of 2n q^2 + linear q + constant = 0, without cancellation for either sign.
    share_c = -2 * constant / (linear + root) if linear > 0 else (root - linear) / (4 * n)
    return max(0.0, n * (2 * share_c + difference * (1 - difference)))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p-value of "the two models are wrong equally often".

    Args:
        b: Cases that only the baseline gets right.
        c: Cases that only the candidate gets right.

    Returns:
        In ``(0, 1]``; 1 where they never disagree.

    Raises:
        ValueError: If a count is negative.

    Example:
        >>> mcnemar_exact(1, 7)
        0.0703125

    References:
        McNemar, "Note on the sampling error of the difference between correlated proportions or
        percentages", Psychometrika 12, 1947; exact binomial form.
    """
    if b < 0 or c < 0:
        raise ValueError(f"b and c must be at least 0, got b={b}, c={c}")
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))
