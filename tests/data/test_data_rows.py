"""Rows as vectors: held against arithmetic done by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pastille.data.rows import encode_row, encode_rows, features_of
from pastille.errors import DataError
from pastille.values import (
    CategoryColumn,
    CodeRange,
    NumberColumn,
    TableEncoding,
    from_json,
    to_json,
)

AGE = NumberColumn(name="age", mean=50.0, std=10.0, codes={"[70-80)": 75.0})
VISITS = NumberColumn(name="visits", scale="log1p", mean=1.0, std=0.5, missing=0.0)
SEX = CategoryColumn(name="sex", values=("female", "male"))
CODES = (
    CodeRange(value="diabetes", prefix="250"),
    CodeRange(value="endocrine", low=240, high=280),
    CodeRange(value="E", prefix="E"),
)
DIAGNOSIS = CategoryColumn(name="diagnosis", values=("E", "None", "diabetes"), ranges=CODES, others="zeros")
TABLE = TableEncoding(columns=(AGE, VISITS, SEX, DIAGNOSIS))
ROW: dict[str, Any] = {"age": 60, "visits": 3, "sex": "male", "diagnosis": "250.83"}


def test_a_row_by_hand() -> None:
    vector, warnings = encode_row(ROW, TABLE)
    np.testing.assert_array_equal(
        vector, np.array([1.0, (np.log1p(3.0) - 1) / 0.5, 0, 1, 0, 0, 1], np.float32)
    )
    assert vector.dtype == np.float32
    assert warnings == ()
    assert features_of(TABLE) == ["age", "visits", "sex=female", "sex=male"] + [
        f"diagnosis={value}" for value in ("E", "None", "diabetes")
    ]


@pytest.mark.parametrize(
    ("change", "place", "value"),
    [
        ({"age": "60"}, 0, 1.0),
        ({"age": " [70-80) "}, 0, 2.5),
        ({"visits": None}, 1, -2.0),
        ({"visits": "NA"}, 1, -2.0),
        ({"sex": "female"}, 2, 1.0),
        ({"diagnosis": "E900"}, 4, 1.0),
        ({"diagnosis": "None"}, 5, 1.0),  # a value of the table, although it reads like a missing one
        ({"diagnosis": 250}, 6, 1.0),
        ({"diagnosis": 250.83}, 6, 1.0),
    ],
)
def test_cells(change: dict[str, Any], place: int, value: float) -> None:
    assert encode_row(ROW | change, TABLE)[0][place] == np.float32(value)


def test_missing_and_rare_categories_are_zeros_and_only_the_rare_is_spoken_of() -> None:
    for given, spoken in [(None, 0), ("", 0), ("unknown", 0), ("244.1", 1), ("Jane Doe", 1)]:
        vector, warnings = encode_row(ROW | {"diagnosis": given}, TABLE)
        assert vector[4:].tolist() == [0, 0, 0]
        assert len(warnings) == spoken
        assert "Doe" not in "".join(warnings)
    without = {name: value for name, value in ROW.items() if name not in ("diagnosis", "visits")}
    assert encode_row(without, TABLE)[0][1] == -2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": None}, "'age' must not be missing"),
        ({"age": "old"}, r"'age' must be a finite number, or one of \[70-80\)"),
        ({"age": math.inf}, "finite"),
        ({"age": 10**400}, "finite"),
        ({"age": "6_1"}, "finite"),  # which Python reads as 61
        ({"age": [1]}, "must be text, a number, true, false or null"),
        ({"visits": -2}, "'visits' must be above -1"),
        ({"sex": "x"}, "'sex' must be one of female, male"),
        ({"sex": None}, "'sex' must be one of female, male"),
        ({"sex": True}, "'sex' must be one of"),
    ],
)
def test_cells_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        encode_row(ROW | change, TABLE)
    assert "old" not in str(refused.value)
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        encode_rows([ROW, ROW | change], TABLE)


def test_a_number_means_what_it_is_written_as() -> None:
    table = TableEncoding(columns=(CategoryColumn(name="grade", values=("0.1", "2", "250.8")),))
    for given, place in [(0.1, 0), ("0.1", 0), (2.0, 1), (2, 1), (250.8, 2)]:
        assert encode_row({"grade": given}, table)[0].tolist() == [float(i == place) for i in range(3)]


def test_columns_that_lack_or_are_too_many() -> None:
    with pytest.raises(DataError, match="must have a column 'age'; it lacks: age, sex"):
        encode_row({"Age": 1}, TABLE)
    assert encode_row(ROW | {"ward": 3}, TABLE)[1] == ("columns of the row that the model does not know: 1",)


def test_a_table_is_its_rows_and_the_encoding_survives_json() -> None:
    rows = [ROW, ROW | {"age": 1, "sex": "female"}, ROW | {"diagnosis": True}, ROW | {"diagnosis": 1}]
    again = from_json(TableEncoding, to_json(TABLE))
    assert again == TABLE
    np.testing.assert_array_equal(encode_rows(rows, again), [encode_row(row, TABLE)[0] for row in rows])
