"""An interval of a rate that may be looked at after every case: it holds at all looks together."""

from __future__ import annotations

import math
from collections.abc import Callable

from pastille.values import Interval

_A = _B = 0.5  # of the Beta mixture: narrow for small rates as for middling ones
_HALVINGS = 50


def rate_sequence(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """The rates that a bet against each of them has not yet refuted.

    A mixture of rates is bet against every single rate ``p``: after ``n`` cases the bet on ``p`` has become
    ``B(a + k, b + n - k) / (B(a, b) p^k (1 - p)^(n - k))``. For the true rate it ever reaches
    ``1 / (1 - confidence)`` with a chance of at most ``1 - confidence``; so with at least ``confidence`` the
    true rate is in the interval at every look, not only at one that was fixed beforehand. That takes one and
    a half to two times the width of an interval for one look (up to 10,000 cases).

    It speaks of one rate that stays the same; of one that changes it gives no promise.

    Args:
        successes: Cases that have the property, in ``[0, n]``. Where some come together and may be alike, the
            sum of the shares of those that have it: by the weighted means' inequality the same bet is then
            expected to win no more, and the rate is the mean share.
        n: Cases looked at so far; none gives ``[0, 1]``.
        confidence: In ``(0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> rate_sequence(3, 100, 0.95)
        Interval(low=0.0018..., high=0.1229..., confidence=0.95)

    References:
        Robbins, "Statistical methods related to the law of the iterated logarithm", Annals of Mathematical
        Statistics 41, 1970; Howard et al., Annals of Statistics 49, 2021.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n], got {successes} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if n == 0:
        return Interval(low=0.0, high=1.0, confidence=confidence)
    mixed = _log_beta(_A + successes, _B + n - successes) - _log_beta(_A, _B)
    border = mixed + math.log1p(-confidence)  # log likelihood below which a rate is refuted

    def refuted(rate: float) -> bool:
        return _log_likelihood(successes, n, rate) < border

    estimate = successes / n
    low = _border(refuted, kept=estimate, beyond=0.0) if successes > 0 else 0.0
    high = _border(refuted, kept=estimate, beyond=1.0) if successes < n else 1.0
    return Interval(low=low, high=high, confidence=confidence)


def _border(refuted: Callable[[float], bool], *, kept: float, beyond: float) -> float:
    for _ in range(_HALVINGS):
        middle = (kept + beyond) / 2
        kept, beyond = (kept, middle) if refuted(middle) else (middle, beyond)
    return beyond


def _log_likelihood(successes: float, n: int, rate: float) -> float:
    found = successes * math.log(rate) if successes else 0.0
    return found + ((n - successes) * math.log1p(-rate) if n > successes else 0.0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
