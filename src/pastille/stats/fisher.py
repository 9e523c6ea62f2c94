"""Fisher's exact test, one-sided: whether an outcome is commoner in a part of the cases than elsewhere."""

from __future__ import annotations

import numpy as np
from scipy.special import betaln


def fisher_greater(hits: int, n: int, all_hits: int, all_n: int) -> float:
    """Chance of at least so many hits in a part, were the hits dealt out over all cases at random.

    Args:
        hits: Cases of the part that have the outcome.
        n: Cases of the part.
        all_hits: Cases anywhere that have the outcome.
        all_n: Cases.

    Returns:
        The one-sided p-value, in ``(0, 1]``.

    Raises:
        ValueError: If the counts contradict each other.

    Example:
        >>> round(fisher_greater(3, 4, 4, 8), 6)  # the lady tasting tea
        0.242857

    References:
        Fisher, "The design of experiments", 1935, chapter 2.
    """
    if not max(0, n + all_hits - all_n) <= hits <= min(n, all_hits) <= all_n or max(n, all_hits) > all_n:
        raise ValueError(f"counts must fit each other, got {hits} of {n} and {all_hits} of {all_n} in all")
    more = np.arange(hits, min(n, all_hits) + 1, dtype=np.float64)
    logs = _log_choose(n, more) + _log_choose(all_n - n, all_hits - more) - _log_choose(all_n, all_hits)
    return min(1.0, float(np.exp(logs).sum()))


def _log_choose(n: float, k: np.ndarray | float) -> np.ndarray:
    return np.asarray(-np.log1p(n) - betaln(n - k + 1, np.add(k, 1)))
