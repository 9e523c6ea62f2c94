"""The outline of an ONNX graph: nodes, their short attributes, what tensors are, and small constants.

Read without the `onnx` package, which an edge box does not have. Weights are passed over, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pastille.errors import IntegrityError
from pastille.runtime.onnx_file import check_self_contained
from pastille.runtime.protobuf import LENGTH, VARINT, Field, MalformedError, Readable, fields, varint

T = TypeVar("T")

# Field numbers of onnx.proto3.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_I, _ATTRIBUTE_S, _ATTRIBUTE_T, _ATTRIBUTE_INTS = 1, 3, 4, 5, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 7, 8, 9
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TYPE_ELEMENT, _TENSOR_SHAPE, _SHAPE_DIM = 1, 2, 1, 1, 2, 1
_INT64: Final = 7
_MAX_NUMBERS: Final = 64  # of a constant that is read: axes and permutations are shorter
_MAX_TEXT: Final = 256  # bytes of an attribute that is read: an equation is shorter


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor that the file holds, its values apart."""

    type: int  # of an element, as in `onnx.TensorProto.DataType`
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator."""

    op: str
    name: str  # may be empty
    inputs: tuple[str, ...]  # an optional one that is left out is ""
    outputs: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]  # attributes that are whole numbers
    domain: str  # "" is ONNX's own
    texts: Mapping[str, str]  # attributes that are short texts


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The main graph of a model; subgraphs and functions are not entered."""

    nodes: tuple[Node, ...]  # in topological order, as ONNX asks
    inputs: tuple[str, ...]  # those that are fed, initializers apart
    constants: Mapping[str, tuple[int, ...]]  # short int64 tensors
    ranks: Mapping[str, int]  # tensor -> number of axes, where the file says
    outputs: tuple[str, ...]
    stored: Mapping[str, Stored]  # initializers
    types: Mapping[str, int]  # tensor -> type of an element, where it says


def read_graph(path: Path) -> Graph:
    """Read the outline of a model file.

    Args:
        path: The file. It is mapped, not read whole.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
    """
    return _read(path, _graph)


def count_nodes(path: Path) -> int:
    """How many operators a model file's main graph has; none of them is held in memory.

    Args:
        path: The file. It is mapped, not read whole.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
    """
    return _read(path, lambda data: sum(part.number == _GRAPH_NODE for part in _parts(data)))


def _read(path: Path, what: Callable[[Readable], T]) -> T:
    check_self_contained(path)  # which also bounds how much there is to walk
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return what(data)
    except OSError as error:
        raise IntegrityError(f"cannot read model {path}: {error.strerror or error}") from error
    except MalformedError as error:
        raise IntegrityError(f"{path} is not an ONNX model: {error}") from None


def _parts(data: Readable) -> Iterator[Field]:
    """The fields of the main graph."""
    for graph in fields(data, 0, len(data)):
        if graph.number == _MODEL_GRAPH:
            yield from _messages(data, graph)


def _graph(data: Readable) -> Graph:
    parts = list(_parts(data))
    nodes = [_node(data, part) for part in parts if part.number == _GRAPH_NODE]
    tensors = [_tensor(data, part) for part in parts if part.number == _GRAPH_INITIALIZER]
    values = {_GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE}
    ranked = [(part.number, *_value(data, part)) for part in parts if part.number in values]
    weights = {name for name, _, _ in tensors}
    produced = {node.outputs[0]: numbers for node, numbers in nodes if node.op == "Constant" and node.outputs}
    known = {**{name: numbers for name, numbers, _ in tensors}, **produced}
    return Graph(
        nodes=tuple(node for node, _ in nodes),
        inputs=tuple(name for number, name, _, _ in ranked if number == _GRAPH_INPUT and name not in weights),
        constants={name: numbers for name, numbers in known.items() if numbers is not None},
        ranks={name: rank for _, name, rank, _ in ranked if rank is not None},
        outputs=tuple(name for number, name, _, _ in ranked if number == _GRAPH_OUTPUT),
        stored={name: stored for name, _, stored in tensors},
        types={name: kind for _, name, _, kind in ranked if kind},
    )


def _messages(data: Readable, outer: Field) -> Iterator[Field]:
    if outer.wire == LENGTH:
        yield from fields(data, outer.start, outer.end)


def _node(data: Readable, message: Field) -> tuple[Node, tuple[int, ...] | None]:
    """A node, and what it holds if it is a constant."""
    texts: dict[int, list[str]] = {_NODE_INPUT: [], _NODE_OUTPUT: []}
    texts |= {_NODE_NAME: [""], _NODE_OP: [""], _NODE_DOMAIN: [""]}
    numbers: dict[str, tuple[int, ...]] = {}
    words: dict[str, str] = {}
    constant = None
    for field in _messages(data, message):
        if field.number in texts:
            texts[field.number].append(_text(data, field))
        elif field.number == _NODE_ATTRIBUTE:
            name, given, tensor, words_given = _attribute(data, field)
            numbers[name], words[name] = given, words_given
            constant = (
                tensor if name == "value" else given if name in {"value_int", "value_ints"} else constant
            )
    return Node(
        op=texts[_NODE_OP][-1],
        name=texts[_NODE_NAME][-1],
        inputs=tuple(texts[_NODE_INPUT]),
        outputs=tuple(texts[_NODE_OUTPUT]),
        numbers={name: given for name, given in numbers.items() if given},
        domain=texts[_NODE_DOMAIN][-1],
        texts={name: said for name, said in words.items() if said},
    ), constant


def _attribute(data: Readable, message: Field) -> tuple[str, tuple[int, ...], tuple[int, ...] | None, str]:
    """Name, whole numbers, the numbers of a short tensor, and a short text: what it has of these."""
    name, tensor, said = "", None, ""
    given: list[int] = []
    for field in _messages(data, message):
        if field.number == _ATTRIBUTE_NAME:
            name = _text(data, field)
        elif field.number in {_ATTRIBUTE_I, _ATTRIBUTE_INTS}:
            given.extend(_numbers(data, field))
        elif field.number == _ATTRIBUTE_T:
            tensor = _tensor(data, field)[1]
        elif field.number == _ATTRIBUTE_S and field.end - field.start <= _MAX_TEXT:
            said = _text(data, field)
    return name, tuple(given), tensor, said


def _tensor(data: Readable, message: Field) -> tuple[str, tuple[int, ...] | None, Stored]:
    """Name, the numbers of a short int64 tensor, and what any tensor is."""
    name, kind, numbers, dims = "", 0, list[int](), list[int]()
    for field in _messages(data, message):
        if field.number == _TENSOR_NAME:
            name = _text(data, field)
        elif field.number == _TENSOR_TYPE:
            kind = field.value
        elif field.number == _TENSOR_DIMS:
            dims.extend(_numbers(data, field))
        elif field.number == _TENSOR_INT64:
            numbers.extend(_numbers(data, field))
        elif field.number == _TENSOR_RAW and field.end - field.start <= 8 * _MAX_NUMBERS:
            raw = data[field.start : field.end]
            numbers.extend(
                int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)
            )
    return name, tuple(numbers) if kind == _INT64 else None, Stored(type=kind, dims=tuple(dims))


def _value(data: Readable, message: Field) -> tuple[str, int | None, int]:
    """Name, number of axes, and type of an element (0 where it is not said)."""
    name, rank, kind = "", None, 0
    for field in _messages(data, message):
        if field.number == _VALUE_NAME:
            name = _text(data, field)
        elif field.number == _VALUE_TYPE:
            for tensor in _messages(data, field):
                if tensor.number == _TYPE_TENSOR:
                    rank = _rank(data, tensor)
                    said = (f.value for f in _messages(data, tensor) if f.number == _TYPE_ELEMENT)
                    kind = next(said, 0)
    return name, rank, kind


def _rank(data: Readable, tensor: Field) -> int | None:
    shapes = [field for field in _messages(data, tensor) if field.number == _TENSOR_SHAPE]
    if not shapes:
        return None
    return sum(field.number == _SHAPE_DIM for field in _messages(data, shapes[-1]))


def _text(data: Readable, field: Field) -> str:
    return data[field.start : field.end].decode("utf-8", "replace") if field.wire == LENGTH else ""


def _numbers(data: Readable, field: Field) -> Iterator[int]:
    """One number, or several packed; a long list is no list of axes and is passed over."""
    if field.wire == VARINT:
        yield _signed(field.value)
    elif field.wire == LENGTH and field.end - field.start <= 10 * _MAX_NUMBERS:
        at = field.start
        while at < field.end:
            value, at = varint(data, at, field.end)
            yield _signed(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
