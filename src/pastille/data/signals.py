"""Recordings as arrays: CSV tables, and WFDB (PhysioNet) records of formats 16, 80 and 212, from memory."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pastille.errors import DataError
from pastille.values import SignalDecoding

MAX_CSV_BYTES = 16 << 20
MAX_CHANNELS = 64
MAX_VALUES = 4 << 20  # of one recording, all channels together
MAX_WINDOWS = 64

_GAINS = (1e-9, 1e9)  # beyond them, values of 32 bits become 0 or infinite
_MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "v": 1e3}
# "16x1:0+24": a format, then perhaps samples per frame, skew and byte offset; only the first two may stand.
_FORMAT = re.compile(r"(16|80|212)(?:x1)?(?::0)?(?:\+0)?")
_GAIN = re.compile(r"([0-9.eE+-]+)(?:\((-?[0-9]+)\))?(?:/(\S+))?")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One line of a WFDB header."""

    name: str
    file: str
    format: str
    gain: float  # stored units per physical one
    baseline: int  # stored value of a physical 0
    unit: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """A WFDB header, as far as signals need it; comments, which may speak of the patient, are passed over."""

    rate_hz: float
    samples: int
    channels: tuple[Channel, ...]


def windows(recording: np.ndarray, decoding: SignalDecoding) -> tuple[np.ndarray, tuple[str, ...]]:
    """Cut a recording into whole windows, one after the other.

    Args:
        recording: ``(C, T)``.
        decoding: Says how long a window is.

    Returns:
        ``(W, C, samples)``, and a warning where a rest was left out.

    Raises:
        DataError: It is shorter than one window, or has more than `MAX_WINDOWS`.

    Example:
        >>> decoding = SignalDecoding(channels=("I",), samples=2, rate_hz=100)
        >>> windows(np.arange(5.0)[None], decoding)[0].tolist()
        [[[0.0, 1.0]], [[2.0, 3.0]]]
    """
    samples = decoding.samples
    count, rest = divmod(recording.shape[1], samples)
    if not 1 <= count <= MAX_WINDOWS:
        raise DataError(
            f"recording must have {samples} samples for each of 1 to {MAX_WINDOWS} windows, "
            f"got {recording.shape[1]} samples"
        )
    cut = recording[:, : count * samples].reshape(len(recording), count, samples)
    said = (f"the last {rest} samples fill no window and were left out",) if rest else ()
    return np.ascontiguousarray(cut.transpose(1, 0, 2)), said


def read_csv_signal(data: bytes, decoding: SignalDecoding) -> np.ndarray:
    r"""A table with one row per sample, already at the rate and in the unit that the model takes.

    Args:
        data: UTF-8, comma-separated; a header of channel names in any order, or none and exactly the
            channels in their order.
        decoding: Says which channels.

    Returns:
        ``(C, T)`` float32.

    Raises:
        DataError: It is too large, lacks a channel, or has a cell that is no finite number.

    Example:
        >>> decoding = SignalDecoding(channels=("I", "II"), samples=2, rate_hz=100)
        >>> read_csv_signal(b"II,I\n1,2\n3,4\n", decoding)
        array([[2., 4.],
               [1., 3.]], dtype=float32)
    """
    if len(data) > MAX_CSV_BYTES:
        raise DataError(f"signal table has {len(data)} bytes, but at most {MAX_CSV_BYTES} are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("signal table must be comma-separated text in UTF-8") from None
    first, _, rest = text.partition("\n")
    names = [name.strip().strip('"') for name in first.split(",", MAX_CHANNELS)]
    if len(names) > MAX_CHANNELS:
        raise DataError(f"signal table must have at most {MAX_CHANNELS} columns")
    has_header = not all(map(_is_number, names))
    values = _table(rest if has_header else text, columns=len(names))
    places = _places(names, decoding) if has_header else _in_order(len(names), decoding)
    return np.ascontiguousarray(values[:, places].T)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python reads as nothing: 1_0 would be 10


def _table(text: str, *, columns: int) -> np.ndarray:
    """The rows of a table, ``(T, columns)`` float32."""
    if (text.count("\n") + 1) * columns > MAX_VALUES:
        raise DataError(f"signal table must have at most {MAX_VALUES} values")
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error:  # a cell of 128 KB, or lines that end as on very old machines
        raise DataError("signal table must be comma-separated, each line ended by a line feed") from None
    odd = next((i for i, row in enumerate(rows, 1) if len(row) != columns), None)
    if odd is not None or not rows:
        raise DataError(f"signal table must have {columns} cells in each row, not so in row {odd or 1}")
    try:
        if "_" in text:  # Python reads 1_0 as 10
            raise ValueError
        with np.errstate(over="ignore"):  # infinite, and refused below
            values = np.array(rows, dtype=np.float64).astype(np.float32)
    except ValueError:
        raise DataError("signal table must hold numbers only, below its header") from None
    if not np.isfinite(values).all():
        raise DataError("signal table must hold finite numbers only")
    return values


def _in_order(columns: int, decoding: SignalDecoding) -> list[int]:
    if columns != len(decoding.channels):
        raise DataError(
            f"signal table without a header must have the {len(decoding.channels)} columns "
            f"{', '.join(decoding.channels)}, got {columns}"
        )
    return list(range(columns))


def _places(names: Sequence[str], decoding: SignalDecoding) -> list[int]:
    """Where each channel is; capitals do not matter, for headers write ``aVR`` and ``AVR``."""
    known = [name.casefold() for name in names]
    missing = [name for name in decoding.channels if known.count(name.casefold()) != 1]
    if missing:
        raise DataError(
            f"recording must have each channel once, not so {missing[0]!r}; "
            f"needed: {', '.join(decoding.channels)}"
        )
    return [known.index(name.casefold()) for name in decoding.channels]


def read_wfdb(header: bytes, signals: bytes, decoding: SignalDecoding) -> np.ndarray:
    """A WFDB record of one segment, whose signals lie in one file.

    Args:
        header: The ``.hea`` file.
        signals: The ``.dat`` file; formats 16, 80 and 212.
        decoding: Says which channels, and at what rate and in what unit.

    Returns:
        ``(C, T)`` float32, physical values.

    Raises:
        DataError: The header is not such a record, the rate differs, a channel is missing or in another
            kind of unit, a value is marked as missing, or the file is of another length.
    """
    said = parse_header(header)
    if said.rate_hz != decoding.rate_hz:
        raise DataError(
            f"recording has {said.rate_hz:g} samples per second, but the model takes {decoding.rate_hz:g}; "
            "resample it first"
        )
    stored = _stored(signals, said)  # (T, channels of the file)
    places = _places([channel.name for channel in said.channels], decoding)
    return np.stack([_physical(stored[:, i], said.channels[i], decoding.unit) for i in places])


def parse_header(data: bytes) -> Header:
    r"""Read a WFDB header (the format of PhysioNet's ``header(5)``).

    Args:
        data: The ``.hea`` file.

    Raises:
        DataError: It is none, of several segments or files, or of a format other than 16, 80 and 212.

    Example:
        >>> parse_header(b"r 1 100 1000\nr.dat 16 1000/mV 16 0 0 0 0 I\n").channels[0].gain
        1000.0
    """
    text = data[: 64 << 10].decode("utf-8", "replace")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        _, count, rate, samples, *_ = lines[0]
        channels = tuple(_channel(line) for line in lines[1:])
        found = Header(rate_hz=float(rate.split("/")[0]), samples=int(samples), channels=channels)
    except (ValueError, IndexError):
        raise DataError(
            "WFDB header must name the rate, the length and each signal's format and gain"
        ) from None
    if str(len(channels)) != count or len({(c.file, c.format) for c in channels}) != 1:
        raise DataError("WFDB record must be one segment, all its signals in one file of one format")
    if len(channels) > MAX_CHANNELS or not 1 <= found.samples <= MAX_VALUES // len(channels):
        raise DataError(f"WFDB record must have at most {MAX_CHANNELS} signals and {MAX_VALUES} values")
    return found


def _channel(fields: Sequence[str]) -> Channel:
    """``FILE FORMAT GAIN(BASELINE)/UNIT BITS ZERO FIRST SUM BLOCK NAME``."""
    form = _FORMAT.fullmatch(fields[1])
    gain = _GAIN.fullmatch(fields[2])
    if form is None or gain is None:
        raise DataError("WFDB record must be of format 16, 80 or 212, one sample per frame, with a gain")
    size, baseline, unit = gain.groups()
    zero = int(fields[4]) if len(fields) > 4 else 0
    if (
        not _GAINS[0] <= float(size) <= _GAINS[1]
        or abs(zero if baseline is None else int(baseline)) > 1 << 31
    ):
        raise DataError("WFDB record must have a gain above 0 and a baseline of 32 bits")
    return Channel(
        name=" ".join(fields[8:]),
        file=fields[0],
        format=form.group(1),
        gain=float(size),
        baseline=zero if baseline is None else int(baseline),
        unit=unit or "mV",
    )


def _stored(data: bytes, header: Header) -> np.ndarray:
    """What is on disk, ``(T, channels)`` int16 or int32."""
    n = header.samples * len(header.channels)
    form = header.channels[0].format
    size = {"16": 2 * n, "80": n, "212": -(-3 * n // 2)}[form]
    if not size <= len(data) <= size + 4:  # writers pad to whole words
        raise DataError(f"WFDB signal file must have {size} bytes as its header says, got {len(data)}")
    values = _unpacked(np.frombuffer(data, np.uint8, size), form, n)
    if (values == {"16": -(1 << 15), "80": -(1 << 7), "212": -(1 << 11)}[form]).any():
        raise DataError("WFDB record has values that are marked as missing")
    return values.reshape(header.samples, len(header.channels))


def _unpacked(raw: np.ndarray, form: str, n: int) -> np.ndarray:
    match form:
        case "16":
            return raw.view("<i2")
        case "80":  # offset binary
            return raw.astype(np.int16) - 128
        case _:
            return _212(raw, n)


def _212(raw: np.ndarray, n: int) -> np.ndarray:
    """Two samples of 12 bits in three bytes; the middle byte has the high four bits of both."""
    whole = np.concatenate([raw, np.zeros(-len(raw) % 3, np.uint8)]).reshape(-1, 3).astype(np.int16)
    first = whole[:, 0] | ((whole[:, 1] & 0x0F) << 8)
    second = whole[:, 2] | ((whole[:, 1] & 0xF0) << 4)
    both = np.stack([first, second], axis=1).reshape(-1)[:n]
    return np.where(both > 2047, both - 4096, both)


def _physical(stored: np.ndarray, channel: Channel, unit: str) -> np.ndarray:
    values = (stored.astype(np.float32) - np.float32(channel.baseline)) / np.float32(channel.gain)
    factor = _factor(channel.unit, unit)
    return values if factor == 1 else values * np.float32(factor)


def _factor(given: str, wanted: str) -> float:
    """What a number in one unit is multiplied by to be in the other."""
    if given.casefold() == wanted.casefold():
        return 1.0
    try:
        return _MILLIVOLTS[given.casefold()] / _MILLIVOLTS[wanted.casefold()]
    except KeyError:
        raise DataError(f"recording must be in {wanted}, but its header names another unit") from None
