"""Whether an audit log is as it was written; if not, where it breaks first and how."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pastille.errors import IntegrityError, UsageError
from pastille.files import read_bounded
from pastille.serve.audit_lines import (
    HEAD,
    MAX_FILE_BYTES,
    SALT,
    End,
    Record,
    lines_of,
    number_of,
    numbers_in,
    parsed,
    path_of,
    read_head,
)

How = Literal["changed", "removed", "reordered", "truncated", "added"]


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The first place where the log is not as it was written."""

    file: str
    line: int | None  # counted from 1; None where the place is a whole file
    how: How
    detail: str


@dataclass(frozen=True, kw_only=True)
class AuditVerification:
    """What a check of an audit log found.

    Attributes:
        files: How many there are.
        records: That are as they were written; up to the break where there is one.
        decisions: Of them, those of answers.
        first_at: Time of the first of them, None where there is none.
        last_at: Time of the last of them.
        last_hash: Noted elsewhere, it proves later that nothing up to here was rewritten.
        anchored: Number of the last record that ``head.json`` vouches for; what was cut off after it cannot
            be seen.
        torn: Lines that a crash left unfinished, and that the next start closed.
        starts: How often a server took the log up.
        lost: Records that could not be written, as the log itself admits.
        clock_back: How often the clock was put back.
        broken: None where the log is as it was written.
        notes: What a person should know besides.
    """

    files: int
    records: int = 0
    decisions: int = 0
    first_at: str | None = None
    last_at: str | None = None
    last_hash: str
    anchored: int = -1
    torn: int = 0
    starts: int = 0
    lost: int = 0
    clock_back: int = 0
    broken: Broken | None = None
    notes: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether nothing was found."""
        return self.broken is None


class _BreakFoundError(Exception):
    def __init__(self, broken: Broken) -> None:
        super().__init__(broken.detail)
        self.broken = broken


@dataclass
class _Walk:
    """The chain as far as it was followed."""

    end: End = field(default_factory=End)
    ends: dict[str, int] = field(default_factory=dict)  # counts, by name
    times: list[str] = field(default_factory=list)  # the first and the last
    salt: str = ""  # hash of it, as the last start wrote it
    seen: str | None = None  # hash of the record that the head, or the caller, speaks of
    torn_tail: int = 0  # bytes after the last record

    def take(self, record: Record, file: int, after: int) -> None:
        self.end = End(file=file, size=after, n=record.n, hash=record.hash)
        values: Mapping[str, Any] = record.values
        self.count(str(values.get("event")))
        lost = values.get("records") if values.get("event") == "lost" else 0
        self.count("lost_records", lost if isinstance(lost, int) else 0)
        self.count("clock_back", int("clock_back_s" in values))
        self.times = [*self.times[:1], str(values.get("at"))]
        self.salt = str(values.get("salt_sha256", self.salt))

    def count(self, what: str, by: int = 1) -> None:
        self.ends[what] = self.ends.get(what, 0) + by


def verify_audit(folder: Path, *, noted: str | None = None) -> AuditVerification:
    """Check an audit log: every byte of every record, their order, and that none is missing.

    The end of a log is vouched for by ``head.json``, which is brought to the disk once a second and when the
    server ends. Whoever may rewrite the whole folder, ``head.json`` included, is only found out by a hash
    that was noted elsewhere.

    Args:
        folder: Of the log. A server may be writing to it.
        noted: A hash that an earlier check printed: its record must still be there.

    Raises:
        UsageError: There is no audit log.
    """
    numbers = numbers_in(folder) if folder.is_dir() else ()
    if not numbers and not (folder / HEAD).is_file():
        raise UsageError(f"{folder} is no audit log; give the folder that `pastille serve --audit` writes to")
    walk = _Walk()
    broken: Broken | None = None
    head: End | None = None
    try:
        head = _head(folder)  # first: a server that goes on writing is then only ever ahead of it
        numbers = numbers_in(folder)  # again: it may have begun another file before it wrote that head
        _walk_files(folder, numbers, walk, head, noted)
        _check_end(folder, walk, head)
        if noted is not None and walk.seen != noted:
            raise _BreakFoundError(_rewritten(noted))
    except _BreakFoundError as found:
        broken = found.broken
    return _verification(numbers, walk, head, broken)


def _head(folder: Path) -> End:
    try:
        return read_head(folder)
    except IntegrityError as error:
        missing = not (folder / HEAD).exists()
        detail = "it is missing: whether the end was cut off cannot be told" if missing else str(error)
        how: How = "removed" if missing else "changed"
        raise _BreakFoundError(Broken(file=HEAD, line=None, how=how, detail=detail)) from None


def _walk_files(folder: Path, numbers: tuple[int, ...], walk: _Walk, head: End, noted: str | None) -> None:
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            name = path_of(folder, expected).name
            raise _BreakFoundError(Broken(file=name, line=None, how="removed", detail="the file is missing"))
        try:
            data = read_bounded(path_of(folder, number), MAX_FILE_BYTES, what="audit log")
        except IntegrityError as error:
            name = path_of(folder, number).name
            raise _BreakFoundError(Broken(file=name, line=None, how="changed", detail=str(error))) from None
        _walk_file(data, number, walk, head, noted, last=number == numbers[-1])


def _walk_file(data: bytes, number: int, walk: _Walk, head: End, noted: str | None, *, last: bool) -> None:
    skip_to = 0
    for line, (offset, text, ended) in enumerate(lines_of(data), start=1):
        if offset < skip_to:
            continue
        record = parsed(text)
        if record is not None and record.n == walk.end.n + 1 and record.follows(walk.end.hash):
            walk.take(record, number, offset + len(text) + ended)
            _anchor(walk, head, number, noted)
        elif closed_at := _closed_at(data, offset, walk.end):
            skip_to = closed_at
        elif last and not ended and not (head.closed and walk.end.n >= head.n):
            walk.torn_tail = len(text)  # if it was cut off, `head` knows of more
        else:
            raise _BreakFoundError(_broken(data, offset, text, number, line, walk.end))


def _anchor(walk: _Walk, head: End, number: int, noted: str | None) -> None:
    if noted is not None and walk.end.hash == noted:
        walk.seen = noted
    if walk.end.n == head.n and (walk.end.hash, number, walk.end.size) != (head.hash, head.file, head.size):
        raise _BreakFoundError(
            Broken(file=HEAD, line=None, how="changed", detail="it speaks of another record")
        )


def _closed_at(data: bytes, offset: int, end: End) -> int | None:
    """Where the record stands that closes a line torn at ``offset``; None where there is none."""
    for start, text, _ in lines_of(data, offset):
        record = parsed(text)
        if record is None or record.values.get("event") != "torn":
            continue
        fragment = data[offset : start - 1]
        said = {"at_byte": offset, "bytes": len(fragment), "sha256": hashlib.sha256(fragment).hexdigest()}
        fits = all(record.values.get(key) == value for key, value in said.items())
        return start if fits and record.n == end.n + 1 and record.follows(end.hash) else None
    return None


def _broken(data: bytes, offset: int, text: bytes, number: int, line: int, end: End) -> Broken:
    how, detail = _how(data, offset, text, end.n + 1)
    return Broken(file=path_of(Path(), number).name, line=line, how=how, detail=detail)


def _how(data: bytes, offset: int, text: bytes, expected: int) -> tuple[How, str]:
    """What the numbers of this line and of those after it say about what was done."""
    found = number_of(text)
    later = [number_of(other) for _, other, _ in lines_of(data, offset + len(text) + 1)]
    if found is None or found == expected or later[:1] == [expected + 1]:
        return "changed", f"record {expected} is not as it was written"
    if found < expected:
        return "reordered", f"record {found} stands where record {expected} should"
    if expected in later:
        return "reordered", f"record {found} stands before record {expected}"
    what = f"record {expected} is" if found == expected + 1 else f"records {expected} to {found - 1} are"
    return "removed", f"{what} missing before this line"


def _check_end(folder: Path, walk: _Walk, head: End) -> None:
    name = path_of(folder, max(numbers_in(folder), default=1)).name
    if walk.end.n < head.n:
        detail = f"it ends at record {walk.end.n}, but {HEAD} has noted record {head.n}: the end was cut off"
        raise _BreakFoundError(Broken(file=name, line=None, how="truncated", detail=detail))
    if head.closed and walk.end.n > head.n:
        detail = f"it goes on after record {head.n}, at which the server closed it"
        raise _BreakFoundError(Broken(file=name, line=None, how="added", detail=detail))
    salt = folder / SALT
    if walk.salt and salt.is_file() and hashlib.sha256(salt.read_bytes()[:128]).hexdigest() != walk.salt:
        raise _BreakFoundError(
            Broken(
                file=SALT, line=None, how="changed", detail="it is not the salt that the log was begun with"
            )
        )


def _rewritten(noted: str) -> Broken:
    detail = f"no record has the hash {noted[:12]}… that was noted: the log was rewritten"
    return Broken(file=HEAD, line=None, how="changed", detail=detail)


def _notes(walk: _Walk, head: End | None) -> Iterator[str]:
    if walk.torn_tail:
        yield f"the last line is torn ({walk.torn_tail} bytes): a crash, or a server in the middle of writing"
    if head is not None and walk.end.n > head.n:
        yield f"the last {walk.end.n - head.n} records are not vouched for by {HEAD} yet"
    if walk.ends.get("clock_back"):
        yield f"the clock was put back {walk.ends['clock_back']} times; the numbers keep the order"
    if walk.ends.get("lost_records"):
        yield f"{walk.ends['lost_records']} records could not be written, as the log itself says"


def _verification(
    numbers: tuple[int, ...], walk: _Walk, head: End | None, broken: Broken | None
) -> AuditVerification:
    return AuditVerification(
        files=len(numbers),
        records=walk.end.n + 1,
        decisions=walk.ends.get("decision", 0),
        first_at=walk.times[0] if walk.times else None,
        last_at=walk.times[-1] if walk.times else None,
        last_hash=walk.end.hash,
        anchored=-1 if head is None else head.n,
        torn=walk.ends.get("torn", 0),
        starts=walk.ends.get("started", 0),
        lost=walk.ends.get("lost_records", 0),
        clock_back=walk.ends.get("clock_back", 0),
        broken=broken,
        notes=() if broken is not None else tuple(_notes(walk, head)),
    )
