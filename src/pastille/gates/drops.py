"""One drop, held against one limit."""

from __future__ import annotations

import math

from pastille.gates.words import drop_reason
from pastille.stats.power import cases_by_width, cases_needed, exact_cases_needed
from pastille.stats.proportions import wilson
from pastille.values import Check, Comparison, Interval, Status

# Discordance is planned with the upper end of this interval: the observed one is often 0.
_DISCORDANCE_CONFIDENCE = 0.8


def check_drop(found: Comparison, limit: float) -> Check:
    """Hold a drop against a limit: the interval decides, not the number.

    Args:
        found: Both models on the same cases.
        limit: Largest permitted drop, in the metric's own units; 0 asks that the candidate be shown to be
            better.

    Example:
        >>> from pastille.stats.proportions import tango
        >>> check_drop(Comparison(metric="accuracy", n=400, baseline=None, candidate=None, drop=1 / 400,
        ...     interval=tango(1, 0, 400, 0.95), method="Tango score interval"), 0.02).status
        <Status.APPROVED: 'approved'>
    """
    status = status_of(found.interval, limit)
    return as_check(found, limit, status)


def status_of(interval: Interval | None, limit: float) -> Status:
    """Approved if the whole interval lies within the limit, rejected if it lies beyond, else undecided."""
    if interval is None:
        return Status.INCONCLUSIVE
    if interval.high <= limit:
        return Status.APPROVED
    return Status.REJECTED if interval.low > limit else Status.INCONCLUSIVE


def as_check(
    found: Comparison,
    limit: float,
    status: Status,
    *,
    adjusted_p: float | None = None,
    suffix: str = "",
    reason: str = "",
) -> Check:
    """A check that says ``status`` of a drop.

    Args:
        found: Both models on the same cases.
        limit: Largest permitted drop.
        status: What was decided.
        adjusted_p: Of groups, after Holm's correction.
        suffix: Ends the reason.
        reason: Said instead of the usual sentence.
    """
    more = more_cases(found, limit) if status is Status.INCONCLUSIVE else None
    return Check(
        metric=found.metric,
        status=status,
        limit=limit,
        baseline=found.baseline.value if found.baseline else None,
        candidate=found.candidate.value if found.candidate else None,
        drop=found.drop,
        interval=found.interval,
        n=found.n,
        method=found.method,
        more_cases=more,
        reason=reason or drop_reason(found, limit, status, more, suffix=suffix),
        where=found.where,
        adjusted_p=adjusted_p,
        mcnemar=found.mcnemar,
    )


def more_cases(found: Comparison, limit: float) -> int | None:
    """How many more would probably decide, if the drop stays what it is; None if they would hardly help."""
    if found.interval is None or found.drop is None or max(0.0, found.drop) >= limit:
        return None
    confidence = found.interval.confidence
    if found.newly_wrong is None or found.newly_right is None or limit > 1:
        reach = max(0.0, found.interval.high - found.drop)
        needed = cases_by_width(found.n, reach, limit - found.drop, confidence=confidence)
    else:
        worth = found.worth or found.n
        shrunk = (found.newly_wrong + found.newly_right) * worth / found.n
        discordance = wilson(shrunk, worth, _DISCORDANCE_CONFIDENCE).high
        # The exact figure takes a search of some 50 ms; a table of many groups makes do with the formula.
        needed_for = cases_needed if found.where else exact_cases_needed
        drop = max(0.0, found.drop)
        independent = needed_for(max(discordance, drop), limit, confidence=confidence, drop=drop)
        needed = math.ceil(independent * found.n / worth)
    return max(1, needed - found.n)
