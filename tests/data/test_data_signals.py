"""Recordings: WFDB held against the wfdb package, CSV against numpy, and bounded."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from pastille.data.prepare import prepare, prepare_record, recording, unzipped
from pastille.data.signals import MAX_WINDOWS, parse_header, read_csv_signal, read_wfdb, windows
from pastille.errors import DataError
from pastille.values import Normalization, Preprocessing, SignalDecoding, TensorSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses what the newest pandas deprecates
    import wfdb

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
LEADS = ("I", "II", "aVR")
HOW = SignalDecoding(channels=LEADS, samples=50, rate_hz=100)
SPEC = (TensorSpec(name="ecg", shape=(3, 50), dtype="float32"),)


def record(
    folder: Path, form: str, *, names: tuple[str, ...] = LEADS, unit: str = "mV"
) -> tuple[bytes, bytes]:
    """A header and its signals, written by wfdb."""
    bits = {"16": 2000, "80": 100, "212": 1500}[form]
    stored = np.random.default_rng(3).integers(-bits, bits, (121, len(names)))
    wfdb.wrsamp(
        "r", fs=100, units=[unit] * len(names), sig_name=list(names), d_signal=stored.astype(np.int64),
        fmt=[form] * len(names), adc_gain=[200.0] * len(names), baseline=[7] * len(names),
        write_dir=str(folder),
    )  # fmt: skip
    return (folder / "r.hea").read_bytes(), (folder / "r.dat").read_bytes()


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("form", ["16", "80", "212"])
def test_formats_as_wfdb_reads_them(form: str, tmp_path: Path) -> None:
    header, signals = record(tmp_path, form)
    ours = read_wfdb(header, signals, HOW)
    theirs = wfdb.rdrecord(str(tmp_path / "r"), return_res=32).p_signal
    np.testing.assert_array_equal(ours, theirs.T)
    assert ours.dtype == np.float32


def test_channels_are_found_by_name_and_units_are_converted(tmp_path: Path) -> None:
    header, signals = record(tmp_path, "16", names=("AVR", "V1", "II", "i"), unit="uV")
    ours = read_wfdb(header, signals, HOW)
    theirs = wfdb.rdrecord(str(tmp_path / "r")).p_signal
    np.testing.assert_allclose(ours, theirs[:, [3, 2, 0]].T / 1000, rtol=1e-6)


def test_a_zip_and_two_files_are_one_recording(tmp_path: Path) -> None:
    header, signals = record(tmp_path, "16")
    files = {"x/r.hea": header, "x/r.dat": signals, "notes.txt": b""}
    packed = recording(archive(files), HOW)
    np.testing.assert_array_equal(packed, read_wfdb(header, signals, HOW))
    prepared = prepare_record(files, Preprocessing(signal=HOW), SPEC)
    np.testing.assert_array_equal(prepared.inputs["ecg"][1], packed[:, 50:100])
    assert prepared.warnings == ("the last 21 samples fill no window and were left out",)


def test_a_table_with_and_without_a_header() -> None:
    values = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    rows = "\n".join(",".join(f"{x:.9g}" for x in row) for row in values)
    np.testing.assert_array_equal(read_csv_signal(rows.encode(), HOW), values.T)
    shuffled = "\r\n".join(",".join(f"{x:.9g}" for x in row) for row in values[:, [2, 0, 1]])
    with_header = f"\ufeffAVR, I ,II\r\n{shuffled}\r\n".encode()
    np.testing.assert_array_equal(read_csv_signal(with_header, HOW), values.T)


def test_normalization_is_of_each_channel() -> None:
    scale = Normalization(mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 4.0))
    table = "\n".join(["3,4,5"] * 50).encode()
    prepared = prepare(table, Preprocessing(signal=HOW, normalization=scale), SPEC, folder=Path())
    np.testing.assert_array_equal(prepared.inputs["ecg"][0, :, 0], [1, 1, 0.5])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"I,II\n1,2\n", "must have each channel once, not so 'aVR'; needed: I, II, aVR"),
        (b"I,II,AVR,avr\n1,2,3,4\n", "not so 'aVR'"),
        (b"1,2\n3,4\n", "must have the 3 columns I, II, aVR, got 2"),
        (b"I,II,aVR\n1,2\n", "3 cells in each row, not so in row 1"),
        (b"I,II,aVR\n1,2,x\n", "numbers only, below its header"),
        (b"I,II,aVR\n1,2,nan\n", "finite numbers only"),
        (b"I,II,aVR\n1,2,1e39\n", "finite numbers only"),
        (b"I,II,aVR\n", "not so in row 1"),
        (b"\xff\xfe", "in UTF-8"),
        (b"1," * 100, "at most 64 columns"),
        (b"I,II,aVR\n" + b"\n" * (2 << 20), "at most 4194304 values"),
        (b"I,II,aVR\n1,2,1_0\n", "numbers only"),
        (b'I,II,aVR\n1,2,"' + b"1" * 200_000 + b'"\n', "must be comma-separated"),
        (b"I,II,aVR\n1,2,3\r4,5,6\r", "must be comma-separated"),
        (b"x" * (17 << 20), "at most 16777216 are read"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_tables(table: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv_signal(table, HOW)


def test_bad_records(tmp_path: Path) -> None:
    header, signals = record(tmp_path, "16")
    marked = np.frombuffer(signals, "<i2").copy()
    marked[5] = -32768
    for change, data, message in [
        (header.replace(b" 100 ", b" 500 "), signals, "500 samples per second, but the model takes 100"),
        (header, signals[:-6], "must have 726 bytes as its header says, got 720"),
        (header, marked.tobytes(), "marked as missing"),
        (header.replace(b"/mV", b"/mmHg"), signals, "must be in mV"),
        (header.replace(b" 16 ", b" 310 "), signals, "format 16, 80 or 212"),
        (header.replace(b"r 3 ", b"r/2 4 "), signals, "one segment"),
        (header.replace(b" 121", b" 99999999"), signals, "at most 64 signals"),
        (header.replace(b"200", b"0"), signals, "gain above 0"),
        (header.replace(b"200.0(", b"1e300("), signals, "gain above 0"),  # every value would be 0
        (header.replace(b"(7)", b"(" + b"9" * 400 + b")"), signals, "baseline of 32 bits"),
        (header.replace(b"aVR", b"V6"), signals, "not so 'aVR'"),
        (b"", signals, "must name the rate"),
        (b"\x00" * 100, signals, "must name the rate"),
    ]:
        with pytest.raises(DataError, match=message):
            read_wfdb(change, data, HOW)


def test_comments_of_a_header_are_passed_over() -> None:
    header = parse_header(b"# Jane Doe\nr 1 100 10\nr.dat 16 1000/mV 16 0 0 0 0 I\n# <age>: 61\n")
    assert "Doe" not in repr(header)


def test_windows() -> None:
    with pytest.raises(DataError, match=f"1 to {MAX_WINDOWS} windows, got 49 samples"):
        windows(np.zeros((3, 49)), HOW)
    with pytest.raises(DataError, match="got 3250 samples"):
        windows(np.zeros((3, 65 * 50)), HOW)


def test_a_first_line_of_many_cells_is_not_cut_into_them() -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match="at most 64 columns"):
        read_csv_signal(b"12," * (1 << 20), HOW)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 3 << 20


def directory(entry: bytes, times: int, *, wide: bool) -> bytes:
    """An archive that lists one file over and over; in the 64-bit form, where a comment hides that it is."""
    listed = b"".join(entry.replace(b"#####", b"%05d" % i) for i in range(times))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 100, 0, 65535 if wide else 0)
    if not wide:
        return listed + end
    far = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, times, times, len(listed), 0)
    return listed + far + struct.pack("<4sLQL", b"PK\6\7", 0, len(listed), 1) + end + b"x" * 65535


def test_an_archive_cannot_list_more_than_its_end_says() -> None:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)
    with pytest.raises(DataError, match="whole zip file"):
        unzipped(directory(entry + b"#####", 5000, wide=True))
    packed = zlib.compress(bytes(8 << 20))[2:-4]
    sizes = zlib.crc32(bytes(8 << 20)), len(packed), 8 << 20
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, *sizes, 1, 0) + b"a" + packed
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 8, 0, 0, *sizes, 1, 0, 0, 0, 0, 0, 0)
    listed = (entry + b"a") * 100
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(listed), len(local), 0)
    with pytest.raises(DataError, match="at most 16 files, each of another name"):
        unzipped(local + listed + end)


def test_archives_are_bounded() -> None:
    bomb = archive({"r.dat": bytes(300 << 20), "r.hea": b""})
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    with pytest.raises(DataError, match="at most 16777216 bytes"):
        unzipped(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20
    for files, message in [
        ({str(i): b"" for i in range(17)}, "at most 16 files"),
        ({str(i): bytes(1 << 20) for i in range(16)} | {"16": b"x"}, "at most 16"),
        ({"a.hea": b"", "b.hea": b"", "a.dat": b""}, "one .hea and one .dat"),
    ]:
        with pytest.raises(DataError, match=message):
            recording(archive(files), HOW)
    whole = archive({"a": b"x" * 1000})
    assert unzipped(whole) == {"a": b"x" * 1000}
    lying = bytearray(archive({str(i): b"" for i in range(2000)}))
    lying[-12:-10] = b"\x01\x00"  # says one file, and lists 2000
    for data, message in [
        (whole[:60], "whole zip file"),
        (whole[:-30], "whole zip file"),
        (whole[:4] + whole[4:-22] + b"PK\x06\x07" + whole[-22:], "whole zip file"),
        (bytes(lying), "at most 16 files"),
        (archive({str(i): bytes(15 << 17) for i in range(9)}), "at most 16777216 bytes"),
    ]:
        with pytest.raises(DataError, match=message):
            unzipped(data)
