"""A request's body: written by the client, read and held against the model by the server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from pastille.values import TensorSpec
from pastille.wire.datatypes import DTYPES, datatype_of
from pastille.wire.errors import WireError, malformed, too_large
from pastille.wire.messages import JSON_LENGTH, Encoded, InferRequest, RequestedOutput, Scalar, WireLimits
from pastille.wire.strict_json import read_object
from pastille.wire.tensors import Described, arrays, described, from_bytes, parameters_of
from pastille.wire.writing import joined, tensor_parts

_MOST_ID = 128
_SHORT_HEAD = 1024  # bytes of a request's JSON that are remembered
_MOST_OTHERS = 4096  # values of a request's JSON that are no numbers of a tensor


def read_json_length(header: bytes | str | None) -> int | None:
    """Read the header that says how long the JSON part is.

    Args:
        header: ``Inference-Header-Content-Length`` as it came, or None where it did not.

    Raises:
        WireError: It is not a whole number.

    Example:
        >>> read_json_length(b"214")
        214
    """
    if header is None:
        return None
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise malformed(f"{JSON_LENGTH} must be a whole number of bytes")
    return int(text)


def parts(body: bytes | memoryview, json_length: int | None) -> tuple[memoryview, memoryview | None]:
    """Cut a body into its JSON and what follows it.

    Raises:
        WireError: The JSON part is longer than the body.
    """
    view = memoryview(body)
    if json_length is None:
        return view, None
    if not 0 <= json_length <= len(view):
        raise malformed(f"{JSON_LENGTH} must be within the {len(view)} bytes of the body, got {json_length}")
    return view[:json_length], view[json_length:]


def decode_request(
    body: bytes | memoryview,
    *,
    json_length: int | None,
    specs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    limits: WireLimits,
) -> InferRequest:
    """Read one request and hold it against what the model takes.

    A tensor may be of a type that becomes the model's without loss, e.g. INT8 for FP32, never FP64 for FP32.

    Args:
        body: As it came, inflated. It must stay as it is: the arrays are views of it.
        json_length: Bytes of its JSON part; None where all is JSON; 0 where all is the only input's numbers.
        specs: Inputs of the model, the batch axis left out.
        outputs: Outputs of the model.
        limits: What a body may take.

    Raises:
        WireError: ``malformed``, ``too_large``, or ``not_finite`` where an input has NaN or infinity.

    Example:
        >>> body = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2.5]}]}'
        >>> x, y = (TensorSpec(name=name, shape=(2,), dtype="float32") for name in "xy")
        >>> decode_request(body, json_length=None, specs=[x], outputs=[y], limits=WireLimits()).inputs["x"]
        array([[1. , 2.5]], dtype=float32)

    References:
        Open Inference Protocol 2, REST, "Inference"; Triton's extension "binary tensor data".
    """
    if json_length == 0:
        return _raw(memoryview(body), specs, outputs, limits)
    head, binary = parts(body, json_length)
    repeats = binary is not None and len(head) <= _SHORT_HEAD
    read = _known_head if repeats else _read_head
    found = read(bytes(head) if repeats else head, tuple(specs), tuple(outputs), limits)
    given = dict(zip((t.name for t in found.tensors), arrays(found.tensors, binary), strict=True))
    return InferRequest(
        inputs={spec.name: _finite(_as_taken(given[spec.name], spec), spec) for spec in specs},
        outputs=found.outputs,
        parameters=found.parameters,
        id=found.id,
    )


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What the JSON of a request says, held against the model; the numbers are still to come."""

    tensors: tuple[Described, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Scalar]
    id: str


def _read_head(
    head: bytes | memoryview,
    specs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    limits: WireLimits,
) -> _Head:
    asked = read_object(head, limits.json_bytes, values=_most_values(specs, limits))
    tensors = described(asked.get("inputs"), limits, what="input")
    _check_fit(tensors, specs, limits)
    parameters = parameters_of(asked, "the request")
    return _Head(
        tensors=tensors,
        outputs=_requested(asked.get("outputs"), outputs, _flag(parameters, "binary_data_output") or False),
        parameters=MappingProxyType(scalars(parameters)),
        id=read_id(asked),
    )


# A client sends the same head with every tensor of one shape. What is kept is bounded, and holds no numbers
# but those of a binary request's other, JSON tensors: at most a kilobyte each.
_known_head = lru_cache(maxsize=64)(_read_head)


def _most_values(specs: Sequence[TensorSpec], limits: WireLimits) -> int:
    """Numbers of as many cases as one request may have, and room for everything else."""
    return limits.rows * sum(math.prod(spec.shape) for spec in specs) + _MOST_OTHERS


def _raw(
    body: memoryview, specs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: WireLimits
) -> InferRequest:
    """Nothing but the numbers of the only input: what ``curl --data-binary`` sends."""
    if len(specs) > 1:
        raise malformed(f"a body without JSON is for models of one input; this one has {len(specs)}")
    spec, dtype = specs[0], DTYPES[datatype_of(specs[0].dtype)]
    case = dtype.itemsize * math.prod(spec.shape)
    if len(body) == 0 or len(body) % case:
        raise malformed(f"a body without JSON must have {case} bytes per case, got {len(body)}")
    shape = (len(body) // case, *spec.shape)
    tensor = Described(
        where="input 1", name=spec.name, shape=shape, dtype=dtype, binary_bytes=len(body), data=None
    )
    _check_fit((tensor,), specs, limits)
    return InferRequest(
        inputs={spec.name: _finite(_as_taken(from_bytes(body, 0, tensor), spec), spec)},
        outputs=tuple(RequestedOutput(name=output.name, binary=True) for output in outputs),
    )


def _check_fit(tensors: Sequence[Described], specs: Sequence[TensorSpec], limits: WireLimits) -> None:
    """Before a number is read: names, types, shapes, and one batch size."""
    taken = {spec.name: spec for spec in specs}
    if {tensor.name for tensor in tensors} != set(taken):
        raise malformed(f"inputs must be {', '.join(taken)}, and nothing else")
    for tensor in tensors:
        _check_one(tensor, taken[tensor.name])
    batches = {tensor.shape[0] for tensor in tensors}
    if len(batches) > 1:
        raise malformed(f"inputs must have one batch size, got {sorted(batches)}")
    if (rows := tensors[0].shape[0]) > limits.rows:
        raise too_large(f"a request may ask about at most {limits.rows} cases, got {rows}")


def _check_one(tensor: Described, spec: TensorSpec) -> None:
    if tensor.shape[1:] != spec.shape or not tensor.shape or tensor.shape[0] < 1:
        expected = ", ".join(["N", *map(str, spec.shape)])
        raise malformed(
            f"input {spec.name!r} must have shape [{expected}] with N ≥ 1, got {list(tensor.shape)}"
        )
    if not _becomes(tensor.dtype, np.dtype(spec.dtype)):
        raise malformed(
            f"input {spec.name!r} must be {datatype_of(spec.dtype)}, or what becomes it without loss, "
            f"got {datatype_of(tensor.dtype)}"
        )


def _becomes(given: np.dtype[np.generic], taken: np.dtype[np.generic]) -> bool:
    """Whether every value stays what it is; numpy lets whole numbers of 64 bits into doubles, of 53."""
    rounded = given.kind in "iu" and given.itemsize == 8 and taken.kind == "f"
    return not rounded and np.can_cast(given, taken, "safe")


def _as_taken(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    return array.astype(spec.dtype, copy=False)


def _finite(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """An int8 model would answer NaN with a confident number: no model is asked."""
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        bad = array.size - int(np.count_nonzero(finite))
        raise WireError(
            "not_finite",
            f"input {spec.name!r} must be finite, but {bad} of its {array.size} values are NaN or infinite",
        )
    return array


def _requested(asked: object, outputs: Sequence[TensorSpec], binary: bool) -> tuple[RequestedOutput, ...]:
    names = [output.name for output in outputs]
    if asked is None or asked == []:
        return tuple(RequestedOutput(name=name, binary=binary) for name in names)
    if not isinstance(asked, list) or len(asked) > len(names):
        raise malformed(f"outputs must be a list of {', '.join(names)}")
    found = tuple(_output(entry, names, binary) for entry in asked)
    if len({output.name for output in found}) < len(found):
        raise malformed("every output must be asked for once")
    return found


def _output(entry: object, names: Sequence[str], binary: bool) -> RequestedOutput:
    if not isinstance(entry, dict) or entry.get("name") not in names:
        raise malformed(f"an output must be an object with a name among {', '.join(names)}")
    parameters = parameters_of(entry, "an output")
    for extension in ("classification", "shared_memory_region"):
        if extension in parameters:
            raise malformed(f"the output parameter {extension} is not offered")
    own = _flag(parameters, "binary_data")
    return RequestedOutput(name=entry["name"], binary=binary if own is None else own)


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and not isinstance(found, bool):
        raise malformed(f"the parameter {name} must be true or false")
    return found


def scalars(parameters: Mapping[str, Any]) -> dict[str, Scalar]:
    """What is a parameter by the protocol; unknown fields are for others and left out."""
    return {name: value for name, value in parameters.items() if isinstance(value, (str, int, float))}


def read_id(body: Mapping[str, Any]) -> str:
    """The ``id`` of a body, ``""`` where it has none.

    Raises:
        WireError: It is too long, or not printable.
    """
    found = body.get("id")
    if found is None:
        return ""
    if not isinstance(found, str) or len(found) > _MOST_ID or not found.isprintable():
        raise malformed(f"id must be a text of at most {_MOST_ID} printable characters")
    return found


def encode_request(
    inputs: Mapping[str, np.ndarray],
    *,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Scalar] | None = None,
    request_id: str = "",
    binary: bool = True,
    binary_output: bool = True,
) -> Encoded:
    """Write one request.

    Args:
        inputs: ``{name: (N, ...)}``.
        outputs: Names of what is asked for; everything where it is empty.
        parameters: The client's own.
        request_id: Comes back with the answer.
        binary: Whether the numbers follow the JSON as bytes.
        binary_output: Whether the answer's shall.

    Raises:
        WireError: An array is of a type that the protocol does not know.
        ValueError: An array that travels as JSON has NaN or infinity.

    Example:
        >>> encode_request({"x": np.zeros((1, 2), np.int8)}, binary=False, binary_output=False).body
        b'{"inputs":[{"name":"x","datatype":"INT8","shape":[1,2],"data":[0,0]}]}'
    """
    own = dict(parameters or {}) | ({"binary_data_output": True} if binary_output else {})
    described_inputs, chunks = tensor_parts(inputs, set(inputs) if binary else set())
    head: dict[str, object] = {"id": request_id} if request_id else {}
    head["inputs"] = described_inputs
    if outputs:
        head["outputs"] = [{"name": name} for name in outputs]
    if own:
        head["parameters"] = own
    return joined(head, chunks, binary=binary)
