from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import BINARY, NUMBER, RGB_8, write_images

from pastille.data.csv_images import read_csv, read_csv_images
from pastille.data.images import decode_image
from pastille.data.leakage import inspect
from pastille.data.split import Splits
from pastille.errors import DataError
from pastille.progress import SILENT
from pastille.recipe import CsvImagesData, TaskSection

HEADER = "image_id,dx,age,sex,patient"
SKIN = {"mel": "malignant", "other": "benign"}
BANDS = {"age": {"column": "age", "bins": [45, 65]}}
HAM = Path(__file__).parents[2] / "../shared/data/ham10000_128.zip"


def rows(n: int = 30) -> list[str]:
    ages = ("30", "45", "70", "")
    return [f"i{i},{'mel' if i % 3 == 0 else 'nv'},{ages[i % 4]},{'FM'[i % 2]},P{i // 2}" for i in range(n)]


def write(folder: Path, lines: list[str], *, header: str = HEADER, images: int = 30) -> None:
    (folder / "table.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    write_images(folder / "images", [f"i{i}.png" for i in range(images)])


def read(folder: Path, *, task: TaskSection = BINARY, **options: Any) -> Splits:
    asked = {"reader": "csv_images", "path": "table.csv", "images": "images", "target": "dx", "size": 8}
    asked |= {"label_map": SKIN} if task.labels else {}
    section = CsvImagesData.model_validate({**asked, **options})
    return read_csv_images(section, task, base=folder, seed=0, progress=SILENT)


def test_reads_images_labels_groups_subjects_and_strata(tmp_path: Path) -> None:
    write(tmp_path, rows())
    splits = read(
        tmp_path,
        groups={"sex": "sex", "age_band": {"column": "age", "bins": [45, 65]}},
        split={"by": "patient", "validation": 0.2, "test": 0.2},
        strata="dx",
        normalize="none",
    )
    assert sum(split.n for _, split in splits) == 30
    names = [path.stem for _, split in splits for path in split.inputs.paths]  # type: ignore[attr-defined]
    assert sorted(names) == sorted(f"i{i}" for i in range(30))
    for _, split in splits:
        assert split.strata is not None
        assert split.subjects is not None
        for i, path in enumerate(split.inputs.paths):  # type: ignore[attr-defined]
            number = int(path.stem[1:])
            assert split.targets[i] == (number % 3 == 0)
            assert split.groups["sex"][i] == "FM"[number % 2]
            assert split.groups["age_band"][i] == ("<45", "45-64", ">=65", "unknown")[number % 4]
            assert split.subjects[i] == f"P{number // 2}"
            assert split.strata[i] == ("mel" if number % 3 == 0 else "nv")
            np.testing.assert_array_equal(split.inputs[i], decode_image(path, RGB_8, None))
    assert inspect(splits, progress=SILENT).leaks == ()


def test_normalization_is_measured_and_recorded(tmp_path: Path) -> None:
    write(tmp_path, rows())
    splits = read(tmp_path)
    assert splits.preprocessing is not None
    assert splits.preprocessing.image == RGB_8
    pixels = np.stack(list(splits.train.inputs))
    np.testing.assert_allclose(pixels.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    path = splits.test.inputs.paths[0]  # type: ignore[attr-defined]
    served = decode_image(path.read_bytes(), RGB_8, splits.preprocessing.normalization)
    np.testing.assert_array_equal(served, splits.test.inputs[0])


def test_the_same_seed_gives_the_same_digest(tmp_path: Path) -> None:
    write(tmp_path, rows())
    first, second = (inspect(read(tmp_path), progress=SILENT).digest for _ in range(2))
    assert first == second


def test_a_number_as_target(tmp_path: Path) -> None:
    write(tmp_path, [f"i{i},{i / 4}" for i in range(30)], header="image_id,score")
    splits = read(tmp_path, task=NUMBER, target="score")
    assert splits.train.targets.dtype == np.float64
    with pytest.raises(DataError, match=r"data.label_map must be left out of a regression task"):
        read(tmp_path, task=NUMBER, target="score", label_map=SKIN)


def test_a_column_that_names_splits_and_subjects(tmp_path: Path) -> None:
    names = ("train", "val", "test")
    write(tmp_path, [f"i{i},mel,{names[i % 3]},P{i % 10}" for i in range(30)], header="image_id,dx,part,pid")
    splits = read(tmp_path, split="part", subject="pid")
    assert [split.n for _, split in splits] == [10, 10, 10]
    leaks = inspect(splits, progress=SILENT).leaks
    assert {leak.what for leak in leaks} == {"subject"}


def test_several_folders_endings_subfolders_and_symlinks(tmp_path: Path) -> None:
    write(tmp_path, ["i0,mel", "b.PNG,nv", "sub/c,mel", "link,nv"], header="image_id,dx", images=1)
    write_images(tmp_path / "more", ["b.PNG"], first_seed=7)
    write_images(tmp_path / "more" / "sub", ["c.bmp"], first_seed=8)
    (tmp_path / "more" / "link.jpg").symlink_to(tmp_path / "images" / "i0.png")
    splits = read(tmp_path, images=["images", "more"])
    found = {path.name for _, split in splits for path in split.inputs.paths}  # type: ignore[attr-defined]
    assert found == {"i0.png", "b.PNG", "c.bmp", "link.jpg"}


@pytest.mark.parametrize("name", ["i99", "../images/i0", "/etc/hostname", ""])
def test_an_image_that_is_not_there(tmp_path: Path, name: str) -> None:
    write(tmp_path, ["i0,mel", f"{name},nv"], header="image_id,dx")
    message = (
        rf"csv row 3: column 'image_id' is '{name}', but no such image lies in \S+/images; endings: .bmp"
    )
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_an_image_that_could_be_two(tmp_path: Path) -> None:
    write(tmp_path, ["i0,mel", "i1,nv", "i2,nv"], header="image_id,dx")
    write_images(tmp_path / "images", ["i0.bmp"])
    with pytest.raises(
        DataError, match=r"row 2: .* is 'i0', which could be \S+i0.bmp and \S+i0.png; write the ending"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (rows(), {"target": "diagnosis"}, "no column 'diagnosis'; allowed: image_id, dx, age, sex, patient"),
        (rows(), {"groups": {"sex": "sexx"}}, "has no column 'sexx'; did you mean 'sex'? allowed:"),
        (rows(), {"split": {"by": "subject"}}, "has no column 'subject'"),
        (rows(), {"label_map": {"mel": "malignant"}}, "row 3: column 'dx' is 'nv', not in data.label_map"),
        (rows(), {"label_map": {}}, "row 2: column 'dx' is 'mel', not in task.labels; allowed: benign"),
        (["i0,mel,old,F,P1"], {"groups": BANDS}, "row 2: column 'age' must be a finite number, or empty"),
        (["i0,mel,3,F,"], {"split": {"by": "patient"}}, "row 2: column 'patient' must name a subject, got"),
        (["i0,mel,3,F,P1", "i1,nv"], {}, "row 3 must have 5 cells like its header, got 2"),
        (["i0,mel,3,F,P1", "", "i1,nv"], {}, "row 4 must have 5 cells like its header, got 2"),
        ([], {}, "has no rows below its header; it must have one per image"),
        (rows(2), {}, "the data must have at least 3 cases to be split in three, got 2"),
        (rows(), {"split": "sex"}, "row 2: column 'sex' must be train, validation (or val) or test, got 'F'"),
        (rows(), {"images": "pictures"}, "data.images: there is no "),
        (rows(), {"path": "other.csv"}, "data.path: there is no "),
        (rows(), {"size": 0}, "data.size must be between 1 and 4096"),
        (rows(), {"channels": 1, "normalize": "imagenet"}, "data.normalize must give one mean and one std"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, lines: list[str], options: dict[str, Any], message: str
) -> None:
    write(tmp_path, lines)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    write(tmp_path, ["i0,mel,nv"], header="image_id,dx,dx")
    with pytest.raises(DataError, match="has more than one column 'dx'"):
        read(tmp_path)


def test_quotes_a_byte_order_mark_and_white_space(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('\ufeffid , note\r\n a ,"x, ""y""\nz"\r\nb,\r\n', encoding="utf-8")
    table = read_csv(path, ["id", "note"])
    assert table.columns == {"id": ["a", "b"], "note": ['x, "y"\nz', ""]}
    assert table.where("id", 1).endswith("t.csv row 3: column 'id'")


@pytest.mark.parametrize(
    "content", [b"id\n\xff\xfe\n", b'id\n"never closed\n', b"id\n" + b"x" * 200_000 + b"\n"]
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t.csv must be a comma-separated table in UTF-8: "):
        read_csv(path, ["id"])


def test_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.touch()
    with pytest.raises(DataError, match=r"t.csv has no column 'id'; allowed: none"):
        read_csv(path, ["id"])


def test_a_table_has_a_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id\n" + "a\n" * 50)
    with pytest.raises(DataError, match=r"t.csv has 103 bytes, but a table may have at most 100"):
        read_csv(path, ["id"], limit=100)


def test_a_broken_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, rows())
    (tmp_path / "images" / "i3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"image \S+/i3.png cannot be decoded"):
        inspect(read(tmp_path, normalize="none"), progress=SILENT)


@pytest.mark.skipif(not HAM.exists(), reason="the development data are not here")
def test_reads_ham10000_in_its_published_layout(tmp_path: Path) -> None:
    with zipfile.ZipFile(HAM) as file:
        file.extractall(tmp_path)
    label_map = {"mel": "malignant", "bcc": "malignant", "akiec": "malignant", "other": "benign"}
    splits = read(
        tmp_path,
        path="metadata.csv",
        size=64,
        label_map=label_map,
        groups={"sex": "sex", **BANDS},
        split={"by": "lesion_id"},
        normalize="imagenet",
    )
    assert sum(split.n for _, split in splits) == 5984
    for _, split in splits:
        assert split.targets.mean() == pytest.approx(0.157, abs=0.002)
        assert set(split.groups["age"]) == {"<45", "45-64", ">=65", "unknown"}
        assert set(split.groups["sex"]) == {"male", "female", "unknown"}
    assert splits.test.inputs[0].shape == (3, 64, 64)
