"""Between the steps of a client and httpx2, which is imported when the first client is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from pastille.client.steps import Asked, Got, Unreached
from pastille.errors import UsageError
from pastille.wire import is_loopback

if TYPE_CHECKING:
    import httpx2


def sync_http(url: str, token: str | None, timeout_s: float) -> httpx2.Client:
    """A client of httpx2 for one server; arguments and errors as `options`."""
    import httpx2

    return httpx2.Client(**options(url, token, timeout_s))


def async_http(url: str, token: str | None, timeout_s: float) -> httpx2.AsyncClient:
    """The same for ``async`` code."""
    import httpx2

    return httpx2.AsyncClient(**options(url, token, timeout_s))


def options(url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
    """What httpx2 is told.

    Args:
        url: Where the server listens.
        token: Sent with every request; None where the server wants none.
        timeout_s: That connecting, sending or waiting for an answer may take, each.

    Raises:
        UsageError: The address is not one of HTTP, or holds a password, or the token is not printable ASCII.
    """
    where = _address(url)
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise UsageError("a token must be printable ASCII without line breaks")
    # Tensors do not get smaller by compression, and it costs more than sending them.
    headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {token}"} if token else {})
    return {
        "base_url": url,
        "headers": headers,
        "timeout": timeout_s,
        # A proxy that the environment names would read images and tokens in plain HTTP; TLS goes through it
        # unread. Between this machine and itself there is none.
        "trust_env": where.scheme == "https" and not is_loopback(where.hostname or ""),
    }


def _address(url: str) -> SplitResult:
    if "@" in url:
        raise UsageError("a server's address must hold no user or password; give a token instead")
    try:
        found = urlsplit(url)
        host, _ = found.hostname, found.port
    except ValueError:
        host = None
    if not host or found.scheme not in ("http", "https"):
        raise UsageError(f"a server's address must be like http://127.0.0.1:8080, got {url!r}")
    return found


def request_of(http: httpx2.Client | httpx2.AsyncClient, asked: Asked) -> httpx2.Request:
    """One step, as httpx2 sends it."""
    return http.build_request(
        asked.method, asked.path, content=asked.content or None, headers=dict(asked.headers)
    )


def got_of(response: httpx2.Response) -> Got:
    """What came back."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Got(status=response.status_code, content=response.content, headers=headers)


def failure(error: Exception, http: httpx2.Client | httpx2.AsyncClient) -> Unreached:
    """Why nothing came back; anything that is no fault of the way is raised again."""
    import httpx2

    where = str(http.base_url).rstrip("/")
    match error:
        case httpx2.ConnectError() if "CERTIFICATE" in str(error):
            return Unreached(why=f"the certificate of {where} is not trusted here", unsent=False)
        case httpx2.ConnectError():
            return Unreached(why=f"cannot connect to {where}; is the server running?", unsent=True)
        case httpx2.ConnectTimeout():
            return Unreached(why=f"{where} did not accept a connection in time", unsent=False)
        case httpx2.TimeoutException():
            return Unreached(why=f"{where} did not answer in time", unsent=False)
        case httpx2.HTTPError():
            return Unreached(why=f"the connection to {where} broke before the answer came", unsent=False)
        case _:
            raise error
