"""What runs in int8, as a table for people."""

from __future__ import annotations

from collections import Counter

from rich.markup import escape
from rich.table import Table

from pastille.values import FloatKernel, KernelProof, KernelUse, Precision

_SPOKEN: dict[Precision, str] = {"conversion": "int8 ↔ float", "other": "integers"}
_ROWS = 24
_REASONS = 2  # per operator


def kernel_summary(proof: KernelProof) -> str:
    """Shares by multiply-accumulates, by operators and by time, in one line.

    Example:
        >>> from pastille.values import Conditions
        >>> here = Conditions(device="", isa="", cores=1, threads=1, runtime="", runtime_version="", os="")
        >>> relu = KernelUse(operator="Relu", precision="float", count=1, macs=0, share=1.0)
        >>> kernel_summary(
        ...     KernelProof(uses=(relu,), floats=(), more_floats=0, batch=1, calls=20, conditions=here)
        ... )
        'in int8: 0.0 % of the operators, 0 % of the time (float 100 %, conversions 0 %, batch 1, 20 calls)'
    """
    parts = [
        f"{100 * share:.1f} % of the {what}"
        for what, share in (
            ("multiply-accumulates", proof.int8_macs),
            ("operators", proof.int8_count),
        )
        if share is not None
    ]
    spent = {kind: proof.time(kind) for kind in ("int8", "float", "conversion")}
    if spent["int8"] is None:
        return f"in int8: {', '.join(parts) or 'nothing'} ({proof.note or 'not timed'})"
    shares = {kind: f"{100 * (share or 0.0):.0f} %" for kind, share in spent.items()}
    return (
        f"in int8: {', '.join((*parts, shares['int8'] + ' of the time'))} (float {shares['float']}, "
        f"conversions {shares['conversion']}, batch {proof.batch}, {proof.calls} calls)"
    )


def kernel_table(proof: KernelProof) -> Table:
    """Each operator that is executed: how often, in which numbers, what it takes, and why in float."""
    table = Table(box=None, padding=(0, 2), show_edge=False)
    table.add_column("operator")
    table.add_column("runs in")
    for head in ("count", "of the time"):
        table.add_column(head, justify="right")
    table.add_column("why, and what the conversions around it take")
    for use in proof.uses[:_ROWS]:
        table.add_row(
            escape(use.operator),
            _SPOKEN.get(use.precision, use.precision),
            str(use.count),
            _percent(use.share),
            escape(_why(use, proof)),
        )
    if len(proof.uses) > _ROWS:
        table.add_row(f"and {len(proof.uses) - _ROWS} more", "", "", "", "")
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _why(use: KernelUse, proof: KernelProof) -> str:
    if use.precision != "float":
        return ""
    alike = [kernel for kernel in proof.floats if kernel.operator == use.operator]
    reasons = Counter(kernel.reason for kernel in alike).most_common()
    said = [f"{reason} ({n}×)" if len(reasons) > 1 else reason for reason, n in reasons[:_REASONS]]
    more = [f"{len(reasons) - _REASONS} other reasons"] if len(reasons) > _REASONS else []
    return "; ".join((*said, *more)) + _around(alike)


def _around(alike: list[FloatKernel]) -> str:
    paid = sum(kernel.conversions or 0.0 for kernel in alike)
    return f"; conversions {_percent(paid)}" if paid else ""
