"""What goes back over HTTP: bytes and headers, sent through ASGI or, below it, written raw."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from pastille.serve.errors import Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

JSON: Final = b"application/json"
PIECE: Final = 256 << 10  # bytes of a large answer that are handed on before the peer has read the last ones
_GUARDED: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a route answers.

    Attributes:
        status: HTTP status.
        body: As it is sent.
        media_type: Of the body.
        headers: Further ones, names in lower case.
    """

    status: int = 200
    body: bytes | bytearray | memoryview = b""
    media_type: bytes = JSON
    headers: Headers = ()


def as_json(value: object, *, status: int = 200, headers: Headers = ()) -> Outcome:
    """A JSON answer; NaN and infinity are our bug, for JSON has neither.

    Example:
        >>> as_json({"live": True}).body
        b'{"live":true}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Outcome(status=status, body=text.encode(), headers=headers)


def refusal(error: Refused) -> Outcome:
    """``{"error": …}`` with the status of the cause, and when to come back.

    Example:
        >>> refusal(Refused("overload", "the queue is full", retry_after_s=0.2)).headers
        ((b'retry-after', b'1'),)
    """
    headers = tuple(_refusal_headers(error))
    return as_json({"error": str(error)}, status=error.status, headers=headers)


def _refusal_headers(error: Refused) -> Iterable[tuple[bytes, bytes]]:
    if error.retry_after_s is not None or error.status == 503:
        yield b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s or 0))
    if error.cause in ("slow", "too_large"):
        yield b"connection", b"close"  # the rest of the body is not worth waiting for
    if error.cause == "unauthorized":
        yield b"www-authenticate", b"Bearer"


async def send_outcome(outcome: Outcome, send: Send) -> None:
    """Send an answer: in one piece, or in several where it is large and the peer has yet to read it."""
    length = len(outcome.body)
    given = {name for name, _ in outcome.headers}
    headers = [(b"content-type", outcome.media_type), (b"content-length", b"%d" % length)]
    headers += [pair for pair in _GUARDED if pair[0] not in given]
    headers += outcome.headers
    await send({"type": "http.response.start", "status": outcome.status, "headers": headers})
    if length <= PIECE:
        await send({"type": "http.response.body", "body": outcome.body})
        return
    view = memoryview(outcome.body)
    for end in range(PIECE, length + PIECE, PIECE):
        more = end < length
        await send({"type": "http.response.body", "body": view[end - PIECE : end], "more_body": more})


def raw_refusal(status: int, message: str, *, retry_after_s: int | None = None, close: bool = True) -> bytes:
    """A whole HTTP/1.1 answer for what never became a request.

    Args:
        status: HTTP status.
        message: One line.
        retry_after_s: When to come back.
        close: Whether the connection closes after it.

    Example:
        >>> raw_refusal(408, "too slow").split()[:3]
        [b'HTTP/1.1', b'408', b'Request']
    """
    body = bytes(as_json({"error": message}).body)
    again = b"retry-after: %d\r\n" % retry_after_s if retry_after_s is not None else b""
    end = b"connection: close\r\n" if close else b""
    return (b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s%s\r\n%s") % (
        status,
        HTTPStatus(status).phrase.encode(),
        len(body),
        again,
        end,
        body,
    )
