"""Refuse an ONNX file that is no model, is too large, or keeps part of itself elsewhere.

External data is a way out of a bundle: its path is read by whoever loads the model, hard links pass the
runtime's own check, and no hash of the model file covers it. The file is walked as protobuf without the
`onnx` package, so an edge box can do it, and without recursion, so a hostile file cannot exhaust the stack.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pastille.errors import IntegrityError
from pastille.runtime.protobuf import LENGTH, Field, MalformedError, fields

MAX_BYTES: Final = 2 << 30  # protobuf's own limit for one message
MAX_DEPTH: Final = 100  # nested messages, as in protobuf's own parsers
MAX_FIELDS: Final = 5_000_000  # a large model has some 100,000

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
    except MalformedError as error:
        raise IntegrityError(f"{path} is not an ONNX model: {error}") from None
    if not {_IR_VERSION, _GRAPH} <= found:
        raise IntegrityError(f"{path} is not an ONNX model: it has no IR version or no graph")


def _is_external(field: Field) -> bool:
    # An enum is read as 32 bits, so that 2**32 + 1 would be EXTERNAL too.
    location = field.number == _DATA_LOCATION and field.value & 0xFFFFFFFF != 0
    return location or field.number == _EXTERNAL_DATA


def _walk(data: mmap.mmap) -> Iterator[tuple[str, Field]]:
    """Every field of every message on a way to a tensor, in no promised order."""
    pending = [("ModelProto", 0, len(data), 0)]
    seen = 0
    while pending:
        message, start, end, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise MalformedError(f"it nests deeper than {MAX_DEPTH} messages")
        children = _CHILDREN[message]
        for field in fields(data, start, end):
            if (seen := seen + 1) > MAX_FIELDS:
                raise MalformedError(f"it has more than {MAX_FIELDS} parts")
            yield message, field
            child = children.get(field.number)
            if child and field.wire == LENGTH:
                pending.append((child, field.start, field.end, depth + 1))
