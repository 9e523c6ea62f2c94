"""A `Snapshot` of what is watched: computed when somebody looks."""

from __future__ import annotations

from collections import Counter
from typing import Final

from pastille.serve.logs import pseudonym
from pastille.serve.values import EngineStatus, VariantStatus
from pastille.serve.watch.snapshot import ComparisonView, Counted, Recent, Snapshot, VariantView
from pastille.serve.watch.watched import Seen, VariantWindow, Watched
from pastille.serve.watch.windows import latency_of

_NOW_S: Final = 10


def snapshot_of(
    watched: Watched,
    status: EngineStatus,
    *,
    at: float,
    now: float,
    refusals: Counter[tuple[int, str]],
    comparison: ComparisonView | None,
) -> Snapshot:
    """Everything about one version.

    Args:
        watched: What is kept of it.
        status: As its engine says it stands.
        at: Unix time.
        now: The monotonic clock.
        refusals: Of the whole server, by status and cause: most never reach an engine.
        comparison: Of an A/B test that it takes part in.
    """
    history = watched.throughput.history(now)
    answered = sum(watched.routes.values())
    return Snapshot(
        at=at,
        uptime_s=round(now - watched.started, 3),
        engine=status,
        requests=answered + sum(refusals.values()),
        answered=answered,
        per_second=sum(history[-_NOW_S:]) / _NOW_S,
        history=history,
        in_flight=status.in_flight,
        cache_hits=status.cache_hits,
        cache_misses=status.cache_misses,
        cache_bytes=status.cache_bytes,
        shadow_dropped=watched.dropped,
        variants=tuple(_variant(each, watched.variants.get(each.name)) for each in status.variants),
        fallbacks=_counted(watched.fallbacks),
        refusals=_counted(Counter({(str(code), cause): n for (code, cause), n in refusals.items()})),
        disagreements=tuple(pair.view() for pair in watched.pairs.values()),
        drift=tuple(drift.view() for drift in watched.drift.values()),
        sensitivity=watched.sensitivity.views(),
        comparison=comparison,
        recent=tuple(recent(each) for each in reversed(watched.recent)),
    )


def recent(seen: Seen) -> Recent:
    """One request, its id as in the log: nobody can try the numbers of a clinic for it."""
    at, request_id, route, variant, rows, decision, confidence, total_s, fallback, cached, warnings = seen
    return Recent(
        at=at,
        id=pseudonym(request_id),
        route=route,
        variant=variant,
        rows=rows,
        decision=decision,
        confidence=confidence,
        total_ms=round(1000 * total_s, 3),
        fallback=fallback,
        cached=cached,
        warnings=warnings,
    )


def _variant(status: VariantStatus, window: VariantWindow | None) -> VariantView:
    window = window or VariantWindow()
    return VariantView(
        name=status.name,
        usable=status.usable,
        reason=status.reason,
        breaker=status.breaker,
        requests=window.requests,
        latency=latency_of(window.total.values()),
        compute=latency_of(window.compute.values()),
    )


def _counted(counts: Counter[tuple[str, str]]) -> tuple[Counted, ...]:
    return tuple(Counted(what=what, why=why, count=n) for (what, why), n in counts.most_common())
