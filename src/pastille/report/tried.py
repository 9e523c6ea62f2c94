"""Files that a search made, side by side, formatted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pastille.report.text as text
from pastille.record import Tried
from pastille.values import Speedup

_MAX_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class TriedRow:
    """One file."""

    name: str
    chosen: bool
    size: str
    speed: str
    interval: str
    slower: bool
    spent: str
    outcome: str


def tried_rows(tried: Iterable[Tried]) -> tuple[TriedRow, ...]:
    """The table of a search; what was tried first is first."""
    return tuple(_row(each) for each in list(tried)[:_MAX_ROWS])


def _row(tried: Tried) -> TriedRow:
    found = tried.speedup
    return TriedRow(
        name=text.clean(tried.name, 40),
        chosen=tried.chosen,
        size=text.size(tried.size_bytes),
        speed=text.ABSENT if found is None else f"{text.fixed(found.ratio, 2)} ×",
        interval="" if found is None else _interval(found),
        slower=found is not None and found.slower,
        spent=text.ABSENT if tried.spent is None else f"{text.fixed(100 * tried.spent, 0)}{text.UNIT_SPACE}%",
        outcome=_outcome(tried),
    )


def _interval(found: Speedup) -> str:
    return f"{text.fixed(found.interval.low, 2)} to {text.fixed(found.interval.high, 2)}, batch {found.batch}"


def _outcome(tried: Tried) -> str:
    said = "chosen" if tried.chosen else "passes" if tried.passes else "loses too much"
    return f"{said}: {text.clean(tried.note, 120)}" if tried.note else said
