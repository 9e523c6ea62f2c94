"""A table with one row per image file, read with the standard library's csv module."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, final

import numpy as np

from pastille.data.columns import class_indices, closest, numbers
from pastille.data.image_splits import image_splits
from pastille.data.images import SUFFIXES
from pastille.data.split import Splits
from pastille.data.table import column_names, columns_from, ids_from, parts_from, require_file
from pastille.errors import DataError
from pastille.progress import Progress
from pastille.recipe import CsvImagesData, TaskSection
from pastille.references import one_line

MAX_TABLE_BYTES = 256 << 20


@final
class CsvTable:
    """Some columns of a CSV file; a `pastille.data.table.Table`."""

    def __init__(self, path: Path, columns: Mapping[str, list[str]], rows: Sequence[int]) -> None:
        self.path: Final = path
        self.columns: Final = columns
        self.rows: Final = rows  # number of each case's row as a spreadsheet counts it, the header being 1

    def column(self, name: str) -> list[str]:
        """One cell per case, without white space around it."""
        return self.columns[name]

    def where(self, name: str, row: int) -> str:
        """E.g. ``metadata.csv row 7: column 'age'``."""
        return f"{self.path} row {self.rows[row]}: column {name!r}"


def read_csv_images(
    section: CsvImagesData, task: TaskSection, *, base: Path, seed: int, progress: Progress
) -> Splits:
    """Read a table of image files and split it; the images themselves are decoded when they are asked for.

    Args:
        section: What was asked.
        task: Its labels name the classes; a regression target is read as a number, a custom one as text.
        base: Folder of the recipe.
        seed: Of the split.
        progress: Shows the pass that measures ``normalize: auto``.

    Raises:
        DataError: The task needs more than one value per image; the table or a folder is missing; a
            column, an image file or a label is; or a cell is not what it must be. Names the file, the row
            (the header is row 1) and what is allowed.
    """
    if task.kind in ("multilabel", "segmentation"):
        raise DataError(
            f"reader csv_images cannot give the targets of a {task.kind} task, since it reads one value per "
            "image; use reader npz, or data.source"
        )
    path = base / section.path
    require_file(path, path.is_file(), key="data.path")
    table = read_csv(path, [section.image, section.target, *column_names(section)])
    paths = _image_paths(table, section, base)
    ids = ids_from(table, section.image)
    columns = columns_from(section, table, _targets(table, section, task), ids)
    parts = parts_from(section, table, columns, task.kind, seed)
    return image_splits(paths, columns, parts, section=section, progress=progress)


def read_csv(path: Path, names: Collection[str], *, limit: int = MAX_TABLE_BYTES) -> CsvTable:
    """Read columns of a CSV file with a header; empty lines are skipped.

    Args:
        path: UTF-8, with or without a byte order mark; comma-separated.
        names: Of the columns to keep.
        limit: Bytes that the file may have.

    Raises:
        DataError: The file is too large, not CSV, empty, lacks a column, or has a row of another length.
    """
    size = path.stat().st_size
    if size > limit:
        raise DataError(f"{path} has {size} bytes, but a table may have at most {limit}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(path, csv.reader(file, strict=True), names)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} must be a comma-separated table in UTF-8: {one_line(error)}") from None


def _parse(path: Path, lines: Iterable[list[str]], names: Collection[str]) -> CsvTable:
    numbered = enumerate(lines, start=1)
    header = [name.strip() for name in next(numbered, (0, []))[1]]
    places = {name: _place(path, header, name) for name in names}
    columns: dict[str, list[str]] = {name: [] for name in places}
    rows: list[int] = []
    for number, cells in numbered:
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path} row {number} must have {len(header)} cells like its header, got {len(cells)}"
            )
        rows.append(number)
        for name, place in places.items():
            columns[name].append(cells[place].strip())
    if not rows:
        raise DataError(f"{path} has no rows below its header; it must have one per image")
    return CsvTable(path, columns, rows)


def _place(path: Path, header: list[str], name: str) -> int:
    if header.count(name) != 1:
        problem = "more than one column" if name in header else "no column"
        raise DataError(f"{path} has {problem} {name!r}; {closest(name, header)}")
    return header.index(name)


def _targets(table: CsvTable, section: CsvImagesData, task: TaskSection) -> np.ndarray:
    def where(row: int) -> str:
        return table.where(section.target, row)

    values = table.column(section.target)
    if section.label_map and not task.labels:
        raise DataError(f"data.label_map must be left out of a {task.kind} task")
    if task.kind == "regression":
        return numbers(values, where=where)
    if task.kind == "custom":
        return np.array(values, dtype=str)
    return class_indices(values, task.labels, label_map=section.label_map, where=where)


def _image_paths(table: CsvTable, section: CsvImagesData, base: Path) -> list[Path]:
    given = [section.images] if isinstance(section.images, Path) else section.images
    folders = [base / folder for folder in given]
    for folder in folders:
        require_file(folder, folder.is_dir(), key="data.images")
    names = table.column(section.image)
    finder = _Finder(folders)
    return [finder.find(name, table.where(section.image, row)) for row, name in enumerate(names)]


@final
class _Finder:
    """Looks image files up by name, reading every folder once."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders: Final = folders
        self._listings: Final[dict[Path, dict[str, list[Path]]]] = {}

    def find(self, name: str, where: str) -> Path:
        """The one file called ``name``, with or without its ending."""
        relative = PurePosixPath(name)
        inside = bool(name) and not relative.is_absolute() and ".." not in relative.parts
        candidates = [
            path
            for folder in (self._folders if inside else ())
            for path in self._listing(folder / relative.parent).get(relative.name, ())
        ]
        if len(candidates) == 1:
            return candidates[0]
        searched = ", ".join(str(folder) for folder in self._folders)
        if candidates:
            found = " and ".join(str(path) for path in candidates[:2])
            raise DataError(f"{where} is {name!r}, which could be {found}; write the ending, or remove one")
        endings = " ".join(sorted(SUFFIXES))
        raise DataError(f"{where} is {name!r}, but no such image lies in {searched}; endings: {endings}")

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listings:
            self._listings[folder] = _by_name(folder)
        return self._listings[folder]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Image files under their name, and under their name without its ending."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in SUFFIXES:
            for key in (path.name, path.stem):
                found.setdefault(key, []).append(path)
    return found
