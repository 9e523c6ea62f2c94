"""What a client does, step by step: without a network, so every answer and failure can be played."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from wire_bodies import X, Y

import pastille
from pastille.client import flows
from pastille.client.errors import ServerError
from pastille.client.flows import Standing
from pastille.client.http import options
from pastille.client.payload import payload_of
from pastille.client.prediction import of_arrays, of_friendly
from pastille.client.steps import Asked, Came, Flow, Got, Patience, Pause, Unreached, ask
from pastille.errors import UsageError
from pastille.wire import InferResponse, RequestedOutput, decode_request, encode_response
from pastille.wire.messages import WireLimits

T = TypeVar("T")
ASKED = Asked(method="GET", path="/v2")
BUSY = Got(status=503, content=b'{"error":"full"}', headers={"retry-after": "2"})
GONE = Unreached(why="cannot connect", unsent=True)
BROKEN = Unreached(why="the connection broke", unsent=False)
FINE = Got(status=200, content=b"{}")


def played(flow: Flow[T], *answers: Came) -> tuple[T | ServerError, list[Asked | Pause]]:
    """Carry a flow out; every request is answered by the next answer."""
    rest, steps, came = list(answers), [], None
    try:
        while True:
            step = flow.send(came)
            steps.append(step)
            came = None if isinstance(step, Pause) else rest.pop(0)
    except StopIteration as done:
        assert not rest, "fewer requests were made than answered"
        return done.value, steps
    except ServerError as error:
        assert not rest, "fewer requests were made than answered"
        return error, steps


def known(model: str | None = "m") -> Standing:
    return Standing(model=model, patience=Patience())


@pytest.mark.parametrize(
    ("answers", "pauses"),
    [
        ([FINE], []),
        ([BUSY, FINE], [2.0]),
        ([BUSY, BUSY, BUSY, FINE], [2.0, 2.0, 2.0]),
        ([GONE, GONE, FINE], [0.1, 0.2]),
        ([Got(status=429, content=b"", headers={"retry-after": "0"}), FINE], [0.0]),
    ],
)
def test_it_asks_again_where_that_is_safe(answers: list[Came], pauses: list[float]) -> None:
    found, steps = played(ask(ASKED, Patience()), *answers)
    assert found == FINE
    assert [step.seconds for step in steps if isinstance(step, Pause)] == pauses


@pytest.mark.parametrize(
    ("answers", "words", "status"),
    [
        ([BUSY] * 4, "answered 503: full", 503),
        ([GONE] * 4, "cannot connect", None),
        ([BROKEN], "the connection broke", None),
        ([Got(status=500, content=b'{"error":"fault"}')], "answered 500: fault", 500),
        ([Got(status=503, content=b"")], "answered 503: an answer that is not of this protocol", 503),
        ([Got(status=503, content=b"{}", headers={"retry-after": "60"})], "503", 503),
        ([Got(status=503, content=b"{}", headers={"retry-after": "Sun, 22 Nov 2026"})], "503", 503),
        ([Got(status=400, content=b'{"error":"shape"}', headers={"retry-after": "1"})], "400: shape", 400),
        ([Got(status=302, content=b"")], "answered 302", 302),
    ],
)
def test_it_asks_no_more_often_than_that(answers: list[Came], words: str, status: int | None) -> None:
    found, _ = played(ask(ASKED, Patience()), *answers)
    assert isinstance(found, ServerError)
    assert words in str(found)
    assert found.status == status


def answer(**parameters: Any) -> Got:
    outputs = {"y": np.array([[1, 2]], np.float32)}
    sent = encode_response(
        outputs, [RequestedOutput(name="y", binary=True)], model="m", version="2", parameters=parameters
    )
    headers = {name.decode(): value.decode() for name, value in sent.headers()}
    return Got(status=200, content=sent.body, headers=headers | {"x-request-id": "r1"})


def test_arrays_go_to_the_only_model_and_its_only_input() -> None:
    index = Got(status=200, content=b'[{"name":"digits","version":"2"},{"name":"digits","version":"1"}]')
    meta = Got(status=200, content=b'{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}]}')
    standing = known(None)
    array = np.ones((1, 3), np.float32)
    found, steps = played(
        flows.predict(standing, array, media_type=None, subject="s"), index, meta, answer(variant="int8")
    )
    assert [s.path for s in steps if isinstance(s, Asked)] == [
        "/v2/repository/index",
        "/v2/models/digits",
        "/v2/models/digits/infer",
    ]
    asked = steps[-1]
    assert isinstance(asked, Asked)
    read = decode_request(
        asked.content,
        json_length=int(asked.headers["Inference-Header-Content-Length"]),
        specs=[X],
        outputs=[Y],
        limits=WireLimits(),
    )
    np.testing.assert_array_equal(read.inputs["x"], array)
    assert read.parameters["subject"] == "s"
    assert isinstance(found, pastille.client.Prediction)
    assert (found.variant, found.version, found.request_id) == ("int8", "2", "r1")
    # What was found out once is not asked again.
    _, steps = played(flows.predict(standing, array, media_type=None, subject=None), answer())
    assert len(steps) == 1


def test_a_server_of_several_models_must_be_told_which() -> None:
    index = Got(status=200, content=b'[{"name":"a"},{"name":"b"}]')
    with pytest.raises(UsageError, match="the models a, b; say which"):
        played(flows.metadata(known(None)), index)


def test_a_model_of_several_inputs_must_be_told_which() -> None:
    said = ",".join(f'{{"name":"{name}","datatype":"FP32","shape":[-1,2]}}' for name in "ab")
    meta = Got(status=200, content=f'{{"inputs":[{said}]}}'.encode())
    with pytest.raises(UsageError, match=r"has the inputs a, b; give \{name: array\}"):
        played(flows.predict(known(), np.ones((1, 2)), media_type=None, subject=None), meta)


@pytest.mark.parametrize(
    ("content", "flow"),
    [
        (b"<html>", flows.metadata(known())),
        (b"[]", flows.monitor(known())),
        (b"{}", flows.input_types(known(), "m")),
        (b'{"inputs":3}', flows.input_types(known(), "m")),
        (b'"', flows.chosen_model(known(None))),
        (b'[{"no":1}]', flows.chosen_model(known(None))),
        (b"{}", flows.infer(known(), {"x": np.ones((1, 3))}, subject=None)),
    ],
)
def test_another_server_is_recognized(content: bytes, flow: Flow[Any]) -> None:
    found, _ = played(flow, Got(status=200, content=content))
    assert isinstance(found, ServerError)
    assert "is it a Pastille server?" in str(found)


@pytest.mark.parametrize(("came", "is_ready"), [(FINE, True), (BUSY, False), (GONE, False), (BROKEN, False)])
def test_ready_is_asked_once(came: Came, is_ready: bool) -> None:
    for standing, path in ((known(None), "/v2/health/ready"), (known("a b"), "/v2/models/a%20b/ready")):
        found, steps = played(flows.ready(standing), came)
        assert found is is_ready
        assert steps == [Asked(method="GET", path=path)]


def test_feedback_and_files_are_sent_as_the_server_reads_them(tmp_path: Path) -> None:
    _, steps = played(flows.feedback(known(), "r", ("a", "b"), 2, {"sex": "f"}), FINE)
    asked = steps[0]
    assert isinstance(asked, Asked)
    said = {"request_id": "r", "label": ["a", "b"], "row": 2, "groups": {"sex": "f"}}
    assert json.loads(asked.content) == said
    (tmp_path / "x.PNG").write_bytes(b"\x89PNG")
    _, steps = played(flows.predict(known("a/b"), tmp_path / "x.PNG", media_type=None, subject="7"), FINE)
    headers = {"content-type": "image/png", "x-subject": "7"}
    assert steps == [Asked(method="POST", path="/predict/a%2Fb", content=b"\x89PNG", headers=headers)]


@pytest.mark.parametrize(
    ("given", "media_type", "expected"),
    [
        (b"abc", None, (b"abc", "application/octet-stream")),
        (b"abc", "text/csv", (b"abc", "text/csv")),
        ({"a": np.float64(0.5), "b": None}, None, (b'{"a":0.5,"b":null}', "application/json")),
    ],
)
def test_what_is_given_becomes_a_body(given: Any, media_type: str | None, expected: Sequence[Any]) -> None:
    assert payload_of(given, media_type) == expected


@pytest.mark.parametrize("given", ["no such.png", "a\0b", {"a": float("nan")}, {"a": object()}])
def test_what_cannot_be_sent_is_said_before_anything_is(given: Any) -> None:
    with pytest.raises(UsageError):
        payload_of(given, None)


def test_fields_of_one_case_and_of_several_are_read() -> None:
    one, two = {"y": np.ones((1, 2))}, {"y": np.ones((2, 2))}
    said: dict[str, Any] = {
        "decision": "a",
        "confidence": 0.5,
        "variant": "fp32",
        "fallback": True,
        "fallback_why": "shape",
    }
    said |= {"fallback_detail": "int8 gave 3 rows", "warnings": '["odd"]'}
    found = of_arrays(InferResponse(model="m", version="1", outputs=one, parameters=said, id="c"), "")
    assert (found.label, found.confidence, found.request_id) == ("a", 0.5, "c")
    assert (found.fallback, found.warnings) == ("shape: int8 gave 3 rows", ("odd",))
    said = {"decision": '["a","b"]', "confidence": "[0.5,1]", "fallback": False}
    found = of_arrays(InferResponse(model="m", version="1", outputs=two, parameters=said), "r")
    assert (found.decisions, found.confidences, found.fallback) == (("a", "b"), (0.5, 1.0), "")
    for text, labels in (('["a","b"]', ("a", "b")), ("[]", ()), ("[odd", "[odd")):
        given = InferResponse(model="m", version="1", outputs=one, parameters={"decision": text})
        assert of_arrays(given, "").label == labels
    bare = of_arrays(InferResponse(model="m", version="1", outputs={}), "")
    assert (bare.label, bare.confidence, bare.variant) == (None, None, "")


def test_friendly_answers_are_read() -> None:
    told = {"preferred": "int8", "why": "timeout", "detail": "10 s"}
    said = {"decision": ["a", "b"], "confidence": 0.7, "probabilities": {"a": 0.7}, "fallback": told}
    found = of_friendly({**said, "cases": [said]}, "r")
    assert (found.label, found.confidence, found.fallback) == (("a", "b"), 0.7, "timeout: 10 s")
    assert found.probabilities == {"a": 0.7}
    several = of_friendly(
        {"cases": [{"decision": "a", "confidence": 1}, {"decision": "b", "confidence": 0}]}, ""
    )
    assert (several.decisions, several.confidences) == (("a", "b"), (1.0, 0.0))
    assert of_friendly({"value": 3.5}, "").label is None


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://", "http://a:b", "http://[::1"])
def test_an_address_must_be_one(url: str) -> None:
    with pytest.raises(UsageError, match=r"must be like http://127\.0\.0\.1:8080"):
        options(url, None, 1.0)


@pytest.mark.parametrize("token", ["", " ", "a\nb", "é"])
def test_a_token_must_fit_into_a_header(token: str) -> None:
    with pytest.raises(UsageError, match="printable ASCII"):
        options("http://x", token, 1.0)


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("http://127.0.0.1:1", False),
        ("http://[::1]", False),
        ("https://127.0.0.2", False),
        ("https://x.localhost", False),
        ("http://ward-7", False),  # a proxy would read the images
        ("https://ward-7", True),
    ],
)
def test_no_proxy_of_the_environment_reads_what_is_sent(url: str, through: bool) -> None:
    assert options(url, "t", 1.0)["trust_env"] is through


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        options("http://jane:secret@ward-7", None, 1.0)
    assert "secret" not in str(refused.value)
