"""A pruning budget: what was asked, what the file came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pastille.report.text as text
from pastille.record import BudgetLimit
from pastille.report.checks import Tone

_MAX_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """One limit."""

    name: str
    asked: str
    reached: str
    by_ratio: str  # of a latency: by the paired ratio over the earlier file; empty of all others
    spent: str
    outcome: str
    tone: Tone


def budget_rows(limits: Iterable[BudgetLimit]) -> tuple[BudgetRow, ...]:
    """The limits of a budget, in the recipe's order."""
    return tuple(_row(limit) for limit in list(limits)[:_MAX_ROWS])


def _row(limit: BudgetLimit) -> BudgetRow:
    outcome, tone = _outcome(limit.spent)
    return BudgetRow(
        name=_name(limit.name),
        asked=_amount(limit.name, limit.asked),
        reached=_amount(limit.name, limit.reached),
        by_ratio="" if limit.by_ratio is None else _amount(limit.name, limit.by_ratio),
        spent=text.ABSENT if limit.spent is None else f"{text.fixed(100 * limit.spent, 0)}{text.UNIT_SPACE}%",
        outcome=outcome,
        tone=tone,
    )


def _name(name: str) -> str:
    """As in the recipe, spoken.

    Example:
        >>> _name("max_latency.p95"), _name("max_size")
        ('latency p95', 'size')
    """
    return text.clean(name, 40).removeprefix("max_").replace(".", " ").replace("macs", "MACs")


def _amount(name: str, value: float | None) -> str:
    if name.startswith("max_latency"):
        return text.milliseconds(value)
    return text.size(value) if name == "max_size" else text.amount(value)


def _outcome(spent: float | None) -> tuple[str, Tone]:
    if spent is None:
        return "not measured", "unsure"
    return ("reached", "good") if spent <= 1 else ("missed", "bad")
