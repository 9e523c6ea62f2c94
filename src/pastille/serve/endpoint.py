"""One route as a raw ASGI application: who asks, may it, and every way that it can end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from pastille.errors import IntegrityError, UsageError
from pastille.serve import logs
from pastille.serve.auth import ANYBODY, Caller, Scope, caller_of, check_browser, check_scope
from pastille.serve.errors import Refused
from pastille.serve.http_answers import PIECE, Outcome, Receive, Send, as_json, refusal, send_outcome
from pastille.serve.limits import GoneError, network_of, read_body
from pastille.serve.reading import beside
from pastille.serve.standing import Standing
from pastille.wire import WireError, inflate

_INLINE_BYTES: Final = 4 << 10  # compressed; they inflate to 4 MB at most: larger ones go to a thread


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """One request, before its body is read."""

    standing: Standing
    method: str
    path: Mapping[str, str]  # what the route's pattern names
    headers: Mapping[bytes, bytes]
    query_string: bytes
    caller: Caller
    receive: Receive
    take: Callable[[int], None]

    @property
    def query(self) -> dict[str, str]:
        """Of the address; the last of several of one name."""
        try:
            pairs = parse_qsl(self.query_string.decode("latin-1"), max_num_fields=16)
        except ValueError:
            raise Refused("malformed", "the query has more than 16 fields") from None
        return dict(pairs)

    def header(self, name: bytes) -> str | None:
        """A header as text; None where it was not sent."""
        found = self.headers.get(name)
        return None if found is None else found.decode("latin-1")

    async def body(self) -> bytes:
        """The body, inflated; see `view`."""
        return bytes(await self.view(aligned_at=0))  # what is bytes already is not copied

    async def view(self, *, aligned_at: int) -> bytes | bytearray | memoryview:
        """The body, inflated.

        Args:
            aligned_at: Offset that should lie well in memory.

        Raises:
            Refused: It is too large, too slow, or compressed in a way that is not taken.
            WireError: It is not what its ``Content-Encoding`` says, or inflates to too much.
            GoneError: The peer left.
        """
        limits = self.standing.settings.limits
        body = await read_body(self.receive, self.headers, limits, self.take, aligned_at=aligned_at)
        encoding = self.header(b"content-encoding") or ""
        if not encoding:
            return body
        raw = bytes(body)
        if len(raw) <= _INLINE_BYTES:
            inflated = inflate(raw, encoding, limits.inflated_bytes)
        else:
            inflated = await beside(inflate, raw, encoding, limits.inflated_bytes)
        self.take(len(inflated))
        return inflated


Handler = Callable[[Asked], Awaitable[Outcome]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Endpoint:
    """What is served under one pattern.

    Attributes:
        standing: Of the server.
        handlers: Method -> what answers it.
        scope: That a token must have; None: nobody needs one.
        name: For the counts of refusals.
    """

    standing: Standing
    handlers: Mapping[str, Handler]
    scope: Scope | None
    name: str
    limited: bool = field(default=True)  # by the rate

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; every way out is JSON."""
        try:
            outcome = await self._outcome(scope, receive)
        except GoneError:
            return
        except asyncio.CancelledError:  # the peer left, or the server's patience ended: nobody reads it
            return
        if len(outcome.body) <= PIECE:
            await send_outcome(outcome, send)
        else:
            await self._send_large(outcome, send)

    async def _send_large(self, outcome: Outcome, send: Send) -> None:
        """A peer that reads slowly, or not at all, takes memory for as long: both have a bound."""
        limits, size = self.standing.settings.limits, len(outcome.body)
        patience = limits.body_s * max(1.0, size / limits.body_bytes)  # as for a body of that size
        with self.standing.budget.holding(size), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await send_outcome(outcome, send)

    async def _outcome(self, scope: Mapping[str, Any], receive: Receive) -> Outcome:
        try:
            return await self._answered(scope, receive)
        except Refused as error:
            return self._refused(error)
        except WireError as error:
            return self._refused(Refused(error.cause, str(error)))
        except GoneError:
            raise
        except (IntegrityError, UsageError) as error:  # of a bundle that was to be loaded
            status = 409 if isinstance(error, IntegrityError) else 400
            self.standing.turned("malformed", status, self.name)
            return as_json({"error": str(error)}, status=status)
        except Exception as error:
            logs.fault(self.name, error)
            return self._refused(Refused("fault", "an unexpected fault of the server; its log says more"))

    def _refused(self, error: Refused) -> Outcome:
        self.standing.turned(error.cause, error.status, self.name)
        return refusal(error)

    async def _answered(self, scope: Mapping[str, Any], receive: Receive) -> Outcome:
        method = scope["method"]
        handler = self.handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            return self._not_allowed(method)
        headers = dict(scope["headers"])
        caller = self._caller(method, headers, scope)
        with self.standing.budget.share() as take:
            return await handler(
                Asked(
                    standing=self.standing,
                    method=method,
                    path=scope["path_params"],
                    headers=headers,
                    query_string=scope["query_string"],
                    caller=caller,
                    receive=receive,
                    take=take,
                )
            )

    def _caller(self, method: str, headers: Mapping[bytes, bytes], scope: Mapping[str, Any]) -> Caller:
        settings = self.standing.settings
        check_browser(method, headers, settings)
        caller = ANYBODY
        if self.scope is not None:
            caller = caller_of(headers.get(b"authorization"), settings.tokens)
            check_scope(caller, self.scope)
        if self.limited and self.standing.rate is not None:
            address = scope["client"][0] if scope.get("client") else ""
            wait = self.standing.rate.take(caller.name or network_of(address))
            if wait:
                raise Refused("rate", "too many requests from here; slow down", retry_after_s=wait)
        return caller

    def _not_allowed(self, method: str) -> Outcome:
        allowed = ", ".join(sorted({*self.handlers, *(["HEAD"] if "GET" in self.handlers else [])}))
        self.standing.turned("method", 405, self.name)
        outcome = refusal(Refused("method", f"{method} is not answered here, only {allowed}"))
        return Outcome(status=405, body=outcome.body, headers=((b"allow", allowed.encode()),))
