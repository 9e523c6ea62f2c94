"""Quantiles of the normal distribution, from the standard library: `scipy.stats` takes 0.7 s to import."""

from __future__ import annotations

from statistics import NormalDist

NORMAL = NormalDist()


def critical_value(confidence: float) -> float:
    """How many standard errors a two-sided interval reaches to each side.

    Args:
        confidence: Coverage of the interval, in ``(0, 1)``.

    Raises:
        ValueError: If ``confidence`` is out of range.

    Example:
        >>> round(critical_value(0.95), 4)
        1.96
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return NORMAL.inv_cdf(0.5 + confidence / 2)
