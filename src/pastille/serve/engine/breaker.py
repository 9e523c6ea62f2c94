"""The circuit breaker: a variant that fails again and again is left alone, then asked once to see.

Nygard, "Release It!" (2007), ch. 5.2, as a pure function of state, event and time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pastille.serve import settings
from pastille.serve.values import BreakerState

LONGEST_REST_S: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Breaker:
    """One variant's.

    Attributes:
        state: Closed: asked. Open: left alone. Half open: one probe runs.
        failures: In a row, while closed.
        rest_s: How long it rests the next time that it opens.
        until: Clock time from which an open one may be probed, and a probe that never came back repeated.
    """

    state: BreakerState = "closed"
    failures: int = 0
    rest_s: float
    until: float = 0.0


def new_breaker(rule: settings.Breaker) -> Breaker:
    """A closed one."""
    return Breaker(rest_s=rule.rest_s)


def permits(breaker: Breaker, now: float) -> bool:
    """Whether the variant may be asked now.

    Example:
        >>> permits(Breaker(state="open", rest_s=30.0, until=10.0), now=9.0)
        False
    """
    return breaker.state == "closed" or now >= breaker.until


def asked(breaker: Breaker, now: float) -> Breaker:
    """The variant is asked: where it has rested for long enough, this is the probe.

    The last one is asked even while it rests; what only it could answer must not make its rest longer.
    """
    if permits(breaker, now) and breaker.state != "closed":
        return replace(breaker, state="half_open", until=now + breaker.rest_s)
    return breaker


def unasked(breaker: Breaker, now: float) -> Breaker:
    """The probe found no place: that says nothing of the variant, so the next call is the probe.

    Example:
        >>> permits(unasked(Breaker(state="half_open", rest_s=30.0, until=40.0), 10.0), now=10.0)
        True
    """
    return replace(breaker, until=now) if breaker.state == "half_open" else breaker


def succeeded(breaker: Breaker, rule: settings.Breaker) -> Breaker:
    """The variant answered. One that began before the breaker opened says nothing."""
    return breaker if breaker.state == "open" else new_breaker(rule)


def failed(breaker: Breaker, now: float, rule: settings.Breaker) -> Breaker:
    """The variant failed: enough of that in a row opens, and a failed probe doubles the next rest."""
    match breaker.state:
        case "open":
            return breaker
        case "closed" if breaker.failures + 1 < rule.failures:
            return replace(breaker, failures=breaker.failures + 1)
        case "closed":
            return replace(breaker, state="open", failures=0, until=now + breaker.rest_s)
        case "half_open":
            longest = max(LONGEST_REST_S, rule.rest_s)
            rest_s = min(2 * breaker.rest_s, longest)
            return replace(breaker, state="open", rest_s=rest_s, until=now + rest_s)
