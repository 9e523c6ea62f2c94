"""Packed files: the same bytes come back, and nothing that is hostile gets beyond its declared size."""

from __future__ import annotations

import hashlib
import lzma
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pastille.errors import IntegrityError, OutputError
from pastille.runtime import packed
from pastille.runtime.packed import MAX_RATIO, WORTH, pack, packed_size, stored_size, unpacked

MB = 1 << 20


def sparse_bytes(zeros: float, *, seed: int = 0, n: int = 50_000) -> bytes:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) > zeros, rng.normal(size=n), 0.0).astype(np.float32).tobytes()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def opened(path: Path, data: bytes, *, size: int | None = None, digest: str | None = None) -> bytes:
    """What comes out of a packed file that declares to hold ``data``."""
    declared = len(data) if size is None else size
    with unpacked(path, size_bytes=declared, sha256=digest or sha(data)) as file:
        return file.read_bytes()


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, bytes]:
    """A packed file and what it holds."""
    data = sparse_bytes(0.8)
    (tmp_path / "model.onnx").write_bytes(data)
    assert pack(tmp_path / "model.onnx", tmp_path / "model.onnx.xz")
    return tmp_path / "model.onnx.xz", data


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.9, 0.99])
def test_comes_back_as_it_was(tmp_path: Path, zeros: float) -> None:
    data = sparse_bytes(zeros)
    source, target = tmp_path / "model.onnx", tmp_path / "model.onnx.xz"
    source.write_bytes(data)
    assert pack(source, target)
    assert opened(target, data) == data
    assert lzma.decompress(target.read_bytes()) == data  # an ordinary xz file
    assert target.stat().st_size == packed_size(source) == stored_size(source)
    bitmask = len(data) * (1 / 32 + 1 - zeros)  # and the values that are left
    assert target.stat().st_size < bitmask


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=40) | st.integers(0, 4000).map(bytes), max_size=20))
def test_any_bytes_come_back_or_are_left_alone(tmp_path: Path, pieces: list[bytes]) -> None:
    source, target, data = tmp_path / "a.onnx", tmp_path / "a.onnx.xz", b"".join(pieces)
    source.write_bytes(data)
    if pack(source, target):
        assert target.stat().st_size < WORTH * len(data)
        assert opened(target, data) == data
        target.unlink()
    else:
        assert not target.exists()


def test_equal_files_give_equal_bytes(tmp_path: Path, whole: tuple[Path, bytes]) -> None:
    path, data = whole
    (tmp_path / "other.onnx").write_bytes(data)
    assert pack(tmp_path / "other.onnx", tmp_path / "other.onnx.xz")
    assert (tmp_path / "other.onnx.xz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("data", [b"", sparse_bytes(0.0), sparse_bytes(0.2), bytes(10 * MB)])
def test_what_is_dense_empty_or_nothing_but_zeros_is_stored_as_it_is(tmp_path: Path, data: bytes) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "model.onnx.xz"
    source.write_bytes(data)
    assert not pack(source, target)
    assert not target.exists()
    assert packed_size(source) is None
    assert stored_size(source) == len(data)


def test_the_copy_is_gone_afterwards(whole: tuple[Path, bytes]) -> None:
    path, data = whole
    with unpacked(path, size_bytes=len(data), sha256=sha(data)) as file:
        assert file.name == "model.onnx"
    assert not file.exists()
    assert not file.parent.exists()


def test_a_bomb_stops_at_what_it_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, bytes]
) -> None:
    """400 MB of zeros in some 60 kB, that claim to be 1 MB: nothing beyond that is written or held."""
    written: list[int] = []
    unpack = packed._unpack

    def watched(path: Path, target: Path, limit: int) -> int:
        found = unpack(path, target, limit)
        written.append(target.stat().st_size)
        return found

    bomb = tmp_path / "bomb.onnx.xz"
    bomb.write_bytes(lzma.compress(bytes(400 * MB), preset=0))
    monkeypatch.setattr(packed, "_unpack", watched)
    tracemalloc.start()
    with pytest.raises(IntegrityError, match=f"must unpack to {MB} bytes, but holds at least"):
        opened(bomb, b"", size=MB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written == [MB] or written[0] <= MB
    assert peak < 8 * MB


def test_a_bomb_that_owns_up_is_not_opened(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.onnx.xz"
    bomb.write_bytes(lzma.compress(bytes(100 * MB), preset=0))
    most = MAX_RATIO * bomb.stat().st_size
    with pytest.raises(IntegrityError, match=f"must unpack to at most {most} bytes, but declares"):
        opened(bomb, b"", size=100 * MB)


def test_no_more_than_protobuf_can_hold(tmp_path: Path) -> None:
    large = tmp_path / "large.onnx.xz"
    with large.open("wb") as file:
        file.truncate(20 * MB)
    with pytest.raises(IntegrityError, match=f"at most {2 << 30} bytes, but declares"):
        opened(large, b"", size=(2 << 30) + 1)


def test_a_dictionary_that_would_take_gigabytes(tmp_path: Path) -> None:
    data = sparse_bytes(0.8)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 16 * MB}]
    greedy = bytearray(lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters))
    at = greedy.index(bytes([0x21, 0x01])) + 2  # the LZMA2 filter's one property: the dictionary
    header = greedy[12 : 12 + (greedy[12] + 1) * 4]
    header[at - 12] = 40  # 4 GiB
    header[-4:] = crc32(bytes(header[:-4]))
    greedy[12 : 12 + len(header)] = header
    path = tmp_path / "greedy.onnx.xz"
    path.write_bytes(bytes(greedy))
    with pytest.raises(IntegrityError, match=r"cannot be unpacked: Memory usage limit"):
        opened(path, data)


def crc32(data: bytes) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], "cannot be unpacked: it is cut off"),
        (lambda x: x[: len(x) // 2], "cannot be unpacked: it is cut off"),
        (lambda x: b"", "must unpack to at most 0 bytes"),
        (lambda x: x + b"\0", "cannot be unpacked: something follows its end"),
        (lambda x: x + x, "cannot be unpacked: something follows its end"),
        (lambda x: b"\x08\x0a" + x, "cannot be unpacked: Input format not supported"),
        (
            lambda x: x[:5000] + bytes([x[5000] ^ 1]) + x[5001:],
            "cannot be unpacked: Corrupt input data|must unpack",
        ),
        (lambda x: lzma.compress(x), "must unpack to 200000 bytes, but holds \\d+;"),
        (lambda x: lzma.compress(sparse_bytes(0.8, seed=1)), "but holds one of"),
        (lambda x: lzma.compress(sparse_bytes(0.8), lzma.FORMAT_ALONE), "Input format not supported"),
    ],
)
def test_what_is_not_as_listed(whole: tuple[Path, bytes], change: object, message: str) -> None:
    path, data = whole
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=message) as caught:
        opened(path, data)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path, at: float, bit: int) -> None:
    data = sparse_bytes(0.8, n=2000)
    stream = bytearray(lzma.compress(data))
    stream[int(at * len(stream))] ^= 1 << bit
    path = tmp_path / "model.onnx.xz"
    path.write_bytes(bytes(stream))
    try:
        assert opened(path, data) == data
    except IntegrityError as error:
        assert str(path) in str(error)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"cannot read .*model\.onnx\.xz: No such file"):
        opened(tmp_path / "model.onnx.xz", b"x")


def test_no_room(whole: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = whole

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "_unpack", full)
    with pytest.raises(OutputError, match=r"cannot unpack .*model.onnx.xz into .*: No space left on device"):
        opened(path, data)
