"""What the tests of the registry share: bundles on disk, someone who watches, and calls."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from serving_bundles import cases, tiny_bundle

from pastille.bundle import Manifest
from pastille.serve.registry import Changed, OpenedRegistry, open_registry
from pastille.serve.seams import Observe
from pastille.serve.settings import Comparison, Settings
from pastille.serve.values import Answered, Call, EngineStatus, Event, Label, Turned
from pastille.serve.watch.snapshot import Snapshot

E = TypeVar("E")
_names = count()


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pastille-registry-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def bundle(number: int, kind: Any = "binary", *, name: str = "tiny", faulty: Any = ("int8",)) -> Path:
    """One version of a model; each number is another bundle, of the same interface."""
    folder = _folder() / f"{kind}-{name}-{number}-{'-'.join(faulty)}"
    requirements = {"note": f"version {number}"}
    return tiny_bundle(folder, kind, name=name, faulty=faulty, requirements=requirements)


def copied(source: Path) -> Path:
    """Of a bundle, to be changed."""
    return Path(shutil.copytree(source, _folder() / f"copy-{next(_names)}"))


@dataclass
class Watcher:
    """A `Monitor` that only remembers."""

    events: dict[str, list[Event]] = field(default_factory=dict)  # "model:version" -> what happened
    forgotten: list[str] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)

    def watch(self, manifest: Manifest, version: str, *, act: Callable[[str], None]) -> Observe:
        return self.events.setdefault(f"{manifest.name}:{version}", []).append

    def forget(self, model: str, version: str) -> None:
        self.forgotten.append(f"{model}:{version}")

    def heard(self, kind: type[E], of: str = "tiny:1") -> list[E]:
        return [event for event in self.events[of] if isinstance(event, kind)]

    def answered(self, event: Answered) -> None:
        raise NotImplementedError

    def turned(self, event: Turned) -> None:
        raise NotImplementedError

    def feedback(self, label: Label) -> Mapping[str, Any]:
        raise NotImplementedError

    def metrics(self, statuses: Sequence[EngineStatus]) -> bytes:
        raise NotImplementedError

    def snapshot(self, status: EngineStatus) -> Snapshot:
        raise NotImplementedError


@asynccontextmanager
async def serving(*directories: Path, **asked: Any) -> AsyncIterator[tuple[OpenedRegistry, Watcher]]:
    """A registry of real engines, closed at the end."""
    watcher = Watcher()
    settings = Settings(**({"batching": {"use": "off"}} | asked))
    registry = await open_registry(directories, settings, monitor=watcher, on_event=watcher.changes.append)
    try:
        yield registry, watcher
    finally:
        await registry.close()


def comparing(**asked: Any) -> Comparison:
    return Comparison(**({"share": 1.0} | asked))


def call(x: np.ndarray | None = None, *, subject: str | None = None, request_id: str = "r") -> Call:
    inputs = {"input": cases(1) if x is None else x}
    return Call(inputs=inputs, request_id=request_id, deadline=time.monotonic() + 60, subject=subject)


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that must happen; a test that waits in vain fails."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that runs on an event loop of its own."""

    def run() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test()

        asyncio.run(bounded())

    run.__name__ = test.__name__
    return run
