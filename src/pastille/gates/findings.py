"""What was checked and what it rests on, before a verdict is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from pastille.values import Check, Evidence


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Checks, the evidence behind them, and what qualifies them."""

    checks: tuple[Check, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    notes: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            checks=(*self.checks, *other.checks),
            evidence=merged(self.evidence, other.evidence),
            notes=(*self.notes, *other.notes),
        )


def merged(one: Evidence, other: Evidence) -> Evidence:
    """Both pieces of evidence; what only one of them has is kept.

    Example:
        >>> merged(Evidence(), Evidence()) == Evidence()
        True
    """
    found: Mapping[str, object] = {f.name: getattr(other, f.name) for f in fields(other)}
    return replace(one, **{name: value for name, value in found.items() if value})  # type: ignore[arg-type]
