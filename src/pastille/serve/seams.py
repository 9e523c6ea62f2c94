"""What the parts of the server know of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pastille.bundle import Manifest, VariantName
from pastille.serve.values import Answered, Call, EngineStatus, Event, Label, Reply, Turned
from pastille.serve.watch.snapshot import Snapshot

Observe = Callable[[Event], None]  # quick, never raises; called on the event loop's thread


class Engine(Protocol):
    """One bundle, opened: it chooses, runs, falls back. Knows nothing of HTTP."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        ...

    @property
    def status(self) -> EngineStatus:
        """How it stands now."""
        ...

    @property
    def retry_after_s(self) -> float:
        """In how many seconds a place will probably be free."""
        ...

    @property
    def full(self) -> bool:
        """Whether `answer` would refuse now: asked before a body is read."""
        ...

    @property
    def idle(self) -> bool:
        """Whether no call runs or waits: only then may a shadow comparison take a place."""
        ...

    async def answer(self, call: Call, *, prefer: VariantName | None = None) -> Reply:
        """Answer one request.

        Args:
            call: What is asked.
            prefer: The variant to ask first in place of the preferred one; the cache then stays out of it.

        Raises:
            Refused: ``overload``, ``deadline``, ``not_ready``, or ``fault`` where every variant failed.
        """
        ...

    def alarm(self, reason: str) -> None:
        """The disagreement alarm went off: take the compressed variant out of service."""
        ...

    async def close(self) -> None:
        """Finish what runs, and let go of the models."""
        ...


class Registry(Protocol):
    """Every bundle that is served, by name and version; also what compares two of them."""

    @property
    def default(self) -> str:
        """Name of the model that ``POST /predict`` asks."""
        ...

    @property
    def ready(self) -> bool:
        """Whether every model can be asked."""
        ...

    @property
    def directories(self) -> Mapping[str, Path]:
        """Model -> folder of its newest version; of unloaded ones as well, so that they can come back."""
        ...

    def statuses(self) -> tuple[EngineStatus, ...]:
        """Of every model and version, the newest version of each first."""
        ...

    def engine(self, model: str, version: str | None = None) -> Engine:
        """The newest version, or the one that is asked for.

        Raises:
            Refused: ``not_found``.
        """
        ...

    async def answer(self, model: str, version: str | None, call: Call) -> Reply:
        """Answer by mode: shadow compares after the reply, ab assigns by the call's subject.

        Raises:
            Refused: ``not_found``, or as `Engine.answer`.
        """
        ...

    async def load(self, directory: Path) -> EngineStatus:
        """Open a bundle beside what is served, verify it, and only then let it answer as a new version.

        Raises:
            UsageError: Clients of the model would have to ask it otherwise: nothing has changed.
            IntegrityError: It is not what was written, or no variant is valid here: nothing has changed.
        """
        ...

    async def roll_back(self, model: str) -> EngineStatus:
        """Let the version before answer again.

        Raises:
            Refused: ``not_found`` where there is none.
        """
        ...

    async def unload(self, model: str, version: str | None = None) -> None:
        """Stop serving a version, or all of them."""
        ...

    async def close(self) -> None:
        """Close every engine."""
        ...


class Monitor(Protocol):
    """What watches: counts, windows, alarms, metrics. One for the whole server."""

    def watch(self, manifest: Manifest, version: str, *, act: Callable[[str], None]) -> Observe:
        """Begin to watch an engine.

        Args:
            manifest: Of its bundle; has the reference statistics.
            version: As served.
            act: Called once with a sentence when the disagreement alarm goes off.

        Returns:
            What the engine gives its events to.
        """
        ...

    def forget(self, model: str, version: str) -> None:
        """A version was closed for good: let go of what was kept of it."""
        ...

    def answered(self, event: Answered) -> None:
        """A request was answered; which engine it was, its reply says."""
        ...

    def turned(self, event: Turned) -> None:
        """A request was refused, perhaps before it reached any engine."""
        ...

    def feedback(self, label: Label) -> Mapping[str, Any]:
        """A label that arrived later.

        Raises:
            Refused: ``not_found`` where the request is no longer known, ``malformed`` for an unknown label.
        """
        ...

    def metrics(self, statuses: Sequence[EngineStatus]) -> bytes:
        """Prometheus text format."""
        ...

    def snapshot(self, status: EngineStatus) -> Snapshot:
        """What ``/monitor.json`` and the page show of one engine."""
        ...
