"""A candidate may not degrade faster than the baseline, nor change its mind with the company it is asked in.

Every perturbation and metric must pass at its worst severity (intersection-union, no correction needed).
Saying that one is beyond the limit does need a correction: among many points some look harmful by chance, so
the p-values of all of them are adjusted by Holm. A candidate exactly at the limit is called beyond it in at
most 4.1 % of repeats by one test alone, and in at most 0.19 % by one of fourteen (nominal 2.5 and 0.18 %;
exact sums, 100 to 1000 cases, limits of 2 and 5 points).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pastille.gates.drops import as_check, status_of
from pastille.gates.words import conclusion, digits_for, limit_words, number
from pastille.recipe import StressLimits
from pastille.stats.holm import holm, p_value_of_excess
from pastille.values import Check, Comparison, Interval, Invariance, Status, StressCurve, StressPoint
from pastille.vocabulary import counted, is_share, spoken

_SHOWN = 5  # nodes that are named


def stress_checks(
    curves: Sequence[StressCurve], limits: StressLimits, confidence: float
) -> tuple[Check, ...]:
    """Hold how much faster the candidate degrades against ``requirements.stress.max_extra_drop``.

    Args:
        curves: From `pastille.measure.stress.stress`, at the same confidence.
        limits: Of the recipe.
        confidence: In ``(0, 1)``. A candidate exactly at the limit is approved in at most
            ``(1 - confidence) / 2`` of repeats.

    Returns:
        One check per curve, of its worst severity; ``where`` is
        ``{"perturbation": "gaussian noise", "severity": "3"}``.

    Example:
        >>> from pastille.values import Estimate
        >>> right = Estimate(value=0.9, interval=None, n=500, method="Wilson")
        >>> worse = StressPoint(severity=3, baseline=right, candidate=right, excess=0.018,
        ...                     interval=Interval(low=0.002, high=0.035, confidence=0.95))
        >>> curve = StressCurve(perturbation="gaussian noise", metric="accuracy", points=(worse,),
        ...                     method="score interval")
        >>> (check,) = stress_checks([curve], StressLimits(max_extra_drop=0.05), 0.95)
        >>> print(check.reason)
        under gaussian noise (severity 3) accuracy fell by 1.8 points more than the baseline's
        (95 % CI 0.2 to 3.5, 500 cases), within the limit of 5 points

    References:
        Berger and Hsu, Statistical Science 11, 1996; Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    limit, level = limits.max_extra_drop, (1 - confidence) / 2
    found = [[_compared(curve, point) for point in curve.points if point.severity] for curve in curves]
    known = [each for severities in found for each in severities if each.interval]
    adjusted = holm([p_value_of_excess(each, limit) for each in known])
    by_point = {id(each): float(p) for each, p in zip(known, adjusted, strict=True)}
    return tuple(_stress_check(severities, limit, level, by_point) for severities in found if severities)


def _compared(curve: StressCurve, point: StressPoint) -> Comparison:
    return Comparison(
        metric=curve.metric,
        where={"perturbation": curve.perturbation, "severity": str(point.severity)},
        n=point.candidate.n,
        baseline=point.baseline,
        candidate=point.candidate,
        drop=point.excess,
        interval=point.interval,
        method=curve.method,
    )


def _stress_check(
    severities: Sequence[Comparison], limit: float, level: float, adjusted: Mapping[int, float]
) -> Check:
    """Of one curve: the severity that is surely beyond the limit, else the one that may be furthest."""
    harmful = [each for each in severities if adjusted.get(id(each), 1.0) < level]
    worst = max(harmful or severities, key=lambda each: each.interval.high if each.interval else math.inf)
    within = status_of(worst.interval, limit) is Status.APPROVED
    status = Status.REJECTED if harmful else Status.APPROVED if within else Status.INCONCLUSIVE
    draft = as_check(worst, limit, status, adjusted_p=adjusted.get(id(worst)))
    return replace(draft, reason=_stress_reason(draft, limit, len(adjusted)))


def _stress_reason(check: Check, limit: float, family: int) -> str:
    name = f"under {check.where['perturbation']} (severity {check.where['severity']}) {spoken(check.metric)}"
    cases = counted(check.n or 0, check.metric)
    if check.interval is None or check.drop is None:
        return f"{name} cannot be judged: {cases} {'is' if check.n == 1 else 'are'} too few for an interval"
    said = f"{name} {_change(check.metric, check.drop, check.interval, limit)}, {cases})"
    if check.interval.low > limit and check.status is Status.INCONCLUSIVE:
        bound = limit_words(check.metric, limit)
        chance = f"among {_times(family)} that may be chance (Holm's correction)"
        return f"{said}, beyond the limit of {bound}, but {chance}"
    ending = f" and after Holm's correction over {_times(family)}" if check.status is Status.REJECTED else ""
    stated = conclusion(check.metric, limit, check.status, check.more_cases, drop=check.drop, what="excess")
    return f"{said}, {stated}{ending}"


def _times(count: int) -> str:
    return f"{count} stress test{'' if count == 1 else 's'}"


def _change(metric: str, excess: float, interval: Interval, limit: float) -> str:
    """How much more was lost, with the interval; the bracket is left open for the cases."""
    factor, digits, unit = (100.0, 1, " points") if is_share(metric) else (1.0, 3, "")
    value, low, high, bound = (factor * x for x in (excess, interval.low, interval.high, limit))
    digits = digits_for(digits, value, low, high, bound)
    verb = "fell" if is_share(metric) or metric == "r2" else "worsened"
    size = f"by {number(abs(value), digits)}{unit} {'more' if value > 0 else 'less'} than"
    what = "CI" if value > 0 else "CI of the excess"
    said = f"{verb} {size} the baseline's" if value else "lost neither more nor less than the baseline's"
    return f"{said} ({100 * interval.confidence:.6g} % {what} {number(low, digits)} to {number(high, digits)}"


def invariance_check(found: Invariance) -> Check:
    """Hold a file to deciding the same for every batch size and number of threads.

    Args:
        found: From `pastille.measure.invariance.invariance`.

    Returns:
        Approved if no decision changed, rejected if any did. Inconclusive where a file takes one batch size
        only, of several, and computes over the batch: it was never asked otherwise.

    Example:
        >>> print(invariance_check(Invariance(cases=256, batch_sizes=(1, 2, 4), threads=(1, 2),
        ...     changed={"batch 2": 0, "batch 4": 0, "2 threads": 0}, max_abs_error=2e-6,
        ...     batch_statistics=())).reason)
        all 256 cases are decided alike in batches of 1, 2 and 4 and with 1 and 2 threads (numbers differ by
        2e-06 at most)
    """
    most = max(found.changed.values(), default=0)
    untested = bool(found.batch_statistics) and len(found.batch_sizes) == 1 and found.batch_sizes[0] > 1
    status = Status.REJECTED if most else Status.INCONCLUSIVE if untested else Status.APPROVED
    return Check(
        metric="invariance",
        status=status,
        limit=0.0,
        baseline=None,
        candidate=float(most),
        drop=None,
        interval=None,
        n=found.cases,
        method="the same cases, asked in every way",
        more_cases=None,
        reason=_invariance_reason(found),
    )


def _invariance_reason(found: Invariance) -> str:
    exact = found.max_abs_error == 0
    differ = "(to the last bit)" if exact else f"(numbers differ by {found.max_abs_error:.2g} at most)"
    parts = [f"{count} in {way}" if "batch" in way else f"{count} with {way}" for way, count in _flips(found)]
    if parts:
        base = "alone" if found.batch_sizes[0] == 1 else f"in batches of {found.batch_sizes[0]}"
        said = f"of {found.cases} cases, {_listed(parts)} are decided differently than {base} with one thread"
    else:
        sizes, threads = (_listed([str(x) for x in xs]) for xs in (found.batch_sizes, found.threads))
        only = ", the only size that the file takes," if len(found.batch_sizes) == 1 < found.cases else ""
        alike = f"all {found.cases} cases are decided alike"
        said = f"{alike} in batches of {sizes}{only} and with {threads} threads"
    return f"{said} {differ}{_mixing(found)}"


def _flips(found: Invariance) -> list[tuple[str, int]]:
    return [(way, count) for way, count in found.changed.items() if count]


def _mixing(found: Invariance) -> str:
    """Which nodes look at the whole batch."""
    if not found.batch_statistics:
        return ""
    named, more = found.batch_statistics[:_SHOWN], len(found.batch_statistics) - _SHOWN
    rest = f" and {more} more" if more > 0 else ""
    return (
        f"; what {', '.join(named)}{rest} gives depends on the whole batch: export normalization layers in "
        "evaluation mode, with stored statistics, and quantize statically"
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
