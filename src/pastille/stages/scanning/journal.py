"""What a scan has found so far, on disk as it goes: a scan that was killed goes on from it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, final

import numpy as np

from pastille.errors import OutputError, UsageError

Key = tuple[str, str, float]  # technique, layer, level
Finding = tuple[Key, int, np.ndarray]  # of the cases from a number on, ``(2, n)``

_KIND: Final = {"journal": "pastille scan"}


@final
class Findings:
    """Losses and scores of every change, ``(2, n)`` each, for the first ``n`` cases of the sample.

    Args:
        file: Where each piece is written as it is found, one line of JSON; None for memory alone.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._found: dict[Key, np.ndarray] = {}

    def take_up(self, asked: Mapping[str, Any]) -> None:
        """Read what the file holds if it is of the same scan, and else empty it.

        Args:
            asked: All that the numbers depend on.
        """
        if self._file is None:
            return
        header, lines = _line({**_KIND, **asked}), _lines(self._file)
        if lines[:1] == [header]:
            self._file.truncate(len(header) + self._read(lines[1:]))
        else:
            self._file.truncate(0)
            _append(self._file, header)

    def of(self, key: Key) -> np.ndarray:
        """All that is known of a change, ``(2, n)``."""
        return self._found.get(key, np.empty((2, 0)))

    def add(self, key: Key, start: int, values: np.ndarray) -> None:
        """Note the next cases of a change, from number ``start`` on."""
        self._remember(key, start, values)
        if self._file is not None:
            line = {"change": key, "from": start, "losses": values[0].tolist(), "scores": values[1].tolist()}
            _append(self._file, _line(line))

    def _remember(self, key: Key, start: int, values: np.ndarray) -> None:
        self._found[key] = np.concatenate([self.of(key)[:, :start], values], axis=1)

    def _read(self, lines: Iterable[str]) -> int:
        """Take over what an earlier process wrote, as far as it is whole; the length of that."""
        length = 0
        for line in lines:
            finding = _finding(line)
            if finding is None or finding[1] > self.of(finding[0]).shape[1]:
                break
            self._remember(*finding)
            length += len(line)
        return length


@contextmanager
def findings(path: Path | None) -> Iterator[Findings]:
    """Open a journal; nothing of it is read or replaced before `Findings.take_up`.

    Args:
        path: Of the journal; None for none.

    Raises:
        OutputError: It cannot be written.
        UsageError: Another process is writing it, or it is a file of another kind.
    """
    if path is None:
        yield Findings()
        return
    with _opened(path) as file:
        _check_kind(file)
        yield Findings(file)


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="ascii", errors="replace", newline="\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another process is scanning into {path}; wait for it") from None
        yield file


def _check_kind(file: IO[str]) -> None:
    """A file of the user's that happens to have the name is not overwritten."""
    begins = _line(_KIND)[:-2]
    file.seek(0)
    if not begins.startswith(file.read(len(begins))):
        raise UsageError(
            f"{file.name} would be the scan's journal, but is a file of another kind; move it away, or "
            "choose another --output"
        )


def _lines(file: IO[str]) -> list[str]:
    """With their ends; the last one may have been cut by a kill."""
    file.seek(0)
    return file.readlines()


def _finding(line: str) -> Finding | None:
    """None where it is cut, or says something else."""
    try:
        told = json.loads(line)
        technique, layer, level = told["change"]
        key = str(technique), str(layer), float(level)
        values = np.array([told["losses"], told["scores"]], dtype=np.float64)
        start = int(told["from"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return (key, start, values) if line.endswith("\n") and values.ndim == 2 and start >= 0 else None


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _append(file: IO[str], line: str) -> None:
    try:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {file.name}: {error.strerror}") from error
