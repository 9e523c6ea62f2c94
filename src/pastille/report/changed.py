"""The cases that both models decide differently: how many, which way, and where they pile up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pastille.report.text as text
from pastille.report.checks import Tone
from pastille.values import Disagreement

_MAX_CONCENTRATIONS = 5
_MAX_TRANSITIONS = 10


@dataclass(frozen=True, kw_only=True)
class Tally:
    """One count of changed cases."""

    n: str
    what: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What changed, the clinically worse direction first."""

    summary: str
    tallies: tuple[Tally, ...]
    places: tuple[str, ...]  # sentences: where else changes pile up, or do not
    more_places: int
    transitions: tuple[tuple[str, str, str], ...]  # (baseline, candidate, cases)
    more_transitions: int
    file: str


def changed(found: Disagreement, *, decisions: bool = True) -> Changed:
    """Arrange the disagreement of both models; without decisions there is no right and wrong."""
    piles = [pile for pile in found.concentrations if pile.sentence not in found.summary]
    return Changed(
        summary=text.sentence(found.summary, 2000),
        tallies=tuple(_tallies(found, decisions=decisions)),
        places=tuple(text.sentence(pile.sentence, 400) for pile in piles[:_MAX_CONCENTRATIONS]),
        more_places=max(0, len(piles) - _MAX_CONCENTRATIONS),
        transitions=tuple(
            (text.clean(before, 80), text.clean(after, 80), text.count(n))
            for before, after, n in found.transitions[:_MAX_TRANSITIONS]
        ),
        more_transitions=max(0, len(found.transitions) - _MAX_TRANSITIONS),
        file=text.clean(found.file, 160),
    )


def _tallies(found: Disagreement, *, decisions: bool) -> Iterator[Tally]:
    """A positive that is called negative now is what a clinician asks for first."""
    if found.positive_to_negative is not None:
        lost = found.positive_to_negative
        yield Tally(n=text.count(lost), what="positive turned negative", tone="bad" if lost else "plain")
    if found.negative_to_positive is not None:
        yield Tally(n=text.count(found.negative_to_positive), what="negative turned positive", tone="plain")
    if decisions:
        worse = found.newly_wrong
        yield Tally(n=text.count(worse), what="newly wrong", tone="bad" if worse else "plain")
        yield Tally(n=text.count(found.newly_right), what="newly right", tone="plain")
    yield Tally(n=text.count(found.changed), what=f"of {text.plural(found.n, 'case')} changed", tone="plain")
