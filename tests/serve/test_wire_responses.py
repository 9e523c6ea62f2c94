"""Answers: read by tritonclient as they were meant, and by our own client."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from pastille.wire import (
    Encoded,
    RequestedOutput,
    WireError,
    decode_response,
    encode_response,
    error_of,
    write_json,
)


def sent(outputs: dict[str, np.ndarray], *binary: str, **more: Any) -> Encoded:
    asked = [RequestedOutput(name=name, binary=name in binary) for name in outputs]
    return encode_response(outputs, asked, model="m", version="3", **more)


@pytest.mark.parametrize(
    "name", ["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("as_binary", [True, False])
def test_tritonclient_reads_every_type(name: str, as_binary: bool) -> None:
    rng = np.random.default_rng(3)
    outputs = {"a": rng.normal(size=(2, 3)).astype(name), "b": np.array([7], np.int32)}
    answer = sent(outputs, *(("a", "b") if as_binary else ("b",)))
    read = triton.InferResult.from_response_body(answer.body, header_length=answer.json_length)
    for key, array in outputs.items():
        np.testing.assert_array_equal(read.as_numpy(key), array)


def test_an_answer_without_a_binary_part_is_plain_json() -> None:
    answer = sent({"y": np.array([[0.5, 2]], np.float32)}, request_id="r", parameters={"variant": "int8"})
    assert answer.json_length is None
    assert answer.headers() == [(b"content-type", b"application/json")]
    assert json.loads(answer.body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "r",
        "parameters": {"variant": "int8"},
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]}],
    }


def test_the_binary_part_begins_where_the_header_says_and_lies_straight() -> None:
    answer = sent({"y": np.array([[0.5, 2]], np.float32)}, "y")
    assert answer.json_length is not None
    assert answer.json_length % 16 == 0
    assert answer.body[answer.json_length :] == bytes.fromhex("0000003f00000040")
    assert dict(answer.headers())[b"inference-header-content-length"] == str(answer.json_length).encode()


def test_arrays_that_are_not_row_major_are_sent_row_by_row() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    for names in ((), ("y",)):
        answer = sent({"y": array}, *names)
        read = decode_response(answer.body, json_length=answer.json_length)
        np.testing.assert_array_equal(read.outputs["y"], array)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_least_byte_goes_first_whatever_the_machine(order: str) -> None:
    answer = sent({"y": np.array([1, 258], f"{order}i4")}, "y")
    assert answer.body[answer.json_length :] == bytes([1, 0, 0, 0, 2, 1, 0, 0])


def test_our_client_reads_what_it_needs() -> None:
    answer = sent(
        {"y": np.ones((1, 2))}, "y", request_id="7", parameters={"variant": "fp32", "cached": False}
    )
    read = decode_response(answer.body, json_length=answer.json_length)
    assert (read.model, read.version, read.id) == ("m", "3", "7")
    assert read.parameters == {"variant": "fp32", "cached": False}


def test_what_is_not_finite_is_never_written_as_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        sent({"y": np.array([np.nan])})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"outputs": []}',
        b'{"model_name": 3, "outputs": []}',
        b'{"model_name": "m", "outputs": 3}',
    ],
)
def test_an_answer_of_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_response(body, json_length=None)


def test_errors_are_one_key() -> None:
    message = 'no "model"\nhere'
    assert error_of(write_json({"error": message})) == 'no "model" here'
    assert error_of(b"\xff") == error_of(b'{"error": 3}') == "an answer that is not of this protocol"
