"""Intervals for one proportion, and for the difference of two that were measured on the same cases."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtr

from pastille.stats.normal import critical_value
from pastille.values import Interval

_TOLERANCE = 1e-12  # effective counts are not whole: b + c may exceed n by rounding
_HALVINGS = 41  # of an interval of length 2: to 1e-12


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
    high, mirrored = tango_upper(np.array([b, c]), np.array([c, b]), np.array(n), confidence)
    return Interval(low=-float(mirrored), high=float(high), confidence=confidence)


def tango_upper(b: np.ndarray, c: np.ndarray, n: np.ndarray, confidence: float) -> np.ndarray:
    """The upper ends of many intervals of `tango` at once; the lower end is ``-tango_upper(c, b, n, ...)``.

    Args:
        b: Cases that only the baseline gets right; any shape that broadcasts with the others.
        c: Cases that only the candidate gets right.
        n: Cases in all; ``b + c <= n``.
        confidence: Of the two-sided interval, in ``(0, 1)``.

    Returns:
        float64 of the common shape, exact to 1e-12.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tango_upper(np.array([0, 1]), np.array([0, 1]), np.array(100), 0.95).round(4)
        array([0.037 , 0.0456])
    """
    b, c, n = (np.asarray(x, np.float64) for x in (b, c, n))
    wrong = ~((n > 0) & (b >= 0) & (c >= 0) & (b + c <= n * (1 + _TOLERANCE)))
    if wrong.any():
        first = [x[wrong][0] for x in np.broadcast_arrays(b, c, n)]
        raise ValueError(
            "b and c must be at least 0 and b + c at most n, got b={:g}, c={:g}, n={:g}".format(*first)
        )
    z2 = critical_value(confidence) ** 2
    kept = (b - c) / n + np.zeros(np.broadcast_shapes(b.shape, c.shape, n.shape))
    beyond = np.ones_like(kept)
    for _ in range(_HALVINGS):  # between the estimate, which no test rejects, and 1
        middle = (kept + beyond) / 2
        rejected = (n * middle - (b - c)) ** 2 > z2 * score_variance(b, c, n, middle)
        kept, beyond = np.where(rejected, kept, middle), np.where(rejected, middle, beyond)
    return beyond


def score_variance(b: np.ndarray, c: np.ndarray, n: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Variance of ``b - c`` if the true difference were ``difference``, by constrained likelihood."""
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    root = np.sqrt(np.maximum(0.0, linear * linear - 8 * n * constant))
    # The larger root of 2n q^2 + linear q + constant = 0, without cancellation for either sign.
    share_c = np.where(
        linear > 0, -2 * constant / np.where(linear > 0, linear + root, 1.0), (root - linear) / (4 * n)
    )
    variance: np.ndarray = np.maximum(0.0, n * (2 * share_c + difference * (1 - difference)))
    return variance


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
