"""Whatever is sent, the codec answers or says why not; what one side writes, the other reads."""

from __future__ import annotations

import json
import struct
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_bodies import LIMITS, X, Y, binary, body, tensor

from pastille.values import TensorSpec
from pastille.wire import (
    RequestedOutput,
    WireError,
    WireLimits,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
TYPES += ["float16", "float32", "float64"]
FEW = settings(max_examples=100, deadline=None)

_types = st.sampled_from(TYPES).map(np.dtype)


def finite(shape: Any) -> Any:
    """Arrays of any type without NaN and infinity."""
    options: dict[str, Any] = {"allow_nan": False, "allow_infinity": False}
    return _types.flatmap(
        lambda dtype: hnp.arrays(
            dtype, shape, elements=hnp.from_dtype(dtype, **(options if dtype.kind == "f" else {}))
        )
    )


@FEW
@given(finite(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)), st.booleans(), st.text(max_size=20))
def test_what_the_client_asks_reaches_the_server(array: np.ndarray, as_binary: bool, subject: str) -> None:
    spec = TensorSpec(name="x", shape=array.shape[1:], dtype=array.dtype.name)
    sent = encode_request({"x": array}, parameters={"subject": subject}, request_id="é7", binary=as_binary)
    read = decode_request(
        sent.body, json_length=sent.json_length, specs=[spec], outputs=[Y], limits=WireLimits()
    )
    assert read.inputs["x"].dtype == array.dtype
    np.testing.assert_array_equal(read.inputs["x"], array)
    assert (read.id, read.parameters["subject"]) == ("é7", subject)
    assert read.outputs == (RequestedOutput(name="y", binary=True),)


@FEW
@given(
    finite(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    finite(hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=3)),
    st.booleans(),
    st.booleans(),
)
def test_what_the_server_answers_reaches_the_client(
    a: np.ndarray, b: np.ndarray, a_binary: bool, b_binary: bool
) -> None:
    asked = [RequestedOutput(name="a", binary=a_binary), RequestedOutput(name="b", binary=b_binary)]
    sent = encode_response({"b": b, "a": a}, asked, model="m", version="1")
    read = decode_response(sent.body, json_length=sent.json_length)
    for name, array in {"a": a, "b": b}.items():
        assert read.outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(read.outputs[name], array)


def answers_or_refuses(sent: bytes, json_length: int | None) -> None:
    """A request of `X` that the limits allow, or a documented error; nothing else."""
    try:
        read = decode_request(sent, json_length=json_length, specs=[X], outputs=[Y], limits=LIMITS)
    except WireError as error:
        assert error.cause in ("malformed", "not_finite", "too_large")
        assert "\n" not in str(error)
        assert len(str(error)) < 300
    else:
        assert read.inputs["x"].shape == (read.rows, 3)
        assert 1 <= read.rows <= LIMITS.rows
        assert np.isfinite(read.inputs["x"]).all()
        str(read.parameters).encode(errors="replace")
        read.id.encode()


@FEW
@given(st.binary(max_size=300), st.none() | st.integers(-5, 400))
def test_random_bytes(sent: bytes, json_length: int | None) -> None:
    answers_or_refuses(sent, json_length)


VALID: list[tuple[bytes, int | None]] = [
    (body(tensor(), id="7", parameters={"a": 1}, outputs=[{"name": "y"}]), None)
]
VALID += [binary(struct.pack("<3f", 1, 2, 3))]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_a_few_bytes_changed(whole: tuple[bytes, int | None], data: Any) -> None:
    sent, length = bytearray(whole[0]), whole[1]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sent) - 1))
        sent[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    answers_or_refuses(bytes(sent), length)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
_keys = ["name", "shape", "datatype", "data", "parameters"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*_keys, "inputs", "outputs", "id"]), _json)
def test_a_field_of_another_kind(key: str, value: Any) -> None:
    if key in _keys:
        sent = json.dumps({"inputs": [tensor() | {key: value}]})
    else:
        sent = json.dumps({"inputs": [tensor()], key: value})
    answers_or_refuses(sent.encode(), None)
