"""Protobuf's wire format, field by field, without a library: no message is ever held in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

VARINT: Final = 0
_FIXED64: Final = 1
LENGTH: Final = 2
_FIXED32: Final = 5

Readable = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message."""

    number: int
    wire: int
    value: int  # of a varint
    start: int  # of a length-delimited payload
    end: int


class MalformedError(Exception):
    """The bytes are not a protobuf message."""


def fields(data: Readable, start: int, end: int) -> Iterator[Field]:
    """The fields of one message that lies at ``data[start:end]``, in their order.

    Raises:
        MalformedError: While iterating, at the first byte that cannot be.
    """
    at = start
    while at < end:
        key, at = varint(data, at, end)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise MalformedError(f"field number {number} at byte {at}")
        value, begin, at = _payload(data, wire, at, end)
        yield Field(number, wire, value, begin, at)


def _payload(data: Readable, wire: int, at: int, end: int) -> tuple[int, int, int]:
    """Value of a varint (0 otherwise), and where the payload begins and ends."""
    value, begin = 0, at
    if wire == VARINT:
        value, stop = varint(data, at, end)
    elif wire == LENGTH:
        length, begin = varint(data, at, end)
        stop = begin + length
    elif wire in {_FIXED32, _FIXED64}:
        stop = at + (4 if wire == _FIXED32 else 8)
    else:
        raise MalformedError(f"wire type {wire} at byte {at}")
    if stop > end:
        raise MalformedError(f"a field at byte {begin} reaches beyond its message")
    return value, begin, stop


def varint(data: Readable, at: int, end: int) -> tuple[int, int]:
    """The number at ``at``, and where the next byte lies.

    Raises:
        MalformedError: It does not end before ``end``, or is longer than 64 bits.

    Example:
        >>> varint(bytes([0xAC, 0x02]), 0, 2)
        (300, 2)
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError(f"a broken number at byte {at}")
