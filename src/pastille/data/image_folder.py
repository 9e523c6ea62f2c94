"""``path/LABEL/*.png``, or ``path/{train,validation,test}/LABEL/*.png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pastille.data.columns import closest
from pastille.data.image_splits import image_splits
from pastille.data.images import SUFFIXES
from pastille.data.split import SPLIT_NAMES, Splits
from pastille.data.table import Columns, Parts, parts_by_fraction, require_file
from pastille.errors import DataError
from pastille.progress import Progress
from pastille.recipe import ImageFolderData, TaskSection
from pastille.values import SplitName

_FOLDERS: Mapping[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val"),
    "test": ("test",),
}
_Case = tuple[Path, int]  # file, class index


def read_image_folder(
    section: ImageFolderData, task: TaskSection, *, base: Path, seed: int, progress: Progress
) -> Splits:
    """Read folders named after labels and split them, or take the splits that the folders above name.

    Files come in the order of their labels in the recipe, then of their names. Files whose names begin
    with a dot or do not end like an image are passed over.

    Args:
        section: What was asked; ``split`` is not used where the folders name the splits.
        task: Its labels are the folders' names.
        base: Folder of the recipe.
        seed: Of the split.
        progress: Shows the pass that measures ``normalize: auto``.

    Raises:
        DataError: A folder is missing, empty, or no label (the closest label is shown); ``split.by`` is
            asked for, or targets other than classes, which folders cannot give.
    """
    if task.kind not in ("binary", "multiclass"):
        other = "csv_images" if task.kind in ("regression", "custom") else "npz"
        raise DataError(
            f"reader image_folder cannot give the targets of a {task.kind} task, since a folder is one "
            f"class; use reader {other}, or data.source"
        )
    if section.split.by is not None:
        raise DataError("data.split.by must be left out of reader image_folder: folders name no subject")
    root = base / section.path
    require_file(root, root.is_dir(), key="data.path")
    if _names_splits(root, task.labels):
        cases, parts = _by_split_folder(root, task.labels)
    else:
        cases = _labelled(root, task.labels)
        parts = parts_by_fraction(section.split, _columns(cases, root), task.kind, seed)
    paths = [path for path, _ in cases]
    return image_splits(paths, _columns(cases, root), parts, section=section, progress=progress)


def _columns(cases: Sequence[_Case], root: Path) -> Columns:
    targets = np.array([label for _, label in cases], np.int64)
    ids = np.array([path.relative_to(root).as_posix() for path, _ in cases], dtype=str)
    return Columns(targets=targets, groups={}, subjects=None, strata=None, ids=ids)


def _names_splits(root: Path, labels: Sequence[str]) -> bool:
    known = {name for names in _FOLDERS.values() for name in names}
    return any(folder.name in known and folder.name not in labels for folder in _folders(root))


def _by_split_folder(root: Path, labels: Sequence[str]) -> tuple[list[_Case], Parts]:
    _require_known(root, [name for names in _FOLDERS.values() for name in names])
    found = {name: _labelled(_split_folder(root, name), labels) for name in SPLIT_NAMES}
    starts = np.cumsum([0, *(len(cases) for cases in found.values())])
    parts = {name: np.arange(starts[i], starts[i + 1]) for i, name in enumerate(SPLIT_NAMES)}
    return [case for cases in found.values() for case in cases], parts


def _split_folder(root: Path, name: SplitName) -> Path:
    present = [root / folder for folder in _FOLDERS[name] if (root / folder).is_dir()]
    if len(present) != 1:
        wanted = " or ".join(_FOLDERS[name])
        raise DataError(f"{root} must have one folder {wanted} beside its other splits, got {len(present)}")
    return present[0]


def _labelled(folder: Path, labels: Sequence[str]) -> list[_Case]:
    """The images of every label below one folder."""
    _require_known(folder, labels)
    missing = [label for label in labels if not (folder / label).is_dir()]
    if missing:
        raise DataError(
            f"{folder} has no folder for label {missing[0]!r}; "
            f"it must have one for each of: {', '.join(labels)}"
        )
    return [(path, i) for i, label in enumerate(labels) for path in _image_files(folder / label)]


def _require_known(folder: Path, allowed: Sequence[str]) -> None:
    for found in _folders(folder):
        if found.name not in allowed:
            raise DataError(f"folder {found} is not a known label or split; {closest(found.name, allowed)}")


def _image_files(folder: Path) -> list[Path]:
    inner = _folders(folder)
    if inner:
        raise DataError(f"images must lie directly in {folder}, but it holds the folder {inner[0].name!r}")
    found = [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(f"{folder} holds no images; endings: {' '.join(sorted(SUFFIXES))}")
    return found


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
    )
