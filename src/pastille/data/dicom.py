"""DICOM images as 8-bit pictures: bounded before they are parsed, and nothing of the patient in an error.

The order is that of PS3.4 annex N: modality LUT, then VOI LUT or window, and MONOCHROME1 is inverted last.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pastille.data.dicom_file import (
    MAX_BYTES,
    MAX_SEQUENCE_BYTES,
    PILLOW,
    RLE,
    BoundedReads,
    Contents,
    check_rle,
    contents,
)
from pastille.data.jpeg import check_scans
from pastille.errors import DataError, UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_PIXELS = 16 << 20  # of one image; a mammogram has 14 million
_BLOCK = 1 << 20  # pixels that are worked on at once
NO_WINDOW = "the DICOM file names no window, so its lowest value is black and its highest white"

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(data: bytes, *, limit: int = MAX_BYTES) -> tuple[Image.Image, tuple[str, ...]]:
    """Turn a DICOM file into the picture that a viewer shows first.

    Args:
        data: The file: one frame, grey of 8 or 16 bits, or colour of 8.
        limit: Bytes that it, and what it holds once inflated, may have.

    Returns:
        Mode ``L`` or ``RGB``, and warnings: `NO_WINDOW` where grey of more than 8 bits comes without one.

    Raises:
        DataError: It is too large, cut off, compressed otherwise than Pillow and pydicom decode, has several
            frames or more than `MAX_PIXELS` pixels, or is no such image.
        UsageError: pydicom is not installed.
    """
    held = contents(data, limit=limit)
    try:
        dataset = _parsed(held)
        _require_image(dataset)
        _check_frame(dataset, held.syntax)
        return _picture(dataset)
    except UsageError:
        raise
    except Exception as error:  # of every type on hostile files; its text may quote what is of the patient
        raise DataError(f"DICOM file cannot be decoded ({type(error).__name__})") from None


def _parsed(held: Contents) -> Dataset:
    try:
        from pydicom import config
        from pydicom.dataset import FileMetaDataset
        from pydicom.filereader import read_dataset
    except ImportError:
        raise UsageError("DICOM needs pydicom; install it with pip install 'pastille[dicom]'") from None
    config.settings.reading_validation_mode = config.IGNORE  # its warnings quote values
    dataset = read_dataset(BoundedReads(held.data), held.implicit, held.little_endian)
    _check_tables(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = held.syntax
    return dataset


def _check_tables(dataset: Dataset) -> None:
    """Tables are parsed when they are looked at, by a reader without bounds."""
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        raw = dataset.get_item(name) if name in dataset else None
        if len(getattr(raw, "value", None) or b"") > MAX_SEQUENCE_BYTES:
            raise DataError(f"DICOM file has a look-up table of more than {MAX_SEQUENCE_BYTES} bytes")


def _require_image(dataset: Dataset) -> None:
    pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    if "PixelData" not in dataset or pixels < 1:
        raise DataError("DICOM file holds no image")
    if pixels > MAX_PIXELS:
        raise DataError(f"DICOM file has {pixels} pixels, but at most {MAX_PIXELS} are decoded")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise DataError("DICOM file holds several frames; send one image per file")
    shown, bits = str(dataset.get("PhotometricInterpretation", "")), int(dataset.BitsAllocated)
    samples = 1 if shown in _GREY else 3 if shown in _COLOUR and bits == 8 else 0
    if bits not in (8, 16) or int(dataset.get("SamplesPerPixel", 0)) != samples:
        raise DataError(
            "DICOM file must hold MONOCHROME1 or MONOCHROME2 of 8 or 16 bits, or RGB or YBR of 8 bits"
        )


def _check_frame(dataset: Dataset, syntax: str) -> None:
    """A compressed frame must be as large as the data set says, before it is decoded."""
    if syntax not in PILLOW and syntax != RLE:
        return
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if syntax == RLE:
        depth = int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) // 8
        check_rle(frame, expected=rows * columns * depth)
        return
    check_scans(frame)
    with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
        if image.size != (columns, rows):
            raise DataError("DICOM file has a compressed frame of another size than it says")


def _picture(dataset: Dataset) -> tuple[Image.Image, tuple[str, ...]]:
    from pydicom.pixels import pixel_array

    stored = pixel_array(dataset, index=0)  # (H, W) | (H, W, 3), colour as RGB
    if stored.ndim == 3:
        return Image.fromarray(stored.astype(np.uint8), "RGB"), ()
    shown, warnings = _grey(dataset, stored)
    return Image.fromarray(shown, "L"), warnings


def _grey(dataset: Dataset, stored: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Black to white, ``(H, W)`` uint8; some rows at a time, for as doubles they take eight times more."""
    from pydicom.pixels.processing import apply_modality_lut

    step = max(1, _BLOCK // stored.shape[1])
    blocks = [slice(start, start + step) for start in range(0, len(stored), step)]
    ends = _ends(dataset, (apply_modality_lut(stored[block], dataset) for block in blocks))
    shown = np.empty(stored.shape, np.uint8)
    for block in blocks:
        unit = _unit(dataset, apply_modality_lut(stored[block], dataset), ends)
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
        if not np.isfinite(unit).all():
            raise DataError("DICOM file has a table or a window that cannot be")
        unit = np.clip(unit, 0, 1)  # a table may hold more than it says
        shown[block] = np.rint(255 * (1 - unit if inverted else unit))
    return shown, (NO_WINDOW,) if ends else ()


def _ends(dataset: Dataset, recorded: Iterable[np.ndarray]) -> tuple[float, float] | None:
    """What is black and white where the file does not say; None where it does, or has 8 bits, unsigned."""
    named = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    rescaled = "RescaleSlope" in dataset or "ModalityLUTSequence" in dataset
    plain = int(dataset.BitsStored) == 8 and not rescaled and not dataset.get("PixelRepresentation")
    if named or plain or dataset.get("VOILUTSequence"):
        return None
    each = [(float(x.min()), float(x.max())) for x in recorded]
    return min(low for low, _ in each), max(high for _, high in each)


def _unit(dataset: Dataset, recorded: np.ndarray, ends: tuple[float, float] | None) -> np.ndarray:
    """Grey values on [0, 1], before any inversion."""
    if ends is not None:
        low, high = ends
        return (recorded - low) / ((high - low) or 1.0)
    if dataset.get("VOILUTSequence"):
        from pydicom.pixels.processing import apply_voi

        table = dataset.VOILUTSequence[0]
        return np.asarray(apply_voi(_whole(recorded), dataset) / (2.0 ** int(table.LUTDescriptor[2]) - 1))
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return recorded / 255
    center, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    return window(recorded, center, width, str(dataset.get("VOILUTFunction") or "LINEAR").upper())


def _whole(recorded: np.ndarray) -> np.ndarray:
    """A rescale slope of 1 makes floats of integers, which no table is indexed by."""
    return recorded if recorded.dtype.kind in "iu" else np.rint(recorded).astype(np.int32)


def _first(value: Any) -> float:
    """The first of several windows: what a viewer opens with."""
    return float(value if isinstance(value, (int, float, str)) else value[0])


def window(recorded: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """A window of interest, PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Args:
        recorded: ``(H, W)``, after the modality LUT.
        center: In units of ``recorded``.
        width: Likewise; at least 1 for ``LINEAR``, else above 0.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.

    Returns:
        ``(H, W)`` float in [0, 1].

    Raises:
        DataError: The window or the function cannot be.

    Example:
        >>> window(np.array([[0, 50, 100]]), 50, 101, "LINEAR").round(3)
        array([[0.005, 0.505, 1. ]])
    """
    least = 1.0 if function == "LINEAR" else math.ulp(0)
    known = function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    if not known or not math.isfinite(center) or not least <= width < math.inf:
        raise DataError("DICOM file has a window that cannot be")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # e^∞ is what makes it 0
            return np.asarray(1 / (1 + np.exp(-4 * (recorded - center) / width)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # a threshold
        return (recorded > center).astype(np.float64)
    return np.asarray(np.clip((recorded - center) / width + 0.5, 0, 1))
