"""What a scan has found so far, on disk as it goes: a scan that was killed goes on from it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, final

import numpy as np

from pastille.errors import OutputError, UsageError

Key = tuple[str, str, float]  # technique, layer, level


@final
class Findings:
    """Losses and scores of every change, ``(2, n)`` each, for the first ``n`` cases of the sample.

    Args:
        file: Where each piece is written as it is found, one line of JSON; None for memory alone.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._found: dict[Key, np.ndarray] = {}

    def of(self, key: Key) -> np.ndarray:
        """All that is known of a change, ``(2, n)``."""
        return self._found.get(key, np.empty((2, 0)))

    def add(self, key: Key, start: int, values: np.ndarray) -> None:
        """Note the next cases of a change, from number ``start`` on."""
        self._remember(key, start, values)
        if self._file is not None:
            line = {"change": key, "from": start, "losses": values[0].tolist(), "scores": values[1].tolist()}
            _append(self._file, line)

    def _remember(self, key: Key, start: int, values: np.ndarray) -> None:
        self._found[key] = np.concatenate([self.of(key)[:, :start], values], axis=1)

    def read(self, lines: list[Mapping[str, Any]]) -> None:
        """Take over what an earlier process wrote."""
        for line in lines:
            technique, layer, level = line["change"]
            values = np.array([line["losses"], line["scores"]], dtype=np.float64)
            self._remember((technique, layer, float(level)), int(line["from"]), values)


@contextmanager
def findings(path: Path | None, asked: Mapping[str, Any]) -> Iterator[Findings]:
    """Open a journal; what it holds is taken over if it is of the same scan, and else replaced.

    Args:
        path: Of the journal; None for none.
        asked: All that the numbers depend on.

    Raises:
        OutputError: It cannot be written.
        UsageError: Another process is writing it.
    """
    if path is None:
        yield Findings()
        return
    with _opened(path) as file:
        header, *lines = _lines(path) or [{}]
        same = header == json.loads(json.dumps(asked))
        file.truncate(sum(len(_line(x)) for x in (header, *lines)) if same else 0)
        if not same:
            _append(file, asked)
        found = Findings(file)
        found.read(lines if same else [])
        yield found


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="ascii")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another process is scanning into {path}; wait for it") from None
        yield file


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """As far as they are whole: the last one may have been cut by a kill."""
    found: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        found.append(value)
    return found


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _append(file: IO[str], value: Mapping[str, Any]) -> None:
    try:
        file.write(_line(value))
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {file.name}: {error.strerror}") from error
