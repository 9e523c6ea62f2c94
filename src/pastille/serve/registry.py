"""Every bundle that is served: by name and version, swapped while requests go on, compared where asked.

A version is swapped only after it was opened and verified beside the one that answers. The one before stays
open so that it can come back; at most three are open for the moment of a swap. Nothing rolls back by itself:
the alarm takes the compressed variant out of service, and fp32 answers, which helps whatever the version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, final

from pastille.bundle import Manifest, VariantName, read_manifest
from pastille.bundle.golden import DECIDING
from pastille.bundle.manifest import MANIFEST
from pastille.bundle.verify import check_hashes, check_layout
from pastille.errors import IntegrityError, UsageError
from pastille.serve.assignment import answer_by_arm
from pastille.serve.engine.engine import open_engine
from pastille.serve.errors import Refused
from pastille.serve.seams import Engine, Monitor
from pastille.serve.settings import Settings
from pastille.serve.shadow import Shadow
from pastille.serve.swapping import (
    CANDIDATE,
    Line,
    OpenEngine,
    Other,
    Relay,
    Served,
    advanced,
    check_interface,
    without,
)
from pastille.serve.values import Call, EngineStatus, Reply

T = TypeVar("T")
What = Literal["loaded", "rolled_back", "unloaded", "closed"]


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What is served has changed: for logs and the audit."""

    what: What
    model: str
    version: str
    detail: str
    at: float  # Unix seconds


async def open_registry(
    directories: Sequence[Path],
    settings: Settings,
    *,
    monitor: Monitor,
    open_engine: OpenEngine = open_engine,
    on_event: Callable[[Changed], None] | None = None,
) -> OpenedRegistry:
    """Open every bundle, one after another, in a thread: the event loop goes on.

    Args:
        directories: Of the bundles. The first is the default model; one of the same name is its next version.
        settings: Of the server.
        monitor: Watches each engine.
        open_engine: Opens one.
        on_event: Told of every change, on the event loop's thread.

    Raises:
        IntegrityError: A bundle is not what was written, or none of its variants is valid here.
        UsageError: The settings do not fit the bundles.
    """
    if settings.name is not None and len(directories) != 1:
        raise UsageError(f"one bundle must be served where it gets a name, got {len(directories)}")
    registry = OpenedRegistry(settings, monitor, open_engine, on_event or _ignore)
    try:
        for directory in directories:
            await registry.load(directory)
        await registry.open_candidate()
    except BaseException:
        await registry.close()
        raise
    return registry


@final
class OpenedRegistry:
    """A `Registry`. For one thread, the event loop's; make it by `open_registry`."""

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        open_engine: OpenEngine,
        on_event: Callable[[Changed], None],
    ) -> None:
        self._settings, self._monitor = settings, monitor
        self._open_engine, self._on_event = open_engine, on_event
        self._lines: dict[str, Line] = {}  # the default model first
        self._last: dict[str, int] = {}  # version numbers are never given twice
        self._directories: dict[str, Path] = {}
        self._others: dict[Served, Other] = {}
        self._candidate: tuple[str, Served] | None = None  # model that it is compared with, and itself
        self._shadow = Shadow(settings, idle=self._idle)
        self._swapping = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def default(self) -> str:
        """Name of the model that ``POST /predict`` asks; empty where there is none."""
        return next(iter(self._lines), "")

    @property
    def ready(self) -> bool:
        """Whether every model can be asked."""
        return bool(self._lines) and all(line.current.engine.status.ready for line in self._lines.values())

    @property
    def directories(self) -> Mapping[str, Path]:
        """Model -> folder of its newest version; of unloaded ones as well, so that they can come back."""
        return MappingProxyType(self._directories)

    def statuses(self) -> tuple[EngineStatus, ...]:
        """Of every model and version, the newest version of each first, what is compared with them last."""
        return tuple(served.engine.status for served in self._all())

    def engine(self, model: str, version: str | None = None) -> Engine:
        """The newest version, or the one that is asked for.

        Raises:
            Refused: ``not_found``.
        """
        return self._served(model, version).engine

    async def answer(self, model: str, version: str | None, call: Call) -> Reply:
        """Answer by mode; who asks for a version gets that version, uncompared.

        Raises:
            Refused: ``not_found``, or as `Engine.answer`.
        """
        served = self._served(model, version)
        if self._shadow.active:
            self._make_way(served)
        other = self._compared_with(model, served) if version is None else None
        if other is None:
            return await served.answer(call)
        if self._settings.mode == "ab":
            return await answer_by_arm(served, other, self._settings.comparison, call)
        reply = await served.answer(call)
        self._shadow.offer(served, other, call, reply)
        return reply

    async def load(self, directory: Path) -> EngineStatus:
        """Open a bundle beside what is served, verify it, and only then let it answer as a new version.

        A bundle that is being served already, and is not degraded, is left as it is. The load goes on where
        whoever asked for it goes away.

        Raises:
            IntegrityError: It is not what was written, or no variant is valid here: nothing has changed.
                Where what is served is degraded itself, one good variant is enough, as at the start.
            UsageError: Its interface is another, or it cannot be served in this mode: nothing has changed.
            Refused: ``not_ready``: the server is stopping.
        """
        return await asyncio.shield(self._started(self._load(directory)))

    async def roll_back(self, model: str) -> EngineStatus:
        """Let the version before answer again; the one that answered until now is closed.

        Raises:
            Refused: ``not_found`` where there is none.
        """
        async with self._swapping:
            line = self._line(model)
            if line.previous is None:
                raise Refused("not_found", f"no version before {line.current.version} is kept")
            self._remove(model, line.current.version)
            self._tell("rolled_back", model, line.previous, f"instead of {line.current.version}")
            return line.previous.engine.status

    async def unload(self, model: str, version: str | None = None) -> None:
        """Stop serving a version, or all of them; where it is the newest, the one before answers again.

        Raises:
            Refused: ``not_found``.
        """
        async with self._swapping:
            served = self._served(model, version)
            for each in [served] if version is not None else list(self._line(model)):
                self._remove(model, each.version)
                self._tell("unloaded", model, each, "as asked")

    async def close(self) -> None:
        """Let the answers that are owed be given, then close every engine."""
        self._closed = True
        async with self._swapping:
            await self._shadow.close()
            for served in self._all():
                self._retire(served)
            self._lines, self._candidate = {}, None
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open_candidate(self) -> None:
        """Open the bundle that the default model is compared with, where the settings name one.

        Raises:
            IntegrityError: It is not what was written, or no variant is valid here.
            UsageError: Its interface is another.
        """
        bundle = self._settings.comparison.bundle
        if bundle is not None and self._compares:
            manifest = await asyncio.to_thread(read_manifest, bundle / MANIFEST)
            check_interface(self._lines[self.default].current.engine.manifest, manifest)
            settings = self._settings.model_copy(update={"variant": self._settings.comparison.variant})
            candidate = await self._opened(bundle, manifest, CANDIDATE, settings)
            self._candidate = (self.default, candidate)

    @property
    def _compares(self) -> bool:
        return self._settings.mode in ("shadow", "ab")

    def _all(self) -> Iterator[Served]:
        for line in self._lines.values():
            yield from line
        if self._candidate is not None:
            yield self._candidate[1]

    def _askable(self) -> Iterator[Served]:
        """Of them, those whose answers a client may be given: a shadow need not have been approved."""
        shadow = self._candidate[1] if self._candidate and self._settings.mode == "shadow" else None
        return (served for served in self._all() if served is not shadow)

    def _make_way(self, served: Served) -> None:
        """Stop the comparison that runs where a request would wait for its place."""
        if sum(each.owed for each in self._all()) >= served.engine.status.places:
            self._shadow.make_way()

    def _idle(self) -> bool:
        return all(served.engine.idle for served in self._all())

    def _line(self, model: str) -> Line:
        try:
            return self._lines[model]
        except KeyError:
            names = ", ".join(self._lines) or "none"
            raise Refused("not_found", f"no such model; those that are served: {names}") from None

    def _served(self, model: str, version: str | None) -> Served:
        if version is None:
            return self._line(model).current
        found = [
            s for s in self._askable() if s.version == version and self._name(s.engine.manifest) == model
        ]
        if not found:
            versions = ", ".join(served.version for served in self._line(model))
            raise Refused("not_found", f"no such version of {model}; those that are served: {versions}")
        return found[0]

    def _compared_with(self, model: str, served: Served) -> Other | None:
        if self._candidate is not None and model == self._candidate[0]:
            return Other(served=self._candidate[1])
        return self._others.get(served)

    async def _load(self, directory: Path) -> EngineStatus:
        async with self._swapping:
            if self._closed:
                raise Refused("not_ready", "the server is stopping and loads nothing any more")
            manifest = await asyncio.to_thread(read_manifest, directory / MANIFEST)
            name = self._name(manifest)
            line = self._lines.get(name)
            if line is not None and _is_served(line.current, manifest):
                return line.current.engine.status
            if line is not None:
                check_interface(line.current.engine.manifest, manifest)
                if not line.current.engine.status.degraded:
                    await asyncio.to_thread(_check_files, directory, manifest)
            number = self._last.get(name, 0) + 1
            served = await self._opened(directory, manifest, str(number), self._settings)
            self._last[name], self._directories[name] = number, directory
            self._lines[name], dropped = advanced(line, served)
            if dropped is not None:
                self._retire(dropped)
            self._tell("loaded", name, served, served.engine.status.reason)
            return served.engine.status

    async def _opened(self, directory: Path, manifest: Manifest, version: str, settings: Settings) -> Served:
        relay = Relay()
        # Nobody is given the answers of a shadow, so it need not have passed the gate.
        judged = version != CANDIDATE or settings.mode != "shadow"
        engine = await asyncio.to_thread(
            self._open_engine, directory, settings, version=version, observe=relay, judged=judged
        )
        try:
            if engine.manifest.seal != manifest.seal:
                raise IntegrityError(f"{directory} was changed while it was opened; load it again")
            prefer = self._variant_to_compare(engine)
        except BaseException:
            await engine.close()
            raise
        known_as = replace(engine.manifest, name=self._name(engine.manifest))
        observe = self._monitor.watch(known_as, version, act=engine.alarm)
        relay.connect(observe)
        served = Served(engine, version=version, directory=directory, observe=observe)
        if prefer is not None:
            self._others[served] = Other(served=served, prefer=prefer)
        return served

    def _variant_to_compare(self, engine: Engine) -> VariantName | None:
        """The variant that the preferred one is held against in this mode; None: none of this bundle."""
        manifest, status = engine.manifest, engine.status
        if self._settings.mode == "shadow" and manifest.kind not in DECIDING:
            raise UsageError(f"mode shadow compares decisions, and a {manifest.kind} task has none")
        if not self._compares or self._settings.comparison.bundle is not None:
            return None
        others = [v.name for v in status.variants if v.usable and v.name != status.preferred]
        if not others:
            raise UsageError(
                f"mode {self._settings.mode} needs two variants, but of {manifest.name} only "
                f"{status.preferred} can be used here; name another bundle (comparison.bundle) or use auto"
            )
        return "fp32" if "fp32" in others else others[0]  # what the others were judged against

    def _remove(self, model: str, version: str) -> None:
        line, dropped = without(self._line(model), version)
        if line is None:
            del self._lines[model]
        else:
            self._lines[model], self._directories[model] = line, line.current.directory
        self._retire(dropped)

    def _retire(self, served: Served) -> None:
        self._others.pop(served, None)
        self._started(self._close(served))

    async def _close(self, served: Served) -> None:
        settled = await served.close(drain_s=self._settings.drain_s)
        name = self._name(served.engine.manifest)
        self._monitor.forget(name, served.version)
        detail = "every answer that it owed was given" if settled else "answers were still owed"
        self._tell("closed", name, served, detail)

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that nobody can forget: the loop keeps only weak references."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tell(self, what: What, model: str, served: Served, detail: str) -> None:
        event = Changed(what=what, model=model, version=served.version, detail=detail, at=time.time())
        self._on_event(event)

    def _name(self, manifest: Manifest) -> str:
        return self._settings.name or manifest.name


def _ignore(event: Changed) -> None:
    """Nobody wants to know."""


def _check_files(directory: Path, manifest: Manifest) -> None:
    """Every one: at the start a bundle with one good variant is better than nothing, here it is not."""
    check_layout(directory, manifest)
    check_hashes(directory, manifest)


def _is_served(served: Served, manifest: Manifest) -> bool:
    return served.engine.manifest.seal == manifest.seal and not served.engine.status.degraded
