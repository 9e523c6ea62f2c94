"""Arrays of one ``.npz`` file. Pickled objects are never loaded, and what it inflates to is bounded."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final, overload

import numpy as np

from pastille.data.checks import check_shape
from pastille.data.columns import class_indices, closest
from pastille.data.ids import row_ids
from pastille.data.normalize import normalization_for, normalized
from pastille.data.split import Splits
from pastille.data.table import column_names, columns_from, ids_from, parts_from, require_file
from pastille.errors import DataError
from pastille.progress import Progress
from pastille.recipe import NpzData, TaskSection
from pastille.references import one_line
from pastille.values import Normalization, Preprocessing

MAX_NPZ_BYTES = 16 << 30  # of the arrays that are read, inflated

_PICKLED = "is stored as pickled objects, which are never loaded; save numbers or strings"
_KEPT_INTEGERS = ("int32", "int64")


@final
class Rows(Sequence[Any]):
    """Rows of arrays that lie in memory, converted one at a time.

    Args:
        arrays: Name -> ``(N, ...)``; one array under None gives bare rows instead of named ones.
        rows: ``(M,)`` indices along axis 0.
        normalization: Applied to each row; None changes nothing.

    Example:
        >>> Rows({None: np.arange(6.0).reshape(3, 2)}, np.array([2]))[0]
        array([4., 5.], dtype=float32)
    """

    def __init__(
        self,
        arrays: Mapping[str | None, np.ndarray],
        rows: np.ndarray,
        normalization: Normalization | None = None,
    ) -> None:
        self.arrays: Final = arrays
        self.rows: Final = rows
        self.normalization: Final = normalization

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Any:
        """One row, bare or ``{name: row}``; or, for a slice, fewer rows."""
        if isinstance(index, slice):
            return Rows(self.arrays, self.rows[index], self.normalization)
        row = self.rows[index]
        found = {
            name: normalized(_fed(array[row]), self.normalization) for name, array in self.arrays.items()
        }
        return found.get(None, found)

    def with_normalization(self, normalization: Normalization | None) -> Rows:
        """The same rows, normalized otherwise."""
        return Rows(self.arrays, self.rows, normalization)


def _fed(row: np.ndarray) -> np.ndarray:
    """Float32, except for token ids and category codes."""
    if row.dtype.name in _KEPT_INTEGERS:
        return np.array(row)
    with np.errstate(over="ignore"):  # becomes infinite, which the inspection names
        return np.array(row, np.float32)


@final
class Archive:
    """The arrays of an ``.npz`` file that were asked for; a `pastille.data.table.Table`."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.path: Final = path
        self.arrays: Final = arrays

    def column(self, name: str) -> list[str]:
        """One array ``(N,)`` as text.

        Raises:
            DataError: It has another shape.
        """
        array = self.arrays[name]
        if array.ndim != 1:
            raise DataError(f"{self.path}: array {name!r} must have shape (N,), got {array.shape}")
        return [_text(value) for value in array.tolist()]

    def where(self, name: str, row: int) -> str:
        """E.g. ``data.npz: age[3]``."""
        return f"{self.path}: {name}[{row}]"


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.17g}"  # 1.0 is group "1"
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_npz(section: NpzData, task: TaskSection, *, base: Path, seed: int, progress: Progress) -> Splits:
    """Read the arrays that ``data`` of a recipe names, and split them.

    Floats, small integers and booleans are fed as float32, ``int32`` and ``int64`` as they are.

    Args:
        section: What was asked.
        task: Its labels name string targets; its kind decides the shape of targets and how to stratify.
        base: Folder of the recipe.
        seed: Of the split.
        progress: Shows the pass that measures ``normalize: auto``.

    Returns:
        Inputs bare where ``inputs`` is one name, else by name.

    Raises:
        DataError: The file is missing, no npz, too large, or lacks an array; an array is pickled, or of
            another length; or a value is not what it must be.
    """
    path = base / section.path
    require_file(path, path.is_file(), key="data.path")
    names = [section.inputs] if isinstance(section.inputs, str) else list(section.inputs)
    given = [] if section.id is None else [section.id]
    archive = load_archive(path, [*names, section.target, *given, *column_names(section)])
    arrays = {name: _input_array(archive, name) for name in names}
    ids = (
        row_ids(len(archive.arrays[section.target])) if section.id is None else ids_from(archive, section.id)
    )
    columns = columns_from(section, archive, _targets(archive, section.target, task), ids)
    parts = parts_from(section, archive, columns, task.kind, seed)
    bare = isinstance(section.inputs, str)
    fed = {None if bare else name: array for name, array in arrays.items()}
    inputs = {name: Rows(fed, rows) for name, rows in parts.items()}
    normalization = _normalization(section, arrays, inputs["train"], ids[parts["train"]], progress)
    split = {
        name: columns.split(parts[name], rows.with_normalization(normalization))
        for name, rows in inputs.items()
    }
    preprocessing = None if normalization is None else Preprocessing(normalization=normalization)
    return Splits(
        train=split["train"], validation=split["validation"], test=split["test"], preprocessing=preprocessing
    )


def load_archive(path: Path, names: Sequence[str], *, limit: int = MAX_NPZ_BYTES) -> Archive:
    """Read arrays of one length from an ``.npz`` file that is not trusted.

    Args:
        path: The file.
        names: Of the arrays.
        limit: Bytes that they may have together once inflated, as the archive's directory declares them;
            no more than it declares is ever inflated.

    Raises:
        DataError: It is no npz, or lacks a name; the arrays are too large, pickled, broken, or differ in
            length.
    """
    wanted = list(dict.fromkeys(names))
    _require_members(path, wanted, limit)
    arrays = {name: _load(path, name) for name in wanted}
    first = arrays[wanted[0]]
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(first):
            raise DataError(
                f"{path}: array {name!r} must have shape (N, ...) with the N of {wanted[0]!r}, "
                f"{first.shape[:1]}, got {array.shape}"
            )
    return Archive(path, arrays)


def _require_members(path: Path, wanted: Sequence[str], limit: int) -> None:
    try:
        with zipfile.ZipFile(path) as file:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in file.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is not an .npz file of numpy.savez: {one_line(error)}") from None
    for name in wanted:
        if name not in sizes:
            raise DataError(f"{path} has no array {name!r}; {closest(name, sorted(sizes))}")
    total = sum(sizes[name] for name in wanted)
    if total > limit:
        raise DataError(
            f"{path} inflates to {total} bytes, but at most {limit} are read; read it in a data.source"
        )


def _load(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file[name]
    except Exception as error:  # a hostile archive fails in every layer: zip, inflate, header, memory
        pickled = "allow_pickle" in str(error)
        problem = _PICKLED if pickled else f"cannot be read: {one_line(error)}"
        raise DataError(f"{path}: array {name!r} {problem}") from None
    if not isinstance(array, np.ndarray):  # numpy hands out a member that is no array as bytes
        raise DataError(f"{path}: {name!r} is not an array of numpy.savez")
    return array


def _input_array(archive: Archive, name: str) -> np.ndarray:
    array = archive.arrays[name]
    if array.dtype.kind not in "fiub" or array.ndim < 2 or 0 in array.shape[1:]:
        raise DataError(
            f"{archive.path}: input {name!r} must be numbers of shape (N, ...), "
            f"got {array.dtype} {array.shape}"
        )
    return array


def _targets(archive: Archive, name: str, task: TaskSection) -> np.ndarray:
    array = archive.arrays[name]
    check_shape(array, task, what=f"{archive.path}: target {name!r}")
    if task.kind == "custom":
        return array  # whatever it is: only the user's metric reads it
    may_be_named = task.kind in ("binary", "multiclass")
    if array.dtype.kind not in ("fiubUS" if may_be_named else "fiub"):
        allowed = "numbers or label names" if may_be_named else "numbers"
        raise DataError(f"{archive.path}: target {name!r} must be {allowed}, got {array.dtype}")
    if array.dtype.kind in "US":
        return class_indices(
            archive.column(name), task.labels, label_map={}, where=lambda row: archive.where(name, row)
        )
    if task.kind == "regression":
        _require_all(archive, name, np.isfinite(array), "finite")
        return array.astype(np.float64)
    top = 1 if task.kind == "multilabel" else len(task.labels) - 1
    rule = "0 or 1" if task.kind == "multilabel" else f"a whole number from 0 to {top}, the index of a label"
    with np.errstate(invalid="ignore"):
        _require_all(archive, name, (array == np.round(array)) & (array >= 0) & (array <= top), rule)
    return array.astype(np.int64)


def _require_all(archive: Archive, name: str, good: np.ndarray, rule: str) -> None:
    bad = np.argwhere(~good)
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        shown = ", ".join(str(i) for i in index)
        raise DataError(f"{archive.path}: {name}[{shown}] must be {rule}, got {archive.arrays[name][index]}")


def _normalization(
    section: NpzData, arrays: Mapping[str, np.ndarray], train: Rows, ids: np.ndarray, progress: Progress
) -> Normalization | None:
    if section.normalize == "none":
        return None
    if len(arrays) != 1:
        raise DataError(
            f"data.normalize must be none where there are several inputs, got {', '.join(arrays)}"
        )
    (array,) = arrays.values()
    return normalization_for(section.normalize, train, channels=array.shape[1], progress=progress, ids=ids)
