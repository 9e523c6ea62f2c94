"""One line of the audit log, and how it hangs on the line before it.

``{"hash":"<64 hex>","n":7,"at":"…Z","event":"decision", …}``: the hash is SHA-256 over the hash of the line
before and over the bytes that follow it in this line, as they stand. So nothing has to be re-serialised to
be checked, and no byte can be changed without breaking the chain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pastille.errors import IntegrityError
from pastille.files import read_bounded

SCHEMA = 1
GENESIS = "0" * 64  # the hash before the first line
HEAD = "head.json"
SALT = "salt"
MAX_LINE_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30

_OPEN = b'{"hash":"'
_START = len(_OPEN) + 64 + len(b'",')
_FILE = re.compile(r"audit-(\d{6,})\.jsonl")
_HEAD_TYPES = {"file": int, "size": int, "n": int, "hash": str, "closed": bool}
_N = re.compile(rb'"n":(\d{1,18}),')


@dataclass(frozen=True, kw_only=True)
class End:
    """Where the log ends: all that the next line needs to know."""

    file: int = 1  # number of the file that is written to
    size: int = 0  # bytes of it
    n: int = -1  # of the last record; they are counted from 0, over all files
    hash: str = GENESIS  # of the last record
    closed: bool = False  # by a server that ended in order: nothing follows but a new start


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line that could be read; whether it belongs to the chain, `follows` says."""

    hash: str
    n: int
    values: Mapping[str, Any]  # all but the hash
    body: bytes  # what the hash covers

    def follows(self, previous: str) -> bool:
        """Whether it was written after the record with that hash, and is as it was written."""
        return self.hash == chained(previous, self.body)


def chained(previous: str, body: bytes) -> str:
    """Hash of a line: SHA-256 over the one before and its own bytes, in hexadecimal."""
    return hashlib.sha256(previous.encode() + body).hexdigest()


def written(previous: str, n: int, at: float, event: str, facts: Mapping[str, Any]) -> tuple[bytes, str]:
    r"""A new line.

    Args:
        previous: Hash of the record before.
        n: Number of this one.
        at: Unix time in seconds, as the clock has it.
        event: What happened.
        facts: What there is to say about it, JSON values.

    Returns:
        The line with its end, and its hash.

    Example:
        >>> line, digest = written(GENESIS, 0, 0.0, "started", {})
        >>> line[74:]
        b',"n":0,"at":"1970-01-01T00:00:00.000000Z","event":"started"}\n'
        >>> parsed(line[:-1]).follows(GENESIS)
        True
    """
    stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    values = {"n": n, "at": stamp, "event": event, **facts}
    body = json.dumps(values, separators=(",", ":"), allow_nan=False)[1:].encode()
    digest = chained(previous, body)
    return b"".join((_OPEN, digest.encode(), b'",', body, b"\n")), digest


def parsed(line: bytes) -> Record | None:
    """Read a line without its end; None where it is no record at all."""
    if len(line) > MAX_LINE_BYTES or not line.startswith(_OPEN) or line[_START - 2 : _START] != b'",':
        return None
    body = line[_START:]
    try:
        values = json.loads(b"{" + body)
        digest = line[len(_OPEN) : _START - 2].decode("ascii")
    except (ValueError, RecursionError):
        return None
    n = values.get("n")
    return None if type(n) is not int else Record(hash=digest, n=n, values=values, body=body)


def number_of(line: bytes) -> int | None:
    """The number that a line gives itself, whether or not the rest of it can be read."""
    found = _N.match(line, _START)
    return int(found[1]) if found else None


def path_of(folder: Path, number: int) -> Path:
    """Where a file of the log lies.

    Example:
        >>> path_of(Path("audit"), 3).name
        'audit-000003.jsonl'
    """
    return folder / f"audit-{number:06d}.jsonl"


def numbers_in(folder: Path) -> tuple[int, ...]:
    """Numbers of the files that are there, in order."""
    found = (int(match[1]) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)))
    return tuple(sorted(set(found)))


def head_bytes(end: End) -> bytes:
    """``head.json``: how far the log surely reached. It shows whether its end was cut off."""
    value = {"schema": SCHEMA, **{key: getattr(end, key) for key in _HEAD_TYPES}}
    return json.dumps(value).encode() + b"\n"


def read_head(folder: Path) -> End:
    """Read ``head.json``.

    Raises:
        IntegrityError: It is missing, or not as it was written.
    """
    path = folder / HEAD
    data = read_bounded(path, 4096, what="the head of the audit log")
    try:
        value = json.loads(data)
        end = End(**{key: value[key] for key in _HEAD_TYPES})
        if head_bytes(end) == data and all(type(getattr(end, k)) is t for k, t in _HEAD_TYPES.items()):
            return end
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise IntegrityError(f"{path} was changed after it was written")


def lines_of(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes, bool]]:
    """Lines of a file: where each begins, its bytes without the end, and whether it has an end."""
    while start < len(data):
        stop = data.find(b"\n", start)
        ended = stop >= 0
        stop = stop if ended else len(data)
        yield start, data[start:stop], ended
        start = stop + 1
