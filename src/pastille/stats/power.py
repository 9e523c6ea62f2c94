"""How many cases a limit needs."""

from __future__ import annotations

import math

from pastille.stats.normal import NORMAL, critical_value


def cases_needed(
    discordance: float, limit: float, *, confidence: float, power: float = 0.8, drop: float = 0.0
) -> int:
    """Cases that a split must have to show that a drop stays within a limit.

    ``N = (z_a + z_b)^2 * discordance / (limit - drop)^2``, and never fewer than two models that do not
    disagree even once would need: there Tango's upper bound is ``z_a^2 / (N + z_a^2)``.

    Args:
        discordance: Share of cases that one model gets right and the other wrong, in ``[0, 1]``.
        limit: Largest permitted drop, absolute, in ``(0, 1]``.
        confidence: Of the two-sided interval whose upper end decides.
        power: Chance that the interval ends below the limit.
        drop: The true drop that is assumed, below ``limit``.

    Returns:
        Cases in all.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cases_needed(0.02, 0.01, confidence=0.95)
        1570
        >>> cases_needed(0.0, 0.01, confidence=0.95)  # they never disagree
        381

    References:
        Nam, "Establishing equivalence of two treatments and sample size requirements in matched-pairs
        design", Biometrics 53, 1997; Tango, Statistics in Medicine 17, 1998.
    """
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance must be in [0, 1], got {discordance}")
    if not (0 < limit <= 1 and drop < limit):
        raise ValueError(f"limit must be in (0, 1] and above the drop, got limit={limit}, drop={drop}")
    z_a, z_b = critical_value(confidence), _power_quantile(power)
    room = limit - drop
    never_disagreeing = z_a**2 * (1 / limit - 1)
    return max(1, math.ceil(never_disagreeing), math.ceil((z_a + z_b) ** 2 * discordance / room**2))


def cases_by_width(n: int, reach: float, room: float, *, confidence: float, power: float = 0.8) -> int:
    """Cases that would bring an interval's upper end below a limit, its width shrinking as ``1 / sqrt(N)``.

    Args:
        n: Cases that the interval rests on.
        reach: From the estimate to the upper end.
        room: From the estimate to the limit, positive.
        confidence: Of the two-sided interval.
        power: Chance that it then ends below the limit, if the estimate is the truth.

    Returns:
        Cases in all.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cases_by_width(100, 0.02, 0.01, confidence=0.95)
        818
    """
    if not (n > 0 and reach >= 0 and room > 0):
        raise ValueError(f"n and room must be positive, reach at least 0, got {n}, {room} and {reach}")
    z_a, z_b = critical_value(confidence), _power_quantile(power)
    return max(1, math.ceil(n * (reach * (1 + z_b / z_a) / room) ** 2))


def _power_quantile(power: float) -> float:
    if not 0.5 <= power < 1:
        raise ValueError(f"power must be in [0.5, 1), got {power}")
    return NORMAL.inv_cdf(power)
