"""Settings as they are written down: a YAML file, a file of tokens, and what the command line says on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from pastille.errors import IntegrityError, UsageError
from pastille.files import read_bounded
from pastille.serve.auth import SCOPES
from pastille.serve.settings import Settings, Token

_MOST_BYTES: Final = 1 << 20
_MOST_TOKENS: Final = 1000
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]i?)?B?")
_UNITS: Final = {None: 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9} | {
    "Ki": 1 << 10,
    "ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
}


def read_settings(path: Path | None, said: Mapping[str, Any]) -> Settings:
    """Settings from a file, with what was said on the command line in their place.

    Args:
        path: YAML with the keys of `Settings`, and ``token_file``, from its folder on, for ``tokens``;
            None: all as they are by default.
        said: Dotted key -> value, e.g. ``{"queue.rate": 50}``; None stands for "not said".

    Raises:
        UsageError: A key is unknown or its value is not allowed; the message says which.

    Example:
        >>> read_settings(None, {"port": 9000, "queue.rate": 50}).queue.rate
        50.0
    """
    asked = {} if path is None else _mapping(path)
    for key, value in said.items():
        if value is not None:
            _put(asked, key.split("."), value)
    _fetch_tokens(asked, path)
    try:
        return Settings.model_validate(asked)
    except ValidationError as error:
        raise UsageError(_first(error, path)) from None


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_text(path, "a file of settings"))
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict | None):
        raise UsageError(f"{path} must hold settings as KEY: VALUE")
    return found or {}


def _fetch_tokens(asked: dict[str, Any], path: Path | None) -> None:
    """Read the file of tokens that a file of settings names, unless the command line gave tokens."""
    name = asked.pop("token_file", None)
    if name is None or path is None or "tokens" in asked:
        return
    if not isinstance(name, str):
        raise UsageError(f"setting 'token_file' of {path} must be the name of a file")
    asked["tokens"] = read_tokens(path.parent / name)


def _put(asked: dict[str, Any], keys: list[str], value: object) -> None:
    *sections, last = keys
    for section in sections:
        inner = asked.get(section)
        asked[section] = asked = dict(inner) if isinstance(inner, dict) else {}
    asked[last] = value


def _first(error: ValidationError, path: Path | None) -> str:
    found = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, found["loc"]))
    where = f" of {path}" if path is not None else ""
    if found["type"] == "extra_forbidden":
        return f"there is no setting {key!r}{where}"
    return f"setting {key!r}{where}: {found['msg']}"


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Tokens from a file of lines ``NAME SHA256 SCOPE,SCOPE``, as `pastille token` prints them.

    Raises:
        UsageError: A line is not such a line; the message gives its number, never what stands there.
    """
    found = tuple(_tokens(path, _text(path, "a file of tokens")))
    if not 1 <= len(found) <= _MOST_TOKENS:
        raise UsageError(f"{path} must hold from 1 to {_MOST_TOKENS} tokens; pastille token NAME makes one")
    return found


def _text(path: Path, what: str) -> str:
    try:
        return read_bounded(path, _MOST_BYTES, what=what).decode()
    except (OSError, UnicodeDecodeError, IntegrityError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _tokens(path: Path, text: str) -> Iterator[Token]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, sha256, scopes = words
            yield Token(name=name, sha256=sha256, scopes=frozenset(scopes.split(",")))
        except ValueError:  # pydantic's too
            raise UsageError(
                f"{path}, line {number} must be NAME SHA256 SCOPES, with scopes of {', '.join(SCOPES)}; "
                "pastille token NAME prints such a line"
            ) from None


def line_of(token: Token) -> str:
    """The line of a token file."""
    return f"{token.name} {token.sha256} {','.join(sorted(token.scopes))}"


def size_of(text: str) -> int:
    """Bytes from text.

    Raises:
        UsageError: It is not a size.

    Example:
        >>> size_of("64MB"), size_of("1 GiB"), size_of("0")
        (64000000, 1073741824, 0)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"a size must be like 64MB, got {text[:40]!r}")
    return round(float(found[1]) * _UNITS[found[2]])
