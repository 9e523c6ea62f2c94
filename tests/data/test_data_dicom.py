"""DICOM: held against pydicom's own processing, and bounded."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import UID

from pastille.data import dicom_file
from pastille.data.dicom import NO_WINDOW, read_dicom, window
from pastille.data.dicom_file import DEFLATED, MAX_ELEMENTS, RLE, check_rle
from pastille.data.images import decode_image, decoding_for
from pastille.errors import DataError

EXPLICIT = "1.2.840.10008.1.2.1"
PATIENT = "Doe^Jane"


def bundled(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path)).read_bytes()


def written(pixels: np.ndarray, syntax: str = EXPLICIT, **attributes: Any) -> bytes:
    """A small DICOM file of a patient with a name."""
    data = Dataset()
    data.PatientName = PATIENT
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def expected(data: bytes) -> np.ndarray:
    """Modality LUT, VOI LUT, inversion, each as pydicom does it; scaled by the range it gives."""
    read = dcmread(io.BytesIO(data))
    shown = apply_voi_lut(apply_modality_lut(read.pixel_array, read), read)
    low, high = 0.0, 2.0**read.BitsStored - 1
    if read.PixelRepresentation:
        low, high = -(2.0 ** (read.BitsStored - 1)), 2.0 ** (read.BitsStored - 1) - 1
    if "RescaleSlope" in read:
        low, high = (float(x * read.RescaleSlope + read.RescaleIntercept) for x in (low, high))
    unit = (shown - low) / (high - low)
    return np.asarray(np.rint(255 * (1 - unit if read.PhotometricInterpretation == "MONOCHROME1" else unit)))


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
             "MR_small_jp2klossless.dcm", "image_dfl.dcm", "693_J2KI.dcm", "examples_overlay.dcm"],
)  # fmt: skip
def test_a_real_file_as_pydicom_processes_it(name: str) -> None:
    data = bundled(name)
    image, warnings = read_dicom(data)
    assert image.mode == "L"
    assert warnings == ()
    np.testing.assert_array_equal(np.asarray(image), expected(data))


@pytest.mark.parametrize("shown", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_rescale_then_window_then_inversion(shown: str, function: str) -> None:
    stored = np.random.default_rng(0).integers(-1500, 2500, (9, 7)).astype(np.int16)
    data = written(
        stored, PhotometricInterpretation=shown, RescaleSlope=2, RescaleIntercept=-1024,
        WindowCenter=[40, 300], WindowWidth=[400, 50], VOILUTFunction=function,
    )  # fmt: skip
    image, warnings = read_dicom(data)
    assert warnings == ()
    np.testing.assert_array_equal(np.asarray(image), expected(data))


def test_a_table_of_interest_comes_after_the_modality_table() -> None:
    def table(first: int, entries: np.ndarray) -> Dataset:
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [len(entries), first, 16], entries.tolist()
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
        return item

    stored = np.arange(16, dtype=np.uint16).reshape(4, 4)
    modality, interest = table(0, np.arange(16)[::-1] + 100), table(100, np.arange(16) * 4369)
    data = written(stored, ModalityLUTSequence=Sequence([modality]), VOILUTSequence=Sequence([interest]))
    np.testing.assert_array_equal(np.asarray(read_dicom(data)[0]).ravel(), np.arange(16)[::-1] * 17)


def test_what_is_beyond_the_range_of_a_table_is_white_and_does_not_wrap() -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 0, 10], [0, 512, 1024, 2046]  # more than 10 bits hold
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    stored = np.arange(4, dtype=np.uint16).reshape(2, 2)
    image, _ = read_dicom(written(stored, VOILUTSequence=Sequence([item])))
    assert np.asarray(image).ravel().tolist() == [0, 128, 255, 255]


def test_eight_signed_bits_are_not_wrapped() -> None:
    stored = np.array([[-128, 0], [1, 127]], np.int8)
    image, warnings = read_dicom(written(stored))
    assert warnings == (NO_WINDOW,)
    np.testing.assert_array_equal(np.asarray(image), [[0, 128], [129, 255]])


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm",
             "SC_rgb_small_odd.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_jpeg_no_color_transform.dcm"],
)  # fmt: skip
def test_colour_becomes_rgb_as_pydicom_makes_it(name: str) -> None:
    data = bundled(name)
    np.testing.assert_array_equal(np.asarray(read_dicom(data)[0]), pixel_array(io.BytesIO(data)))


def test_without_a_window_the_answer_says_so() -> None:
    stored = np.array([[100, 300], [200, 500]], np.uint16)
    image, warnings = read_dicom(written(stored))
    assert warnings == (NO_WINDOW,)
    np.testing.assert_array_equal(np.asarray(image), [[0, 128], [64, 255]])


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3)])
def test_eight_bits_are_decoded_as_a_png_of_the_same_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    for channels in (1, 3):
        how = decoding_for((6, 5), channels)
        np.testing.assert_array_equal(
            decode_image(written(pixels), how, None), decode_image(png.getvalue(), how, None)
        )


def test_a_large_image_is_worked_on_in_parts() -> None:
    stored = np.add.outer(np.arange(2048), np.arange(1024)).astype(np.uint16)
    data = written(stored, RescaleSlope=2, RescaleIntercept=-1024)
    tracemalloc.start()
    image, _ = read_dicom(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(image), np.rint(stored / stored.max() * 255))
    assert peak < 20 * stored.size


def test_a_file_on_disk_is_read_by_its_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(written(np.full((4, 4), 255, np.uint8)))
    assert (decode_image(path, decoding_for(2, 1), None) == 1).all()
    path.write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.dcm: DICOM file must begin with"):
        decode_image(path, decoding_for(2, 1), None)


def test_a_window_that_cannot_be() -> None:
    for center, width, function in [(0, 0, "LINEAR"), (0, 0, "SIGMOID"), (np.nan, 5, "LINEAR"), (0, 5, "X")]:
        with pytest.raises(DataError, match="window that cannot be"):
            window(np.zeros((1, 1)), center, width, function)
    assert window(np.array([[0, 1]]), 1, 1).tolist() == [[0, 1]]  # a threshold: PS3.3 C.11.2.1.2.1


# Each is refused before it takes the memory that it asks for.


def bomb() -> bytes:
    head = written(np.zeros((1, 1), np.uint8), DEFLATED)
    start = 132 + 12 + struct.unpack_from("<L", head, 140)[0]
    packed = zlib.compressobj(9, wbits=-15)
    return head[:start] + packed.compress(bytes(200 << 20)) + packed.flush()


def flood() -> bytes:
    """Elements without end, hidden in sequences of undefined length."""
    data, opened = written(np.zeros((1, 1), np.uint8)), b"\x09\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff"
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * (2 * MAX_ELEMENTS)
    at = data.index(b"\x10\x00\x10\x00PN")
    return data[:at] + opened + items + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00" + data[at:]


def empty_runs() -> bytes:
    """Bytes that stand for nothing, each looked at."""
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x80" * 500_000
    return written(np.zeros((10, 10), np.uint8), RLE, PixelData=encapsulate([frame]))


def run_lengths() -> bytes:
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 500_000
    pixels = np.zeros((10, 10), np.uint8)
    return written(pixels, RLE, PixelData=encapsulate([frame]))


def items(wide: bool) -> bytes:
    """As many elements in an item whose length is said, or under a head of the other encoding."""
    data, many = written(np.zeros((1, 1), np.uint8)), b"\x09\x00\x10\x10\x00\x00\x00\x00" * 100_000
    at = data.index(b"\x10\x00\x10\x00PN")
    if wide:  # the first element hides from who takes the file at its word that all others are one
        head = struct.pack("<HHL", 8, 5, 12) + struct.pack("<HH2sHL", 9, 1, b"OB", 0, len(many))
        return data[:at] + head + many + data[at:]
    opened = b"\x09\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0" + struct.pack("<L", len(many))
    return data[:at] + opened + many + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00" + data[at:]


def drawn(scans: int) -> bytes:
    """A progressive JPEG whose last scan is drawn over and over."""
    file = io.BytesIO()
    Image.new("L", (10, 10)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    frame = jpeg[:-2] + scan * scans + jpeg[-2:]
    return written(np.zeros((10, 10), np.uint8), "1.2.840.10008.1.2.4.50", PixelData=encapsulate([frame]))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflated": (bomb, "inflates to more than"),
    "flood": (flood, f"more than the {MAX_ELEMENTS} elements"),
    "items": (lambda: items(False), f"more than the {MAX_ELEMENTS} elements"),
    "two encodings": (lambda: items(True), "not written in the transfer syntax"),
    "scans": (lambda: drawn(100), "at most 32 scans"),
    "empty runs": (empty_runs, "larger than its image"),
    "run lengths": (run_lengths, "larger than its image"),
    "rows": (lambda: written(np.zeros((1, 1), np.uint8), Rows=60000, Columns=60000), "3600000000 pixels"),
    "frames": (lambda: written(np.zeros((1, 1), np.uint8), NumberOfFrames="1000000"), "several frames"),
    "cut off": (lambda: written(np.zeros((9, 9), np.uint8))[:-40], "cannot be decoded"),
    "no picture": (lambda: bundled("test-SR.dcm"), "holds no image"),
    "JPEG-LS": (lambda: bundled("JPEGLSNearLossless_08.dcm"), "transfer syntax that is not decoded"),
    "no DICOM": (lambda: bytes(200), "must begin with 128 bytes and then DICM"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_within_bounds(name: str) -> None:
    make, message = HOSTILE[name]
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as refused:
            read_dicom(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150 << 20
    assert PATIENT not in str(refused.value)


def test_a_frame_of_too_many_runs_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_file, "MAX_RUNS", 500)
    frame = struct.pack("<16L", 2, 64, 464, *[0] * 13) + b"\x80" * 400 + b"\x80" * 400
    with pytest.raises(DataError, match="more than the 500 runs"):
        check_rle(frame, expected=10_000)


def test_a_compressed_frame_of_another_size_than_the_file_says() -> None:
    jpeg = io.BytesIO()
    Image.new("L", (300, 300)).save(jpeg, "JPEG")
    data = written(
        np.zeros((10, 10), np.uint8), "1.2.840.10008.1.2.4.50", PixelData=encapsulate([jpeg.getvalue()])
    )
    with pytest.raises(DataError, match="another size than it says"):
        read_dicom(data)


def test_no_error_quotes_what_is_written_in_the_file() -> None:
    data = written(np.zeros((4, 4), np.uint16), WindowCenter="11111111", WindowWidth="9")
    with pytest.raises(DataError, match=r"cannot be decoded \(\w+\)$"):
        read_dicom(data.replace(b"11111111", b"Doe^Jane"))


def test_no_error_quotes_the_patient() -> None:
    data = bytearray(written(np.zeros((4, 4), np.uint8)))
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for at in random.integers(132, len(data), 3):
            changed[at] = random.integers(256)
        try:
            read_dicom(bytes(changed))
        except DataError as error:
            assert "Doe" not in str(error)
