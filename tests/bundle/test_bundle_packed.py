"""Bundles whose models are stored packed answer like the others, and are refused like the others."""

from __future__ import annotations

import hashlib
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_parts import CLASSES, FEATURES, forge, make_bundle, read_json, samples, variant
from onnx import TensorProto, helper, numpy_helper

from pastille.bundle import answer_cases, load_bundle, onnx_file, read_manifest, verify
from pastille.cli.benching import bench_files
from pastille.cli.shown import bytes_text
from pastille.elsewhere import replay_bundle
from pastille.errors import IntegrityError
from pastille.progress import SILENT
from pastille.runtime import load

HIDDEN = 4096


def write_network(path: Path, *, zeros: float) -> None:
    """A perceptron of which so many weights are zero."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (FEATURES, HIDDEN), "w2": (HIDDEN, CLASSES)}
    arrays = {
        name: np.where(rng.random(shape) > zeros, rng.normal(size=shape), 0).astype(np.float32)
        for name, shape in shapes.items()
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w1"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "w2"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    files = {"compressed": folder / "sparse.onnx", "fp32": folder / "dense.onnx"}
    for name, zeros in (("compressed", 0.9), ("fp32", 0.0)):
        write_network(files[name], zeros=zeros)
    sessions = {name: load(file) for name, file in files.items()}
    golden = answer_cases({"input": samples(8, seed=3)}, sessions, output="logits")
    parts = tuple(variant(name, path=file) for name, file in files.items())
    return make_bundle(
        folder / "bundle", variants=parts, golden=golden, selected="compressed", selection_reason="smaller"
    )


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def refusal(directory: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        verify(directory)
    assert "compressed.onnx.xz" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_sparse_model_is_packed_and_the_dense_one_is_not(original: Path) -> None:
    raw = (original.parent / "sparse.onnx").read_bytes()
    sparse, dense = (read_manifest(original / "manifest.json").variant(n) for n in ("compressed", "fp32"))
    assert sorted(p.name for p in (original / "models").iterdir()) == ["compressed.onnx.xz", "fp32.onnx"]
    stored = (original / sparse.file).read_bytes()
    assert lzma.decompress(stored) == raw
    assert (sparse.size_bytes, sparse.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert (sparse.model.size_bytes, sparse.model.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert len(stored) < 0.2 * len(raw)
    assert dense.unpacked is None
    assert dense.model.sha256 == dense.sha256


def test_it_answers_as_the_file_that_was_put_in(original: Path) -> None:
    bundle = load_bundle(original)
    batch = samples(5, seed=4)
    assert bundle.variant == "compressed"
    expected = load(original.parent / "sparse.onnx")({"input": batch})["logits"]
    assert np.array_equal(bundle.predict(batch).outputs, expected)
    assert [replay.passes for replay in verify(original).replays] == [True, True]


def test_what_it_answers_with_does_not_depend_on_how_it_is_stored(original: Path, directory: Path) -> None:
    """Another library may pack otherwise: the content digest is that of the model."""
    before = read_manifest(directory / "manifest.json").content
    file = directory / "models/compressed.onnx.xz"
    file.write_bytes(lzma.compress(lzma.decompress(file.read_bytes()), preset=6))
    forge(directory)
    assert verify(directory).manifest.content == before


def test_the_file_is_there_while_it_is_needed(original: Path) -> None:
    sparse = read_manifest(original / "manifest.json").variant("compressed")
    with onnx_file(original, sparse) as path:
        assert path.read_bytes() == (original.parent / "sparse.onnx").read_bytes()
    assert not path.exists()


def test_bench_tells_both_sizes(original: Path) -> None:
    found = bench_files(original, against=None, batch_sizes=(1,), threads=1, shapes=(), progress=SILENT)
    sparse = read_manifest(original / "manifest.json").variant("compressed")
    result = found["compressed"]
    assert (result.file, result.size_bytes) == (str(original / sparse.file), sparse.size_bytes)
    assert result.against == str(original / "models/fp32.onnx")
    assert f"stored packed; {bytes_text(sparse.model.size_bytes)} when it is loaded" in result.notes
    assert result.sha256 == sparse.model.sha256
    assert found["fp32"].size_bytes == (original / "models/fp32.onnx").stat().st_size


def test_replayed_from_the_bundle(original: Path) -> None:
    found = replay_bundle("native", original)
    assert found["compressed"].identical == found["compressed"].cases == 8
    assert found["compressed"].file.endswith("models/compressed.onnx.xz")


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 1.0])
def test_a_changed_byte(directory: Path, where: float) -> None:
    path = directory / "models/compressed.onnx.xz"
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    assert "was changed" in refusal(directory)
    forge(directory)  # by one who knows how hashes are made
    assert "unpack" in refusal(directory)


def swapped(directory: Path, data: bytes, **says: Any) -> None:
    (directory / "models/compressed.onnx.xz").write_bytes(data)
    forge(directory, lambda value: value["variants"][0]["unpacked"].update(says))


def test_a_bomb(directory: Path) -> None:
    bomb = lzma.compress(bytes(64 << 20), preset=0)
    swapped(directory, bomb)
    assert "holds at least" in refusal(directory)
    swapped(directory, bomb, size_bytes=64 << 20)
    assert "must unpack to at most" in refusal(directory)
    with pytest.raises(IntegrityError):
        load_bundle(directory)


def test_another_model(directory: Path) -> None:
    other = directory.parent / "other.onnx"
    write_network(other, zeros=0.8)
    swapped(directory, lzma.compress(other.read_bytes()))
    assert "holds one of" in refusal(directory)
    data = other.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    swapped(directory, lzma.compress(data), sha256=digest, size_bytes=len(data))
    assert "does not answer the golden cases as validated" in refusal(directory)


def test_what_is_no_model(directory: Path) -> None:
    data = b"not a model" * 50
    digest = hashlib.sha256(data).hexdigest()
    swapped(directory, lzma.compress(data), sha256=digest, size_bytes=len(data))
    with pytest.raises(IntegrityError, match="is not an ONNX model"):
        verify(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["variants"][0].update(unpacked=None), "must say what it holds"),
        (lambda v: v["variants"][1].update(unpacked=v["variants"][0]["unpacked"]), "must say what it holds"),
        (lambda v: v["variants"][0]["unpacked"].update(size_bytes=-1), "must have a SHA-256 and a size"),
        (lambda v: v["variants"][0]["unpacked"].update(sha256="x"), "must have a SHA-256 and a size"),
        (lambda v: v["variants"][0]["unpacked"].update(size_bytes=1 << 62), "must unpack to at most"),
        (lambda v: v["variants"][0]["unpacked"].update(size_bytes=5), "must unpack to 5 bytes"),
    ],
)
def test_a_manifest_that_contradicts_itself(directory: Path, change: Any, message: str) -> None:
    forge(directory, change)
    with pytest.raises(IntegrityError, match=message):
        verify(directory)


def test_a_manifest_of_before(directory: Path) -> None:
    forge(directory, lambda value: value.update(schema=3))
    assert read_json(directory)["schema"] == 3
    with pytest.raises(IntegrityError, match="has bundle schema 3, but this Pastille reads 5"):
        verify(directory)
