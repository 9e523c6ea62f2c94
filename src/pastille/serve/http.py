"""HTTP as this server speaks it: uvicorn's protocol on llhttp, with bounds on what a peer may take.

uvicorn leaves open how long headers may take, how large they may be, how many requests may be pipelined, what
happens to a body that is refused before it was read, and whether a peer that stops reading is ever let go.
`BoundedProtocol` closes these, answers every raw fault as JSON, and knows how to drain. It leans on few names
of uvicorn's class; a test holds them in place.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from pastille.serve.http_answers import raw_refusal
from pastille.serve.settings import Limits

HEADER_BYTES: Final = 64 << 10  # of one request; as much may come without a body's progress
HEADERS: Final = 128
PIPELINED: Final = 16  # requests that may wait behind one
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOINED: Final = 64 << 10  # bytes of an answer that are worth copying to save a system call
QUIET_S: Final = 1.0  # that an idle connection is kept where others want its place
CROWDED: Final = "more is asked than can be answered; try again"
LINGER_S: Final = 3.0  # that a refused body is still read, so that the refusal arrives
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization"})


@dataclass(kw_only=True)
class Shared:
    """What all connections share."""

    limits: Limits
    refused: Callable[[str, int], None]  # (cause, status) of what never reached the application
    crowded: Callable[[bytes], float | None] = lambda _: None  # target of a POST -> when to come back, in s
    draining: bool = False


@dataclass(frozen=True, kw_only=True)
class _Fault:
    cause: str
    status: int
    message: str


class _Refused:
    """In place of a request that was refused at its head: answered, with nobody working on it."""

    response_started = response_complete = True
    keep_alive = True
    disconnected = False

    def __init__(self) -> None:
        self.message_event = asyncio.Event()  # that uvicorn sets when the connection ends


class _FaultError(Exception):
    """Stops the parser; what is wrong stands in the protocol."""


class _Gentle:
    """The transport as one request sees it: an answer leaves in one piece, and closing waits for its reader.

    Head and body of an answer in two system calls cost a third of all that a small request costs. And a
    socket that is closed with unread input resets the connection, so that the answer is lost.
    """

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self._head = b""
        self._begun = False

    def write(self, data: bytes) -> None:
        if not self._begun and data != _CONTINUE:
            self._begun, self._head = True, data
            return
        head, self._head = self._head, b""
        if len(data) > _JOINED:
            self._protocol.transport.write(head)
            self._protocol.transport.write(data)
        else:
            self._protocol.transport.write(head + data)

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def is_closing(self) -> bool:
        return self._protocol.lingering or self._protocol.transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._protocol.close_gently()


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Every wait has a deadline and everything that is kept has a bound."""

    def __init__(self, config: Config, state: ServerState, shared: Shared) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self.shared = shared
        self.lingering = False
        self._in_head = False  # between a request's first byte and the end of its headers
        self._in_body = False  # between the end of its headers and its own end
        self._loose = 0  # bytes since anything got on: unfinished headers, chunk extensions, trailers
        self._progress = False
        self._head_bytes = 0
        self._discarded = 0
        self._fault: _Fault | None = None
        self._phase, self._since = "", 0.0  # since when, by the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._running: Any = None  # the cycle that is being answered

    @property
    def idle(self) -> bool:
        """Whether nothing is being received or answered."""
        return not (self._in_head or self._in_body or self._busy)

    @property
    def _busy(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def drain(self) -> None:
        """Answer what is here, and say in the last answer that the connection closes."""
        last = self.pipeline[0][0] if self.pipeline else self.cycle
        if last is not None and not last.response_started:
            last.keep_alive = False

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.shared.limits.connections and not self._room_made():
            self._refuse(_Fault(cause="overload", status=503, message="too many connections are open"))
        self._time()

    def _room_made(self) -> bool:
        """Close who has asked nothing for longest, so that idle connections cannot keep everybody out."""
        until = self.loop.time() - QUIET_S
        others = [each for each in self.connections if isinstance(each, BoundedProtocol)]
        quiet = [each for each in others if each._phase == "idle" and each._since < until]
        if quiet:
            min(quiet, key=lambda each: each._since).transport.close()
        return bool(quiet)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it, and stop working for nobody."""
        for timer in (self._timer, self._stuck):
            if timer is not None:
                timer.cancel()
        self.pipeline.clear()
        super().connection_lost(exc)
        if self._busy and self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and hold it against the bounds."""
        if self.lingering:
            self._discard(len(data))
            return
        self._progress = False
        super().data_received(data)
        self._loose = 0 if self._progress else self._loose + len(data)
        if self._loose > HEADER_BYTES and not self.lingering:
            self._refuse(_too_large("the headers"))
        self._time()

    def eof_received(self) -> None:
        """The peer sends no more, and will not read either as far as anybody can tell."""

    def _discard(self, arrived: int) -> None:
        self._discarded += arrived
        if self._discarded > self.shared.limits.body_bytes:
            self.transport.abort()

    # Parser callbacks

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer after the body: counted, and of no further use."""
        self._count(len(name) + len(value) + 4)
        if self._in_head:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEADER_BYTES or (self._in_head and len(self.headers) > HEADERS):
            self._stop(_too_large("the headers"))

    def on_headers_complete(self) -> None:
        """Begin to answer: before the body, so that it can be refused unread."""
        self._in_head, self._in_body, self._progress = False, True, True
        problem = head_problem(self.headers, self.parser.get_http_version())
        upgrade = self.parser.should_upgrade()  # the parser then reads neither a body nor what follows
        if upgrade and any(name in _FRAMING for name, _ in self.headers):
            problem = "no upgrade to another protocol is offered; send plain HTTP/1.1 without it"
        if problem:
            self._stop(_Fault(cause="malformed", status=400, message=problem))
        if len(self.pipeline) >= PIPELINED:
            self._stop(_Fault(cause="malformed", status=400, message="too many pipelined requests"))
        if not upgrade and self._refused_at_once():
            return
        super().on_headers_complete()
        self.cycle.transport = _Gentle(self)  # type: ignore[assignment]
        if self.shared.draining or upgrade or self.expect_100_continue:  # does a refusal leave a body unread?
            self.cycle.keep_alive = False

    def _refused_at_once(self) -> bool:
        """Under overload most requests end here: what is made of one costs more than to refuse it."""
        alone = not (self._busy or self.pipeline or self.expect_100_continue or self.shared.draining)
        if not alone or self.parser.get_method() != b"POST" or not self.parser.should_keep_alive():
            return False
        again = self.shared.crowded(self.url)
        if again is None:
            return False
        self.cycle = self._running = _Refused()  # type: ignore[assignment]
        self.shared.refused("overload", 503)
        after = max(1, math.ceil(again))
        self.transport.write(raw_refusal(503, CROWDED, retry_after_s=after, close=False))
        return True

    def on_body(self, body: bytes) -> None:
        """A piece of the body; of a request that was answered already it is dropped."""
        self._progress = True
        if self.cycle.response_complete:
            self._discard(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_body, self._progress, self._discarded = False, True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written."""
        self._running.transport.flush()
        super().on_response_complete()
        self._time()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        self._task = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # Refusing and closing

    def _stop(self, fault: _Fault) -> None:
        self._fault = fault
        raise _FaultError(fault.message)  # the parser wraps it, and uvicorn calls `send_400_response`

    def send_400_response(self, msg: str) -> None:
        """The request is not HTTP, or more than is taken."""
        fault = self._fault or _Fault(cause="malformed", status=400, message="this is not valid HTTP")
        self._refuse(fault)

    def _refuse(self, fault: _Fault) -> None:
        """Refuse what is being received; an earlier request of the connection gets its own answer first."""
        self._fault = fault
        self.shared.refused(fault.cause, fault.status)
        running, self.pipeline = self._running if self._busy else None, type(self.pipeline)()
        if running is not None and (running is not self.cycle or not self._in_body):
            running.keep_alive = False  # it closes behind its answer
            self.lingering = True
            return
        if running is not None:
            running.disconnected = True
            running.message_event.set()
        if running is None or not running.response_started:
            again = 1 if fault.status == 503 else None
            self.transport.write(raw_refusal(fault.status, fault.message, retry_after_s=again))
        self._in_body = True
        self.close_gently()

    def close_gently(self) -> None:
        """Close; where input is left unread, only after the peer had time to read the answer."""
        if not (self._in_body or self._in_head) or self.transport.is_closing():
            self.transport.close()
            if self.transport.get_write_buffer_size():  # it waits for its reader, for ever if need be
                self.loop.call_later(self.shared.limits.body_s, self.transport.abort)
            return
        self.lingering = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._time()

    def pause_writing(self) -> None:
        """The peer does not read its answers: for a while that is its affair."""
        super().pause_writing()
        self._stuck = self.loop.call_later(self.shared.limits.body_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    # Deadlines

    def _time(self) -> None:
        """One timer, set anew where the connection came into another phase."""
        phase = self._current_phase()
        if phase == self._phase or self.transport.is_closing():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._phase, self._since, limits = phase, self.loop.time(), self.shared.limits
        after = {
            "new": limits.header_s,
            "head": limits.header_s,
            "body": limits.body_s,
            "discarding": limits.body_s,
            "idle": limits.idle_s,
            "lingering": LINGER_S,
        }.get(phase)
        self._timer = None if after is None else self.loop.call_later(after, self._expired)

    def _current_phase(self) -> str:
        if self._busy:  # the engine keeps its own deadlines
            return "body" if self._in_body and self._running is self.cycle else "answering"
        if self.lingering:
            return "lingering"
        if self._in_head:
            return "head"
        if self._in_body:
            return "discarding"
        return "idle" if self._running is not None else "new"

    def _expired(self) -> None:
        if self._phase in ("new", "head", "body"):
            what = "body" if self._phase == "body" else "headers"
            self._refuse(_Fault(cause="slow", status=408, message=f"the {what} did not arrive in time"))
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()


def head_problem(headers: list[tuple[bytes, bytes]], version: str) -> str:
    """What makes a head ambiguous, though it parses: where two readers could differ, neither may win.

    Example:
        >>> head_problem([(b"host", b"a"), (b"host", b"b")], "1.1")
        'there is more than one host header'
        >>> head_problem([(b"host", b"a")], "1.1")
        ''
    """
    names = [name for name, _ in headers if name in _SINGLE]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f"there is more than one {twice.decode()} header"
    if b"content-length" in names and b"transfer-encoding" in names:
        return "content-length and transfer-encoding contradict each other"
    if b"transfer-encoding" in names and version != "1.1":
        return "transfer-encoding needs HTTP/1.1"
    if b"host" not in names and version == "1.1":
        return "there is no host header"
    return ""


def _too_large(what: str) -> _Fault:
    return _Fault(cause="too_large", status=431, message=f"{what} are larger than {HEADER_BYTES >> 10} KiB")
