"""Writing so that a crash leaves the old file or the new one, and reading with a bound."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pastille.errors import IntegrityError, OutputError

_CHUNK = 1 << 20
_MODE = 0o644


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and durably.

    Raises:
        OutputError: The disk is full, or the folder cannot be written; ``path`` is as it was.
    """
    produce_atomic(path, lambda draft: _write_bytes(draft, data))


def produce_atomic(path: Path, produce: Callable[[Path], object]) -> None:
    """Let ``produce`` write to a draft beside ``path``, then move the draft into place.

    Args:
        path: The final place; its folder is made.
        produce: Writes the file at the path that it is given.

    Raises:
        OutputError: The disk is full, or the folder cannot be written; ``path`` is as it was.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        produce(draft)
        draft.chmod(_MODE)  # some libraries write files that only their owner can read
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be no folder
            draft.unlink(missing_ok=True)


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     empty = Path(folder) / "empty"
        ...     empty.touch()
        ...     sha256_file(empty)[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_bounded(path: Path, limit: int, *, what: str) -> bytes:
    """Read a file that is not trusted, up to a limit.

    Args:
        path: The file.
        limit: Bytes that are accepted at most.
        what: What the file is, for the error.

    Raises:
        IntegrityError: It is missing, unreadable, not a plain file, or larger than ``limit``.
    """
    try:
        if not path.is_file():
            raise IntegrityError(f"{what} {path} is missing or not a plain file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise IntegrityError(f"cannot read {what} {path}: {error.strerror}") from error
    if len(data) > limit:
        raise IntegrityError(f"{what} {path} must be at most {limit} bytes, but is larger")
    return data
