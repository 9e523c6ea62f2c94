"""Bodies under gzip and deflate: read within bounds, written where the client asks for it."""

from __future__ import annotations

import gzip
import zlib

from pastille.wire.errors import WireError, malformed, too_large

_CHUNK = 1 << 16
_STEP = 1 << 20  # bytes inflated at once: 64 KB may become 64 MB
_MOST_MEMBERS = 64  # of one gzip body; each costs a decompressor
_WORTH = 1024  # bytes: below that, headers weigh more than what is saved
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's numbers for the three forms


def inflate(body: bytes, encoding: str, limit: int) -> bytes | bytearray:
    """Undo ``Content-Encoding``; never more than ``limit`` bytes are held.

    Args:
        body: As it came.
        encoding: The header's value: gzip, deflate (with zlib's frame, or raw as some clients send it),
            identity, or ``""``.
        limit: Bytes that it may inflate to.

    Raises:
        WireError: ``media_type`` for another encoding, ``too_large``, or ``malformed`` where it is broken,
            cut off, or followed by something else.

    Example:
        >>> inflate(zlib.compress(b"abc"), "deflate", 3)
        bytearray(b'abc')
        >>> inflate(zlib.compress(bytes(10**6)), "deflate", 1000)
        Traceback (most recent call last):
        pastille.wire.errors.WireError: the body inflates to more than 1000 bytes
    """
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return _inflated(body, _GZIP, limit, members=_MOST_MEMBERS)
        case "deflate":
            return _inflated(body, _ZLIB if _has_zlib_frame(body) else _RAW, limit, members=1)
        case _:
            raise WireError("media_type", "Content-Encoding must be gzip, deflate or identity")


def _has_zlib_frame(body: bytes) -> bool:
    """RFC 1950: method 8, and a check that makes the first two bytes a multiple of 31."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def _inflated(body: bytes, form: int, limit: int, *, members: int) -> bytearray:
    view, out, at, done = memoryview(body), bytearray(), 0, 0
    while at < len(view) or not done:
        if done == members:
            raise malformed("the compressed body is followed by something else")
        at = _member(view, at, form, limit, out)
        done += 1
    return out  # no copy: it may be large


def _member(view: memoryview, at: int, form: int, limit: int, out: bytearray) -> int:
    """Inflate one member from ``at`` into ``out``; say where it ends."""
    inflater, pending = zlib.decompressobj(form), b""
    while not inflater.eof:
        if not pending:
            pending = bytes(view[at : at + _CHUNK])
            at += len(pending)
        before = len(out)
        try:
            # One byte more than allowed tells too much from just enough.
            out += inflater.decompress(pending, min(_STEP, limit + 1 - len(out)))
        except zlib.error:
            raise malformed("the compressed body is broken") from None
        if len(out) > limit:
            raise too_large(f"the body inflates to more than {limit} bytes")
        pending = inflater.unconsumed_tail
        if not pending and at == len(view) and len(out) == before and not inflater.eof:
            raise malformed("the compressed body is cut off")
    return at - len(inflater.unused_data)


def compress(body: bytes, accept_encoding: str | None) -> tuple[bytes, str | None]:
    """Compress an answer where the client asks for it and it is worth it.

    HTTP libraries list every encoding that they can read, unasked, and tensors hardly get smaller:
    compressing for each of them could cost more than the model. A list only permits, then; one
    encoding alone asks.

    Args:
        body: The answer.
        accept_encoding: The request's header; None or an empty one asks for nothing.

    Returns:
        The body, and the ``Content-Encoding`` that is sent with it; None where it is as it was.

    Example:
        >>> compress(b"short", "gzip")
        (b'short', None)
        >>> [compress(bytes(5000), header)[1] for header in ("deflate", "gzip, deflate, br")]
        ['deflate', None]
    """
    match (accept_encoding or "").strip().lower() if len(body) >= _WORTH else "":
        case "gzip":
            return gzip.compress(body, compresslevel=1, mtime=0), "gzip"
        case "deflate":
            return zlib.compress(body, 1), "deflate"
        case _:
            return body, None
