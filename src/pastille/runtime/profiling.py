"""What ONNX Runtime's profiler wrote, read line by line and believed in nothing that is not checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

_MAX_LINE: Final = 1 << 20  # characters of one event; usual are 800
_MAX_BYTES: Final = 1 << 30
_MAX_AXES: Final = 64
_KERNEL: Final = "_kernel_time"
_RUN: Final = "model_run"
_WITH_BODIES: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})


class ProfileError(Exception):
    """The profile is not what ONNX Runtime writes."""


@dataclass(frozen=True, slots=True)
class Event:
    """One operator that ran once."""

    op: str
    name: str
    began: float  # microseconds
    took: float  # microseconds, in whole ones
    outputs: tuple[tuple[str, tuple[int, ...]], ...]  # type and shape of each


def read_calls(path: Path, *, max_bytes: int = _MAX_BYTES) -> list[list[Event]]:
    """The operators of the main graph in the order in which they ran, call by call.

    What ran in the branches of an If or in a loop belongs to that one operator.

    Args:
        path: That the profiler wrote: a JSON array with one event per line.
        max_bytes: Size that is accepted at most.

    Raises:
        ProfileError: It is missing, too large, or something else.
    """
    calls: list[list[Event]] = []
    current: list[Event] = []
    for found in _lines(path, max_bytes):
        if found.get("cat") == "Node" and str(found.get("name")).endswith(_KERNEL):
            _append(current, _event(found))
        elif found.get("cat") == "Session" and found.get("name") == _RUN:
            calls.append(current)
            current = []
    return calls


def _append(events: list[Event], event: Event) -> None:
    """Add an event; what ran inside it was written before it, and goes."""
    if event.op in _WITH_BODIES:
        while events and events[-1].began >= event.began:
            events.pop()
    events.append(event)


def _lines(path: Path, max_bytes: int) -> Iterator[dict[str, Any]]:
    try:
        if path.stat().st_size > max_bytes:
            raise ProfileError(f"it is larger than {max_bytes} bytes")
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MAX_LINE):
                if (event := line.strip().rstrip(",")) not in {"", "[", "]"}:
                    yield _object(event)
    except OSError as error:
        raise ProfileError(f"it cannot be read: {error.strerror or error}") from error


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise ProfileError("a line of it is no JSON") from None
    if not isinstance(found, dict):
        raise ProfileError("a line of it is no event")
    return found


def _event(found: dict[str, Any]) -> Event:
    args = found.get("args")
    if not isinstance(args, dict):
        raise ProfileError("an event has no arguments")
    return Event(
        str(args.get("op_name")),
        str(found["name"]).removesuffix(_KERNEL),
        _number(found.get("ts")),
        _number(found.get("dur")),
        tuple(_tensor(tensor) for tensor in _listed(args.get("output_type_shape", []))),
    )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProfileError("a time is no number")
    if not (math.isfinite(value) and 0 <= value < 1e15):
        raise ProfileError("a time is out of range")
    return float(value)


def _tensor(value: object) -> tuple[str, tuple[int, ...]]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ProfileError("a tensor is not described by type and shape")
    ((kind, dims),) = value.items()
    sizes = _listed(dims)
    if len(sizes) > _MAX_AXES or not all(type(d) is int and 0 <= d < 1 << 40 for d in sizes):
        raise ProfileError("a shape is out of range")
    return str(kind), tuple(sizes)


def _listed(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ProfileError("a list is missing")
    return value


def typical_times(calls: Sequence[Sequence[Event]]) -> np.ndarray:
    """How long each operator takes, in microseconds.

    The mean of the middle half of the calls: what else the machine did meanwhile does not count, and the
    profiler's whole microseconds average out.

    Args:
        calls: Each with the same ``N`` operators.

    Returns:
        ``(N,)``.

    Example:
        >>> one, slow = (Event("Relu", "", 0.0, took, ()) for took in (2.0, 900.0))
        >>> typical_times([[one], [one], [one], [slow]]).tolist()
        [2.0]
    """
    took = np.sort([[event.took for event in call] for call in calls], axis=0)
    quarter = len(took) // 4
    typical: np.ndarray = took[quarter : len(took) - quarter].mean(axis=0)
    return typical
