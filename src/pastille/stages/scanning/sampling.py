"""Which cases of validation are looked at, and what they say of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

_BY_DOUBT, _BY_GROUP = 0.7, 0.2  # of the chances; the rest is the same for every case


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """An order of cases, any beginning of which is a sample.

    Attributes:
        order: Rows, ``(N,)`` int64.
        keys: Of the rows in that order, ``(N,)`` ascending.
        chances: Likewise; their sum is 1.
    """

    order: np.ndarray
    keys: np.ndarray
    chances: np.ndarray

    def weights(self, n: int) -> np.ndarray:
        """How many cases each of the first ``n`` stands for, ``(n,)``; their sum is N."""
        last = self.keys[n] if n < len(self.keys) else np.inf
        weights = 1 / np.minimum(1.0, last * self.chances[:n])
        return np.asarray(weights * len(self.keys) / weights.sum())


def draw(doubt: np.ndarray, *, groups: tuple[np.ndarray, ...] = (), seed: int = 0) -> Sample:
    """Take cases that the model is unsure of more often: their loss changes most.

    Sequential Poisson sampling: every case has a random number, divided by its chance, and the smallest
    come first. Weighted by the inverse of its chance, each sample is one of all cases.

    Args:
        doubt: Of each case, at least 0, ``(N,)``.
        groups: Rows that belong together, ``(N,)`` bool each; a small group is looked at more than its share.
        seed: Of the random numbers.

    Example:
        >>> draw(np.array([0.0, 9.0, 0.0])).weights(3)
        array([1., 1., 1.])

    References:
        Ohlsson, "Sequential Poisson sampling", Journal of Official Statistics 14(2), 1998.
    """
    n = len(doubt)
    even = np.full(n, 1 / n)
    by_doubt = doubt / doubt.sum() if doubt.sum() > 0 else even
    by_group = np.mean([rows / rows.sum() for rows in groups], axis=0) if groups else even
    chances = _BY_DOUBT * by_doubt + _BY_GROUP * by_group + (1 - _BY_DOUBT - _BY_GROUP) * even
    keys = (1 - np.random.default_rng(seed).random(n)) / chances
    order = keys.argsort(kind="stable")
    return Sample(order=order, keys=keys[order], chances=chances[order])


def mean_interval(
    values: np.ndarray, weights: np.ndarray, *, confidence: float, subjects: np.ndarray | None = None
) -> tuple[float, float, float]:
    """The mean over all cases, and an interval that holds it for further cases of the same kind.

    Args:
        values: Of the cases looked at, ``(n,)``.
        weights: How many each stands for, ``(n,)``.
        confidence: Of the interval, in (0, 1).
        subjects: ``(n,)``; cases of one subject are not independent.

    Returns:
        Mean, low, high. The variance is that of a weighted mean with replacement: what the sample leaves
        open, and what another validation split would have given.
    """
    shares = weights / weights.sum()
    mean = float(shares @ values)
    parts = shares * (values - mean)
    if subjects is not None:
        parts = np.bincount(np.unique(subjects, return_inverse=True)[1], weights=parts)
    m = len(parts)
    if m < 2:
        return mean, -np.inf, np.inf
    error = float(np.sqrt((parts**2).sum() * m / (m - 1)))
    effective = min(m, 1 / float((shares**2).sum()))
    reach = error * float(stdtrit(max(1.0, effective - 1), 0.5 + confidence / 2))
    return mean, mean - reach, mean + reach


def expected_agreement(values: np.ndarray, weights: np.ndarray) -> float:
    """How well the means of several rows are expected to be ordered as those over all cases are.

    Args:
        values: One row for each layer, of the same cases, ``(L, n)``.
        weights: How many cases each column stands for, ``(n,)``.

    Returns:
        Expected Kendall's tau: 1 less twice the mean chance that two rows are the wrong way round, where a
        difference has the error that the sample leaves open (none where it is all cases). A little too
        hopeful where most differences are within their error.

    Example:
        >>> expected_agreement(np.array([[0.0, 1.0], [5.0, 6.0]]), np.ones(2))
        1.0
    """
    shares = weights / weights.sum()
    means = values @ shares
    rest = values - means[:, None]
    covariance = (rest * (shares**2 * (1 - 1 / np.maximum(weights, 1.0)))) @ rest.T
    first, second = np.triu_indices(len(values), 1)
    if not len(first):
        return 1.0
    spread = np.diag(covariance)
    variance = spread[first] + spread[second] - 2 * covariance[first, second]
    gaps = np.abs(means[first] - means[second])
    sure = np.divide(gaps, np.sqrt(variance), out=np.full_like(gaps, np.inf), where=variance > 1e-18)
    return float(1 - 2 * ndtr(-sure).mean())
