"""Rows of a table as vectors: one code for training and for a request."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np

from pastille.data.columns import is_missing
from pastille.errors import DataError
from pastille.values import CategoryColumn, CodeRange, NumberColumn, TableEncoding

MAX_CELL = 256  # characters of a category that is looked at
_REMEMBERED = 1 << 14  # values of a column

_Cell = str | float | None
_Column = NumberColumn | CategoryColumn
_Encode = Callable[[_Cell], tuple[Sequence[float], str]]


def encode_row(row: Mapping[str, object], encoding: TableEncoding) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn one row into what the model is fed.

    Args:
        row: Column -> text, number, truth value, or None for a missing one. Columns beyond those of the
            encoding are passed over, with a warning.
        encoding: Which columns, and how.

    Returns:
        ``(F,)`` float32, and warnings. No warning repeats a value: it may be of a patient.

    Raises:
        DataError: A column is missing, no number, or an unknown category.

    Example:
        >>> age = NumberColumn(name="age", mean=50, std=10)
        >>> sex = CategoryColumn(name="sex", values=("female", "male"))
        >>> encode_row({"age": 60, "sex": "male"}, TableEncoding(columns=(age, sex)))
        (array([1., 0., 1.], dtype=float32), ())
    """
    return _vector(row, encoding, [partial(_features, column=column) for column in encoding.columns])


def encode_rows(rows: Sequence[Mapping[str, object]], encoding: TableEncoding) -> np.ndarray:
    """Turn a whole table into features, row by row as `encode_row` does.

    Returns:
        ``(N, F)`` float32.

    Raises:
        DataError: As `encode_row`; names the row, counted from 0.
    """
    # Tables repeat themselves: each value of a column is encoded once.
    remembered = [
        lru_cache(_REMEMBERED, typed=True)(partial(_features, column=column)) for column in encoding.columns
    ]
    return np.stack([_numbered(index, row, encoding, remembered) for index, row in enumerate(rows)])


def _numbered(
    index: int, row: Mapping[str, object], encoding: TableEncoding, features: Sequence[_Encode]
) -> np.ndarray:
    try:
        return _vector(row, encoding, features)[0]
    except DataError as error:
        raise DataError(f"row {index}: {error}") from None


def _vector(
    row: Mapping[str, object], encoding: TableEncoding, features: Sequence[_Encode]
) -> tuple[np.ndarray, tuple[str, ...]]:
    columns = encoding.columns
    cells = [encode(_cell(row, column, columns)) for column, encode in zip(columns, features, strict=True)]
    warnings = [warning for _, warning in cells if warning]
    known = sum(column.name in row for column in columns)
    if known < len(row):
        warnings.append(f"columns of the row that the model does not know: {len(row) - known}")
    values = itertools.chain.from_iterable(found for found, _ in cells)
    return np.fromiter(values, np.float64).astype(np.float32), tuple(warnings)


def features_of(encoding: TableEncoding) -> list[str]:
    """What each feature is called, in order.

    Example:
        >>> sex = CategoryColumn(name="sex", values=("female", "male"))
        >>> features_of(TableEncoding(columns=(NumberColumn(name="age"), sex)))
        ['age', 'sex=female', 'sex=male']
    """
    return list(itertools.chain.from_iterable(map(_named, encoding.columns)))


def _named(column: _Column) -> Iterator[str]:
    if isinstance(column, NumberColumn):
        yield column.name
    else:
        yield from (f"{column.name}={value}" for value in column.values)


def _cell(row: Mapping[str, object], column: _Column, columns: Sequence[_Column]) -> _Cell:
    if column.name not in row and not _may_miss(column):
        missing = [c.name for c in columns if c.name not in row and not _may_miss(c)]
        raise DataError(f"row must have a column {column.name!r}; it lacks: {', '.join(missing[:10])}")
    return _plain(row.get(column.name), column.name)


def _features(cell: _Cell, column: _Column) -> tuple[Sequence[float], str]:
    """The features of one cell, and a warning or ``""``."""
    return ((_number(cell, column),), "") if isinstance(column, NumberColumn) else _category(cell, column)


def _may_miss(column: _Column) -> bool:
    return column.missing is not None if isinstance(column, NumberColumn) else column.others == "zeros"


def _plain(cell: object, name: str) -> _Cell:
    match cell:
        case str():
            return cell.strip()
        case bool():
            return str(cell).lower()
        case None | int() | float():
            return cell
        case _:
            raise DataError(f"column {name!r} must be text, a number, true, false or null")


def _missing(cell: _Cell) -> bool:
    return cell is None or (isinstance(cell, str) and len(cell) <= MAX_CELL and is_missing(cell))


def _number(cell: _Cell, column: NumberColumn) -> float:
    if not _missing(cell):
        recorded = _read_number(cell, column)
    elif column.missing is None:
        raise DataError(f"column {column.name!r} must not be missing")
    else:
        recorded = column.missing
    if column.scale == "log1p":
        if recorded <= -1:
            raise DataError(f"column {column.name!r} must be above -1")
        recorded = float(np.log1p(recorded))
    return (recorded - column.mean) / column.std


def _read_number(cell: _Cell, column: NumberColumn) -> float:
    if isinstance(cell, str) and cell in column.codes:
        return column.codes[cell]
    try:
        number = math.nan if isinstance(cell, str) and "_" in cell else float(cell or 0)  # 1_0 is not 10
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        allowed = f", or one of {', '.join(list(column.codes)[:10])}" if column.codes else ""
        raise DataError(f"column {column.name!r} must be a finite number{allowed}")
    return number


def _category(cell: _Cell, column: CategoryColumn) -> tuple[Sequence[float], str]:
    value = None if cell is None else meant(cell, column.ranges)
    if value in column.values:  # asked first: some tables have "None" for a value of its own
        return tuple(float(value == each) for each in column.values), ""
    if column.others == "refuse":
        raise DataError(f"column {column.name!r} must be one of {', '.join(column.values[:20])}")
    rare = f"column {column.name!r} has a value that was rare or absent in training; it counts as unknown"
    return (0.0,) * len(column.values), "" if _missing(cell) else rare


def meant(cell: str | float, ranges: Sequence[CodeRange] = ()) -> str:
    """The value that a code stands for; the code itself where no range fits it.

    Example:
        >>> glands = CodeRange(value="endocrine", low=240, high=280)
        >>> meant("250.8", [CodeRange(value="diabetes", prefix="250"), glands]), meant("244", [glands])
        ('diabetes', 'endocrine')
    """
    code = (repr(cell).removesuffix(".0") if isinstance(cell, float) else str(cell))[:MAX_CELL]
    if not ranges:
        return code
    whole = code.partition(".")[0]
    number = int(whole) if whole.isascii() and whole.isdigit() and len(whole) < 19 else None
    return next((r.value for r in ranges if _fits(r, code, number)), code)


def _fits(given: CodeRange, code: str, number: int | None) -> bool:
    if given.prefix is not None:
        return code.startswith(given.prefix)
    return number is not None and given.low <= number < given.high
