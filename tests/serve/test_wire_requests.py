"""Requests: what is understood, held against tritonclient's own encoder, and what is refused."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from wire_bodies import LIMITS, X, Y, binary, body, decode, tensor

from pastille.values import TensorSpec
from pastille.wire import RequestedOutput, WireError, WireLimits, decode_request, read_json_length

NUMBERS = [1.0, -2.5, 3.25]


def test_json_and_binary_say_the_same() -> None:
    packed, length = binary(struct.pack("<3f", *NUMBERS))
    for request in (decode(body(tensor(data=NUMBERS))), decode(packed, length)):
        assert request.inputs["x"].tolist() == [NUMBERS]
        assert request.inputs["x"].dtype == np.float32
        assert request.rows == 1


def test_binary_is_read_in_place() -> None:
    head = body(tensor(data=None, parameters={"binary_data_size": 12}))
    head += b" " * (-len(head) % 16)
    sent = head + struct.pack("<3f", *NUMBERS)
    array = decode(sent, len(head)).inputs["x"]
    assert np.shares_memory(array, np.frombuffer(sent, np.uint8))
    assert not array.flags.writeable


@pytest.mark.parametrize("shift", range(4))
def test_what_lies_askew_is_copied_so_that_kernels_can_read_it(shift: int) -> None:
    head = body(tensor(data=None, parameters={"binary_data_size": 12})) + b" " * shift
    array = decode(head + struct.pack("<3f", *NUMBERS), len(head)).inputs["x"]
    assert array.flags.aligned
    assert array.tolist() == [NUMBERS]


@pytest.mark.parametrize("name", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint64", "float16"])
@pytest.mark.parametrize("as_binary", [True, False])
def test_every_type_of_tritonclient_is_read_as_it_was_sent(name: str, as_binary: bool) -> None:
    from tritonclient.utils import np_to_triton_dtype

    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(name)
    given = triton.InferInput("x", [2, 3], np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=as_binary)
    sent, length = triton.InferenceServerClient.generate_request_body([given])
    spec = TensorSpec(name="x", shape=(3,), dtype=name)
    read = decode(sent, length, specs=[spec]).inputs["x"]
    assert read.dtype == name
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("data", [[1, 2.5, 3], [[1, 2.5, 3]]])
def test_data_may_be_flat_or_nested_and_whole_numbers_are_floats(data: list[Any]) -> None:
    assert decode(body(tensor(data=data))).inputs["x"].tolist() == [[1.0, 2.5, 3.0]]


@pytest.mark.parametrize(
    ("sent", "taken"), [("INT8", True), ("UINT16", True), ("FP16", True), ("INT32", False), ("FP64", False)]
)
def test_a_type_is_taken_where_nothing_is_lost(sent: str, taken: bool) -> None:
    request = body(tensor(datatype=sent, data=[1, 2, 3]))
    if taken:
        assert decode(request).inputs["x"].dtype == np.float32
    else:
        with pytest.raises(WireError, match=f"'x' must be FP32, .* got {sent}"):
            decode(request)


def test_whole_numbers_that_a_double_would_round_are_not_taken() -> None:
    double = [TensorSpec(name="x", shape=(3,), dtype="float64")]
    assert decode(body(tensor(datatype="INT32", data=[1, 2, 3])), specs=double).inputs["x"].dtype == float
    with pytest.raises(WireError, match=r"'x' must be FP64, .* got INT64"):
        decode(body(tensor(datatype="INT64", data=[1, 2, 2**53 + 1])), specs=double)


def test_several_inputs_come_in_the_order_of_the_model() -> None:
    specs = [TensorSpec(name=name, shape=(), dtype="int64") for name in ("ids", "mask")]
    parts = [
        {"name": name, "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
        for name in ("mask", "ids")
    ]
    head = json.dumps({"inputs": parts}).encode()
    request = decode(head + struct.pack("<4q", 1, 0, 7, 8), len(head), specs=specs)
    assert {name: array.tolist() for name, array in request.inputs.items()} == {"ids": [7, 8], "mask": [1, 0]}
    assert list(request.inputs) == ["ids", "mask"]


def test_a_body_without_json_is_the_only_input() -> None:
    request = decode(struct.pack("<6f", *NUMBERS, *NUMBERS), 0)
    assert request.inputs["x"].tolist() == [NUMBERS, NUMBERS]
    assert request.outputs == (RequestedOutput(name="y", binary=True),)
    with pytest.raises(WireError, match="12 bytes per case, got 13"):
        decode(bytes(13), 0)
    with pytest.raises(WireError, match="at most 4 cases, got 5"):
        decode(bytes(60), 0)


@pytest.mark.parametrize(
    ("more", "binary_output"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": []}, False),
        ({"outputs": [{"name": "y"}], "parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
    ],
)
def test_the_form_of_an_output_is_the_outputs_own_then_the_requests(
    more: dict[str, Any], binary_output: bool
) -> None:
    assert decode(body(tensor(), **more)).outputs == (RequestedOutput(name="y", binary=binary_output),)


def test_unknown_fields_are_ignored_and_parameters_kept() -> None:
    more = {"id": "7", "model_name": "m", "parameters": {"subject": "s", "odd": [1], "timeout": 5}}
    request = decode(body(tensor(extra=1), **more))
    assert request.id == "7"
    assert request.parameters == {"subject": "s", "timeout": 5}


NOT_FINITE = [
    lambda: binary(struct.pack("<3f", 1, float("nan"), 2)),
    lambda: binary(struct.pack("<3f", 1, float("-inf"), 2)),
    lambda: (body(tensor(data=[1, 2, 1e300])), None),
    lambda: (body(tensor(data=[1, 2, 3])).replace(b"3]}", b"1e999]}"), None),
    lambda: (struct.pack("<3f", 1, float("nan"), 2), 0),
]


@pytest.mark.parametrize("make", NOT_FINITE)
def test_what_is_not_finite_reaches_no_model(make: Any) -> None:
    sent, length = make()
    with pytest.raises(WireError, match="'x' must be finite, but 1 of its 3") as error:
        decode(sent, length)
    assert error.value.cause == "not_finite"


HUGE = 10**30
MALFORMED: dict[str, tuple[bytes, int | None, str]] = {
    "empty": (b"", None, "not JSON"),
    "no object": (b"[1]", None, "must be a JSON object"),
    "not JSON": (b"{", None, "not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', None, "UTF-8"),
    "NaN": (b'{"inputs": NaN}', None, "no NaN"),
    "Infinity": (b'{"inputs": -Infinity}', None, "no NaN"),
    "deep": (b'{"a":' + b"[" * 4000, None, "nested too deeply"),
    "digits": (b'{"a":' + b"1" * 5000 + b"}", None, "JSON must have at most"),
    "twice": (b'{"inputs": [], "inputs": []}', None, "one key twice"),
    "no inputs": (b"{}", None, "inputs must be a list"),
    "none": (body(), None, "inputs must be x"),
    "inputs no list": (b'{"inputs": {}}', None, "inputs must be a list"),
    "input no object": (b'{"inputs": [3]}', None, "input 1 must be an object"),
    "no name": (body(tensor(name=None)), None, "must have a name"),
    "other name": (body(tensor(name="secret")), None, "inputs must be x, and nothing else"),
    "same name": (body(tensor(), tensor()), None, "two have one name"),
    "no shape": (body(tensor(shape=None)), None, "shape of input 1 must be a list"),
    "negative": (body(tensor(shape=[-1, 3])), None, "whole numbers from 0"),
    "fraction": (body(tensor(shape=[1.0, 3])), None, "whole numbers from 0"),
    "truth": (body(tensor(shape=[True, 3])), None, "whole numbers from 0"),
    "axes": (body(tensor(shape=[1] * 17)), None, "at most 16"),
    "other shape": (body(tensor(shape=[3, 1])), None, r"must have shape \[N, 3\] with N ≥ 1, got \[3, 1\]"),
    "no rows": (body(tensor(shape=[0, 3], data=[])), None, "N ≥ 1"),
    "no axes": (body(tensor(shape=[], data=[1])), None, "N ≥ 1"),
    "no datatype": (body(tensor(datatype=None)), None, "datatype is unknown"),
    "datatype list": (body(tensor(datatype=["FP32"])), None, "datatype is unknown"),
    "BF16": (body(tensor(datatype="BF16")), None, "BF16"),
    "BYTES": (body(tensor(datatype="BYTES", data=["a", "b", "c"])), None, "BYTES"),
    "no data": (body(tensor(data=None)), None, "either data or"),
    "both": (body(tensor(parameters={"binary_data_size": 12})), None, "either data or"),
    "data no list": (body(tensor(data="123")), None, "must be a list"),
    "too few": (body(tensor(data=[1, 2])), None, "must have 3 values, got 2"),
    "too many": (body(tensor(data=[1, 2, 3, 4])), None, "must have 3 values, got 4"),
    "text": (body(tensor(data=[1, "2", 3])), None, "must be float or int"),
    "null": (body(tensor(data=[1, None, 3])), None, "must be float or int"),
    "truths": (body(tensor(data=[1, True, 3])), None, "must be float or int"),
    "huge": (body(tensor(data=[1, 10**400, 3])), None, "does not fit FP32"),
    "ragged": (body(tensor(data=[[1, 2], [3]])), None, "nested as its shape"),
    "nested else": (body(tensor(data=[[1], [2], [3]])), None, "nested as its shape"),
    "half nested": (body(tensor(data=[[1, 2, 3], 4])), None, "nested as its shape"),
    "too deep": (body(tensor(data=[[[1, 2, 3]]])), None, "nested as its shape"),
    "parameters": (body(tensor(), parameters=[1]), None, "must be an object"),
    "flag": (body(tensor(), parameters={"binary_data_output": 1}), None, "must be true or false"),
    "outputs": (body(tensor(), outputs={}), None, "outputs must be a list"),
    "output": (body(tensor(), outputs=[{"name": "z"}]), None, "a name among y"),
    "output list": (body(tensor(), outputs=[{"name": ["y"]}]), None, "a name among y"),
    "classes": (
        body(tensor(), outputs=[{"name": "y", "parameters": {"classification": 2}}]),
        None,
        "classif",
    ),
    "shared": (body(tensor(data=None, parameters={"shared_memory_region": "r"})), None, "shared memory"),
    "id": (body(tensor(), id="a\nb"), None, "printable"),
    "id long": (body(tensor(), id="a" * 129), None, "at most 128"),
    "id surrogate": (body(tensor(), id="\ud800"), None, "printable"),
    "id number": (body(tensor(), id=3), None, "must be a text"),
    "past the end": (body(tensor()), 10**6, "must be within"),
    "trailing": (body(tensor()) + b"x", len(body(tensor())), "must have 0 bytes, got 1"),
    "no header": (binary(bytes(12))[0][:-12], None, "Inference-Header-Content-Length"),
    "short": (*binary(bytes(12), shape=[2, 3]), "must have 24 bytes, but says 12"),
    "cut off": (binary(bytes(12))[0][:-1], binary(bytes(12))[1], "must have 12 bytes, got 11"),
    "size text": (body(tensor(data=None, parameters={"binary_data_size": "12"})), None, "number of bytes"),
    "size negative": (body(tensor(data=None, parameters={"binary_data_size": -12})), None, "number of bytes"),
    "size true": (body(tensor(data=None, parameters={"binary_data_size": True})), None, "number of bytes"),
}
TOO_LARGE: dict[str, tuple[bytes, str]] = {
    "JSON": (b" " * 5000, "at most 4096 bytes"),
    "axis": (body(tensor(shape=[HUGE, 3])), "at most 64 elements"),
    "product": (body(tensor(shape=[60, 60])), "at most 64 elements"),
    "nothing of much": (body(tensor(shape=[HUGE, 0])), "at most 64 elements"),
    "rows": (body(tensor(shape=[5, 3], data=[0] * 15)), "at most 4 cases, got 5"),
    "tensors": (body(*(tensor(name=n) for n in "abc")), "at most 2 tensors"),
    "together": (body(*(tensor(name=n, shape=[20, 3]) for n in "ab")), "at most 64 elements, got 120"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_contradicts_the_protocol_or_the_model_is_refused(name: str) -> None:
    sent, length, words = MALFORMED[name]
    with pytest.raises(WireError, match=words) as error:
        decode(sent, length)
    assert error.value.cause == ("too_large" if name == "digits" else "malformed")
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_is_refused_before_it_is_read(name: str) -> None:
    sent, words = TOO_LARGE[name]
    with pytest.raises(WireError, match=words) as error:
        decode(sent)
    assert error.value.cause == "too_large"


def test_a_number_of_too_many_digits_is_refused() -> None:
    with pytest.raises(WireError, match="too many digits"):
        decode(MALFORMED["digits"][0], limits=WireLimits())


def test_many_empty_lists_do_not_fill_the_memory() -> None:
    with pytest.raises(WireError, match="lists and objects"):
        decode(b"[" * (1 << 20) + b"{", limits=WireLimits())


@pytest.mark.parametrize(
    ("filling", "words"), [("0,", "more values than the model takes"), ('"a":0,', "65536 keys")]
)
def test_json_that_cannot_be_right_is_refused_before_it_is_parsed(filling: str, words: str) -> None:
    sent = ("{" + filling * 70_000 + " not even JSON").encode()
    with pytest.raises(WireError, match=words) as error:
        decode(sent, limits=WireLimits())
    assert error.value.cause == "too_large"


def test_bool_bytes_are_0_or_1() -> None:
    spec = TensorSpec(name="x", shape=(3,), dtype="bool")
    sent, length = binary(bytes([0, 1, 2]), datatype="BOOL")
    with pytest.raises(WireError, match="bytes of 0 or 1"):
        decode(sent, length, specs=[spec])


@pytest.mark.parametrize(("values", "words"), [([300, 0, 0], "does not fit"), ([1.0, 0, 0], "must be int")])
def test_whole_numbers_must_be_whole_and_fit(values: list[Any], words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode(
            body(tensor(datatype="UINT8", data=values)),
            specs=[TensorSpec(name="x", shape=(3,), dtype="uint8")],
        )


def test_inputs_must_have_one_batch_size() -> None:
    specs = [TensorSpec(name=name, shape=(), dtype="float32") for name in "ab"]
    sent = body(*(tensor(name=n, shape=[i], data=[0.0] * i) for i, n in enumerate("ab", 1)))
    with pytest.raises(WireError, match=r"one batch size, got \[1, 2\]"):
        decode_request(sent, json_length=None, specs=specs, outputs=[Y], limits=LIMITS)
    with pytest.raises(WireError, match="this one has 2"):
        decode_request(bytes(4), json_length=0, specs=specs, outputs=[Y], limits=LIMITS)


@pytest.mark.parametrize("text", [b"-1", b"1.5", b"", b" 3", b"9" * 11, "²", b"0x1"])
def test_the_length_of_the_json_is_a_whole_number(text: bytes | str) -> None:
    with pytest.raises(WireError, match="whole number"):
        read_json_length(text)
    assert read_json_length("12") == 12
    assert read_json_length(None) is None
    assert X.name == "x"
