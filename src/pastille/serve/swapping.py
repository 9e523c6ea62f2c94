"""Versions of one model: what is served, what it replaced, and what must go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, final

from pastille.bundle import Manifest, VariantName
from pastille.errors import UsageError
from pastille.serve.seams import Engine, Observe
from pastille.serve.settings import Settings
from pastille.serve.values import Call, Event, Reply

CANDIDATE = "candidate"  # version of the bundle that is compared with the served one


class OpenEngine(Protocol):
    """Opens and verifies a bundle; blocks."""

    def __call__(
        self, directory: Path, settings: Settings, *, version: str, observe: Observe, judged: bool
    ) -> Engine:
        """See `pastille.serve.engine.engine.open_engine`."""
        ...


@final
class Served:
    """An engine that is asked, its version, and how many answers are still owed."""

    def __init__(self, engine: Engine, *, version: str, directory: Path, observe: Observe) -> None:
        self.engine = engine
        self.version = version
        self.directory = directory
        self.observe = observe
        self.retired = False
        self._owed = 0
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def owed(self) -> int:
        """Answers that were asked for and are not given yet."""
        return self._owed

    async def answer(self, call: Call, *, prefer: VariantName | None = None) -> Reply:
        """Answer one request; see `Engine.answer`."""
        self._owed += 1
        self._settled.clear()
        try:
            return await self.engine.answer(call, prefer=prefer)
        finally:
            self._owed -= 1
            if not self._owed:
                self._settled.set()

    async def close(self, *, drain_s: float) -> bool:
        """Let the answers that are owed be given, for so long at most; then let go of the models.

        Returns:
            Whether all were given in time; who still waits gets what the engine says when it closes.
        """
        self.retired = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), drain_s)
        settled = self._settled.is_set()
        await self.engine.close()
        return settled


@dataclass(frozen=True, kw_only=True)
class Other:
    """Whom answers are compared with, or B of an A/B test.

    Attributes:
        served: Another bundle, or the same one.
        prefer: The variant to ask in the same bundle; None: whatever the other bundle prefers.
    """

    served: Served
    prefer: VariantName | None = None


@final
class Relay:
    """Keeps the events of an engine that opens in a thread, until there is someone to hear them."""

    def __init__(self) -> None:
        self._kept: list[Event] = []
        self._observe: Observe | None = None

    def __call__(self, event: Event) -> None:
        """Pass one on, or keep it."""
        if self._observe is None:
            self._kept.append(event)
        else:
            self._observe(event)

    def connect(self, observe: Observe) -> None:
        """Give it what was kept, and from now on everything. On the event loop's thread."""
        self._observe = observe
        for event in self._kept:
            observe(event)
        self._kept.clear()


@dataclass(frozen=True, kw_only=True)
class Line:
    """The versions of one model that are open.

    Attributes:
        current: Answers who asks for no version.
        previous: The one before, kept so that it can come back; answers who asks for it.
    """

    current: Served
    previous: Served | None = None

    def __iter__(self) -> Iterator[Served]:
        """The newest first."""
        yield self.current
        if self.previous is not None:
            yield self.previous


def advanced(line: Line | None, served: Served) -> tuple[Line, Served | None]:
    """A new version answers, the one that answered so far is kept, and the one before that must go."""
    if line is None:
        return Line(current=served), None
    return Line(current=served, previous=line.current), line.previous


def without(line: Line, version: str) -> tuple[Line | None, Served]:
    """A version must go; where it is the current one, the one before answers again.

    Raises:
        KeyError: There is no such version.
    """
    if line.previous is not None and line.previous.version == version:
        return replace(line, previous=None), line.previous
    if line.current.version != version:
        raise KeyError(version)
    return (Line(current=line.previous) if line.previous else None), line.current


_INTERFACE = ("kind", "labels", "positive", "inputs", "output", "outputs", "preprocessing")


def check_interface(served: Manifest, new: Manifest) -> None:
    """Refuse a bundle that clients of a model would have to ask, or to understand, in another way.

    Preprocessing belongs to it: clients of the Open Inference Protocol prepare their tensors themselves.

    Raises:
        UsageError: It differs.
    """
    changed = [field for field in _INTERFACE if getattr(served, field) != getattr(new, field)]
    if changed:
        raise UsageError(
            f"bundle {new.name} must have the interface of the served {served.name}, but differs in "
            f"{', '.join(changed)}: clients would be answered wrongly; serve it under another name"
        )
