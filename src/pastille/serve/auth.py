"""Who may do what: bearer tokens with scopes, and browsers kept from speaking for their users."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pastille.errors import UsageError
from pastille.serve.errors import Refused
from pastille.serve.settings import Settings, Token
from pastille.wire import is_loopback

Scope = Literal["infer", "monitor", "feedback", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("infer", "monitor", "feedback", "admin")

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks.

    Attributes:
        name: Of the token; ``""`` where no tokens are in use.
        scopes: What the caller may do.
    """

    name: str
    scopes: frozenset[str]


ANYBODY: Final = Caller(name="", scopes=frozenset(SCOPES))


def new_token(name: str, scopes: frozenset[Scope]) -> tuple[str, Token]:
    """Make a token: what the client sends, and what the server keeps, its hash.

    A token has 256 bits of chance, so its plain SHA-256 tells nobody what it is.
    """
    secret = "pst_" + secrets.token_urlsafe(32)
    return secret, Token(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), scopes=scopes)


def caller_of(authorization: bytes | None, tokens: tuple[Token, ...]) -> Caller:
    """Who sent this ``Authorization`` header; every token is compared, in constant time.

    Raises:
        Refused: ``unauthorized``: there is no token, or none that is known.
    """
    if not tokens:
        return ANYBODY
    kind, _, secret = (authorization or b"").partition(b" ")
    if kind.lower() != b"bearer" or not secret.strip():
        raise Refused("unauthorized", "a token is needed: send it as Authorization: Bearer TOKEN")
    given = hashlib.sha256(secret.strip()).hexdigest()
    matching = [token for token in tokens if hmac.compare_digest(token.sha256, given)]
    if not matching:
        raise Refused("unauthorized", "this token is not known here")
    return Caller(name=matching[0].name, scopes=frozenset().union(*(t.scopes for t in matching)))


def check_scope(caller: Caller, scope: Scope) -> None:
    """Raise unless the caller may do this.

    Raises:
        Refused: ``forbidden``.
    """
    if scope not in caller.scopes:
        raise Refused("forbidden", f"this token lacks the scope {scope}")


def check_browser(method: str, headers: Mapping[bytes, bytes], settings: Settings) -> None:
    """Keep web pages of strangers from asking a server that trusts whoever reaches it.

    A page from elsewhere can make a browser send requests to this machine (cross-site request forgery), and
    by changing what its own name resolves to even read the answers (DNS rebinding). Where tokens are in use
    neither works: a browser does not add them by itself.

    Raises:
        Refused: ``forbidden``.

    Example:
        >>> check_browser("GET", {b"host": b"evil.example"}, Settings())
        Traceback (most recent call last):
        pastille.serve.errors.Refused: this server answers to local names only; add others with --allow-host
    """
    if settings.tokens:
        return
    host = headers.get(b"host", b"").decode("latin-1")
    if is_loopback(settings.host) and not _known_host(host, settings.hosts):
        raise Refused("forbidden", "this server answers to local names only; add others with --allow-host")
    if method in _SAFE:
        return
    origin = headers.get(b"origin")
    foreign = origin is not None and origin.decode("latin-1").partition("://")[2] != host
    if foreign or headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
        raise Refused("forbidden", "a web page from elsewhere may not ask this server")


def _known_host(host: str, further: frozenset[str]) -> bool:
    name = _host_name(host)
    known = {each.lower() for each in further}
    return not name or name in known or is_loopback(name)  # every browser names a host


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def check_exposure(settings: Settings) -> str:
    """Whether what is bound to is protected.

    Returns:
        A warning to show loudly; ``""`` where there is nothing to warn of.

    Raises:
        UsageError: It could be reached from elsewhere, and anybody could use it.
    """
    if settings.tokens or is_loopback(settings.host):
        return ""
    if not settings.insecure:
        raise UsageError(
            f"{settings.host} can be reached from other machines: give --token-file FILE (lines of "
            "`pastille token NAME`), or --insecure to let anybody ask"
        )
    return f"INSECURE: anybody who reaches {settings.host} may ask this server, and see its monitor"
