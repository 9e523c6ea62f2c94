"""Whatever is done to a bundle's files, the answer is one IntegrityError that names the file."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import (
    FEATURES,
    forge,
    golden,
    make_bundle,
    model_folder,
    read_json,
    samples,
    write_forged,
    write_network,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pastille.bundle import Golden, load_bundle, verify
from pastille.bundle.golden import golden_bytes
from pastille.errors import ExitCode, IntegrityError

FILES = (
    "manifest.json",
    "models/int8.onnx",
    "models/fp32.onnx",
    "golden/cases.npz",
    "evidence/run.json",
    "evidence/report.html",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tampering") / "bundle")


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def refusal(directory: Path, *, replay: bool = True) -> str:
    """The error of a bundle that must not verify."""
    with pytest.raises(IntegrityError) as caught:
        verify(directory, replay=replay)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.INTEGRITY
    assert "\n" not in message
    assert len(message) < 900
    return message


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_changed_byte(directory: Path, file: str, where: float) -> None:
    path = directory / file
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    assert file in refusal(directory, replay=False)


def test_any_changed_byte_of_the_manifest(directory: Path) -> None:
    """Spaces included: every 7th byte stands for all of them."""
    path = directory / "manifest.json"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        assert "manifest.json" in refusal(directory, replay=False), at


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", [b"", b"\n"])
def test_another_length(directory: Path, file: str, change: bytes) -> None:
    data = (directory / file).read_bytes()
    (directory / file).write_bytes(data + change if change else data[:-1])
    message = refusal(directory, replay=False)
    assert file in message
    if file != "manifest.json":
        assert f"must have {len(data)} bytes, but has {len(data) + (1 if change else -1)}" in message


@pytest.mark.parametrize("file", FILES)
def test_missing(directory: Path, file: str) -> None:
    (directory / file).unlink()
    message = refusal(directory)
    assert file in message
    assert "missing" in message


def test_missing_folder_or_bundle(directory: Path) -> None:
    shutil.rmtree(directory / "models")
    assert "models/int8.onnx is missing" in refusal(directory)
    assert "manifest.json is missing" in refusal(directory / "nowhere")
    assert "manifest.json is missing" in refusal(directory / "manifest.json")


@pytest.mark.parametrize(
    "file", ["extra", ".hidden", "models/extra.onnx", "golden/x/y", "a/b", "evidence/\n"]
)
def test_extra_file(directory: Path, file: str) -> None:
    (directory / file).parent.mkdir(exist_ok=True)
    (directory / file).write_text("")
    assert "does not belong to the bundle" in refusal(directory)


def test_extra_folder(directory: Path) -> None:
    (directory / "models" / "empty").mkdir()
    assert "models/empty does not belong" in refusal(directory)


@pytest.mark.parametrize("file", FILES)
def test_link_to_the_same_bytes(directory: Path, file: str, tmp_path: Path) -> None:
    shutil.move(directory / file, tmp_path / "elsewhere")
    (directory / file).symlink_to(tmp_path / "elsewhere")
    assert file in refusal(directory)


@pytest.mark.parametrize("folder", ["models", "evidence"])
def test_linked_folder(directory: Path, folder: str, tmp_path: Path) -> None:
    shutil.move(directory / folder, tmp_path / "elsewhere")
    (directory / folder).symlink_to(tmp_path / "elsewhere")
    assert f"{folder} does not belong" in refusal(directory)


def test_extra_link_and_link_to_nowhere(directory: Path) -> None:
    (directory / "models" / "x").symlink_to("/etc/passwd")
    assert "models/x does not belong" in refusal(directory)
    (directory / "models" / "x").unlink()
    (directory / "x").symlink_to("nowhere")
    assert "bundle/x does not belong" in refusal(directory)


@pytest.mark.parametrize("file", ["models/int8.onnx", "golden/cases.npz"])
def test_pipe_or_folder_instead_of_a_file(directory: Path, file: str) -> None:
    (directory / file).unlink()
    os.mkfifo(directory / file)
    assert file in refusal(directory)
    (directory / file).unlink()
    (directory / file).mkdir()
    assert file in refusal(directory)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "models/../../x",
        "models\\x",
        "C:x",
        "",
        ".",
        "models//x",
        "a\0b",
        "~/x",
        "é",
        "a" * 300,
    ],
)
@pytest.mark.parametrize("place", ["variant", "golden", "evidence"])
def test_path_that_leaves_the_bundle(directory: Path, path: str, place: str) -> None:
    def change(value: dict[str, Any]) -> None:
        if place == "variant":
            value["variants"][0]["file"] = path
        elif place == "golden":
            value["golden"]["file"] = path
        else:
            value["files"][path] = value["files"].pop("evidence/run.json")

    forge(directory, change)
    message = refusal(directory)
    assert "manifest.json" in message
    assert "must lie inside the bundle" in message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"schema": 5}',
        b'{"schema": 5, "name": NaN}',
        b"[" * 200_000,
        b'{"schema":5,"requirements":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"schema":5,"requirements":' + b'{"a":' * 300 + b"1" + b"}" * 301,
        b"1" * 5000,
        b'{"schema": "\\ud800"}',
        bytes(range(256)) * 100,
    ],
)
def test_garbage_manifest(directory: Path, data: bytes) -> None:
    (directory / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(directory)


def test_oversized_manifest(directory: Path) -> None:
    with (directory / "manifest.json").open("wb") as file:
        file.truncate(5 << 20)
    assert "manifest.json must be at most 4194304 bytes" in refusal(directory)


@pytest.mark.parametrize("schema", [0, 1, 4, 6, "5", None, [1], 1e400, {}])
def test_other_schema(directory: Path, schema: object) -> None:
    forge(directory, lambda value: value.update(schema=schema))
    message = refusal(directory)
    assert "this Pastille reads 5; use the version of Pastille that wrote it" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(extra=1), "unknown key"),
        (lambda v: v["verdict"].update(extra=1), "unknown key"),
        (lambda v: v["golden"].update(cases="16"), "unknown key, other type"),
        (lambda v: v.pop("labels"), "labels: Field required"),
        (lambda v: v.update(selected="int2"), "is not a bundle's manifest"),
        (lambda v: v.update(selected="compressed"), "selected must be one of the variants"),
        (lambda v: v["variants"].pop(), "must differ in name and include fp32"),
        (lambda v: v["variants"].append(v["variants"][0]), "must differ in name"),
        (lambda v: v["variants"].clear(), "include fp32"),
        (lambda v: v["variants"][0].update(file="models/fp32.onnx"), "every file must be listed once"),
        (lambda v: v["golden"].update(file="manifest.json"), "every file must be listed once"),
        (
            lambda v: v["variants"][0].update(validated=[]),
            "int8 must be validated on the machine that judged",
        ),
        (lambda v: v["variants"][0]["validated"][0].update(emulated=True), "validated on the machine"),
        (lambda v: v["variants"][0]["validated"][0].update(equal_decisions=1001), "within the 1000 cases"),
        (lambda v: v["variants"][0]["validated"][0].update(identical=-1), "within the 1000 cases"),
        (lambda v: v["variants"][0].update(runtime="shell"), "is not a bundle's manifest"),
        (lambda v: v["variants"][0].update(sha256="x"), "must have a SHA-256"),
        (lambda v: v["golden"].update(size_bytes=-1), "must have a SHA-256 and a size"),
        (lambda v: v.update(labels=["a", "b"], positive=[]), "must answer with shape (N, 2)"),
        (lambda v: v.update(labels=["a", "a", "b"], positive=[]), "labels must name every class"),
        (lambda v: v.update(positive=["flu"]), "positive must be among the labels"),
        (lambda v: v.update(kind="regression"), "labels must name every class of a regression"),
        (lambda v: v.update(threshold=1.5), "threshold must be in [0, 1]"),
        (lambda v: v.update(inputs=[]), "inputs must be named"),
        (lambda v: v["inputs"][0].update(dtype="object"), "must be numeric"),
        (lambda v: v["inputs"][0].update(shape=[-1]), "of a fixed size"),
        (lambda v: v["inputs"][0].update(shape=[5]), "must hold 'input' as float32 (5,)"),
        (lambda v: v["inputs"][0].update(name="x"), "must hold the arrays"),
        (lambda v: v["output"].update(name="x"), "must take and give"),
        (lambda v: v["golden"].update(cases=17), "must hold 17 cases, but holds 16"),
    ],
)
def test_manifest_that_contradicts_itself(
    directory: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    forge(directory, change)
    assert message in refusal(directory)


@pytest.mark.parametrize("key", ["content", "seal"])
def test_wrong_digest(directory: Path, key: str) -> None:
    value = read_json(directory)
    value[key] = "0" * 64
    if key == "content":
        forge(directory, lambda v: v)
        text = (directory / "manifest.json").read_text().replace(value["name"], "other-name")
        (directory / "manifest.json").write_text(text)
    else:
        (directory / "manifest.json").write_text(json.dumps(value, indent=2) + "\n")
    message = refusal(directory)
    assert f"was changed after it was written: its {key} is" in message


def test_swapped_variants(directory: Path) -> None:
    models = directory / "models"
    (models / "int8.onnx").rename(models / "x")
    (models / "fp32.onnx").rename(models / "int8.onnx")
    (models / "x").rename(models / "fp32.onnx")
    assert "models/int8.onnx" in refusal(directory)
    forge(directory)
    assert "models/int8.onnx does not answer the golden cases as validated" in refusal(directory)


def test_other_model_with_forged_hashes(directory: Path) -> None:
    write_network(directory / "models/fp32.onnx", seed=5)
    forge(directory)
    message = refusal(directory)
    assert "models/fp32.onnx does not answer the golden cases as validated" in message
    assert "it was validated on avx512-vnni: do not use it on this machine" in message


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_changed_golden_output_with_forged_hashes(directory: Path, variant: str) -> None:
    outputs = {name: array.copy() for name, array in golden().outputs.items()}
    outputs[variant][3] = outputs[variant][3][::-1]
    changed = Golden(inputs=golden().inputs, outputs=outputs)
    (directory / "golden/cases.npz").write_bytes(golden_bytes(changed))
    forge(directory)
    message = refusal(directory)
    assert f"models/{variant}.onnx does not answer the golden cases" in message
    assert "15 of 16 decisions are equal" in message


def test_model_that_is_no_onnx_or_keeps_its_weights_elsewhere(directory: Path, tmp_path: Path) -> None:
    path = directory / "models/fp32.onnx"
    path.write_bytes(b"not a model")
    forge(directory)
    assert "models/fp32.onnx is not an ONNX model" in refusal(directory, replay=False)
    (tmp_path / "external").mkdir()
    write_network(tmp_path / "external" / "m.onnx", seed=0, external=True)
    shutil.copyfile(tmp_path / "external" / "m.onnx", path)
    forge(directory)
    assert "models/fp32.onnx keeps weights in another file" in refusal(directory, replay=False)


def test_model_with_other_inputs(directory: Path) -> None:
    write_network(directory / "models/fp32.onnx", seed=0, name="scores")
    forge(directory)
    message = refusal(directory)
    assert "models/fp32.onnx must take and give 'input' float32 (4,), 'logits' float32 (3,)" in message


def test_model_of_one_batch_size(directory: Path) -> None:
    write_network(directory / "models/fp32.onnx", seed=0, batch=16)
    forge(directory)
    assert "models/fp32.onnx must take and give" in (message := refusal(directory))
    assert "in batches of any size" in message


def npz(arrays: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def header(text: str, body: bytes = b"") -> bytes:
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + body


GOOD = {
    "input.input": npy(samples(16, seed=2)),
    "output.int8": npy(np.zeros((16, 3), np.float32)),
    "output.fp32": npy(np.zeros((16, 3), np.float32)),
}
EVIL_GOLDEN = {
    "no zip": b"no zip",
    "empty": b"",
    "zip bomb": npz({**GOOD, "input.input": bytes(50 << 20)}, zipfile.ZIP_DEFLATED),
    "compressed": npz(GOOD, zipfile.ZIP_DEFLATED),
    "pickle": npz({**GOOD, "input.input": npy(np.array([{}] * 16), allow_pickle=True)}),
    "no npy": npz({**GOOD, "input.input": b"hello"}),
    "terabytes": npz(
        {
            **GOOD,
            "input.input": header("{'descr': '<f4', 'fortran_order': False, 'shape': (16, 99999999999)}"),
        }
    ),
    "negative": npz(
        {
            **GOOD,
            "input.input": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", b"1234"),
        }
    ),
    "column-major": npz({**GOOD, "input.input": npy(np.asfortranarray(samples(16, seed=2)))}),
    "code in header": npz({**GOOD, "input.input": header("__import__('os').abort()")}),
    "nested header": npz({**GOOD, "input.input": header("(" * 110)}),
    "text": npz({**GOOD, "input.input": npy(np.full((16, FEATURES), "a"))}),
    "structured": npz({**GOOD, "input.input": npy(np.zeros(16, [("a", "f4", 4)]))}),
    "nan": npz({**GOOD, "output.int8": npy(np.full((16, 3), np.nan, np.float32))}),
    "no cases": npz({name: npy(np.zeros((0, 3), np.float32)) for name in GOOD}),
    "scalars": npz({name: npy(np.array(1, np.float32)) for name in GOOD}),
    "other lengths": npz({**GOOD, "output.int8": npy(np.zeros((15, 3), np.float32))}),
    "other dtype": npz({**GOOD, "input.input": npy(np.zeros((16, FEATURES)))}),
    "missing array": npz({name: data for name, data in GOOD.items() if name != "output.fp32"}),
    "extra array": npz({**GOOD, "output.shell": npy(np.zeros(1))}),
    "file outside": npz({**GOOD, "../../x": npy(np.zeros(1))}),
}


@pytest.mark.parametrize("evil", EVIL_GOLDEN)
def test_evil_golden_file_with_forged_hashes(directory: Path, evil: str) -> None:
    (directory / "golden/cases.npz").write_bytes(EVIL_GOLDEN[evil])
    forge(directory)
    assert "golden/cases.npz" in refusal(directory, replay=False)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_golden_file_with_an_array_twice(directory: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in [*GOOD, "input.input"]:
            archive.writestr(f"{name}.npy", GOOD[name])
    (directory / "golden/cases.npz").write_bytes(buffer.getvalue())
    forge(directory)
    assert "must hold the arrays" in refusal(directory, replay=False)


def test_oversized_golden_file_is_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pastille.bundle.golden.MAX_GOLDEN_BYTES", 1000)
    assert "golden/cases.npz does not hold" in (message := refusal(directory, replay=False))
    assert "it must be at most 1000 bytes" in message


def test_load_refuses_what_verify_refuses(directory: Path) -> None:
    (directory / "models/int8.onnx").write_bytes((model_folder() / "fp32.onnx").read_bytes())
    with pytest.raises(IntegrityError, match=r"models/int8\.onnx"):
        load_bundle(directory)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every way to a part of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, part in inside for place in places(part, (*path, key))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def verified_or_refused(directory: Path, **options: Any) -> None:
    try:
        verify(directory, **options)
    except IntegrityError as error:
        assert "\n" not in str(error)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_forged_manifest_is_verified_or_refused(directory: Path, original: Path, data: st.DataObject) -> None:
    value = read_json(original)
    path = data.draw(st.sampled_from(places(value)))
    put(value, path, data.draw(JSON | st.sampled_from([1, 3, 16, "input", "logits", "models/fp32.onnx"])))
    write_forged(directory, value)
    verified_or_refused(directory)


@FUZZ
@given(data=st.data())
def test_unforged_change_of_the_manifest_is_refused(
    directory: Path, original: Path, data: st.DataObject
) -> None:
    value = read_json(original)
    put(value, data.draw(st.sampled_from(places(value))), data.draw(JSON))
    written = json.dumps(value, indent=2, ensure_ascii=False).encode(errors="replace") + b"\n"
    (directory / "manifest.json").write_bytes(written)
    if written == (original / "manifest.json").read_bytes():
        verify(directory, replay=False)
    else:
        assert "manifest.json" in refusal(directory, replay=False)


@FUZZ
@given(data=st.data())
def test_mangled_golden_file_is_verified_or_refused(
    directory: Path, original: Path, data: st.DataObject
) -> None:
    content = bytearray((original / "golden/cases.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (directory / "golden/cases.npz").write_bytes(content)
    forge(directory)
    verified_or_refused(directory, replay=False)
