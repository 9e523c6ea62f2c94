"""Sentences for people: what a figure means, and what to do about it."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.0512), percent(0.0004)
        ('5.1 %', '0.04 %')
    """
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.2g} %"


def cases(n: int) -> str:
    """A number of cases.

    Example:
        >>> cases(1), cases(2000)
        ('1 case', '2,000 cases')
    """
    return f"{n:,} case{'' if n == 1 else 's'}"


def disagreement(
    served: str, other: str, *, n: int, disagreed: int, low: float, high: float, limit: float, alarm: bool
) -> str:
    """What the comparison of two variants has shown so far."""
    if n == 0:
        return f"No case has been put to both {served} and {other} yet."
    seen = f"{served} and {other} decided {disagreed:,} of {cases(n)} differently"
    range_ = f"the true rate is between {percent(low)} and {percent(high)}"
    if alarm and low <= limit:  # of all cases; the alarm sees a change that the long calm before it hides
        do = "Look at the inputs of the last days: they are not what the bundle was validated on."
        return f"{seen} in all, and a rate above the {percent(limit)} that may be is shown. {do}"
    if alarm:
        do = "Look at the inputs of the last days: they are not what the bundle was validated on."
        return f"{seen}; {range_}. That is shown to be more than the {percent(limit)} that may be. {do}"
    if high <= limit:
        return f"{seen}; {range_}, within the {percent(limit)} that may be."
    return f"{seen}; {range_}. Nothing shows that it is more than the {percent(limit)} that may be."


def alarm_reason(served: str, other: str, *, n: int, disagreed: int, limit: float) -> str:
    """Why a variant is taken out of service, in one sentence."""
    seen = f"{disagreed:,} of {cases(n)} were decided otherwise than by {other}"
    return f"{served}: {seen}, which shows that the rate has been above the {percent(limit)} that may be"


NO_REFERENCE = (
    "This bundle has no reference for the confidence of this variant, so a drift cannot be seen. A bundle of "
    "a task with decisions, written by the current version of Pastille, has one."
)


def sensitivity(
    group: str, *, positives: int, found: int, minimum: int, floor: float | None, state: str
) -> str:
    """What the labels that came later say of one group."""
    who = "all" if group == "everyone" else group
    seen = f"{found:,} of {positives:,} positive cases ({who}) were found"
    if floor is None:
        return f"{seen}. Validation has no figure for this group to hold them against."
    if state == "alarm":
        do = "Check the labels, then take the variant or the bundle out of service."
        return f"{seen}, which shows fewer than the {percent(floor)} that validation promised at least. {do}"
    if state == "not_enough_data":
        return f"{seen}. At least {minimum} are needed before anything can be said."
    return f"{seen}. Nothing speaks against the {percent(floor)} that validation promised at least."


def comparison(
    a: str, b: str, *, labelled: tuple[int, int], correct: tuple[int, int], state: str, alarm_at: float
) -> str:
    """How an A/B test stands."""
    if min(labelled) == 0:
        return "Labels of both arms are needed (POST /feedback) before anything can be said."
    rates = [right / n for right, n in zip(correct, labelled, strict=True)]
    arms = zip((a, b), rates, labelled, strict=True)
    seen = "; ".join(f"{arm} was right in {percent(rate)} of {cases(n)}" for arm, rate, n in arms)
    if state == "alarm":
        better = b if rates[1] > rates[0] else a
        return f"{seen}. They differ for certain: {better} is right more often. The test can end."
    return (
        f"{seen}. So far that may be chance; you may look as often as you like, and stop at {alarm_at:.0f}."
    )
