"""What one peer, one body and all bodies together may take; everything here is bounded itself."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from pastille.serve.errors import Refused
from pastille.serve.http_answers import Receive
from pastille.serve.settings import Limits

_PEERS: Final = 10_000  # whose rate is remembered; the one that was quiet longest is forgotten


_ALIGNED: Final = 16
_PIECES: Final = 1024  # of a body that are kept apart: a piece of one byte takes forty


class GoneError(Exception):
    """The peer went away before its request was whole: there is nobody to answer."""


class Rate:
    """A token bucket per peer.

    Example:
        >>> rate = Rate(per_second=1, burst=2, clock=lambda: 0.0)
        >>> rate.take("a"), rate.take("a"), rate.take("a"), rate.take("b")
        (0.0, 0.0, 1.0, 0.0)
    """

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left in the bucket, when

    def take(self, peer: str) -> float:
        """Take one request's worth.

        Returns:
            0 if there was one; else the seconds until there will be.
        """
        now = self._clock()
        left, seen = self._peers.pop(peer, (float(self._burst), now))
        left = min(self._burst, left + max(0.0, now - seen) * self._per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_second
        self._peers[peer] = (left if wait else left - 1, now)
        if len(self._peers) > _PEERS:
            self._peers.popitem(last=False)
        return wait


def network_of(address: str) -> str:
    """What counts as one peer: an address, or the /64 of an IPv6 address, which one machine has whole.

    Example:
        >>> network_of("192.0.2.7"), network_of("2001:db8::1:2"), network_of("")
        ('192.0.2.7', '2001:db8::/64', '')
    """
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


class Budget:
    """Bytes of all bodies that are held at once.

    Example:
        >>> budget = Budget(10)
        >>> with budget.share() as take:
        ...     take(8)
        >>> budget.held
        0
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """One request's part of it, given back at the end.

        Yields:
            What takes so many bytes more; it raises `Refused` (overload) where too many are held.
        """
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self.held + size > self._most:
                raise Refused("overload", "too many bodies are being read; try again", retry_after_s=1)
            self.held += size
            mine += size

        try:
            yield take
        finally:
            self.held -= mine

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count an answer that is being read: it is never refused, but bodies are while it takes the room."""
        self.held += size
        try:
            yield
        finally:
            self.held -= size


async def read_body(
    receive: Receive,
    headers: Mapping[bytes, bytes],
    limits: Limits,
    take: Callable[[int], None],
    *,
    aligned_at: int = 0,
) -> bytes | memoryview:
    """Read a request's body, no more of it than is allowed; how long it may take the protocol minds.

    Args:
        receive: Of ASGI.
        headers: Of the request; a declared length that is too large is refused before anything is read.
        limits: How much.
        take: Told the bytes as they come; see `Budget.share`.
        aligned_at: Offset that should lie well in memory: tensors there need no copy of their own.

    Raises:
        Refused: ``too_large`` or ``overload``.
        GoneError: The peer closed the connection, or was too slow.
    """
    declared = int(headers.get(b"content-length", b"0"))
    if declared > limits.body_bytes:
        raise _too_large(limits)
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > limits.body_bytes:
            raise _too_large(limits)
        take(len(piece))
        pieces.append(piece)
        if len(pieces) == _PIECES:
            pieces = [b"".join(pieces)]
    if len(pieces) == 1:
        return pieces[0]
    padding = -aligned_at % _ALIGNED
    whole = b"".join([bytes(padding), *pieces])
    return memoryview(whole)[padding:] if padding else whole


def _too_large(limits: Limits) -> Refused:
    return Refused("too_large", f"a body may have at most {limits.body_bytes} bytes")
