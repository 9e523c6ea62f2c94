"""Which variants are loaded, which one answers and which ones stand in for it: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pastille.bundle import VariantName
from pastille.serve.engine.machine import Machine
from pastille.serve.values import Why

SMALL_MACHINE_BYTES: Final = 4 << 30
SHARE, SMALL_SHARE = 0.25, 0.05  # of the memory that models may take; a small machine has other work as well
LOADING: Final = 2.5  # times its file a model takes while it is loaded
CLEARLY: Final = 0.9  # times the latency of the selected variant: what is not faster than that is as fast


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One variant as it was found here.

    Attributes:
        name: Of the variant.
        approved: By the verdict; fp32, which the others were judged against, always is.
        model_bytes: Of the ONNX file.
        usable: It loaded and answers its golden cases here.
        why: It is not usable.
        reason: The same, in a sentence.
        latency_ms: Median here, batch 1; None where it was not timed.
    """

    name: VariantName
    approved: bool
    model_bytes: int
    usable: bool = True
    why: Why | None = None
    reason: str = ""
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Who answers: the first, or the next ones where it fails. Empty: nobody may."""

    order: tuple[VariantName, ...]
    reason: str

    @property
    def preferred(self) -> VariantName | None:
        """The first."""
        return self.order[0] if self.order else None


def fitting(
    candidates: Sequence[Candidate], machine: Machine, *, selected: VariantName
) -> tuple[VariantName, ...]:
    """Which variants to load: all that are approved, or the smallest suitable one where memory is scarce.

    A machine of less than 4 GiB gives models 5 % of its memory, a larger one 25 %: they take 2.5 times
    their files while they are loaded.

    Args:
        candidates: As the manifest lists them.
        machine: This one.
        selected: By the bundle: where only one fits, that one, unless it is fp32 and another is approved.

    Example:
        >>> both = [Candidate(name="int8", approved=True, model_bytes=12 << 20),
        ...         Candidate(name="fp32", approved=True, model_bytes=47 << 20)]
        >>> fitting(both, Machine(isa="neon-dotprod", cores=4, memory_bytes=2 << 30), selected="int8")
        ('int8',)
        >>> fitting(both, Machine(isa="avx512-vnni", cores=8, memory_bytes=16 << 30), selected="int8")
        ('int8', 'fp32')
    """
    allowed = [c for c in candidates if c.approved]
    share = SMALL_SHARE if machine.memory_bytes < SMALL_MACHINE_BYTES else SHARE
    needed = LOADING * sum(c.model_bytes for c in allowed)
    if not machine.memory_bytes or needed <= share * machine.memory_bytes:
        return tuple(c.name for c in allowed)
    return (min(allowed, key=lambda c: (c.name == "fp32", c.name != selected, c.model_bytes)).name,)


def select(candidates: Sequence[Candidate], *, selected: VariantName, forced: str | None = None) -> Selection:
    """Who answers here, and who stands in.

    The fastest usable variant answers; one that is not at least 10 % faster than the bundle's own choice does
    not replace it. fp32 stands in first.

    Args:
        candidates: As they were found here.
        selected: By the bundle.
        forced: By the settings: this one answers alone.

    Example:
        >>> int8 = Candidate(name="int8", approved=True, model_bytes=1, latency_ms=9.0)
        >>> fp32 = Candidate(name="fp32", approved=True, model_bytes=4, latency_ms=6.0)
        >>> select([int8, fp32], selected="int8")
        Selection(order=('fp32', 'int8'), reason='fp32 answers: int8 is slower here, 9 ms against 6 ms')
    """
    usable = [c for c in candidates if c.usable]
    if forced is not None:
        usable = [c for c in usable if c.name == forced]
    if not usable:
        return Selection(order=(), reason=f"no variant is valid here: {_problems(candidates, forced)}")
    best = _best(usable, selected)
    others = sorted((c for c in usable if c is not best), key=lambda c: (c.name != "fp32", _time(c)))
    reason = f"{best.name} was asked for" if forced else _reason(best, candidates, selected)
    return Selection(order=(best.name, *(c.name for c in others)), reason=reason)


def _time(candidate: Candidate) -> float:
    return float("inf") if candidate.latency_ms is None else candidate.latency_ms


def _best(usable: Sequence[Candidate], selected: VariantName) -> Candidate:
    fastest = min(usable, key=_time)
    own = next((c for c in usable if c.name == selected), None)
    return own if own is not None and _time(fastest) >= CLEARLY * _time(own) else fastest


def _problems(candidates: Sequence[Candidate], forced: str | None) -> str:
    return (
        "; ".join(c.reason for c in candidates if c.reason and forced in (None, c.name)) or "none was loaded"
    )


def _reason(best: Candidate, candidates: Sequence[Candidate], selected: VariantName) -> str:
    own = next(c for c in candidates if c.name == selected)
    timed = [c for c in candidates if c.usable and c is not best and c.latency_ms is not None]
    if not own.usable:
        return f"{best.name} answers, for {own.reason}"
    if own is not best:
        return (
            f"{best.name} answers: {own.name} is slower here, "
            f"{_time(own):.3g} ms against {_time(best):.3g} ms"
        )
    against = ", ".join(f"{_time(c):.3g} ms of {c.name}" for c in timed)
    if not against:
        left_out = "; ".join(c.reason for c in candidates if not c.usable and c.approved and c.reason)
        return f"{best.name} answers, as the bundle selects" + (f"; {left_out}" if left_out else "")
    return f"{best.name} answers, as the bundle selects: {_time(best):.3g} ms here against {against}"
