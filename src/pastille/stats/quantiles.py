"""Percentiles of a latency, and how far up the true ones may lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import count

import numpy as np

from pastille.stats.binomial import binomial_cdf
from pastille.values import Quantile

CONFIDENCE = 0.99
_LEFT_OUT_FROM = 0.99  # percentiles that are not given at all without enough samples


@cache
def samples_needed(q: float, *, over: int = 0, confidence: float = CONFIDENCE) -> int:
    """Fewest samples, ``over`` of them above a bound, that show the percentile ``q`` is below it.

    Args:
        q: Percentile in ``(0, 1)``.
        over: Samples above the bound.
        confidence: In ``(0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> samples_needed(0.99), samples_needed(0.99, over=1)
        (459, 662)

    References:
        MLPerf Inference, LoadGen, "Early stopping"; Conover, "Practical nonparametric statistics",
        section 3.2.
    """
    if not (0 < q < 1 and over >= 0 and 0 < confidence < 1):
        raise ValueError(f"q and confidence must be in (0, 1), got q={q}, over={over}, {confidence=}")
    return next(n for n in count(over + 1) if binomial_cdf(n, 1 - q)[over] <= 1 - confidence)


def latency_quantiles(
    samples_ms: Sequence[float] | np.ndarray, qs: Sequence[float] = (0.5, 0.9, 0.95, 0.99)
) -> tuple[Quantile, ...]:
    """Percentiles of a latency, each with a bound that the true one stays below with 99 % confidence.

    Args:
        samples_ms: Times of single calls in milliseconds, ``(N,)``, in any order.
        qs: Percentiles in ``(0, 1)``.

    Returns:
        One value per percentile, in the order of ``qs``: the empirical percentile (a time that occurred),
        and the smallest order statistic that is an upper bound, None if there are too few samples. The
        99th percentile and those above are left out altogether where there are too few.

    Raises:
        ValueError: If there are no samples, or one is not finite.

    Example:
        >>> [(x.q, x.value_ms, x.upper_ms) for x in latency_quantiles(range(1, 101))]
        [(0.5, 50.0, 63.0), (0.9, 90.0, 97.0), (0.95, 95.0, 100.0)]

    References:
        MLPerf Inference, LoadGen, "Early stopping".
    """
    ordered = np.sort(np.asarray(samples_ms, np.float64))
    if ordered.ndim != 1 or ordered.size == 0 or not np.isfinite(ordered).all():
        raise ValueError(f"samples_ms must be finite and at least one, got shape {ordered.shape}")
    kept = [q for q in qs if q < _LEFT_OUT_FROM or len(ordered) >= samples_needed(q)]
    return tuple(_quantile(ordered, q) for q in kept)


def _quantile(ordered: np.ndarray, q: float) -> Quantile:
    value = float(np.quantile(ordered, q, method="inverted_cdf"))
    over = _samples_over(len(ordered), q)
    return Quantile(q=q, value_ms=value, upper_ms=None if over is None else float(ordered[-1 - over]))


def _samples_over(n: int, q: float) -> int | None:
    """How many samples may lie above an order statistic that still bounds the percentile ``q``."""
    chances = binomial_cdf(n, 1 - q)[:-1]  # rising
    allowed = int(np.searchsorted(chances, 1 - CONFIDENCE, side="right"))
    return allowed - 1 if allowed else None
