"""Model files that are stored smaller: as xz, where many of their bytes are zero.

The standard library's LZMA is within 10 % of zstd at its slowest, on either side, and does better on sparse
weights than a bit for each weight beside the values that are left, and than ONNX's own sparse tensors, whose
indices take 8 bytes each: see `benchmarks/sparse.py`. A packed file is unpacked to a temporary one before it
is loaded, and never beyond the size that was declared.
"""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from pastille.errors import IntegrityError, OutputError
from pastille.files import sha256_file
from pastille.runtime.onnx_file import MAX_BYTES

SUFFIX: Final = ".xz"
WORTH: Final = 0.8  # of the file's size: what saves less is stored as it is
MAX_RATIO: Final = 200  # of unpacked over packed: 99 % zeros make some 60
_ZEROS: Final = 0.3  # share of zero bytes below which packing cannot be worth its time
_MEMORY: Final = 64 << 20  # that unpacking may take
_CHUNK: Final = 1 << 20
_REMEDY: Final = "fetch it again or write it anew"
# A small dictionary: among trained weights nothing repeats but zeros, and the search for more costs minutes.
_FILTERS: Final[list[dict[str, Any]]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 4,
        "dict_size": 1 << 16,
        "nice_len": 16,
        "depth": 4,
        "lc": 2,
        "lp": 2,
        "pb": 2,
    }
]


def pack(source: Path, target: Path) -> bool:
    """Write a packed copy of a file where that is worth it.

    Args:
        source: The file.
        target: Written only if the copy has less than 80 % of the size; equal files give equal bytes.

    Returns:
        Whether it was written.

    Raises:
        OSError: A file cannot be read or written.
    """
    if not _may_be_worth_it(source):
        return False
    with target.open("wb") as file:
        file.writelines(_packed(source))
    if _is_worth_it(target.stat().st_size, source.stat().st_size):
        return True
    target.unlink()
    return False


def packed_size(path: Path) -> int | None:
    """Bytes that a file would take packed; None where packing is not worth it.

    Raises:
        OSError: The file cannot be read.
    """
    if not _may_be_worth_it(path):
        return None
    found = sum(map(len, _packed(path)))
    return found if _is_worth_it(found, path.stat().st_size) else None


def stored_size(path: Path) -> int:
    """Bytes that a bundle takes for a model file: packed, where that is worth it.

    Raises:
        OSError: The file cannot be read.
    """
    return packed_size(path) or path.stat().st_size


def _may_be_worth_it(path: Path) -> bool:
    """Judged by the zero bytes alone, which are quickly counted."""
    size = path.stat().st_size
    return size > 0 and int(np.count_nonzero(np.memmap(path, np.uint8, mode="r"))) <= (1 - _ZEROS) * size


def _is_worth_it(found: int, size: int) -> bool:
    return size / MAX_RATIO <= found < WORTH * size


def _packed(path: Path) -> Iterator[bytes]:
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_FILTERS)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield compressor.compress(chunk)
    yield compressor.flush()


@contextmanager
def unpacked(path: Path, *, size_bytes: int, sha256: str) -> Iterator[Path]:
    """A temporary copy of what a packed file holds, for as long as it is needed.

    Args:
        path: The packed file, which is not trusted.
        size_bytes: What it must hold, exactly.
        sha256: Likewise.

    Yields:
        A file with the same name but for ``.xz``.

    Raises:
        IntegrityError: It declares more than 2 GiB or 200 times its own size, holds more or less than that or
            something else, or is no xz file.
        OutputError: There is no room for the copy.
    """
    _check_declared(path, size_bytes)
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        target = Path(folder) / path.name.removesuffix(SUFFIX)
        try:
            found = _unpack(path, target, size_bytes)
        except (lzma.LZMAError, EOFError) as error:
            raise IntegrityError(f"{path} cannot be unpacked: {error}; {_REMEDY}") from None
        except OSError as error:
            raise OutputError(f"cannot unpack {path} into {folder}: {error.strerror or error}") from error
        if found != size_bytes:
            more = "at least " if found > size_bytes else ""
            raise IntegrityError(
                f"{path} must unpack to {size_bytes} bytes, but holds {more}{found}; {_REMEDY}"
            )
        if (digest := sha256_file(target)) != sha256:
            raise IntegrityError(
                f"{path} must unpack to a file of SHA-256 {sha256[:12]}…, but holds one of {digest[:12]}…; "
                f"{_REMEDY}"
            )
        yield target


def _check_declared(path: Path, size_bytes: int) -> None:
    try:
        stored = path.stat().st_size
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}") from None
    most = min(MAX_BYTES, MAX_RATIO * stored)
    if size_bytes > most:
        raise IntegrityError(
            f"{path} must unpack to at most {most} bytes, but declares {size_bytes}; {_REMEDY}"
        )


def _unpack(path: Path, target: Path, limit: int) -> int:
    """Write what a file holds; its size, or one that is beyond the limit, with nothing more written."""
    found = 0
    with path.open("rb") as source, target.open("xb") as file:
        for piece in _pieces(source):
            if (found := found + len(piece)) > limit:
                return found
            file.write(piece)
    return found


def _pieces(source: Any) -> Iterator[bytes]:
    """What one xz stream holds, a bounded piece at a time.

    Raises:
        EOFError: The stream is cut off, or something follows it.
    """
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    while not stream.eof:
        data = source.read(_CHUNK) if stream.needs_input else b""
        if stream.needs_input and not data:
            raise EOFError("it is cut off")
        yield stream.decompress(data, _CHUNK)
    if stream.unused_data or source.read(1):
        raise EOFError("something follows its end")
