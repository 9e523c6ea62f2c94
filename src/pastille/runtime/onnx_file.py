"""Refuse an ONNX file that is no model, is too large, or keeps part of itself elsewhere.

External data is a way out of a bundle: its path is read by whoever loads the model, hard links pass the
runtime's own check, and no hash of the model file covers it. The file is walked as protobuf without the
`onnx` package, so an edge box can do it, and without recursion, so a hostile file cannot exhaust the stack.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pastille.errors import IntegrityError

MAX_BYTES: Final = 2 << 30  # protobuf's own limit for one message
MAX_DEPTH: Final = 100  # nested messages, as in protobuf's own parsers
MAX_FIELDS: Final = 5_000_000  # a large model has some 100,000

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

# message -> field -> message held by that field, for every way from a model to a tensor (onnx.proto3).
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
_IR_VERSION, _GRAPH = 1, 7  # fields of ModelProto
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of TensorProto


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    wire: int
    value: int  # of a varint
    start: int  # of a length-delimited payload
    end: int


class _MalformedError(Exception):
    """The bytes are not a protobuf message."""


def check_self_contained(path: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Make sure that a file is an ONNX model and holds all of its weights.

    Args:
        path: The file. It is mapped, not read whole.
        max_bytes: Size that is accepted at most.

    Raises:
        IntegrityError: It is missing, not a plain file, larger than ``max_bytes``, not an ONNX
            ``ModelProto``, or holds a tensor with external data: as an initializer, a node's attribute,
            or inside a subgraph or a function.
    """
    try:
        if not path.is_file():
            raise IntegrityError(f"model {path} is missing or not a plain file")
        with path.open("rb") as file:
            _check_size(path, size := path.stat().st_size, max_bytes)
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
                _check_model(path, data)
    except OSError as error:
        raise IntegrityError(f"cannot read model {path}: {error.strerror or error}") from error


def _check_size(path: Path, size: int, max_bytes: int) -> None:
    if size == 0:
        raise IntegrityError(f"{path} is not an ONNX model: it is empty")
    if size > max_bytes:
        raise IntegrityError(f"model {path} must be at most {max_bytes} bytes, but has {size}")


def _check_model(path: Path, data: mmap.mmap) -> None:
    found: set[int] = set()  # fields of ModelProto
    try:
        for message, field in _walk(data):
            if message == "ModelProto":
                found.add(field.number)
            elif message == "TensorProto" and _is_external(field):
                raise IntegrityError(
                    f"{path} keeps weights in another file (external data); "
                    "a model must hold all of its weights itself: export it with external_data=False, or "
                    "onnx.save(onnx.load(FILE), NEW_FILE)"
                )
    except _MalformedError as error:
        raise IntegrityError(f"{path} is not an ONNX model: {error}") from None
    if not {_IR_VERSION, _GRAPH} <= found:
        raise IntegrityError(f"{path} is not an ONNX model: it has no IR version or no graph")


def _is_external(field: _Field) -> bool:
    # An enum is read as 32 bits, so that 2**32 + 1 would be EXTERNAL too.
    location = field.number == _DATA_LOCATION and field.value & 0xFFFFFFFF != 0
    return location or field.number == _EXTERNAL_DATA


def _walk(data: mmap.mmap) -> Iterator[tuple[str, _Field]]:
    """Every field of every message on a way to a tensor, in no promised order."""
    pending = [("ModelProto", 0, len(data), 0)]
    seen = 0
    while pending:
        message, start, end, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise _MalformedError(f"it nests deeper than {MAX_DEPTH} messages")
        children = _CHILDREN[message]
        for field in _fields(data, start, end):
            if (seen := seen + 1) > MAX_FIELDS:
                raise _MalformedError(f"it has more than {MAX_FIELDS} parts")
            yield message, field
            child = children.get(field.number)
            if child and field.wire == _LENGTH:
                pending.append((child, field.start, field.end, depth + 1))


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """The fields of one message that lies at ``data[start:end]``."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise _MalformedError(f"field number {number} at byte {at}")
        value, begin, at = _payload(data, wire, at, end)
        yield _Field(number, wire, value, begin, at)


def _payload(data: mmap.mmap, wire: int, at: int, end: int) -> tuple[int, int, int]:
    """Value of a varint (0 otherwise), and where the payload begins and ends."""
    value, begin = 0, at
    if wire == _VARINT:
        value, stop = _varint(data, at, end)
    elif wire == _LENGTH:
        length, begin = _varint(data, at, end)
        stop = begin + length
    elif wire in {_FIXED32, _FIXED64}:
        stop = at + (4 if wire == _FIXED32 else 8)
    else:
        raise _MalformedError(f"wire type {wire} at byte {at}")
    if stop > end:
        raise _MalformedError(f"a field at byte {begin} reaches beyond its message")
    return value, begin, stop


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number at ``at``, and where the next byte lies."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _MalformedError(f"a broken number at byte {at}")
