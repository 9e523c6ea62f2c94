"""Load: one client in turn, several at once, or open: requests that arrive whether or not there is room.

The client is written on bare sockets, so that it costs little of the cores that it shares with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


class Connection:
    """One keep-alive connection, blocking."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def ask(self, wire: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request and read its answer: status, headers (lower case) and body."""
        self._socket.sendall(wire)
        head, rest = self._until(b"\r\n\r\n")
        status, headers = parse_head(head)
        if headers.get("transfer-encoding") == "chunked":
            raise ValueError("chunked answers are not read")
        length = int(headers["content-length"])
        while len(rest) < length:
            rest += self._more()
        self._buffer = rest[length:]
        return status, headers, rest[:length]

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def _until(self, mark: bytes) -> tuple[bytes, bytes]:
        data = self._buffer
        while mark not in data:
            data += self._more()
        head, _, rest = data.partition(mark)
        return head, rest

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:])
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


def ask(port: int, wire: bytes, timeout_s: float = 30.0) -> tuple[int, Mapping[str, str], bytes]:
    """One request on a connection of its own."""
    connection = Connection(port, timeout_s)
    try:
        return connection.ask(wire)
    finally:
        connection.close()


def in_turn(connection: Connection, wire: bytes, seconds: float) -> np.ndarray:
    """Times of one client's requests, one after the other, in seconds."""
    times, until = [], time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        status, _, _ = connection.ask(wire)
        if status != 200:
            raise RuntimeError(f"answered with {status}")
        times.append(time.perf_counter() - now)
    return np.array(times)


@dataclass
class Outcome:
    """What became of an open load."""

    sent: int = 0
    in_time: int = 0
    late: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)


class _Protocol(asyncio.Protocol):
    """One connection; the request is written at once, the answer's head and length are read."""

    def __init__(self) -> None:
        self.waiting: asyncio.Future[int] | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._data = b""
        self._left: int | None = None
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=1 << 22)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self._left is None:
            self._data += data
            head, mark, rest = self._data.partition(b"\r\n\r\n")
            if not mark:
                return
            self._status, headers = parse_head(head)
            self._left, data = int(headers.get("content-length", 0)), rest
            if headers.get("connection", "").lower() == "close":
                self.closed = True
        self._left -= len(data)
        if self._left <= 0:
            self._data, self._left = b"", None
            if self.waiting and not self.waiting.done():
                self.waiting.set_result(self._status)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.waiting and not self.waiting.done():
            self.waiting.set_exception(error or ConnectionError("closed"))

    async def ask(self, wire: bytes, timeout_s: float) -> int:
        self.waiting = asyncio.get_running_loop().create_future()
        assert self.transport is not None
        self.transport.write(wire)
        return await asyncio.wait_for(self.waiting, timeout_s)


class _Pool:
    """Connections that are kept and used again; a new one where none is idle."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Protocol] = []

    async def ask(self, wire: bytes, timeout_s: float) -> int:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                break
        else:
            loop = asyncio.get_running_loop()
            _, connection = await asyncio.wait_for(
                loop.create_connection(_Protocol, "127.0.0.1", self._port), timeout_s
            )
        try:
            status = await connection.ask(wire, timeout_s)
        except BaseException:
            if connection.transport:
                connection.transport.abort()
            raise
        if status >= 400 and connection.transport and connection.transport.get_write_buffer_size():
            connection.transport.abort()  # refused before it was sent: the rest is not worth sending
        elif not connection.closed:
            self._idle.append(connection)
        return status

    def close(self) -> None:
        for connection in self._idle:
            if connection.transport:
                connection.transport.abort()


def at_once(port: int, wire: bytes, clients: int, seconds: float) -> float:
    """Answers per second to several clients, each of which asks again as soon as it is answered."""
    return asyncio.run(_at_once(port, wire, clients, seconds))


async def _at_once(port: int, wire: bytes, clients: int, seconds: float) -> float:
    pool, answered = _Pool(port), 0
    started = time.perf_counter()

    async def client() -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            if await pool.ask(wire, 60) == 200:
                answered += 1
            else:
                await asyncio.sleep(0.005)

    await asyncio.gather(*(client() for _ in range(clients)))
    pool.close()
    return answered / (time.perf_counter() - started)


def open_load(port: int, wire: bytes, rate: float, seconds: float, *, limit_s: float, seed: int) -> Outcome:
    """Poisson arrivals at ``rate`` per second; an answer counts that comes within ``limit_s``."""
    return asyncio.run(_open_load(port, wire, rate, seconds, limit_s, seed))


async def _open_load(
    port: int, wire: bytes, rate: float, seconds: float, limit_s: float, seed: int
) -> Outcome:
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=int(rate * seconds * 1.2) + 10)
    due = np.cumsum(gaps)
    pool, outcome, tasks = _Pool(port), Outcome(), set()
    started = time.perf_counter()

    async def one(at: float) -> None:
        try:
            status = await pool.ask(wire, 5.0)
        except (TimeoutError, OSError) as error:
            outcome.statuses["timeout" if isinstance(error, TimeoutError) else "dropped"] += 1
            return
        # From when it was due, not from when this client got round to it.
        took = time.perf_counter() - started - at
        outcome.statuses[str(status)] += 1
        if status == 200:
            outcome.times.append(took)
            outcome.in_time += took <= limit_s
            outcome.late += took > limit_s

    for at in due[due < seconds]:
        wait = started + at - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        outcome.sent += 1
        task = asyncio.create_task(one(float(at)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    pool.close()
    return outcome
