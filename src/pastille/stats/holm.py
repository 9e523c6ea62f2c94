"""Many losses at once: which of them are beyond their limit, and not by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from pastille.stats.excess import exact_p_of_excess
from pastille.stats.normal import critical_value
from pastille.stats.proportions import score_variance
from pastille.values import Comparison


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjust p-values for having looked at all of them: the chance of any false alarm stays at the level.

    Args:
        p: ``(M,)``, each in ``[0, 1]``; may be empty.

    Returns:
        ``(M,)`` in the same order; one below the level is significant among all of them.

    Raises:
        ValueError: If one is not in ``[0, 1]``.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
        Statistics 6, 1979.
    """
    values = np.asarray(p, np.float64)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise ValueError(f"p must be in [0, 1], got {values[wrong][0]}")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(adjusted, 1.0)


def p_value_of_excess(found: Comparison, limit: float) -> float:
    """One-sided p-value of "the drop is at most the limit"; small where the loss is surely beyond it.

    For shares it is exact: tables are ordered by the score that Tango's interval is made of, and those as
    extreme are added up, on the independent cases that the cases are worth. Where few cases change, the
    normal approximation is too small: it would name a harmless group in up to 4.4 % of repeats instead of
    2.5 %. The larger of the two is given, so that it is below half of ``1 - confidence`` only where the
    interval lies beyond the limit. For any other metric it is read off the interval: as if the drop were
    normal with the standard error that the interval's end on the limit's side stands for.

    Args:
        found: From `pastille.stats.paired.compare`.
        limit: Largest permitted drop.

    Returns:
        In ``[0, 1]``; 1 where the cases cannot tell.

    Example:
        >>> from pastille.stats.proportions import tango
        >>> found = Comparison(metric="accuracy", n=300, baseline=None, candidate=None, drop=16 / 300,
        ...     interval=tango(20, 4, 300, 0.95), method="", newly_wrong=20, newly_right=4)
        >>> round(p_value_of_excess(found, 0.02), 4)
        0.0164

    References:
        Tango, Statistics in Medicine 17, 1998; Lloyd and Moldovan, Statistics in Medicine 27, 2008.
    """
    if found.drop is None or found.interval is None:
        return 1.0
    if found.newly_wrong is not None and found.newly_right is not None:
        worth = found.n if found.worth is None else found.worth
        shrink = worth / found.n
        return _share_p(found.newly_wrong * shrink, found.newly_right * shrink, worth, limit)
    beyond = found.drop - limit
    end = found.drop - found.interval.low if beyond > 0 else found.interval.high - found.drop
    return _normal_p(beyond, end / critical_value(found.interval.confidence))


def _share_p(b: float, c: float, n: float, limit: float) -> float:
    if not -1 < limit < 1:
        return float(limit >= 1)  # no drop is larger than 1, or smaller than -1
    return max(_score_p(b, c, n, limit), exact_p_of_excess(b, c, n, limit))


def _score_p(b: float, c: float, n: float, limit: float) -> float:
    variance = float(score_variance(*(np.array(x) for x in (b, c, n, limit))))
    return _normal_p(b - c - n * limit, math.sqrt(variance))


def _normal_p(beyond: float, error: float) -> float:
    if error <= 0:
        return 0.0 if beyond > 0 else 1.0
    return float(ndtr(-beyond / error))
