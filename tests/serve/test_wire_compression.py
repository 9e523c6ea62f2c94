"""Compressed bodies: what the standard library writes is read; what is broken, cut off or a bomb is not."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pastille.wire import WireError, compress, inflate

TEXT = b"0123456789" * 20_000
LIMIT = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "x-gzip": gzip.compress,
}


@pytest.mark.parametrize("data", [b"", b"a", TEXT, bytes(range(256)) * 300])
def test_what_others_compress_is_read(data: bytes) -> None:
    for encoding, pack in FORMS.items():
        assert inflate(pack(data), encoding, LIMIT) == data
    assert inflate(raw_deflate(data), "deflate", LIMIT) == data
    for encoding in ("", "identity", " Identity"):
        assert inflate(data, encoding, LIMIT) == data


def test_a_gzip_body_may_have_several_members() -> None:
    assert (
        inflate(gzip.compress(TEXT) + gzip.compress(b"") + gzip.compress(b"x"), "gzip", LIMIT) == TEXT + b"x"
    )


@pytest.mark.parametrize("encoding", FORMS)
def test_the_limit_is_exact(encoding: str) -> None:
    packed = FORMS[encoding](TEXT)
    assert inflate(packed, encoding, len(TEXT)) == TEXT
    with pytest.raises(WireError, match="more than 199999 bytes") as error:
        inflate(packed, encoding, len(TEXT) - 1)
    assert error.value.cause == "too_large"


@pytest.mark.parametrize("encoding", FORMS)
def test_a_bomb_takes_no_more_memory_than_is_allowed(encoding: str) -> None:
    bomb = FORMS[encoding](bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(WireError, match="inflates to more"):
        inflate(bomb, encoding, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * LIMIT


def test_what_is_allowed_is_held_once() -> None:
    body, limit = gzip.compress(bytes(24 << 20), 1), 24 << 20
    tracemalloc.start()
    assert len(inflate(body, "gzip", limit)) == limit
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * limit


BROKEN = {
    "cut off": gzip.compress(TEXT)[:-9],
    "cut off before its check": gzip.compress(TEXT)[:-1],
    "another check": gzip.compress(TEXT)[:-5] + b"\0" + gzip.compress(TEXT)[-4:],
    "followed by zeros": gzip.compress(TEXT) + bytes(8),
    "followed by the start of a member": gzip.compress(TEXT) + gzip.compress(TEXT)[:5],
    "nothing": b"",
    "text": b"no gzip at all",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused(name: str) -> None:
    with pytest.raises(WireError) as error:
        inflate(BROKEN[name], "gzip", LIMIT)
    assert error.value.cause == "malformed"


@pytest.mark.parametrize("pack", [zlib.compress, raw_deflate])
def test_deflate_is_refused_when_cut_off_or_followed(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(TEXT)
    for broken in (packed[:-1], packed[:20], packed + b"x"):
        with pytest.raises(WireError):
            inflate(broken, "deflate", LIMIT)


def test_a_million_members_are_not_opened_one_by_one() -> None:
    with pytest.raises(WireError, match="followed by something else"):
        inflate(gzip.compress(b"") * 100_000, "gzip", LIMIT)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip;q=1"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(WireError, match="must be gzip, deflate or identity") as error:
        inflate(b"", encoding, LIMIT)
    assert error.value.cause == "media_type"


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        (" deflate ", "deflate"),
        ("gzip, deflate, br", None),
        ("gzip;q=0", None),
        ("*", None),
        ("a" * 100_000 + ",gzip", None),
    ],
)
def test_an_answer_is_compressed_as_it_is_asked_for(header: str | None, encoding: str | None) -> None:
    packed, said = compress(TEXT, header)
    assert said == encoding
    assert inflate(packed, said or "", len(TEXT)) == TEXT
    assert (len(packed) < len(TEXT)) == (encoding is not None)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_random_bytes_are_an_answer_or_an_error(data: bytes, encoding: str) -> None:
    try:
        assert len(inflate(data, encoding, 1000)) <= 1000
    except WireError as error:
        assert error.cause in ("malformed", "too_large")
