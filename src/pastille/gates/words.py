"""How a gate speaks: one sentence that a clinician can read, with every number that decided it."""

from __future__ import annotations

from collections.abc import Mapping

from pastille.values import Comparison, Interval, Status
from pastille.vocabulary import (
    LOWER_IS_BETTER,
    cases_of,
    counted,
    is_share,
    many,
    place,
    spoken,
)

_OF_TWO_CLASSES = ("auroc",)  # without both there is nothing to rank


def drop_reason(
    found: Comparison, limit: float, status: Status, more: int | None, *, suffix: str = ""
) -> str:
    """Why a drop was approved, rejected or left open.

    Args:
        found: Both models on the same cases.
        limit: Largest permitted drop, in the metric's own units.
        status: What the gate says.
        more: Cases that would probably decide, None if they would hardly help.
        suffix: Follows the limit, e.g. ``" even after Holm's correction over 12 groups"``.

    Example:
        >>> found = Comparison(
        ...     metric="sensitivity", where={"sex": "female"}, n=210, drop=0.061, newly_wrong=13,
        ...     newly_right=0, interval=Interval(low=0.03, high=0.098, confidence=0.95), method="Tango",
        ...     baseline=None, candidate=None)
        >>> print(drop_reason(found, 0.02, Status.REJECTED, None))
        sensitivity of sex female fell by 6.1 points (95 % CI 3.0 to 9.8, 210 cases of a positive class:
        13 newly wrong, 0 newly right), beyond the limit of 2 points even at the lower end of the interval
    """
    if found.interval is None or found.drop is None:
        return f"{subject(found.metric, found.where)} cannot be judged: {why_not(found)}"
    change = changed(found.metric, found.drop, found.interval, limit)
    cases = f"{_cases(found)}{_counts(found)}"
    said = f"{subject(found.metric, found.where)} {change}, {cases})"
    return f"{said}, {conclusion(found.metric, limit, status, more, drop=found.drop)}{suffix}"


def subject(metric: str, where: Mapping[str, str]) -> str:
    """The metric, and whose it is.

    Example:
        >>> subject("recall", {"class": "melanoma"}), subject("r2", {})
        ('recall of class melanoma', 'R²')
    """
    return spoken(metric) + (f" of {place(where)}" if where else "")


def changed(metric: str, drop: float, interval: Interval, limit: float) -> str:
    """By how much a metric fell or rose, with the interval; the bracket is left open for the cases.

    Example:
        >>> changed("r2", 0.012, Interval(low=-0.01, high=0.034, confidence=0.95), 0.05)
        'fell by 0.012 (95 % CI −0.010 to 0.034'
    """
    factor, digits, unit = (100.0, 1, " points") if is_share(metric) else (1.0, 3, "")
    value, low, high, bound = (factor * x for x in (drop, interval.low, interval.high, limit))
    digits = digits_for(digits, value, low, high, bound)
    what = "CI" if value > 0 else "CI of the drop"
    move = f"{_verb(metric, value)} by {number(abs(value), digits)}{unit}" if value else "did not change"
    return f"{move} ({100 * interval.confidence:.6g} % {what} {number(low, digits)} to {number(high, digits)}"


def _verb(metric: str, drop: float) -> str:
    """What falls is worse for most metrics; an error that grows is."""
    return (
        ("fell" if drop > 0 else "rose") if metric not in LOWER_IS_BETTER else "grew" if drop > 0 else "fell"
    )


def _counts(found: Comparison) -> str:
    if found.newly_wrong is None or found.newly_right is None:
        return ""
    return f": {many(found.newly_wrong)} newly wrong, {many(found.newly_right)} newly right"


def _cases(found: Comparison) -> str:
    return counted(found.n, found.metric) + (
        f" of {many(found.subjects)} subject{'' if found.subjects == 1 else 's'}" if found.subjects else ""
    )


def why_not(found: Comparison) -> str:
    """Why there is no interval."""
    if found.metric == "r2" and found.drop is None and found.n != 1:
        return "all targets of the split are equal"
    if found.n and found.drop is None:
        return f"{'this' if found.n == 1 else 'these'} {_cases(found)} {_do(found.n)} not define it"
    if found.n:
        return f"{_cases(found)} {'is' if found.n == 1 else 'are'} too few for an interval"
    there = place(found.where) if found.where else "the split"
    if found.metric in _OF_TWO_CLASSES:
        return f"the cases of {there} are all of one class"
    return f"{there} has no {cases_of(found.metric)}"


def _do(count: int) -> str:
    return "does" if count == 1 else "do"


def conclusion(
    metric: str, limit: float, status: Status, more: int | None, *, drop: float, what: str = "drop"
) -> str:
    """What the interval says about the limit; ``what`` is what was held against it."""
    bound = limit_words(metric, limit)
    if status is Status.APPROVED:
        return f"within the limit of {bound}"
    if status is Status.REJECTED:
        return f"beyond the limit of {bound} even at the lower end of the interval"
    unproven = f"so the limit of {bound} is not shown to hold"
    if more is not None:
        return f"{unproven}; about {more_cases_of(more, metric)} would probably decide"
    if drop < limit or limit == drop == 0:
        return f"{unproven}; only a candidate that is shown to be better can keep a limit this small"
    return f"{unproven}; the {what} itself is not below it, so more cases would sooner reject than approve"


def more_cases_of(more: int, metric: str) -> str:
    """Cases to be added, in words.

    Example:
        >>> more_cases_of(1, "sensitivity"), more_cases_of(12_000, "accuracy")
        ('1 more case of a positive class', '12,000 more cases')
    """
    count, _, words = counted(more, metric).partition(" ")
    return f"{count} more {words}"


def limit_words(metric: str, limit: float) -> str:
    """A limit as it was asked.

    Example:
        >>> limit_words("accuracy", 0.01), limit_words("auroc", 0.005), limit_words("rmse", 1.25)
        ('1 point', '0.5 points', '1.25')
    """
    if not is_share(metric):
        return f"{limit:.6g}"
    points = 100 * limit
    return f"{points:.6g} point{'' if f'{points:.6g}' == '1' else 's'}"


def digits_for(least: int, value: float, low: float, high: float, limit: float) -> int:
    """Fewest decimals at which the numbers shown stand to the limit, and to 0, as the true ones do."""

    def faithful(digits: int) -> bool:
        same = ((round(x, digits) > limit) == (x > limit) for x in (low, high))
        return all(same) and (round(value, digits) != 0 or value == 0)

    return next((digits for digits in range(least, 8) if faithful(digits)), 8)


def number(value: float, digits: int) -> str:
    """A number with a true minus sign and no negative zero.

    Example:
        >>> number(-0.04, 1), number(-1.25, 1)
        ('0.0', '−1.2')
    """
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
