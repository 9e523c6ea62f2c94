"""How likely two models' answers to ``n`` cases are: counts of changed decisions, and searches among them.

A table is ``(b, c)`` of ``n``: cases newly wrong and newly right. ``b + c`` is binomial, and so is ``b``
given that sum: an exact probability is a sum over the one of a tail of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

_LOST_MASS = 1e-9  # probability of the counts that are left out of a sum


def likely_counts(n: int, share: float) -> tuple[int, int]:
    """First and last count of a binomial that can be told from impossible.

    By Bernstein's inequality: what is left out has a probability of 1e-9 at most.

    Args:
        n: Cases.
        share: Of them, in ``[0, 1]``.

    Example:
        >>> likely_counts(10_000, 0.02)
        (100, 300)
    """
    rare = math.log(2 / _LOST_MASS)
    reach = rare / 3 + math.sqrt((rare / 3) ** 2 + 2 * rare * n * share * (1 - share))
    return max(0, math.floor(n * share - reach)), min(n, math.ceil(n * share + reach))


def binomial(k: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """Probability of each count ``k`` of ``n``; shapes broadcast, 0 where ``k > n``.

    Example:
        >>> binomial(np.array([0, 1, 2, 3]), np.array(2), 0.5).round(6)
        array([0.25, 0.5 , 0.25, 0.  ])
    """
    rest = np.maximum(n - k, 0)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(rest + 1)
    chance: np.ndarray = np.where(k <= n, np.exp(ways + xlogy(k, share) + xlog1py(rest, -share)), 0.0)
    return chance


def last_true(holds: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The last whole number in ``[low, high)`` that ``holds`` is true of, elementwise; by bisection.

    Args:
        holds: Takes numbers of the shape of ``low`` and says of each whether it holds; true up to some
            number and false from there on.
        low: Taken to hold, float64.
        high: Taken not to, above ``low``.

    Example:
        >>> last_true(lambda x: x**2 <= 50, np.array([0.0]), np.array([100.0]))
        array([7.])
    """
    for _ in range(int((high - low).max() - 1).bit_length()):
        middle = np.floor((low + high) / 2)
        # Where the search has ended, middle is low, which stays.
        true = (middle <= low) | holds(middle)
        low, high = np.where(true, middle, low), np.where(true, high, middle)
    return low
