"""The outside of a DICOM file: what it is written in, and how much of it there is, before it is parsed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pastille.errors import DataError

MAX_BYTES = 64 << 20  # of a file, and of what a deflated one holds
MAX_ELEMENTS = 20_000  # each takes half a kilobyte once it is parsed
MAX_RUNS = 4 << 20  # of a run-length encoded frame, which is unpacked run by run
MAX_READS = 3 * MAX_ELEMENTS  # of a parser, which reads each element's head, length and value
MAX_SEQUENCE_BYTES = 1 << 20  # of a sequence whose items are not looked at here
_MAGIC_AT, _MAGIC = 128, b"DICM"
_UNDEFINED = 0xFFFFFFFF
_SYNTAX, _PIXELS = (0x0002, 0x0010), (0x7FE0, 0x0010)
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})

# PS3.5, table A-1 ff.; of the compressed ones those that Pillow and pydicom alone decode.
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
PILLOW = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
NATIVE = frozenset({IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED, BIG_ENDIAN})
SYNTAXES = NATIVE | PILLOW | {RLE}


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """A data set that is bounded, but not parsed yet."""

    syntax: str  # UID of its transfer syntax
    data: bytes  # inflated, where it was deflated

    @property
    def implicit(self) -> bool:
        """Whether elements leave out what type they are of."""
        return self.syntax == IMPLICIT

    @property
    def little_endian(self) -> bool:
        """The order of bytes."""
        return self.syntax != BIG_ENDIAN


class BoundedReads(io.BytesIO):
    """A data set that a parser reads from: whatever it takes for an element, it finds so many at most."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file.

        Raises:
            DataError: It was read too often.
        """
        self._left -= 1
        if self._left < 0:
            raise DataError(f"DICOM file has more than the {MAX_ELEMENTS} elements that are read")
        return super().read(size)


def is_dicom(data: bytes) -> bool:
    """Whether a file says that it is DICOM.

    Example:
        >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"DICM")
        (True, False)
    """
    return data[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC


def contents(data: bytes, *, limit: int = MAX_BYTES) -> Contents:
    """Take a file apart as far as is needed to know that parsing it is harmless.

    Args:
        data: The file.
        limit: Bytes that it, and what it holds, may have.

    Raises:
        DataError: It is no DICOM file, too large, cut off, of a transfer syntax that is not decoded here,
            or of more elements than an image has.
    """
    if len(data) > limit:
        raise DataError(f"DICOM file has {len(data)} bytes, but at most {limit} are read")
    if not is_dicom(data):
        raise DataError("DICOM file must begin with 128 bytes and then DICM")
    try:
        syntax, start = _meta(data)
        rest = data[start:]
        held = Contents(syntax=syntax, data=_inflated(rest, limit) if syntax == DEFLATED else rest)
        _check_elements(held)
    except (struct.error, zlib.error):
        raise DataError("DICOM file is cut off or malformed") from None
    return held


def _meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax, and where the data set begins: after the last element of group 2."""
    found, at = "", _MAGIC_AT + 4
    while data[at : at + 2] == b"\x02\x00":
        tag, value, end = _element(data, at, implicit=False, order="<")
        if tag == _SYNTAX:
            found = data[value:end].decode("ascii", "replace").strip("\x00 ")
        at = end
    if found not in SYNTAXES:
        raise DataError(
            "DICOM file has a transfer syntax that is not decoded here; allowed: uncompressed, deflated, "
            "RLE, JPEG baseline and JPEG 2000"
        )
    return found, at


def _inflated(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    found = inflater.decompress(data, limit + 1)
    if len(found) > limit:
        raise DataError(f"DICOM file inflates to more than the {limit} bytes that are read")
    return found


def _check_elements(held: Contents) -> None:
    """What a parser would read otherwise than it is read here is not read at all."""
    if all(0x40 < letter < 0x5B for letter in held.data[4:6]) == held.implicit and len(held.data) >= 8:
        raise DataError("DICOM file is not written in the transfer syntax that it names")
    for n, (tag, length) in enumerate(_elements(held)):
        if n >= MAX_ELEMENTS:
            raise DataError(f"DICOM file has more than the {MAX_ELEMENTS} elements that are read")
        if tag[0] == 0x0028 and length > MAX_SEQUENCE_BYTES:
            raise DataError(f"DICOM file has a look-up table of more than {MAX_SEQUENCE_BYTES} bytes")


def _elements(held: Contents) -> Iterator[tuple[tuple[int, int], int]]:
    """Tag and length of every element: those within sequences of undefined length as well, others not."""
    at, size, order = 0, len(held.data), "<" if held.little_endian else ">"
    while at + 8 <= size:
        tag, value, end = _element(held.data, at, implicit=held.implicit, order=order)
        if end > size and tag != _PIXELS:
            raise struct.error
        yield tag, end - value
        at = end


def _element(data: bytes, at: int, *, implicit: bool, order: str) -> tuple[tuple[int, int], int, int]:
    """Tag, where the value begins, and where the next element does: within one of undefined length."""
    tag: tuple[int, int] = struct.unpack_from(f"{order}HH", data, at)
    kind = data[at + 4 : at + 6]
    if implicit or tag[0] == 0xFFFE:
        (length,), value = struct.unpack_from(f"{order}L", data, at + 4), at + 8
    elif kind in _LONG:
        (length,), value = struct.unpack_from(f"{order}L", data, at + 8), at + 12
    else:
        (length,), value = struct.unpack_from(f"{order}H", data, at + 6), at + 8
    return tag, value, value if length == _UNDEFINED else value + length


def check_rle(frame: bytes, *, expected: int) -> None:
    """Refuse a run-length encoded frame that unpacks to more than the image has; nothing is unpacked.

    Args:
        frame: As DICOM PS3.5 annex G lays it out.
        expected: Bytes of the image.

    Raises:
        DataError: It would be larger, by more than the padding that writers add, or of more than `MAX_RUNS`
            runs, or is malformed.
    """
    if len(frame) > 64 + 2 * (expected + 1024):  # not even runs of one byte take more
        raise DataError("DICOM file has a run-length encoded frame that is larger than its image")
    if len(frame) < 64:
        raise DataError("DICOM file has a run-length encoded frame that is cut off")
    count, *offsets = struct.unpack_from("<16L", frame)
    starts = offsets[: min(count, 15)]
    total = runs = 0
    for start, end in zip(starts, [*starts[1:], len(frame)], strict=True):
        size, count = _rle_bytes(frame[start:end], expected + 1024)
        total, runs = total + size, runs + count
        if runs > MAX_RUNS:
            raise DataError(f"DICOM file has a frame of more than the {MAX_RUNS} runs that are read")
        if total > expected + 1024:
            raise DataError("DICOM file has a run-length encoded frame that is larger than its image")


def _rle_bytes(segment: bytes, limit: int) -> tuple[int, int]:
    """How much a segment unpacks to, and of how many runs, counted until either is past its limit."""
    at = total = runs = 0
    while at < len(segment) and total <= limit and runs <= MAX_RUNS:
        head, runs = segment[at], runs + 1
        literal, run = head + 1, 257 - head
        total += literal if head < 128 else run if head > 128 else 0
        at += 1 + (literal if head < 128 else 1 if head > 128 else 0)
    return total, runs
