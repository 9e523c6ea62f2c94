"""From listening to the last answer: start-up, signals, draining.

The socket listens before the models are open, so that health can be asked and nobody is refused. SIGTERM and
SIGINT: not ready from then on, answers say that the connection closes, what had connected is still accepted
and answered, and the exit code is 0. A second Ctrl-C ends at once. SIGHUP reads every bundle anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from pastille.errors import PastilleError
from pastille.serve import logs
from pastille.serve.app import application
from pastille.serve.compose import open_models, stand
from pastille.serve.engine.machine import give_back_memory
from pastille.serve.http import BoundedProtocol, Shared
from pastille.serve.listening import BACKLOG, take_no_more
from pastille.serve.seams import Registry
from pastille.serve.settings import Settings
from pastille.serve.standing import Standing

_QUIET_S: Final = 1.0  # that an idle connection is kept while draining: its next request may be under way
_TICK_S: Final = 0.02


def serve(
    directories: Sequence[Path],
    settings: Settings,
    listener: socket.socket,
    *,
    opened: Callable[[Registry], None] = lambda _: None,
) -> None:
    """Serve bundles until a signal says to stop; returns when everything was answered.

    Args:
        directories: Of the bundles.
        settings: Of the server.
        listener: see `pastille.serve.listening.listen`.
        opened: Told once, when every model can be asked.

    Raises:
        IntegrityError: A bundle cannot be served.
        UsageError: What was asked does not go together.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(directories, settings, listener, opened))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop in C, where there is one: a sixth of all that a small request costs."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


async def _serve(
    directories: Sequence[Path],
    settings: Settings,
    listener: socket.socket,
    opened: Callable[[Registry], None],
) -> None:
    standing = stand(settings)
    shared = Shared(
        limits=settings.limits,
        refused=lambda c, s: standing.turned(c, s, "http"),
        crowded=standing.crowded,
    )
    state, config = ServerState(), _config(standing)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    with _signals(loop, standing, stop, directories):
        server = await loop.create_server(
            lambda: BoundedProtocol(config, state, shared), sock=listener, backlog=BACKLOG
        )
        dating = loop.create_task(_keep_date(state))
        try:
            registry = await _opened(standing, directories, stop)
            if registry is not None:
                opened(registry)
                logs.event("ready", models=[f"{s.model}:{s.version}" for s in registry.statuses()])
                _settle()
                await stop.wait()
            await _drain(standing, server, listener, state, shared)
        finally:
            dating.cancel()
            server.close()
            await _close(standing, state)


def _config(standing: Standing) -> Config:
    """What uvicorn's protocol reads; its own server, logging and reloading are not used."""
    config = Config(
        application(standing),
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(standing.settings.limits.idle_s) + 1,  # ours comes first
    )
    config.load()
    return config


async def _opened(standing: Standing, directories: Sequence[Path], stop: asyncio.Event) -> Registry | None:
    """Open the models, unless a signal comes first."""
    opening = asyncio.ensure_future(open_models(standing, directories))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not opening.done():
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        return None
    return opening.result()


def _settle() -> None:
    """What was made so far lives as long as the server: collecting garbage need not look at it again.

    Loading a model takes three times its size for a moment, which the system gets back.
    """
    gc.collect()
    gc.freeze()
    give_back_memory()


async def _keep_date(state: ServerState) -> None:
    while True:
        state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        await asyncio.sleep(1)


@contextlib.contextmanager
def _signals(
    loop: asyncio.AbstractEventLoop,
    standing: Standing,
    stop: asyncio.Event,
    directories: Sequence[Path],
) -> Iterator[None]:
    reloading: set[asyncio.Task[None]] = set()

    def end(number: int) -> None:
        if stop.is_set() and number == signal.SIGINT:  # Ctrl-C again: whoever is there does not want to wait
            signal.raise_signal(signal.SIGKILL)
        logs.event("stopping", signal=signal.Signals(number).name)
        standing.phase = "draining"
        stop.set()

    def reload() -> None:
        task = loop.create_task(_reload(standing, directories))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    yield
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)


async def _reload(standing: Standing, directories: Sequence[Path]) -> None:
    """Read every bundle anew; what fails leaves what answers as it is."""
    if standing.registry is None:
        return
    for directory in directories:
        known = {(status.model, status.version) for status in standing.registry.statuses()}
        try:
            status = await standing.registry.load(directory)
            what = "unchanged" if (status.model, status.version) in known else "reloaded"
            logs.event(what, model=status.model, version=status.version)
        except PastilleError as error:
            logs.event("reload refused", level=logging.ERROR, bundle=str(directory), why=str(error))
        except Exception as error:  # of nobody's asking: unless it is logged here, nobody hears of it
            logs.fault("reload", error)


async def _drain(
    standing: Standing, server: asyncio.Server, listener: socket.socket, state: ServerState, shared: Shared
) -> None:
    """Answer everything that had reached this machine, within the time that there is."""
    standing.phase, shared.draining = "draining", True
    end = time.monotonic() + standing.settings.drain_s
    take_no_more(listener)
    await asyncio.sleep(2 * _TICK_S)  # the loop accepts what the kernel had connected
    server.close()
    await asyncio.sleep(_TICK_S)  # what it accepted last is among the connections only now
    for connection in list(state.connections):
        connection.drain()  # type: ignore[union-attr]
    quiet: dict[object, float] = {}
    while state.connections and time.monotonic() < end:
        _let_go(state, quiet)
        await asyncio.sleep(_TICK_S)
    if state.connections:
        logs.event("cut off", level=logging.WARNING, connections=len(state.connections))


def _let_go(state: ServerState, quiet: dict[object, float]) -> None:
    """Close connections that ask nothing any more."""
    now = time.monotonic()
    for connection in list(state.connections):
        if not connection.idle:  # type: ignore[union-attr]
            quiet.pop(connection, None)
        elif now - quiet.setdefault(connection, now) > _QUIET_S:
            connection.transport.close()


async def _close(standing: Standing, state: ServerState) -> None:
    for task in list(state.tasks):
        task.cancel()
    for connection in list(state.connections):
        connection.transport.abort()
    registry, standing.registry = standing.registry, None  # who asks from now on is told why
    if registry is not None:
        await registry.close()
    if standing.audit is not None:
        standing.audit.close()
    logs.event("stopped")
