"""What the routes share: how the server stands, and what they compose."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from pastille.serve import logs
from pastille.serve.audit import AuditLog
from pastille.serve.errors import Refused
from pastille.serve.guard import Guard, guard_for
from pastille.serve.limits import Budget, Rate
from pastille.serve.oip_statistics import Statistics
from pastille.serve.seams import Engine, Monitor, Registry
from pastille.serve.settings import Settings
from pastille.serve.values import Answered, Turned

Phase = Literal["starting", "serving", "draining"]


@dataclass(kw_only=True)
class Standing:
    """The one mutable thing of the application; the life cycle changes it, the routes read it."""

    settings: Settings
    monitor: Monitor
    audit: AuditLog | None = None
    registry: Registry | None = None
    phase: Phase = "starting"
    rate: Rate | None = field(init=False)
    budget: Budget = field(init=False)
    guards: dict[str, Guard] = field(default_factory=dict)  # by seal of the bundle
    statistics: Statistics = field(default_factory=Statistics)

    def __post_init__(self) -> None:
        queue = self.settings.queue
        self.rate = None if queue.rate is None else Rate(per_second=queue.rate, burst=queue.burst)
        self.budget = Budget(self.settings.limits.held_bytes)

    @property
    def problem(self) -> str:
        """Why the server is not ready; ``""`` where it is."""
        if self.phase == "draining":
            return "the server is shutting down"
        if self.phase == "starting" or self.registry is None:
            return "the server is starting: its models are being opened"
        if not self.registry.ready:
            unready = (f"{s.model}: {s.reason}" for s in self.registry.statuses() if not s.ready)
            return "; ".join(unready) or "no model is loaded"
        return (self.audit.problem() if self.audit is not None else None) or ""

    @property
    def models(self) -> Registry:
        """The models.

        Raises:
            Refused: ``not_ready``: they are still being opened.
        """
        if self.registry is None:
            raise Refused("not_ready", self.problem, retry_after_s=1)
        return self.registry

    def crowded(self, target: bytes) -> float | None:
        """Whether a question with this target would be refused for want of a place, as far as that is plain.

        Only where one model is served and no version is asked for: else who will answer is known later.

        Args:
            target: Of a POST, as it came.

        Returns:
            Seconds after which to come back; None where it should be looked at.
        """
        registry, path = self.registry, target.partition(b"?")[0]
        asks = path.startswith(b"/predict") or (path.endswith(b"/infer") and b"/versions/" not in path)
        if not asks or registry is None or self.settings.mode == "ab" or len(registry.directories) != 1:
            return None
        engine = registry.engine(registry.default)
        return engine.retry_after_s if engine.full else None

    def guard(self, engine: Engine) -> Guard:
        """What holds an engine's inputs against what validation saw."""
        manifest = engine.manifest
        found = self.guards.get(manifest.seal)  # its content does not cover the reference
        if found is None:
            found = self.guards[manifest.seal] = guard_for(manifest.reference, manifest.preprocessing)
        return found

    def forget(self, model: str, version: str) -> None:
        """A version was closed for good: swapping for months leaves nothing behind."""
        self.statistics.forget(model, version)
        self.guards.clear()  # made anew for what is still served

    def answered(self, event: Answered) -> None:
        """Write an answer down everywhere, before it is sent: what cannot be logged is not answered.

        Raises:
            Refused: ``not_ready``: the audit log cannot be written.
        """
        if self.audit is not None:
            self.audit.decision(event)
        self.statistics.answered(event)
        self.monitor.answered(event)
        if self.settings.log_requests:
            _log(event)

    def turned(self, cause: str, status: int, route: str) -> None:
        """Count a refusal."""
        self.monitor.turned(Turned(cause=cause, status=status, route=route, at=time.time()))
        if self.settings.log_requests:
            logs.event("refused", cause=cause, status=status, route=route)


def _log(event: Answered) -> None:
    reply = event.reply
    logs.event(
        "answered",
        id=logs.pseudonym(event.call.request_id),
        model=reply.model,
        version=reply.version,
        variant=reply.answer.variant,
        fallback=None if reply.fallback is None else reply.fallback.why,
        rows=event.call.rows,
        ms=round(event.total_s * 1e3, 3),
    )
