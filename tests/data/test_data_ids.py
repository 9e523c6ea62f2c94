from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import BINARY, NUMBER, THREE, split_of, splits_of, write_images

from pastille.data.cases import cases
from pastille.data.checks import check_targets
from pastille.data.ids import MAX_ID, at, check_ids, checked_ids
from pastille.data.leakage import check_leaks, inspect
from pastille.data.load import load_splits
from pastille.data.split import Split, Splits
from pastille.errors import DataError, LeakageError
from pastille.progress import SILENT
from pastille.recipe import CsvImagesData, DataSection, ImageFolderData, NpzData, SourceData

NAMES = np.array(["img_0.jpg", "img_1.jpg", "img_2.jpg", "img_3.jpg"])


def load(base: Path, section: DataSection) -> Splits:
    return load_splits(section, BINARY, base=base, seed=0, progress=SILENT)


def csv_images(folder: Path, names: list[str], **more: Any) -> Splits:
    write_images(folder / "images", [f"{name}.png" for name in dict.fromkeys(names)])
    lines = [f"{name},{'malignant' if i % 2 else 'benign'}" for i, name in enumerate(names)]
    (folder / "table.csv").write_text("\n".join(["image_id,dx", *lines]))
    options = {"path": "table.csv", "images": "images", "target": "dx", "size": 8, **more}
    return load(folder, CsvImagesData.model_validate({"reader": "csv_images", **options}))


def npz(folder: Path, arrays: dict[str, Any], **more: Any) -> Splits:
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(30, 2)), y=np.arange(30) % 2, **arrays)
    return load(folder, NpzData.model_validate({"reader": "npz", "path": "data.npz", **more}))


def all_ids(splits: Splits) -> list[str]:
    return sorted(str(name) for _, split in splits for name in (() if split.ids is None else split.ids))


def test_images_of_a_table_are_called_as_there(tmp_path: Path) -> None:
    names = [f"ISIC_{i:02}" for i in range(20)]
    splits = csv_images(tmp_path, names)
    assert all_ids(splits) == names
    for _, split in splits:
        assert split.ids is not None
        # The id is of the image beside it, and of its target.
        assert [path.stem for path in split.inputs.paths] == split.ids.tolist()  # type: ignore[attr-defined]
        assert [int(name[-2:]) % 2 for name in split.ids] == split.targets.tolist()


def test_images_of_folders_are_called_by_their_path(tmp_path: Path) -> None:
    for seed, label in enumerate(BINARY.labels):
        write_images(tmp_path / "data" / label, [f"{i}.png" for i in range(6)], first_seed=10 * seed)
    section = ImageFolderData.model_validate({"reader": "image_folder", "path": "data", "size": 8})
    splits = load(tmp_path, section)
    assert all_ids(splits) == [f"{label}/{i}.png" for label in BINARY.labels for i in range(6)]
    assert inspect(splits, progress=SILENT).leaks == ()


def test_rows_of_an_archive_are_called_by_their_number(tmp_path: Path) -> None:
    splits = npz(tmp_path, {})
    assert splits.test.ids is not None
    rows = [int(name.removeprefix("row ")) for name in splits.test.ids]
    assert [row % 2 for row in rows] == splits.test.targets.tolist()
    assert len(all_ids(splits)) == len(set(all_ids(splits))) == 30


@pytest.mark.parametrize("ids", [np.array([f"P{i}" for i in range(30)]), np.arange(100, 130)])
def test_an_archive_may_name_its_rows(tmp_path: Path, ids: np.ndarray) -> None:
    assert all_ids(npz(tmp_path, {"name": ids}, id="name")) == sorted(map(str, ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (list("abacdefghijklmnopqrstuvwxyzABC"), "name[2] is 'a', but so is "),
        ([""] * 30, f"name[0] must have 1 to {MAX_ID} characters, got 0"),
        (["x" * 1001] * 30, f"name[0] must have 1 to {MAX_ID} characters, got 1001"),
    ],
)
def test_names_of_an_archive_must_differ(tmp_path: Path, ids: list[str], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        npz(tmp_path, {"name": np.array(ids)}, id="name")


def test_an_image_that_is_listed_twice_is_named_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        csv_images(tmp_path, ["a", "b", "c", "b"])
    assert str(caught.value) == (
        f"{tmp_path}/table.csv row 5: column 'image_id' is 'b', but so is {tmp_path}/table.csv row 3: column "
        "'image_id'; each must name one case"
    )


SOURCE = """
import numpy as np
from pastille.data.split import Split, Splits

def part(n, first, **more):
    x = np.random.default_rng(first).normal(size=(n, 2)).astype(np.float32)
    return Split(inputs=x, targets=np.arange(n) % 2, **more)

def splits(ids):
    return Splits(train=part(3, 0, ids=ids and np.array(ids)), validation=part(2, 1), test=part(2, 2))

def a_list():
    return Splits(train=part(2, 0, ids=["a", "b"]), validation=part(2, 1), test=part(2, 2))

def too_few():
    return Splits(train=part(2, 0, ids=np.array(["a"])), validation=part(2, 1), test=part(2, 2))
"""


def source(base: Path, name: str, **arguments: object) -> Splits:
    (base / "data.py").write_text(SOURCE)
    return load(base, SourceData(source=f"data.py:{name}", arguments=arguments))


def test_a_callable_may_name_its_cases_or_not(tmp_path: Path) -> None:
    given = source(tmp_path, "splits", ids=["a", "b", "c"]).train
    assert cases(given, "train", BINARY).ids is not None
    assert source(tmp_path, "splits", ids=None).train.ids is None
    numbered = source(tmp_path, "splits", ids=[7, 8, 9]).train
    assert cases(numbered, "train", BINARY).ids.tolist() == ["7", "8", "9"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "ids of train must differ, but 'a' names both case 0 and case 2; remove one, or "),
        (["a", "", "b"], f"ids of train must have 1 to {MAX_ID} characters, but that of case 1 has 0"),
        (["a", "b", "c" * 10_000], f"must have 1 to {MAX_ID} characters, but that of case 2 has 10000"),
        ([0.5, 1.5, 2.5], "ids of train must be text or whole numbers of shape (N,), got float64 (3,)"),
        ([["a"], ["b"], ["c"]], "ids of train must be text or whole numbers of shape (N,), got <U1 (3, 1)"),
        (["\x1b[2J\n", "a", "\x1b[2J\n"], "but '\\\\x1b[2J\\\\n' names both case 0 and case 2"),
    ],
)
def test_names_that_do_not_name_one_case_are_refused(tmp_path: Path, ids: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        source(tmp_path, "splits", ids=ids)
    assert str(caught.value).isprintable()


def test_ids_of_a_callable_must_be_an_array_with_one_per_case(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"returned ids of train as a list instead of a numpy array"):
        source(tmp_path, "a_list")
    with pytest.raises(DataError, match=r"ids must have one entry per input, got 1 for 2 inputs"):
        source(tmp_path, "too_few")


def test_objects_are_read_as_text() -> None:
    assert checked_ids(np.array(["a", 7], dtype=object), what="ids").tolist() == ["a", "7"]
    check_ids(splits_of(train=split_of([0, 1], ids=np.array(["a", "b"], dtype=object))))


def test_the_same_id_in_two_splits_is_the_same_case(tmp_path: Path) -> None:
    train = split_of([0, 1, 0, 1], seed=0, ids=NAMES)
    test = split_of([0, 1], seed=9, ids=np.array(["img_9.jpg", "img_1.jpg"]))
    leaks = inspect(splits_of(train=train, test=test), progress=SILENT).leaks
    assert [(leak.what, leak.name, leak.first, leak.second) for leak in leaks] == [
        ("case", "img_1.jpg", ("train", 1), ("test", 1))
    ]
    with pytest.raises(LeakageError, match=r"leak in 1 places: case img_1.jpg in train\[1\] and test\[1\]; "):
        check_leaks(leaks, allow=False)
    assert check_leaks(leaks, allow=True) == ("The same case is in train[1] and test[1].",)


def test_one_case_is_one_leak_though_its_input_is_the_same_too() -> None:
    train, test = split_of([0, 1, 0, 1], seed=0, ids=NAMES), split_of([0, 1], seed=9, ids=NAMES[1:3])
    np.asarray(test.inputs)[0] = train.inputs[1]
    leaks = inspect(splits_of(train=train, test=test), progress=SILENT).leaks
    assert [(leak.what, leak.first, leak.second) for leak in leaks] == [
        ("case", ("train", 1), ("test", 0)),
        ("case", ("train", 2), ("test", 1)),
    ]


class Unreadable(list[Any]):
    """Four inputs, none of which can be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Any:
        raise KeyError("no such file")


def bad_inputs(split: Split) -> Split:
    np.asarray(split.inputs)[2, 0] = np.nan
    return split


def test_errors_call_a_case_by_its_id() -> None:
    named = splits_of(test=bad_inputs(split_of([0, 1, 0, 1], ids=NAMES)))
    with pytest.raises(
        DataError, match=r"^input 'input' of test\[2\] \(img_2.jpg\) holds NaN or infinity in 1 "
    ):
        inspect(named, progress=SILENT)
    ragged = split_of([0, 1, 0, 1], inputs=[np.zeros(3), np.zeros(2), np.zeros(3), np.zeros(3)], ids=NAMES)
    with pytest.raises(
        DataError, match=r"^input 'input' of train\[1\] \(img_1.jpg\) must be float64 \(3,\) like"
    ):
        inspect(splits_of(train=ragged), progress=SILENT)
    unread = split_of([0, 1, 0, 1], inputs=Unreadable(), ids=NAMES)
    with pytest.raises(
        DataError, match=r"^input train\[0\] \(img_0.jpg\) cannot be read: KeyError: 'no such file'"
    ):
        inspect(splits_of(train=unread), progress=SILENT)
    with pytest.raises(DataError, match=r"^target test\[1\] \(img_1.jpg\) is 7, but must be between 0 and 2"):
        check_targets(splits_of(test=split_of([0, 7, 1, 1], ids=NAMES)), THREE)
    with pytest.raises(DataError, match=r"^target test\[3\] \(img_3.jpg\) is nan, as 1 of 4 are not finite"):
        check_targets(splits_of(test=split_of([0, 7, 1, np.nan], ids=NAMES)), NUMBER)
    assert at("test", 0, np.array(["x" * 10_000])) == "test[0] (" + "x" * 40 + "…)"


def test_the_pass_that_measures_normalization_names_the_row_of_the_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    x[17] = np.nan
    np.savez(
        tmp_path / "data.npz",
        x=x,
        y=np.arange(30) % 2,
        s=np.array(["test"] * 5 + ["val"] * 5 + ["train"] * 20),
    )
    section = NpzData.model_validate({"reader": "npz", "path": "data.npz", "split": "s", "normalize": "auto"})
    with pytest.raises(DataError, match=r"of train\[7\] \(row 17\) holds NaN or infinity in 2 of 2 values"):
        load(tmp_path, section)
