"""The unmodified client of Triton against the real server: every form of request, and every question."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
from serving_bundles import cases, tiny_bundle
from serving_process import Running, running
from tritonclient.utils import InferenceServerException

from pastille.bundle import onnx_file, read_manifest

ROWS = 64  # so many that answers are worth compressing


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("triton") / "bundle", "binary", name="scan-2.b")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running(bundle) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(bundle: Path) -> np.ndarray:
    variant = read_manifest(bundle / "manifest.json").variant("int8")
    with onnx_file(bundle, variant) as path:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": cases(ROWS)})[0])


def asked(array: np.ndarray, *, binary: bool, datatype: str = "FP32") -> Any:
    given = triton.InferInput("input", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


COMPRESSION = (None, "gzip", "deflate")
OUTPUTS = {
    "as it comes": None,
    "binary": [triton.InferRequestedOutput("logits", binary_data=True)],
    "JSON": [triton.InferRequestedOutput("logits", binary_data=False)],
}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("form", OUTPUTS)
def test_every_form_gives_the_answer_of_the_runtime(
    client: Any, expected: np.ndarray, binary: bool, form: str
) -> None:
    for request, response in itertools.product(COMPRESSION, COMPRESSION):
        answer = client.infer(
            "scan-2.b",
            [asked(cases(ROWS), binary=binary)],
            outputs=OUTPUTS[form],
            request_id="r-1",
            request_compression_algorithm=request,
            response_compression_algorithm=response,
        )
        said = answer.get_response()
        np.testing.assert_array_equal(answer.as_numpy("logits"), expected)
        assert (said["model_name"], said["model_version"], said["id"]) == ("scan-2.b", "1", "r-1")
        assert said["parameters"]["variant"] == "int8"
        sent_binary = "binary_data_size" in answer.get_output("logits").get("parameters", {})
        assert sent_binary == (form != "JSON")


@pytest.mark.parametrize(("encoding", "inflate"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_answers_really_travel_compressed(server: Running, encoding: str, inflate: Any) -> None:
    inputs = [{"name": "input", "shape": [ROWS, 10], "datatype": "FP32", "data": cases(ROWS).tolist()}]
    body = json.dumps({"inputs": inputs}).encode()
    path = "/v2/models/scan-2.b/infer"
    _, plain_headers, plain = server.ask("POST", path, body)
    status, headers, packed = server.ask("POST", path, body, {"Accept-Encoding": encoding})
    assert (status, headers["content-encoding"]) == (200, encoding)
    assert "content-encoding" not in plain_headers
    assert json.loads(inflate(packed))["outputs"] == json.loads(plain)["outputs"]
    assert len(packed) < len(plain)


def test_versioned_paths_and_plain_parameters(client: Any, expected: np.ndarray) -> None:
    answer = client.infer(
        "scan-2.b",
        [asked(cases(1), binary=True)],
        model_version="1",
        parameters={"subject": "p7", "other": 3},
        timeout=5_000_000,
    )
    said = answer.get_response()["parameters"]
    probability = 1 / (1 + np.exp(-np.float64(expected[0, 0])))
    assert said["probability"] == pytest.approx(probability, abs=1e-6)
    assert said["decision"] == ("ill" if probability >= said["threshold"] else "healthy")
    assert said["confidence"] == pytest.approx(max(probability, 1 - probability), abs=1e-6)
    assert (said["fallback"], said["cached"]) == (False, False)
    assert len(said["model_sha256"]) == 64


def test_a_variant_that_fails_is_named_with_its_reason(client: Any) -> None:
    answer = client.infer("scan-2.b", [asked(cases(1, nan=1), binary=True)])
    said = answer.get_response()["parameters"]
    assert (said["variant"], said["fallback"], said["fallback_from"]) == ("fp32", True, "int8")
    assert said["fallback_why"] == "non_finite"
    assert np.isfinite(answer.as_numpy("logits")).all()


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scan-2.b")
    assert client.is_model_ready("scan-2.b", "1")
    assert not client.is_model_ready("scan-2.b", "2")
    assert not client.is_model_ready("other")


def test_metadata(client: Any) -> None:
    said = client.get_server_metadata()
    assert said["name"] == "pastille"
    assert "binary_tensor_data" in said["extensions"]
    for version in ("", "1"):
        said = client.get_model_metadata("scan-2.b", version)
        assert (said["name"], said["versions"], said["platform"]) == ("scan-2.b", ["1"], "onnxruntime_onnx")
        assert said["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 10]}]
        assert said["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 1]}]
        assert said["parameters"]["degraded"] is False


def test_config(client: Any) -> None:
    said = client.get_model_config("scan-2.b")
    assert said["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [10]}]
    assert said["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [1]}]
    assert (said["name"], said["backend"], said["max_batch_size"]) == ("scan-2.b", "onnxruntime", 64)


def test_repository_index(client: Any) -> None:
    ready = {"name": "scan-2.b", "version": "1", "state": "READY", "reason": ""}
    assert client.get_model_repository_index() == [ready]


def test_models_cannot_be_loaded_over_the_network(client: Any) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as error:
            change("scan-2.b")
        assert error.value.status() in ("[403]", "403", "404")
    assert client.is_model_ready("scan-2.b")


def test_statistics_count_what_was_asked(client: Any) -> None:
    def counted() -> tuple[int, int, int]:
        (one,) = client.get_inference_statistics("scan-2.b")["model_stats"]
        stats = one["inference_stats"]
        assert stats["compute_infer"]["ns"] > 0
        return one["inference_count"], stats["success"]["count"], stats["queue"]["count"]

    client.infer("scan-2.b", [asked(cases(1), binary=True)])
    before = counted()
    client.infer("scan-2.b", [asked(cases(3), binary=True)])
    assert counted() == (before[0] + 3, before[1] + 1, before[2] + 1)
    everything = client.get_inference_statistics()["model_stats"]
    assert [(one["name"], one["version"]) for one in everything] == [("scan-2.b", "1")]
    assert [one["batch_size"] for one in everything[0]["batch_stats"]] != []


ERRORS: dict[str, tuple[str, str, str]] = {
    "other": ("other", "", "404"),
    "version": ("scan-2.b", "7", "404"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_model_that_is_not_there_is_an_error_that_the_client_reads(client: Any, name: str) -> None:
    model, version, status = ERRORS[name]
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException) as error:
            ask(model, version)
        assert error.value.status() == status
        assert "\n" not in error.value.message()
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, [asked(cases(1), binary=True)], model_version=version)
    assert error.value.status() == status


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_wrong_with_a_request_is_said(client: Any, binary: bool) -> None:
    nan = cases(1)
    nan[0, 0] = np.inf
    wrong: list[tuple[Any, str]] = [
        (asked(cases(1).astype(np.float64), binary=binary, datatype="FP64"), "'input' must be FP32"),
        (asked(cases(1)[:, :4], binary=binary), r"must have shape [N, 10] with N ≥ 1, got [1, 4]"),
    ]
    if binary:  # the client itself writes no infinity as JSON
        wrong.append((asked(nan, binary=True), "'input' must be finite"))
    for given, words in wrong:
        with pytest.raises(InferenceServerException) as error:
            client.infer("scan-2.b", [given])
        assert error.value.status() == "400"
        assert words in error.value.message()


def test_other_names_are_refused(client: Any) -> None:
    given = triton.InferInput("pixels", [1, 10], "FP32")
    given.set_data_from_numpy(cases(1))
    with pytest.raises(InferenceServerException, match="inputs must be input, and nothing else"):
        client.infer("scan-2.b", [given])
    with pytest.raises(InferenceServerException, match="a name among logits"):
        client.infer(
            "scan-2.b", [asked(cases(1), binary=True)], outputs=[triton.InferRequestedOutput("probabilities")]
        )


def test_extensions_that_are_not_offered_say_so(client: Any) -> None:
    assert not {"classification", "system_shared_memory", "trace"} & set(
        client.get_server_metadata()["extensions"]
    )
    for ask in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException) as error:
            ask()
        assert error.value.status() == "404"
        assert "exception occurred in the client" not in error.value.message()
    shared = triton.InferInput("input", [1, 10], "FP32")
    shared.set_shared_memory("region", 40)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        client.infer("scan-2.b", [shared])
    classes = [triton.InferRequestedOutput("logits", class_count=2)]
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        client.infer("scan-2.b", [asked(cases(1), binary=True)], outputs=classes)


def test_one_client_asks_several_things_at_once(client: Any, expected: np.ndarray) -> None:
    pending = [client.async_infer("scan-2.b", [asked(cases(ROWS), binary=True)]) for _ in range(8)]
    for request in pending:
        np.testing.assert_array_equal(request.get_result().as_numpy("logits"), expected)


def test_the_client_for_async_code(server: Running, expected: np.ndarray) -> None:
    from tritonclient.http import aio

    async def ask() -> list[Any]:
        async with aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("scan-2.b"))["versions"] == ["1"]
            given = [asked(cases(ROWS), binary=True)]
            forms = [
                {"request_compression_algorithm": r, "response_compression_algorithm": r} for r in COMPRESSION
            ]
            return [await client.infer("scan-2.b", given, **form) for form in forms]

    for answer in asyncio.run(ask()):
        np.testing.assert_array_equal(answer.as_numpy("logits"), expected)
