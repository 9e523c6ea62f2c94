"""One tensor of a body: how it is described, and the numbers that follow it, as JSON or as bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from pastille.wire.datatypes import datatype_of, dtype_of
from pastille.wire.errors import malformed, too_large
from pastille.wire.messages import JSON_LENGTH, WireLimits

_MOST_AXES = 16
_NUMBERS: dict[str, frozenset[type]] = {  # which JSON values may stand in a tensor of that kind
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What a body says of one tensor.

    Attributes:
        where: How an error names it: ``"input 1"``. Its name is the client's and appears in no error.
        binary_bytes: That belong to it in the binary part; None where its numbers are in the JSON.
        data: Its numbers, flat or nested; None where they are in the binary part.
    """

    where: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    binary_bytes: int | None
    data: list[Any] | None

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def described(entries: object, limits: WireLimits, *, what: str) -> tuple[Described, ...]:
    """Read what a body says of its tensors, and hold it against itself and the limits.

    Args:
        entries: ``inputs`` of a request, or ``outputs`` of an answer.
        limits: How many tensors, and how many elements together.
        what: "input" or "output", for errors.

    Raises:
        WireError: It is malformed, lies about its sizes, or is too large.
    """
    if not isinstance(entries, list):
        raise malformed(f"{what}s must be a list of tensors")
    if len(entries) > limits.tensors:
        raise too_large(f"a body may have at most {limits.tensors} tensors, got {len(entries)}")
    found = tuple(_described(entry, limits, f"{what} {i}") for i, entry in enumerate(entries, 1))
    if len({tensor.name for tensor in found}) < len(found):
        raise malformed(f"every {what} must be given once, but two have one name")
    if (total := sum(tensor.elements for tensor in found)) > limits.elements:
        raise too_large(f"a body may have at most {limits.elements} elements, got {total}")
    return found


def _described(entry: object, limits: WireLimits, where: str) -> Described:
    if not isinstance(entry, dict):
        raise malformed(f"{where} must be an object with name, shape, datatype and data")
    name, dtype = entry.get("name"), dtype_of(entry.get("datatype"))
    if not isinstance(name, str) or not name:
        raise malformed(f"{where} must have a name")
    shape = _shape(entry.get("shape"), limits, where)
    size = _binary_bytes(parameters_of(entry, where), where)
    data = entry.get("data")
    if (size is None) == (data is None):
        raise malformed(f"{where} must have either data or the parameter binary_data_size")
    if data is not None and not isinstance(data, list):
        raise malformed(f"data of {where} must be a list")
    tensor = Described(where=where, name=name, shape=shape, dtype=dtype, binary_bytes=size, data=data)
    if size is not None and size != (expected := tensor.elements * dtype.itemsize):
        raise malformed(f"{where} of shape {list(shape)} must have {expected} bytes, but says {size}")
    return tensor


def _shape(value: object, limits: WireLimits, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        raise malformed(f"shape of {where} must be a list of at most {_MOST_AXES} whole numbers")
    if any(type(size) is not int or size < 0 for size in value):
        raise malformed(f"shape of {where} must hold whole numbers from 0")
    if max(value, default=0) > limits.elements or math.prod(value) > limits.elements:
        raise too_large(f"{where} may have at most {limits.elements} elements")
    return tuple(value)


def _binary_bytes(parameters: Mapping[str, Any], where: str) -> int | None:
    if "shared_memory_region" in parameters:
        raise malformed(f"{where} must be sent with the request; shared memory is not offered")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise malformed(f"binary_data_size of {where} must be a whole number of bytes")
    return size


def parameters_of(entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The ``parameters`` of a body, of one of its tensors, or none.

    Raises:
        WireError: They are no object.
    """
    found = entry.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise malformed(f"parameters of {where} must be an object")
    return found


def arrays(tensors: Sequence[Described], binary: memoryview | None) -> Iterator[np.ndarray]:
    """Read the numbers of every tensor, in their order.

    Args:
        tensors: What the body says of them.
        binary: What follows the JSON; None where nothing may follow it.

    Yields:
        ``shape``, in the machine's byte order; read-only views of ``binary`` where the numbers are there.

    Raises:
        WireError: The binary part is missing, too short or too long, or a JSON value does not fit.
    """
    needed = sum(tensor.binary_bytes or 0 for tensor in tensors)
    if binary is None and needed:
        raise malformed(f"binary tensors need the header {JSON_LENGTH}")
    rest = memoryview(b"") if binary is None else binary
    if len(rest) != needed:
        raise malformed(f"the binary part must have {needed} bytes, got {len(rest)}")
    offset = 0
    for tensor in tensors:
        if tensor.data is not None:
            yield _from_json(tensor, tensor.data)
            continue
        yield from_bytes(rest, offset, tensor)
        offset += tensor.binary_bytes or 0


def from_bytes(binary: memoryview, offset: int, tensor: Described) -> np.ndarray:
    """The numbers at ``offset``, as a view; a copy only where they lie askew in memory.

    Raises:
        WireError: A truth value is neither 0 nor 1.
    """
    if tensor.elements == 0:
        return np.empty(tensor.shape, tensor.dtype.newbyteorder("="))
    flat = np.frombuffer(binary, tensor.dtype, count=tensor.elements, offset=offset)
    if tensor.dtype.kind == "b" and flat.view(np.uint8).max() > 1:
        raise malformed(f"{tensor.where} must hold bytes of 0 or 1, as BOOL does")
    if not (flat.flags.aligned and flat.dtype.isnative):
        flat = flat.astype(tensor.dtype.newbyteorder("="), copy=True)  # else kernels may read it wrongly
    return flat.reshape(tensor.shape)


def _from_json(tensor: Described, data: list[Any]) -> np.ndarray:
    flat = _flat(tensor, data)
    if len(flat) != tensor.elements:
        shape = list(tensor.shape)
        raise malformed(
            f"{tensor.where} of shape {shape} must have {tensor.elements} values, got {len(flat)}"
        )
    allowed = _NUMBERS[tensor.dtype.kind]
    if not allowed.issuperset(map(type, flat)):
        words = " or ".join(sorted(kind.__name__ for kind in allowed))
        raise malformed(f"data of {tensor.where} must be {words}, as {datatype_of(tensor.dtype)} is")
    try:
        with np.errstate(over="ignore"):  # becomes infinite, and is refused where that matters
            array = np.array(flat, tensor.dtype.newbyteorder("="))
    except OverflowError:
        raise malformed(f"a value of {tensor.where} does not fit {datatype_of(tensor.dtype)}") from None
    return array.reshape(tensor.shape)


def _flat(tensor: Described, data: list[Any]) -> list[Any]:
    """Row by row; nested data must be nested exactly as the shape says."""
    if not data or type(data[0]) is not list:
        return data
    if not tensor.shape or len(data) != tensor.shape[0]:
        raise malformed(f"data of {tensor.where} must be flat, or nested as its shape says")
    for size in tensor.shape[1:]:
        if not {list}.issuperset(map(type, data)) or not {size}.issuperset(map(len, data)):
            raise malformed(f"data of {tensor.where} must be flat, or nested as its shape says")
        data = list(chain.from_iterable(data))
    return data
