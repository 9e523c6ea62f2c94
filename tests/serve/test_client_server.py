"""`pastille.Client`, `AsyncClient` and ``pastille predict`` against the real server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from serving_bundles import LABELS, cases, tiny_bundle
from serving_process import Running, running
from typer.testing import CliRunner, Result

import pastille
from pastille.bundle import onnx_file, read_manifest
from pastille.cli.app import app
from pastille.client import ServerError
from pastille.errors import UsageError
from pastille.values import CategoryColumn, ImageDecoding, NumberColumn, Preprocessing, TableEncoding

TOKEN, WATCHER = "a-token-of-the-ward", "a-token-of-the-monitor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    decoding = Preprocessing(image=ImageDecoding(height=8, width=8, channels=1))
    return tiny_bundle(folder / "bundle", shape=(1, 8, 8), name="scan", preprocessing=decoding)


@pytest.fixture(scope="module")
def rows(folder: Path) -> Path:
    """A bundle that takes rows: age, and whether it is a woman or a man."""
    age = NumberColumn(name="age", mean=50, std=10)
    sex = CategoryColumn(name="sex", values=("female", "male"))
    encoding = Preprocessing(table=TableEncoding(columns=(age, sex)))
    return tiny_bundle(folder / "rows", shape=(3,), name="stay", preprocessing=encoding)


@pytest.fixture(scope="module")
def server(folder: Path, bundle: Path, rows: Path) -> Iterator[Running]:
    scopes = {TOKEN: "infer,feedback", WATCHER: "infer,monitor"}
    lines = [f"t{i} {hashlib.sha256(t.encode()).hexdigest()} {s}" for i, (t, s) in enumerate(scopes.items())]
    (folder / "tokens").write_text("\n".join(lines))
    with running(bundle, rows, args=("--token-file", str(folder / "tokens"))) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[pastille.Client]:
    with pastille.Client(server.url, token=TOKEN, model="scan") as opened:
        yield opened


@pytest.fixture(scope="module")
def picture(folder: Path) -> Path:
    values = (cases(1, shape=(8, 8))[0] * 255).astype(np.uint8)
    Image.fromarray(values).save(folder / "picture.png")
    return folder / "picture.png"


def expected(bundle: Path, array: np.ndarray) -> np.ndarray:
    """Logits by the runtime alone."""
    variant = read_manifest(bundle / "manifest.json").variant("int8")
    with onnx_file(bundle, variant) as path:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": array})[0])


def pixels(picture: Path) -> np.ndarray:
    """The picture as the bundle decodes it, written down independently: 8 bits to [0, 1]."""
    return (np.asarray(Image.open(picture), np.float32) / np.float32(255))[None, None]


def test_arrays_are_answered_as_the_runtime_answers(client: pastille.Client, bundle: Path) -> None:
    array = cases(3, shape=(1, 8, 8))
    logits = expected(bundle, array)
    for found in (client.predict(array), client.predict({"input": array}), client.infer({"input": array})):
        np.testing.assert_array_equal(found.outputs["logits"], logits)
        assert found.decisions == tuple(LABELS[i] for i in logits.argmax(axis=1))
        soft = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(
            found.confidences, (soft / soft.sum(axis=1, keepdims=True)).max(axis=1), 1e-5
        )
        assert (found.model, found.version, found.variant, found.fallback) == ("scan", "1", "int8", "")


def test_a_file_its_bytes_and_its_pixels_are_one_case(
    client: pastille.Client, bundle: Path, picture: Path
) -> None:
    label = LABELS[int(expected(bundle, pixels(picture)).argmax())]
    as_arrays = client.predict(pixels(picture))
    wider = client.predict(pixels(picture).astype(np.float64))
    np.testing.assert_array_equal(wider.outputs["logits"], as_arrays.outputs["logits"])
    with pytest.raises(UsageError, match="a numpy array, not list"):
        client.predict(pixels(picture).tolist())
    for given in (picture, str(picture), picture.read_bytes()):
        found = client.predict(given)
        assert found.label == label
        assert set(found.probabilities) == set(LABELS)
        assert found.confidence == pytest.approx(as_arrays.confidence, abs=1e-6)
        assert found.request_id


def test_a_row_is_a_case(server: Running, folder: Path, rows: Path) -> None:
    row = {"age": 61, "sex": "female"}
    (folder / "row.json").write_text(json.dumps(row))
    label = LABELS[int(expected(rows, np.array([[1.1, 1, 0]], np.float32)).argmax())]
    with pastille.Client(server.url, token=TOKEN, model="stay") as client:
        for given in (row, folder / "row.json", {"age": np.float32(61), "sex": "female"}):
            assert client.predict(given).label == label
        with pytest.raises(ServerError, match=r"answered 400: .*sex"):
            client.predict(row | {"sex": "unknown"})


def test_one_case_needs_no_batch_axis(client: pastille.Client) -> None:
    array = cases(1, shape=(1, 8, 8))
    alone = client.predict(array[0])
    np.testing.assert_array_equal(alone.outputs["logits"], client.predict(array).outputs["logits"])


def test_of_several_models_one_must_be_named_for_arrays(server: Running, picture: Path) -> None:
    with pastille.Client(server.url, token=TOKEN) as client:
        assert client.predict(picture).model == "scan"
        with pytest.raises(UsageError, match="the models scan, stay; say which"):
            client.predict(pixels(picture))


def test_labels_come_back_by_the_id_of_the_answer(client: pastille.Client, picture: Path) -> None:
    found = client.predict(picture)
    client.feedback(found.request_id, LABELS[0], groups={"sex": "female"})
    own = client.infer({"input": pixels(picture)}, request_id="mine-7")
    assert own.request_id == "mine-7"
    client.feedback("mine-7", LABELS[1])
    with pytest.raises(ServerError, match="the server answered 40") as error:
        client.feedback("never asked", LABELS[0])
    assert error.value.status in (400, 404)


def test_what_the_server_says_of_itself(server: Running, client: pastille.Client) -> None:
    assert client.ready()
    assert client.metadata()["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    with pytest.raises(ServerError, match="answered 403") as error:
        client.monitor()
    assert error.value.status == 403
    with pastille.Client(server.url, token=WATCHER, model="scan") as watcher:
        assert watcher.monitor()["engine"]["model"] == "scan"
        assert watcher.ready()
    with pastille.Client(server.url, token=WATCHER, model="other") as watcher:
        assert not watcher.ready()


@pytest.mark.parametrize("token", [None, "another"])
def test_without_its_token_nothing_is_answered(server: Running, picture: Path, token: str | None) -> None:
    with pastille.Client(server.url, token=token) as stranger:
        assert stranger.ready()
        with pytest.raises(ServerError, match="answered 401"):
            stranger.predict(picture)
        with pytest.raises(ServerError, match="answered 401"):
            stranger.infer({"input": pixels(picture)})


def test_what_is_wrong_is_said_in_one_line(client: pastille.Client, folder: Path) -> None:
    array = cases(1, shape=(1, 8, 8))
    array[0, 0, 0, 0] = np.nan
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    for given, words in (
        (array, "'input' must be finite"),
        (array[:, :, :4], r"must have shape \[N, 1, 8, 8\]"),
        (folder / "broken.png", "answered 4"),
    ):
        with pytest.raises(ServerError, match=words) as error:
            client.predict(given)
        assert "\n" not in str(error.value)


def test_many_at_once(server: Running, bundle: Path, picture: Path) -> None:
    arrays = [cases(1, seed=i, shape=(1, 8, 8)) for i in range(16)]

    async def ask_all() -> list[pastille.client.Prediction]:
        async with pastille.AsyncClient(server.url, token=TOKEN, model="scan") as client:
            assert await client.ready()
            assert (await client.metadata())["name"] == "scan"
            assert (await client.predict(picture)).variant == "int8"
            with pytest.raises(ServerError, match="answered 403"):
                await client.monitor()
            return list(await asyncio.gather(*(client.predict(array) for array in arrays)))

    found = asyncio.run(ask_all())
    for array, answer in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(answer.outputs["logits"], expected(bundle, array))


def test_threads_may_share_a_client(client: pastille.Client, bundle: Path) -> None:
    array = cases(1, shape=(1, 8, 8))
    answers: list[np.ndarray] = []

    def ask() -> None:
        answers.extend(client.predict(array).outputs["logits"] for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert all(np.array_equal(a, expected(bundle, array)) for a in answers)


def predicted(*arguments: str | Path, token: str | None = TOKEN) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"PASTILLE_TOKEN": token})


def test_the_command_shows_the_answer(server: Running, client: pastille.Client, picture: Path) -> None:
    found = client.predict(picture)
    result = predicted(server.url, picture)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == f"{found.label} ({100 * (found.confidence or 0):.1f} %)"
    assert "by int8 of scan 1" in result.stdout
    said = json.loads(predicted(server.url, picture, "--json").stdout)
    assert (said["label"], said["variant"]) == (found.label, "int8")


def test_the_command_shows_every_row(server: Running, folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps([{"age": age, "sex": "female"} for age in (20, 61, 90)]))
    lines = predicted(server.url, folder / "rows.json", "--model", "stay").stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["1", "2", "3"]


def test_the_command_ends_with_the_documented_codes(server: Running, picture: Path, folder: Path) -> None:
    refused = predicted(server.url, picture, token="another")
    assert refused.exit_code == 1
    assert "answered 401" in refused.stderr
    assert predicted(server.url, folder / "missing.png").exit_code == 2
    said = predicted("nowhere", picture, "--json")
    assert said.exit_code == json.loads(said.stdout)["exit_code"] == 2


def test_where_nobody_listens(picture: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pastille.Client(url, retries=0) as client:
            assert not client.ready()
            with pytest.raises(ServerError, match=r"cannot connect to .*; is the server running"):
                client.predict(picture)
        with pastille.Client(url, timeout_s=0.2, retries=0, model="m") as client:
            free.listen()
            with pytest.raises(ServerError, match="did not answer in time"):
                client.metadata()


def test_the_client_needs_no_server_and_no_runtime() -> None:
    """Who only asks must not wait for ONNX Runtime, and imports the HTTP library with the first client."""
    code = (
        "import sys, pastille; pastille.Client; "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'scipy', 'transformers', 'httpx2', 'starlette'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
