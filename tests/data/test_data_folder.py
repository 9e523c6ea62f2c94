from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from data_samples import NUMBER, THREE, write_images

from pastille.data.image_folder import read_image_folder
from pastille.data.split import Splits
from pastille.errors import DataError
from pastille.progress import SILENT
from pastille.recipe import ImageFolderData, TaskSection


def write(root: Path, names: tuple[str, ...] = ("cat", "dog", "fox"), *, n: int = 10, seed: int = 0) -> None:
    for i, name in enumerate(names):
        write_images(root / name, [f"{k:02}.png" for k in range(n)], first_seed=seed + i * n)


def read(base: Path, *, task: TaskSection = THREE, **options: Any) -> Splits:
    section = ImageFolderData.model_validate({"reader": "image_folder", "path": "pets", "size": 8, **options})
    return read_image_folder(section, task, base=base, seed=0, progress=SILENT)


def places(splits: Splits) -> dict[str, list[str]]:
    return {
        name: ["/".join(path.parts[-2:]) for path in split.inputs.paths]  # type: ignore[attr-defined]
        for name, split in splits
    }


def test_label_folders_are_split_alike(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    splits = read(tmp_path, split={"validation": 0.2, "test": 0.2})
    for _, split in splits:
        assert len(set(split.targets.tolist())) == 3
        for path, target in zip(split.inputs.paths, split.targets, strict=True):  # type: ignore[attr-defined]
            assert path.parent.name == THREE.labels[target]
    assert [split.n for _, split in splits] == [18, 6, 6]
    assert places(splits) == places(read(tmp_path, split={"validation": 0.2, "test": 0.2}))


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_split_folders_are_taken_as_they_are(tmp_path: Path, validation: str) -> None:
    for i, name in enumerate(["train", validation, "test"]):
        write(tmp_path / "pets" / name, n=i + 1, seed=100 * i)
    splits = read(tmp_path)
    assert [split.n for _, split in splits] == [3, 6, 9]
    assert splits.validation.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert places(splits)["train"] == ["cat/00.png", "dog/00.png", "fox/00.png"]


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    for name in (".DS_Store", "._00.png", "notes.txt"):
        (tmp_path / "pets" / "cat" / name).write_bytes(b"x")
    (tmp_path / "pets" / ".cache").mkdir()
    assert sum(split.n for _, split in read(tmp_path)) == 30


def test_a_folder_that_is_a_symlink(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere")
    (tmp_path / "pets").symlink_to(tmp_path / "elsewhere")
    assert sum(split.n for _, split in read(tmp_path)) == 30


def test_a_label_may_be_called_like_a_split(tmp_path: Path) -> None:
    labels = ["train", "tram"]
    write(tmp_path / "pets", ("train", "tram"))
    task = TaskSection(kind="binary", model="m.py:f", labels=labels)
    assert sum(split.n for _, split in read(tmp_path, task=task)) == 20


def unknown_folder(root: Path) -> None:
    write(root)
    (root / "foxes").mkdir()


def no_folder(root: Path) -> None:
    write(root, ("cat", "dog"))


def no_images(root: Path) -> None:
    write(root, ("cat", "dog"))
    (root / "fox").mkdir()


def nested(root: Path) -> None:
    write(root)
    (root / "dog" / "more").mkdir()


def no_validation(root: Path) -> None:
    write(root / "train")
    write(root / "test", seed=100)


def two_validations(root: Path) -> None:
    for name in ("train", "test", "val", "validation"):
        write(root / name)


def unknown_split(root: Path) -> None:
    write(root / "train")
    (root / "tests").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            unknown_folder,
            "pets/foxes is not a known label or split; did you mean 'fox'? allowed: cat, dog, fox",
        ),
        (no_folder, "pets has no folder for label 'fox'; it must have one for each of: cat, dog, fox"),
        (no_images, "pets/fox holds no images; endings: .bmp .dcm .jpeg .jpg .png"),
        (nested, "pets/dog, but it holds the folder 'more'"),
        (no_validation, "pets must have one folder validation or val beside its other splits, got 0"),
        (two_validations, "pets must have one folder validation or val beside its other splits, got 2"),
        (unknown_split, "pets/tests is not a known label or split; did you mean 'test'?"),
    ],
)
def test_folders_that_do_not_fit_are_named(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "pets")
    with pytest.raises(DataError, match=re.escape(message)):
        read(tmp_path)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (NUMBER, {}, "reader image_folder cannot give the targets of a regression task"),
        (THREE, {"split": {"by": "patient"}}, "data.split.by must be left out of reader image_folder"),
        (THREE, {"path": "pest"}, "data.path: there is no "),
    ],
)
def test_what_folders_cannot_give(
    tmp_path: Path, task: TaskSection, options: dict[str, Any], message: str
) -> None:
    write(tmp_path / "pets")
    with pytest.raises(DataError, match=message):
        read(tmp_path, task=task, **options)
