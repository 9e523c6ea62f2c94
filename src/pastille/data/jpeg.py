"""What a JPEG file may ask of its decoder beyond the size of its picture."""

from __future__ import annotations

from typing import Final

from pastille.errors import DataError

MAX_SCANS: Final = 32  # of a progressive picture; cameras and encoders write about ten
_SCAN: Final = b"\xff\xda"  # within a scan, FF is always followed by 00 or a restart marker


def check_scans(data: bytes) -> None:
    r"""Refuse a picture that is drawn over and over: each scan of 50 bytes costs as much as the whole.

    Args:
        data: A file that begins as JPEG; of anything else nothing is refused.

    Raises:
        DataError: It has more than `MAX_SCANS` scans.

    Example:
        >>> check_scans(b"\xff\xd8" + b"\xff\xda" * 33)
        Traceback (most recent call last):
        pastille.errors.DataError: JPEG must have at most 32 scans, got 33
    """
    if data.startswith(b"\xff\xd8") and (scans := data.count(_SCAN)) > MAX_SCANS:
        raise DataError(f"JPEG must have at most {MAX_SCANS} scans, got {scans}")
