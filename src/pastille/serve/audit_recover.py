"""Where an audit log that is there ends, and what a crash left behind it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pastille.errors import IntegrityError
from pastille.serve.audit_lines import (
    HEAD,
    MAX_LINE_BYTES,
    End,
    Record,
    lines_of,
    numbers_in,
    parsed,
    path_of,
    read_head,
)

_ASIDE = "see `pastille audit verify`; to begin a new log, move the folder aside"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there was."""

    end: End
    fresh: bool = False  # nothing: the log begins
    torn: dict[str, Any] | None = None  # facts of what a crash left of a line
    unended: bool = False  # only the end of the last line is missing


def recovered(folder: Path) -> Found:
    """Find the end of the log, without reading more than the tail of it.

    Raises:
        IntegrityError: It was cut off or changed: less is there than ``head.json`` has noted.
    """
    numbers = numbers_in(folder)
    if not numbers and not (folder / HEAD).exists():
        return Found(end=End(), fresh=True)
    head = read_head(folder)
    if head.n < 0 and not numbers:
        return Found(end=head, fresh=True)
    _check_anchor(folder, head)
    found = _tail(folder, numbers, head)
    if head.closed and (found.torn or (found.end.file, found.end.size) != (head.file, head.size)):
        raise IntegrityError(f"the audit log {folder} goes on after it was closed; {_ASIDE}")
    return found


def _check_anchor(folder: Path, head: End) -> None:
    """The record that ``head.json`` speaks of must be where it was."""
    if head.n < 0:
        return
    data = _slice(path_of(folder, head.file), head.size - MAX_LINE_BYTES, head.size)
    record = parsed(data[data.rfind(b"\n", 0, len(data) - 1) + 1 : -1]) if data.endswith(b"\n") else None
    if record is None or (record.n, record.hash) != (head.n, head.hash):
        raise IntegrityError(
            f"the audit log {folder} was cut off or changed: record {head.n} is gone; {_ASIDE}"
        )


def _tail(folder: Path, numbers: tuple[int, ...], head: End) -> Found:
    """Follow the chain from the anchor, over at most a few files, to the last record that holds."""
    end = head
    for number in (n for n in numbers if n >= head.file):
        start = head.size if number == head.file else 0
        data = _slice(path_of(folder, number), start, None)
        end = End(file=number, size=start, n=end.n, hash=end.hash)
        for offset, line, ended in lines_of(data):
            record = parsed(line)
            if not holds(record, end):
                if number != numbers[-1]:
                    raise IntegrityError(
                        f"{path_of(folder, number)} was changed after record {end.n}; {_ASIDE}"
                    )
                torn = _torn(data[offset:], start + offset)
                return Found(end=_resized(end, start + len(data)), torn=torn)
            assert record is not None  # it holds
            end = End(file=number, size=start + offset + len(line) + ended, n=record.n, hash=record.hash)
            if not ended:
                return Found(end=end, unended=True)
    return Found(end=End(file=end.file, size=end.size, n=end.n, hash=end.hash, closed=head.closed))


def holds(record: Record | None, end: End) -> bool:
    """Whether a record is the next one of the chain."""
    return record is not None and record.n == end.n + 1 and record.follows(end.hash)


def _torn(fragment: bytes, at_byte: int) -> dict[str, Any]:
    return {"at_byte": at_byte, "bytes": len(fragment), "sha256": hashlib.sha256(fragment).hexdigest()}


def _resized(end: End, size: int) -> End:
    return End(file=end.file, size=size, n=end.n, hash=end.hash)


def _slice(path: Path, start: int, stop: int | None) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(start, 0))
            return file.read(-1 if stop is None else max(stop - max(start, 0), 0))
    except OSError as error:
        raise IntegrityError(
            f"cannot read {path.name} of the audit log: {error.strerror}; {_ASIDE}"
        ) from None
