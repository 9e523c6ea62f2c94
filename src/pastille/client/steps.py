"""What a client does, one step at a time and free of sockets: ask, pause, ask again.

A flow yields steps and is given what came of each; so one code serves the client that waits and the
client that is awaited, and a test needs neither network nor clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pastille.client.errors import ServerError
from pastille.wire import error_of

T = TypeVar("T")
_BUSY = (429, 503)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One HTTP request."""

    method: str
    path: str  # with its query, e.g. "/v2/models/digits/infer"
    content: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Got:
    """One HTTP answer."""

    status: int
    content: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case


@dataclass(frozen=True, kw_only=True)
class Unreached:
    """No answer came.

    Attributes:
        why: A sentence for the user.
        unsent: Whether the server surely saw nothing of the request, so that it may be sent again.
    """

    why: str
    unsent: bool


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Wait before the next step."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a client goes on.

    Attributes:
        retries: After the first attempt.
        longest_s: That one pause may take; a server that asks for more is believed and not asked again.
    """

    retries: int = 3
    longest_s: float = 5.0


Came = Got | Unreached | None  # None: of a pause
Flow = Generator[Asked | Pause, Came, T]


def ask(asked: Asked, patience: Patience) -> Flow[Got]:
    """Ask until there is an answer; again only where the server says when, or never saw the request.

    Args:
        asked: The request.
        patience: How often, and how long.

    Returns:
        An answer of status 200 to 299.

    Raises:
        ServerError: The server refused or failed, or was not reached.
    """
    for attempt in range(patience.retries + 1):
        came = yield asked
        if isinstance(came, Got) and 200 <= came.status < 300:
            return came
        seconds = pause_before(came, attempt)
        if attempt == patience.retries or seconds is None or seconds > patience.longest_s:
            break
        yield Pause(seconds=seconds)
    raise _failure(came)


def pause_before(came: Came, attempt: int) -> float | None:
    """How long to wait before a request is sent again; None where it must not be.

    Example:
        >>> pause_before(Got(status=503, content=b"", headers={"retry-after": "2"}), attempt=0)
        2.0
        >>> pause_before(Got(status=500, content=b""), attempt=0) is None
        True
    """
    match came:
        case Got(status=status) if status in _BUSY:
            return retry_after(came)
        case Unreached(unsent=True):
            return float(0.1 * 2**attempt)
        case _:
            return None


def retry_after(got: Got) -> float | None:
    """Seconds of ``Retry-After``; None where there are none (a date is none, for clocks differ)."""
    text = got.headers.get("retry-after", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else None


def _failure(came: Came) -> ServerError:
    match came:
        case Got():
            said = f"the server answered {came.status}: {error_of(came.content)}"
            return ServerError(said, status=came.status, retry_after_s=retry_after(came))
        case Unreached():
            return ServerError(came.why)
        case _:
            raise TypeError("a request must be answered by what came of it")
