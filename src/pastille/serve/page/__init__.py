"""The page that people watch a server with, and try it on: plain files, nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


@cache
def page_files() -> Mapping[str, tuple[str, bytes]]:
    """Everything that the page consists of.

    The files hold nothing of the server: what they show comes from ``monitor.json`` and ``predict``, which
    ask for a token where one is needed. So they may be given to anybody, with `CONTENT_POLICY` as
    ``Content-Security-Policy``. All addresses in them are relative, so a proxy may put a prefix before them.

    Returns:
        ``{path: (media type, bytes)}``; the page itself is at ``/``.

    Example:
        >>> page_files()["/"][0]
        'text/html; charset=utf-8'
    """
    folder = resources.files(__name__)
    found = {name.name: name.read_bytes() for name in folder.iterdir() if _suffix(name.name) in _TYPES}
    return MappingProxyType({_path(name): (_TYPES[_suffix(name)], found[name]) for name in sorted(found)})


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _path(name: str) -> str:
    return "/" if name == "page.html" else f"/page/{name}"
