"""What a table says of each case beside its input: the part that the npz and csv readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pastille.data.columns import banded, groups_of, numbers, split_parts, subjects_of
from pastille.data.ids import MAX_ID
from pastille.data.split import Inputs, Split
from pastille.data.splitting import split_indices, stratification
from pastille.errors import DataError
from pastille.recipe import Banded, CsvImagesData, Fractions, NpzData
from pastille.stats.alignment import first_repeat, shown
from pastille.values import Kind, SplitName

Parts = Mapping[SplitName, np.ndarray]  # row indices of each split


class Table(Protocol):
    """Named columns of text, and how to name one of their cells in an error."""

    def column(self, name: str) -> list[str]:
        """One value per case; numbers as text, missing values empty."""
        ...

    def where(self, name: str, row: int) -> str:
        """Cell ``row``, counted from 0, of column ``name``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Everything that is known of N cases except their inputs."""

    targets: np.ndarray  # (N,)
    groups: Mapping[str, np.ndarray]  # attribute -> (N,) str
    subjects: np.ndarray | None  # (N,) str
    strata: np.ndarray | None  # (N,) str
    ids: np.ndarray  # (N,) str, each different

    def split(self, rows: np.ndarray, inputs: Inputs) -> Split:
        """The cases at ``rows``, with their inputs."""
        return Split(
            inputs=inputs,
            targets=self.targets[rows],
            groups={name: column[rows] for name, column in self.groups.items()},
            subjects=None if self.subjects is None else self.subjects[rows],
            strata=None if self.strata is None else self.strata[rows],
            ids=self.ids[rows],
        )


def column_names(section: NpzData | CsvImagesData) -> list[str]:
    """The columns that `columns_from` and `parts_from` will ask for."""
    grouped = [g.column if isinstance(g, Banded) else g for g in section.groups.values()]
    split = section.split if isinstance(section.split, str) else None
    return [name for name in (*grouped, section.strata, _subject(section), split) if name is not None]


def columns_from(
    section: NpzData | CsvImagesData, table: Table, targets: np.ndarray, ids: np.ndarray
) -> Columns:
    """Read groups, subjects and strata.

    Raises:
        DataError: A column is missing, or a cell is not what it must be.
    """
    subject = _subject(section)
    return Columns(
        targets=targets,
        groups={name: _group(source, table) for name, source in section.groups.items()},
        subjects=None if subject is None else subjects_of(table.column(subject), where=_at(table, subject)),
        strata=None if section.strata is None else groups_of(table.column(section.strata)),
        ids=ids,
    )


def parts_from(
    section: NpzData | CsvImagesData, table: Table, columns: Columns, kind: Kind, seed: int
) -> Parts:
    """Which rows go into which split: as a column says, or by fractions.

    Raises:
        DataError: The column is missing or holds another name, or there are too few cases to split.
    """
    if isinstance(section.split, str):
        return split_parts(table.column(section.split), where=_at(table, section.split))
    return parts_by_fraction(section.split, columns, kind, seed)


def parts_by_fraction(fractions: Fractions, columns: Columns, kind: Kind, seed: int) -> Parts:
    """Deal the cases out, alike in label unless the recipe says otherwise, whole subjects at a time.

    Raises:
        DataError: There are too few cases or subjects.
    """
    return split_indices(
        len(columns.targets),
        labels=stratification(columns.targets, kind) if fractions.stratify else None,
        fractions=fractions,
        subjects=columns.subjects,
        seed=seed,
    )


def ids_from(table: Table, name: str) -> np.ndarray:
    """A column that names each case, as text.

    Raises:
        DataError: A cell is empty or too long, or names a case again; says in which rows.
    """
    values = table.column(name)
    for row, value in enumerate(values):
        if not 1 <= len(value) <= MAX_ID:
            raise DataError(f"{table.where(name, row)} must have 1 to {MAX_ID} characters, got {len(value)}")
    ids = np.array(values, dtype=str)
    repeat = first_repeat(ids)
    if repeat is not None:
        before, again = (table.where(name, row) for row in repeat)
        raise DataError(f"{again} is {shown(ids[repeat[1]])!r}, but so is {before}; each must name one case")
    return ids


def require_file(path: object, exists: bool, *, key: str) -> None:
    """Refuse a path of the recipe where nothing lies.

    Raises:
        DataError: ``exists`` is false.
    """
    if not exists:
        raise DataError(f"{key}: there is no {path}; paths are relative to the recipe")


def _subject(section: NpzData | CsvImagesData) -> str | None:
    return section.split.by if isinstance(section.split, Fractions) else section.subject


def _group(source: str | Banded, table: Table) -> np.ndarray:
    if isinstance(source, str):
        return groups_of(table.column(source))
    ages = numbers(table.column(source.column), where=_at(table, source.column), may_miss=True)
    return banded(ages, source.bins)


def _at(table: Table, name: str) -> Callable[[int], str]:
    return lambda row: table.where(name, row)
