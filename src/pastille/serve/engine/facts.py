"""How an engine stands, from frozen facts: who may answer, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pastille.bundle import VariantName
from pastille.serve.engine.breaker import Breaker, permits
from pastille.serve.engine.opening import Opened, OpenedBundle
from pastille.serve.engine.replying import Served
from pastille.serve.settings import Settings
from pastille.serve.values import EngineStatus, Fallback, VariantStatus, Why

_DETAILS: Mapping[Why, str] = {
    "load": "it could not be loaded on this server",
    "golden": "it does not answer its golden cases on this server as it was validated",
    "rejected": "it was not approved",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """All that changes, at one moment."""

    bundle: OpenedBundle
    breakers: Mapping[VariantName, Breaker]
    alarm: str = ""  # why the compressed variants are out of service; empty while they are not
    places: int
    live: int  # places that are not lost to a model that hangs
    stuck: int = 0  # calls that hang
    now: float  # of the breakers' clock


def order_of(facts: Facts, prefer: VariantName | None = None) -> tuple[VariantName, ...]:
    """Who is asked, one after the other: as selected, without those that the alarm took out."""
    order = tuple(n for n in facts.bundle.selection.order if not facts.alarm or n == "fp32")
    return (prefer, *(n for n in order if n != prefer)) if prefer in order else order


def standing_fallback(facts: Facts, settings: Settings, prefer: VariantName | None = None) -> Fallback | None:
    """Why every request is answered by another variant than the wanted one; None where it is not."""
    if prefer is not None:
        return None if prefer in order_of(facts) else _fallback(prefer, facts)
    preferred = facts.bundle.selection.preferred
    if preferred is not None and preferred not in order_of(facts):
        return _fallback(preferred, facts)
    selected = _opened(facts, facts.bundle.manifest.selected)
    if settings.variant is not None or selected.session is not None or selected.left_out:
        return None
    return _fallback(selected.name, facts)


def _fallback(name: VariantName, facts: Facts) -> Fallback:
    why = _opened(facts, name).why
    if why is None:
        return Fallback(preferred=name, why="alarm", detail=facts.alarm)
    return Fallback(preferred=name, why=why, detail=_DETAILS.get(why, "it is not usable on this server"))


def _opened(facts: Facts, name: VariantName) -> Opened:
    return next(v for v in facts.bundle.variants if v.name == name)


def speaker_of(facts: Facts) -> VariantName | None:
    """Who answers now: the first whose breaker permits it, or the last."""
    order = order_of(facts)
    rested = (name for name in order if permits(facts.breakers[name], facts.now))
    return next(rested, order[-1] if order else None)


def status_of(facts: Facts, settings: Settings, served: Served) -> EngineStatus:
    """What is told of an engine, but for its counts."""
    order, speaker = order_of(facts), speaker_of(facts)
    ready = bool(order) and facts.live > 0
    fallen = standing_fallback(facts, settings) is not None or speaker != facts.bundle.selection.preferred
    return EngineStatus(
        model=served.model,
        version=served.version,
        content=served.manifest.content,
        mode=settings.mode,
        ready=ready,
        reason=" ".join(filter(None, (_reason(facts, order, speaker), facts.bundle.tampered))),
        preferred=facts.bundle.selection.preferred,
        answering=speaker,
        degraded=not ready or fallen,
        threads=settings.threads or 1,
        places=facts.places,
        batching="off",
        variants=tuple(_variant_status(v, facts) for v in facts.bundle.variants),
        hung=facts.live == 0,
    )


def _reason(facts: Facts, order: tuple[VariantName, ...], speaker: VariantName | None) -> str:
    if not order:
        return f"no variant may answer: the disagreement alarm took the compressed one out: {facts.alarm}"
    if facts.live == 0:
        return f"no place is left: {facts.stuck} calls hang in a model; restart the server"
    if facts.alarm:
        return f"{speaker} answers: the disagreement alarm took the others out of service: {facts.alarm}"
    if speaker != order[0]:
        return f"{speaker} answers: {order[0]} failed several times in a row and rests"
    return facts.bundle.selection.reason


def _variant_status(opened: Opened, facts: Facts) -> VariantStatus:
    alarmed = bool(facts.alarm) and opened.session is not None and opened.name != "fp32"
    breaker = facts.breakers.get(opened.name)
    return VariantStatus(
        name=opened.name,
        sha256=opened.variant.model.sha256,
        usable=opened.session is not None and not alarmed,
        reason=facts.alarm if alarmed else opened.reason,
        why="alarm" if alarmed else opened.why,
        breaker=breaker.state if breaker else "closed",
        latency_ms=opened.latency_ms,
        memory_bytes=opened.memory_bytes,
    )
