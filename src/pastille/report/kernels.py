"""What the runtime executes in int8 and what stays float, formatted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pastille.report.text as text
from pastille.values import FloatKernel, KernelProof, Precision

_KINDS: tuple[Precision, ...] = ("int8", "float", "conversion", "other")
_SPOKEN: dict[Precision, str] = {
    "int8": "int8",
    "float": "float",
    "conversion": "conversions between them",
    "other": "shapes and indices",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One length of a bar."""

    kind: Precision
    share: float  # of the whole bar


@dataclass(frozen=True, kw_only=True)
class ShareBar:
    """How much of one thing runs in which numbers."""

    of: Literal["multiply-accumulates", "operators", "time"]
    parts: tuple[Part, ...]
    value: str  # the share of int8
    words: str  # all of it, to be read aloud


@dataclass(frozen=True, kw_only=True)
class FloatRow:
    """One operator that stays float."""

    name: str
    operator: str  # as it is executed; empty where the name says it
    reason: str
    share: str
    conversions: str


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The proof of one stage's file."""

    bars: tuple[ShareBar, ...]
    rows: tuple[FloatRow, ...]  # the dearest first
    more: int
    conditions: str
    note: str


def kernels(proof: KernelProof, most: int) -> Kernels:
    """Format a proof.

    Args:
        proof: Of the stage's file.
        most: Float operators to list.
    """
    return Kernels(
        bars=tuple(_bars(proof)),
        rows=tuple(_row(kernel) for kernel in proof.floats[:most]),
        more=max(0, len(proof.floats) - most) + max(0, proof.more_floats),
        conditions=_conditions(proof),
        note=text.sentence(proof.note, 200),
    )


def _bars(proof: KernelProof) -> Iterator[ShareBar]:
    by_macs = proof.int8_macs
    if by_macs is not None:
        yield _bar("multiply-accumulates", {"int8": by_macs, "float": 1 - by_macs})
    by_count = proof.int8_count
    if by_count is not None:
        yield _bar("operators", {"int8": by_count, "float": 1 - by_count})
    times = {kind: proof.time(kind) for kind in _KINDS}
    if times["int8"] is not None:
        yield _bar("time", {kind: share or 0.0 for kind, share in times.items()})


def _bar(
    of: Literal["multiply-accumulates", "operators", "time"], shares: dict[Precision, float]
) -> ShareBar:
    shown = {kind: share for kind, share in shares.items() if share > 0}
    listed = (f"{percent(share)} {_SPOKEN[kind]}" for kind, share in shown.items())
    return ShareBar(
        of=of,
        parts=tuple(Part(kind=kind, share=share) for kind, share in shown.items()),
        value=percent(shares["int8"]),
        words=f"Of the {of}: {', '.join(listed)}",
    )


def percent(share: float | None) -> str:
    r"""A share; never "100 %" of what is not all, nor "0 %" of what is something.

    Example:
        >>> percent(0.9996), percent(1.0), percent(0.0004), percent(0.123), percent(None)
        ('99.9\u202f%', '100\u202f%', '0.1\u202f%', '12.3\u202f%', '–')
    """
    if share is None:
        return text.ABSENT
    shown = share if share in (0.0, 1.0) else min(max(share, 0.001), 0.999)
    return f"{text.fixed(100 * shown, 0 if share in (0.0, 1.0) else 1)}{text.UNIT_SPACE}%"


def _row(kernel: FloatKernel) -> FloatRow:
    is_named = kernel.name.startswith(f"{kernel.operator} ")
    return FloatRow(
        name=text.clean(kernel.name, 80),
        operator="" if is_named else text.clean(kernel.operator, 40),
        reason=text.clean(kernel.reason, 240),
        share=percent(kernel.share),
        conversions=percent(kernel.conversions),
    )


def _conditions(proof: KernelProof) -> str:
    where = proof.conditions
    if not proof.calls:
        return ""
    return text.clean(
        f"{text.plural(proof.calls, 'call')} at batch {proof.batch}, {where.device} ({where.isa}), "
        f"{text.plural(where.threads, 'thread')}, {where.runtime} {where.runtime_version}",
        200,
    )
