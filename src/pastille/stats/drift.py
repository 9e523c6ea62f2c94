"""How far the confidences of the last answers lie from those of validation, and when that is no chance.

Two distances: the population stability index (PSI) over bins that hold equally many of validation's cases,
and Kolmogorov and Smirnov's largest distance of two distribution functions (KS). Fixed limits for them,
such as "PSI above 0.1", mostly alarm over small windows; these limits depend on how many there are.
"""

from __future__ import annotations

import math

import numpy as np

from pastille.stats.chi_square import chi_square_quantile
from pastille.values.reference import VariantReference

_PSEUDO = 0.5  # added to each bin's count: an empty one would make PSI infinite
_TERMS = 100


def bin_counts(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many values lie in each bin; those outside count to the outermost.

    Args:
        values: ``(N,)``.
        edges: ``(B + 1,)`` ascending; a bin includes its lower edge.

    Returns:
        ``(B,)`` int64.

    Example:
        >>> bin_counts(np.array([0.2, 0.5, 1.0]), np.array([0.0, 0.5, 1.0]))
        array([1, 2])
    """
    return np.bincount(np.searchsorted(edges[1:-1], values, side="right"), minlength=len(edges) - 1)


def psi(counts: np.ndarray, reference_counts: np.ndarray) -> np.ndarray:
    """Population stability index: ``sum (p - q) log(p / q)`` over the bins, half a case added to each.

    Args:
        counts: ``(..., B)`` of the cases looked at.
        reference_counts: ``(..., B)`` of validation; need not be whole.

    Returns:
        ``(...,)``, at least 0.

    Example:
        >>> float(psi(np.array([5, 5]), np.array([50, 50])))
        0.0
    """
    now, then = (np.asarray(held, np.float64) + _PSEUDO for held in (counts, reference_counts))
    p, q = (held / held.sum(axis=-1, keepdims=True) for held in (now, then))
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def psi_limit(n: int, reference_n: int, bins: int, significance: float) -> float:
    """What PSI exceeds by chance alone in this share of looks: ``(1/n + 1/m) chi2(B - 1)``.

    Args:
        n: Cases looked at.
        reference_n: Cases of validation.
        bins: At least 2.
        significance: Share of looks, in ``(0, 1)``.

    Example:
        >>> round(psi_limit(100, 1000, 10, 0.01), 3)  # the usual 0.1 would be exceeded by chance
        0.238

    References:
        Yurdakul and Naranjo, "Statistical properties of the population stability index", Journal of Risk
        Model Validation 14, 2020.
    """
    return (1 / n + 1 / reference_n) * chi_square_quantile(1 - significance, bins - 1)


def ks_distance(values: np.ndarray, grid: np.ndarray, reference_n: int) -> float:
    """The largest distance of two distribution functions that is certain, one of them known by quantiles.

    Between two quantiles the reference may run either way; what it may have run is not counted. So this is
    never more than the distance to the cases themselves, and less by at most one step of the grid.

    Args:
        values: ``(N,)``; may hold ties.
        grid: ``(G,)`` quantiles of the reference, evenly spaced from the smallest to the largest value.
        reference_n: Cases that they were taken of.

    Returns:
        In ``[0, 1]``.

    Example:
        >>> ks_distance(np.array([0.9, 0.9]), np.linspace(0, 1, 101), 101)
        0.891...
    """
    found, counts = np.unique(values, return_counts=True)
    at_most = np.cumsum(counts) / len(values)
    below = np.concatenate([[0.0], at_most[:-1]])
    least, most = _reference_share(len(grid), reference_n)
    above = at_most - most[np.searchsorted(grid, found, side="right")]
    under = least[np.searchsorted(grid, found, side="left")] - below
    return float(max(0.0, above.max(), under.max()))


def _reference_share(points: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest share of the reference up to a value that has 0, 1 … G quantiles below it."""
    ranks = (n - 1) * np.linspace(0, 1, points)
    return np.concatenate([[0.0], (np.floor(ranks) + 1) / n]), np.concatenate([np.ceil(ranks) / n, [1.0]])


def ks_limit(n: int, reference_n: int, significance: float) -> float:
    """What the distance exceeds by chance alone in at most this share of looks; ties make it rarer.

    Smirnov's limit, the first term of the series in `ks_p_value`: at 0.1 and below it is off by under 1e-4
    of its value. For few cases it is larger than needed.

    Example:
        >>> round(ks_limit(100, 1000, 0.01), 3)
        0.171
    """
    return math.sqrt(-math.log(significance / 2) / 2 * (1 / n + 1 / reference_n))


def ks_p_value(distance: float, n: int, reference_n: int) -> float:
    """Asymptotic chance of a distance as large as this one, if both are of the same distribution.

    Args:
        distance: From `ks_distance`.
        n: Cases looked at.
        reference_n: Cases of validation.

    Returns:
        In ``[0, 1]``.

    Example:
        >>> round(ks_p_value(0.1708, 100, 1000), 3)
        0.01

    References:
        Smirnov, "Table for estimating the goodness of fit of empirical distributions", Annals of
        Mathematical Statistics 19, 1948.
    """
    square = distance**2 / (1 / n + 1 / reference_n)
    if square < 0.01:  # the series would take long, and its sum is 1 to 50 digits
        return 1.0
    terms = ((1 if k % 2 else -1) * math.exp(-2 * k * k * square) for k in range(1, _TERMS))
    return min(1.0, max(0.0, 2 * sum(terms)))


def reference_counts(reference: VariantReference) -> np.ndarray:
    """Cases of validation in each of its bins, ``(B,)`` float64."""
    return np.array(reference.shares) * reference.cases
