from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pastille.data.columns import (
    band_names,
    banded,
    class_indices,
    closest,
    groups_of,
    numbers,
    split_parts,
    subjects_of,
)
from pastille.errors import DataError


def row(index: int) -> str:
    return f"table row {index + 2}"


def test_labels_by_name() -> None:
    found = class_indices(["dog", "cat"], ["cat", "dog"], label_map={}, where=row)
    assert found.tolist() == [1, 0]


def test_a_map_takes_the_rest_with_other() -> None:
    label_map = {"mel": "malignant", "other": "benign"}
    found = class_indices(["mel", "nv", "other"], ["benign", "malignant"], label_map=label_map, where=row)
    assert found.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (
            {},
            "row 3 is 'malignan', not in task.labels; did you mean 'malignant'? allowed: benign, malignant",
        ),
        ({"mel": "malignant"}, "table row 3 is 'malignan', not in data.label_map; allowed: mel"),
        (
            {"mel": "maligant"},
            "data.label_map leads to 'maligant', which task.labels lacks; did you mean 'malignant'?",
        ),
    ],
)
def test_unknown_labels_are_named(label_map: dict[str, str], message: str) -> None:
    values = ["mel" if label_map else "benign", "malignan"]
    with pytest.raises(DataError, match=re.escape(message)):
        class_indices(values, ["benign", "malignant"], label_map=label_map, where=row)


def test_without_a_map_the_label_other_is_a_label_like_any() -> None:
    with pytest.raises(DataError, match=r"is 'nv', not in task.labels"):
        class_indices(["nv"], ["mel", "other"], label_map={}, where=row)


def test_closest_lists_no_more_than_ten() -> None:
    assert closest("zzz", [f"label{i}" for i in range(12)]).endswith("label9 and 2 more")
    assert closest("x", []) == "allowed: none"


@pytest.mark.parametrize("value", ["abc", "", "nan", "inf"])
def test_a_target_must_be_a_finite_number(value: str) -> None:
    with pytest.raises(DataError, match=f"^table row 3 must be a finite number, got '{value}'$"):
        numbers(["1", value], where=row)


def test_an_attribute_may_be_missing_but_not_text() -> None:
    np.testing.assert_array_equal(numbers(["1", "", "NA"], where=row, may_miss=True), [1, np.nan, np.nan])
    with pytest.raises(DataError, match="table row 2 must be a finite number, or empty, got 'old'"):
        numbers(["old"], where=row, may_miss=True)


@settings(deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=6, unique=True).map(sorted),
    st.lists(st.integers(-60, 60), min_size=1),
)
def test_every_whole_number_lies_in_the_band_that_names_it(bins: list[int], values: list[int]) -> None:
    for value, name in zip(values, banded(np.array(values, float), bins).tolist(), strict=True):
        if name.startswith("<"):
            assert value < int(name[1:])
        elif name.startswith(">="):
            assert value >= int(name[2:])
        else:
            match = re.fullmatch(r"(-?\d+)(?:-(-?\d+))?", name)
            assert match is not None
            assert int(match[1]) <= value <= int(match[2] or match[1])


def test_bands_of_one_year() -> None:
    assert band_names([1, 2, 4]) == ["<1", "1", "2-3", ">=4"]


@pytest.mark.parametrize("bins", [[65, 45], [45, 45]])
def test_bins_must_ascend(bins: list[float]) -> None:
    with pytest.raises(DataError, match=r"bins of a group must ascend, got \["):
        band_names(bins)


def test_missing_groups_are_unknown() -> None:
    assert groups_of(["male", "", "Unknown", "n/a"]).tolist() == ["male", "unknown", "unknown", "unknown"]


def test_a_subject_may_not_be_missing() -> None:
    with pytest.raises(
        DataError, match="table row 3 must name a subject, got ''; give the case an id of its own"
    ):
        subjects_of(["P1", ""], where=row)


def test_split_names() -> None:
    parts = split_parts(["Train", "val", "validation", " test"], where=row)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "train": [0],
        "validation": [1, 2],
        "test": [3],
    }
    with pytest.raises(
        DataError, match=r"table row 2 must be train, validation \(or val\) or test, got 'dev'"
    ):
        split_parts(["dev"], where=row)
