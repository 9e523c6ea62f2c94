"""What the commands of ``pastille power`` say alike."""

from __future__ import annotations

from dataclasses import dataclass

from pastille.stats.power import EXACT_CASES


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What the figures rest on."""

    confidence: float  # of the two-sided interval
    power: float  # chance of approval that is wanted
    drop: float = 0.0  # the candidate's true one


def about(cases: int) -> str:
    """The exact sum is not taken of more."""
    return "about " if cases > EXACT_CASES else ""


def coloured(text: str, good: bool, possible: bool) -> str:
    """Green, or yellow where it may be, or red."""
    return f"[{'green' if good else 'yellow' if possible else 'red'}]{text}[/]"


def footnote(assumed: Assumed, *, counted: bool = False) -> str:
    """What the figures rest on; ``counted`` where it is already known which cases a metric rests on."""
    truth = (
        f"a true drop of {percent(assumed.drop)}" if assumed.drop else "a candidate as good as the baseline"
    )
    chance = f"a chance of {percent(assumed.power)} that the {percent(assumed.confidence)} interval approves"
    count = (
        "" if counted else "; count the positive cases alone for sensitivity, and a group's own for a group"
    )
    return f"for {chance} {truth}{count}"


def percent(share: float) -> str:
    """A share as it was given.

    Example:
        >>> percent(0.005)
        '0.5 %'
    """
    return f"{100 * share:.6g} %"
