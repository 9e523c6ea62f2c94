"""Engines for tests, and how to ask them without a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from serving_bundles import cases

from pastille.serve.engine.engine import OpenedEngine, open_engine
from pastille.serve.settings import Settings
from pastille.serve.values import Call, Event

Ask = Callable[[OpenedEngine, list[Event]], Awaitable[None]]


def call_of(inputs: np.ndarray | None = None, *, within_s: float = 60.0, **triggers: float) -> Call:
    """One request of one case, whose switches may be set; see `serving_bundles`."""
    given = cases(1, seed=0, shape=None, **triggers) if inputs is None else inputs
    return Call(inputs={"input": given}, request_id="r", deadline=time.monotonic() + within_s)


def with_engine(bundle: Path, ask: Ask, settings: Settings | None = None, **more: Any) -> list[Event]:
    """Open an engine, let ``ask`` use it on an event loop, close it; what happened."""
    events: list[Event] = []
    engine = open_engine(bundle, settings or Settings(), version="1", observe=events.append, **more)

    async def run() -> None:
        await ask(engine, events)
        await engine.close()

    asyncio.run(run())
    return events
