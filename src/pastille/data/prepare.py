"""From what a client sends to what a model is fed: the code that prepared the cases of validation."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pastille.data.images import noted_pixels, scaled
from pastille.data.normalize import normalized
from pastille.data.rows import encode_row
from pastille.data.signals import read_csv_signal, read_wfdb, windows
from pastille.data.tokens import Tokenizer
from pastille.errors import DataError
from pastille.values import (
    ImageDecoding,
    Normalization,
    Preprocessing,
    SignalDecoding,
    TableEncoding,
    TensorSpec,
    TextEncoding,
)

MAX_PIXELS = 24 << 20  # of an image that is sent: about 200 MB while it is decoded
FORMATS = ("PNG", "JPEG")  # and DICOM; a TIFF has many more ways to ask for time and memory
MAX_ARCHIVE_FILES = 16
MAX_RECORD_BYTES = 16 << 20  # of all files of an archive, inflated
MAX_DIRECTORY_BYTES = 64 << 10  # of its list of files
_END_BYTES = 22  # of the record that ends an archive; a comment may follow
_LOCATOR_BYTES = 20  # before it, where the archive is of the 64-bit form


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What a model is fed, and what should be known of it.

    Attributes:
        inputs: ``{name: (N, ...)}``, in the model's types. N is 1, but for a recording: its windows.
        warnings: One sentence each, nothing of the content in it.
    """

    inputs: Mapping[str, np.ndarray]
    warnings: tuple[str, ...] = ()


def prepare(
    raw: bytes | str | Mapping[str, object],
    preprocessing: Preprocessing,
    specs: tuple[TensorSpec, ...],
    *,
    folder: Path,
) -> Prepared:
    """Prepare one raw input as the model's own validation did.

    Args:
        raw: An image file or a signal (CSV, or a zip with one ``.hea`` and one ``.dat``) as bytes, a text as
            ``str``, a row of a table as a mapping.
        preprocessing: That of the bundle; says which of these it takes.
        specs: What the model takes.
        folder: Where the files of the preprocessing lie: ``preprocessing/`` of the bundle.

    Raises:
        DataError: The input is of another kind, cannot be read, or is too large.
        UsageError: A package that reads such input is not installed.

    Example:
        >>> from pastille.values import NumberColumn
        >>> table = TableEncoding(columns=(NumberColumn(name="age", mean=50, std=10),))
        >>> spec = TensorSpec(name="input", shape=(1,), dtype="float32")
        >>> prepare({"age": 60}, Preprocessing(table=table), (spec,), folder=Path()).inputs["input"]
        array([[1.]], dtype=float32)
    """
    match preprocessing.raw, raw:
        case ImageDecoding() as how, bytes():
            pixels, warnings = noted_pixels(raw, how, limit=MAX_PIXELS, formats=FORMATS)
            return _one(scaled(pixels)[None], warnings, preprocessing, specs)
        case SignalDecoding() as how, bytes():
            cut, warnings = windows(recording(raw, how), how)
            return _one(cut, warnings, preprocessing, specs)
        case TableEncoding() as how, Mapping():
            features, warnings = encode_row(raw, how)
            return _one(features[None], warnings, preprocessing, specs)
        case TextEncoding() as how, str():
            tokens = tokenizer(folder / how.tokenizer, how)(raw)
            return Prepared(inputs={s.name: tokens[s.name][None].astype(s.dtype) for s in specs})
        case how, _:
            raise DataError(f"the model takes {KINDS[type(how)]}")


def prepare_record(
    files: Mapping[str, bytes], preprocessing: Preprocessing, specs: tuple[TensorSpec, ...]
) -> Prepared:
    """As `prepare`, of a WFDB record that comes as two files.

    Args:
        files: By name; one ends in ``.hea`` and one in ``.dat``.
        preprocessing: Has a signal.
        specs: What the model takes.

    Raises:
        DataError: It is no such record, or the model takes no signal.
    """
    if preprocessing.signal is None:
        raise DataError(f"the model takes {KINDS[type(preprocessing.raw)]}")
    found = wfdb_recording(files, preprocessing.signal)
    cut, warnings = windows(found, preprocessing.signal)
    return _one(cut, warnings, preprocessing, specs)


KINDS: Mapping[type, str] = {
    ImageDecoding: "an image file",
    SignalDecoding: "a signal: CSV, or a WFDB record",
    TableEncoding: "a row of a table, as a JSON object",
    TextEncoding: "a text",
    type(None): "arrays of numbers",
}


def _one(
    x: np.ndarray, warnings: tuple[str, ...], preprocessing: Preprocessing, specs: tuple[TensorSpec, ...]
) -> Prepared:
    """The only input of a model, normalized, ``(N, ...)``."""
    (spec,) = specs
    ready = normalize_rows(x, preprocessing.normalization).astype(spec.dtype, copy=False)
    return Prepared(inputs={spec.name: ready}, warnings=warnings)


def normalize_rows(x: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    """As `normalized`, of ``(N, C, ...)``: the channels are those of each case."""
    return x if normalization is None else np.stack([normalized(case, normalization) for case in x])


def recording(data: bytes, decoding: SignalDecoding) -> np.ndarray:
    """One recording of any length, ``(C, T)`` float32.

    Args:
        data: CSV, or a zip archive with one ``.hea`` and one ``.dat`` of a WFDB record.
        decoding: Which channels, rate and unit.

    Raises:
        DataError: It is neither, too large, or not what the model takes.
    """
    if not data.startswith(b"PK\x03\x04"):
        return read_csv_signal(data, decoding)
    files = unzipped(data)
    return wfdb_recording(files, decoding)


def wfdb_recording(files: Mapping[str, bytes], decoding: SignalDecoding) -> np.ndarray:
    """A WFDB record from its files by name, ``(C, T)`` float32.

    Raises:
        DataError: There is not one header and one signal file, or they are not what the model takes.
    """
    named = {
        end: [data for name, data in files.items() if name.lower().endswith(end)] for end in (".hea", ".dat")
    }
    if any(len(found) != 1 for found in named.values()):
        raise DataError("a WFDB record must be one .hea and one .dat file")
    return read_wfdb(named[".hea"][0], named[".dat"][0], decoding)


def unzipped(data: bytes) -> dict[str, bytes]:
    """The files of a small archive, inflated to their bound at most.

    Raises:
        DataError: It is no zip archive, encrypted, of too many files, or one is too large.
    """
    _check_directory(data)
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()  # of which the end of the archive may have said less
            if len({entry.filename for entry in entries}) < len(entries) or len(entries) > MAX_ARCHIVE_FILES:
                raise _too_many()
            for entry in entries:
                found[entry.filename] = _entry(
                    archive, entry, MAX_RECORD_BYTES - sum(map(len, found.values()))
                )
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, OSError, ValueError, EOFError):
        raise DataError("archive must be a whole zip file, not encrypted, stored or deflated") from None
    return found


def _check_directory(data: bytes) -> None:
    """Refuse a long list of files before it is read: each takes a kilobyte. The list stands at the end."""
    tail = data[-_LOCATOR_BYTES - _END_BYTES - (1 << 16) :]
    at = tail.rfind(b"PK\x05\x06")
    if not 0 <= at <= len(tail) - _END_BYTES or b"PK\x06\x07" in tail:  # the latter is zip64
        raise DataError("archive must be a whole zip file, not encrypted, stored or deflated")
    entries, size = struct.unpack_from("<HL", tail, at + 10)
    if entries > MAX_ARCHIVE_FILES or size > MAX_DIRECTORY_BYTES:
        raise _too_many()


def _too_many() -> DataError:
    return DataError(f"archive must hold at most {MAX_ARCHIVE_FILES} files, each of another name")


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError
    with archive.open(entry) as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise DataError(f"the files of an archive must have at most {MAX_RECORD_BYTES} bytes")
    return found


@lru_cache(maxsize=16)
def tokenizer(path: Path, encoding: TextEncoding) -> Tokenizer:
    """The tokenizer of a bundle, read once."""
    return Tokenizer(path, encoding)
