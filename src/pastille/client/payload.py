"""What a user gives a client, as the body that the server reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pastille.errors import UsageError
from pastille.wire import write_json

# By the end of a file's name; the server looks at the first bytes of everything else.
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".dcm": "application/dicom",
    ".csv": "text/csv",
    ".zip": "application/zip",
    ".json": "application/json",
    ".txt": "text/plain",
}
_UNKNOWN = "application/octet-stream"

Given = str | os.PathLike[str] | bytes | Mapping[str, Any]


def is_arrays(given: object) -> bool:
    """Whether it is ``{name: array}``, and not a row of values."""
    return (
        isinstance(given, Mapping) and bool(given) and all(isinstance(v, np.ndarray) for v in given.values())
    )


def payload_of(given: Given, media_type: str | None) -> tuple[bytes, str]:
    """The body and media type of a file, of bytes or of a row.

    Args:
        given: A file's path; what is in one; or a row ``{column: value}``.
        media_type: What it is; None: by the file's name, or the server finds out.

    Raises:
        UsageError: There is no such file, it is nothing of these, or a row holds what JSON does not.

    Example:
        >>> payload_of({"age": 61, "sex": "female"}, None)
        (b'{"age":61,"sex":"female"}', 'application/json')
    """
    if isinstance(given, bytes):
        return given, media_type or _UNKNOWN
    if isinstance(given, Mapping):
        return _row(given), media_type or "application/json"
    path = _path(given)
    try:
        return path.read_bytes(), media_type or MEDIA_TYPES.get(path.suffix.lower(), _UNKNOWN)
    except (OSError, ValueError) as error:  # a text with a zero character is no path
        why = (getattr(error, "strerror", None) or "not a file").lower()
        hint = "; text is sent by predict_text" if isinstance(given, str) else ""
        raise UsageError(f"cannot read {str(path)[:200]}: {why}{hint}") from None


def _path(given: object) -> Path:
    if isinstance(given, str | os.PathLike):
        return Path(given)
    wanted = "a file's path, bytes, a row {column: value}, or a numpy array"
    raise UsageError(f"give {wanted}, not {type(given).__name__}")


def _row(row: Mapping[str, Any]) -> bytes:
    try:
        return write_json({name: _plain(value) for name, value in row.items()})
    except (TypeError, ValueError):
        raise UsageError("a row must hold texts, finite numbers, truth values or nothing") from None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
