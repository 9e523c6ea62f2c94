"""The audit log: what was decided, by which file, when, in a chain that shows every change.

Append-only JSON lines (`pastille.serve.audit_lines`), in files of bounded size. A record holds no input, no
output of a model, and of a request's id only a hash with the log's own salt: who deletes the file ``salt``
takes the link to the requests away for good, and the chain still holds.

A line is written before its answer is sent, so the log survives the death of the process; it is on the disk
at most `sync_s` later, which is what a power cut may take. ``head.json`` says how far it surely reached.
Whoever may rewrite the whole folder can write another log that is as consistent: note the hash that
``pastille audit verify`` prints somewhere else from time to time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, final

from pastille.errors import OutputError, UsageError
from pastille.files import write_atomic
from pastille.serve import logs
from pastille.serve.audit_facts import decision_facts
from pastille.serve.audit_lines import HEAD, SALT, SCHEMA, End, head_bytes, path_of, written
from pastille.serve.audit_recover import Found, recovered
from pastille.serve.errors import Refused
from pastille.serve.values import Answered

MAX_BYTES: Final = 16 << 20  # of one file
SYNC_S: Final = 1.0
_PROBE_S: Final = 1.0  # between two attempts to write again
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


def open_audit(
    folder: Path,
    *,
    required: bool = True,
    max_bytes: int = MAX_BYTES,
    sync_s: float = SYNC_S,
    clock: Callable[[], float] = time.time,
) -> AuditLog:
    """Take up the log in a folder, or begin one; a line that a crash left torn is closed.

    Args:
        folder: Where it is, and nothing else; made if it is missing.
        required: Whether an answer that cannot be logged is refused.
        max_bytes: From which a file is followed by another.
        sync_s: Seconds until a line is surely on the disk.
        clock: Unix time. It may jump; the order is that of the numbers.

    Raises:
        UsageError: Another server writes to it.
        IntegrityError: What is there was cut off or changed; nothing is appended to it.
        OutputError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = _locked(folder)
        salt = _salt(folder)
    except OSError as error:
        raise OutputError(f"cannot write the audit log {folder}: {error.strerror or error}") from error
    try:
        return AuditLog(
            folder,
            salt,
            recovered(folder),
            lock,
            required=required,
            max_bytes=max_bytes,
            sync_s=sync_s,
            clock=clock,
        )
    except BaseException:
        os.close(lock)
        raise


def _locked(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(
            f"another server writes to the audit log {folder}; give each its own folder"
        ) from None
    return descriptor


def _salt(folder: Path) -> bytes:
    path = folder / SALT
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  (of a descriptor)
            file.write(secrets.token_hex(32).encode() + b"\n")
    return path.read_bytes()[:128]


@final
class AuditLog:
    """An open log. Lines are written from one thread; another one brings them to the disk."""

    def __init__(
        self,
        folder: Path,
        salt: bytes,
        found: Found,
        lock: int,
        *,
        required: bool,
        max_bytes: int,
        sync_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._folder, self._salt, self._held = folder, salt, lock
        self._required, self._max_bytes, self._sync_s, self._clock = required, max_bytes, sync_s, clock
        self._end = found.end
        self._latest = 0.0  # the highest time so far
        self._unwritable: str | None = None
        self._unsynced: str | None = None
        self._cut_to: int | None = None  # size that a write was begun at of which a part is left
        self._lost = 0
        self._probed = 0.0
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._outgoing: list[int] = []  # full files, still to be synced and closed
        try:
            self._begin(found)
        except OSError as error:
            raise OutputError(f"cannot write the audit log {folder}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._keep_syncing, name="audit-sync", daemon=True)
        self._thread.start()

    @property
    def end(self) -> End:
        """How far it reaches: what one may note elsewhere."""
        return self._end

    def decision(self, event: Answered) -> None:
        """Log an answer, before it is sent.

        Raises:
            Refused: ``not_ready``: it cannot be written, and an answer must not go out unlogged.
        """
        try:
            self._admit_loss()
            self._append("decision", decision_facts(event, self._salt))
        except OSError as error:
            self._failed(error)
            self._lost += not self._required
        else:
            self._recovered()
        if self._required and (problem := self._unwritable or self._unsynced):
            raise Refused("not_ready", problem, retry_after_s=_PROBE_S)

    def check(self) -> None:
        """Refuse a request whose answer could not be logged, before any model runs for it.

        Raises:
            Refused: ``not_ready``.
        """
        if self._required and (problem := self.problem()):
            raise Refused("not_ready", problem, retry_after_s=_PROBE_S)

    def note(self, what: str, **facts: str) -> None:
        """Log what changed the answers: a swap, a rollback, an alarm. Nothing of a request."""
        try:
            self._append(what, facts)
        except OSError as error:
            self._failed(error)
            self._lost += 1

    def problem(self) -> str | None:
        """Why nothing may be answered, in a sentence; None where it may. Tries again once a second."""
        now = time.monotonic()
        if self._unwritable is not None and now - self._probed >= _PROBE_S:
            self._probed = now
            try:
                self._admit_loss()
                self._append("writable_again", {})
                self._recovered()
            except OSError as error:
                self._failed(error)
        return (self._unwritable or self._unsynced) if self._required else None

    def sync(self) -> None:
        """Bring everything to the disk, and note in ``head.json`` how far it reaches.

        Raises:
            OSError: The disk does not take it.
        """
        with self._syncing:
            with self._lock:
                full, end, current = tuple(self._outgoing), self._end, self._descriptor
            for descriptor in full:  # only here are files closed, so `current` stays open
                os.fsync(descriptor)
                self._outgoing.remove(descriptor)
                os.close(descriptor)
            os.fsync(current)
            write_atomic(self._folder / HEAD, head_bytes(end))

    def close(self) -> None:
        """End it in order: whatever is found after this point was added by someone else."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        try:
            self._append("stopped", {})
            self._end = replace(self._end, closed=True)
            self.sync()
        except (OSError, OutputError) as error:
            self._failed(error)
        os.close(self._descriptor)
        os.close(self._held)

    def _begin(self, found: Found) -> None:
        self._descriptor = os.open(path_of(self._folder, self._end.file), _APPEND, 0o640)
        if found.fresh or self._end.closed:
            self._end = replace(self._end, closed=False)
            write_atomic(self._folder / HEAD, head_bytes(self._end))
        if found.torn is not None or found.unended:
            self._put(b"\n", self._end.size)
            self._end = replace(self._end, size=self._end.size + 1)
        if found.torn is not None:
            self._append("torn", found.torn)
        salt = hashlib.sha256(self._salt).hexdigest()
        self._append(
            "started", {"schema": SCHEMA, "pastille": metadata.version("pastille"), "salt_sha256": salt}
        )

    def _append(self, event: str, facts: Mapping[str, Any]) -> None:
        self._mend()
        end = self._end if self._end.size < self._max_bytes else self._turned_over()
        at = self._clock()
        if at < self._latest:  # the numbers keep the order; that the clock was put back is worth knowing
            facts = {**facts, "clock_back_s": round(self._latest - at, 3)}
        line, digest = written(end.hash, end.n + 1, at, event, facts)
        self._put(line, end.size)
        self._latest = max(self._latest, at)
        with self._lock:  # all at once: another thread notes the end in ``head.json``
            self._end = replace(end, size=end.size + len(line), n=end.n + 1, hash=digest)
        if not self._wake.is_set():
            self._wake.set()

    def _put(self, line: bytes, size: int) -> None:
        """Append to a file of that size, all of it or nothing: a full disk takes the first half of a line."""
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._cut_to = size
            with contextlib.suppress(OSError):
                self._mend()
            raise

    def _mend(self) -> None:
        """Take back the half of a line that is left of a write that failed."""
        if self._cut_to is not None:
            os.ftruncate(self._descriptor, self._cut_to)
            self._cut_to = None

    def _turned_over(self) -> End:
        """Go on in a new file; the old one is closed by whoever syncs it.

        That the log reaches into the new file is only said once there is a record in it.
        """
        following = os.open(path_of(self._folder, self._end.file + 1), _APPEND, 0o640)
        with self._lock:
            self._outgoing.append(self._descriptor)
            self._descriptor = following
        return replace(self._end, file=self._end.file + 1, size=0)

    def _admit_loss(self) -> None:
        if self._lost:
            self._append("lost", {"records": self._lost})
            self._lost = 0

    def _failed(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or error
        if self._unwritable is None:
            logs.event("audit_unwritable", level=logging.ERROR, why=str(why), required=self._required)
        self._unwritable = f"the audit log cannot be written ({why}), and no answer may go unlogged"

    def _recovered(self) -> None:
        if self._unwritable is not None:
            logs.event("audit_writable_again", level=logging.WARNING)
            self._unwritable = None

    def _keep_syncing(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._stop.wait(self._sync_s)
            self._wake.clear()
            try:
                self.sync()
                self._unsynced = None
            except (OSError, OutputError) as error:
                self._unsynced = f"the audit log cannot be brought to the disk: {error}"
                self._wake.set()
