from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.errors import DataError
from pastille.stats.groups import groups_of, natural_key, usable_attributes
from pastille.values import Cases


def _cases(**groups: np.ndarray) -> Cases:
    size = len(next(iter(groups.values())))
    return Cases(
        kind="binary", split="test", targets=np.zeros(size, np.int64), labels=("a", "b"), groups=groups
    )


@given(
    st.lists(st.tuples(st.sampled_from(["f", "m", ""]), st.sampled_from(["<5", "5-9", "nan"])), min_size=1)
)
def test_every_case_is_in_exactly_one_group_of_each_attribute(people: list[tuple[str, str]]) -> None:
    sex, age = (np.array(column) for column in zip(*people, strict=True))
    for attribute, groups in groups_of(_cases(sex=sex, age=age), ["sex", "age"]).items():
        rows = np.concatenate([group.rows for group in groups])
        assert sorted(rows.tolist()) == list(range(len(people))), attribute
        assert all(np.all(np.diff(group.rows) > 0) and len(group.rows) for group in groups)


def test_an_intersection_holds_the_cases_that_both_groups_share() -> None:
    sex = np.array(["female", "male", "female", "female"])
    age = np.array(["65+", "65+", "under 65", "65+"])
    found = groups_of(_cases(sex=sex, age_band=age), ["sex", "age_band"])
    assert list(found) == ["sex", "age_band", "sex × age_band"]
    crossed = {group.name: group for group in found["sex × age_band"]}
    assert list(crossed) == ["female × under 65", "female × 65+", "male × 65+"]
    assert crossed["female × 65+"].where == {"sex": "female", "age_band": "65+"}
    assert crossed["female × 65+"].rows.tolist() == [0, 3]


def test_three_attributes_make_three_intersections_and_none_if_not_asked() -> None:
    column = np.array(["x", "y"])
    cases = _cases(a=column, b=column, c=column)
    assert list(groups_of(cases, ["a", "b", "c"]))[3:] == ["a × b", "a × c", "b × c"]
    assert list(groups_of(cases, ["a", "b", "c"], intersections=False)) == ["a", "b", "c"]
    assert list(groups_of(cases, ["a", "a"])) == ["a"]


def test_missing_values_are_groups_and_empty_ones_are_called_unknown() -> None:
    column = np.array(["m", "", "nan", "unknown", "f"], object)
    (groups,) = groups_of(_cases(sex=column), ["sex"]).values()
    assert [(g.name, g.rows.tolist()) for g in groups] == [
        ("f", [4]),
        ("m", [0]),
        ("nan", [2]),
        ("unknown", [1, 3]),
    ]


@pytest.mark.parametrize(
    "ordered",
    [
        ["<45", "45-64", ">=65", "unknown"],
        ["under 5", "5-9", "10-99", "100+"],
        ["<0.5", "0.5-<1.5", ">=1.5"],
        ["African", "asian", "White", "nan"],
        ["site 2", "site 10"],
    ],
)
def test_names_are_in_natural_order(ordered: list[str]) -> None:
    assert sorted(set(ordered), key=natural_key) == ordered


@given(st.lists(st.text(max_size=6), min_size=1, max_size=30, unique=True))
def test_any_names_can_be_ordered_whatever_order_they_come_in(names: list[str]) -> None:
    assert sorted(names, key=natural_key) == sorted(set(names), key=natural_key)


def test_an_attribute_that_does_not_exist_is_refused_with_the_closest_name() -> None:
    cases = _cases(sex=np.array(["f"]), age_band=np.array(["65+"]))
    with pytest.raises(DataError, match="did you mean 'age_band'"):
        groups_of(cases, ["age_bnd"])
    with pytest.raises(DataError, match="the data has sex, age_band"):
        groups_of(cases, ["zzz"])


def test_an_id_is_refused_as_an_attribute() -> None:
    ids = np.arange(201).astype(str)
    with pytest.raises(DataError, match="has 201 groups, more than 200: it looks like an id"):
        groups_of(_cases(patient=ids), ["patient"])
    assert len(groups_of(_cases(site=ids[:200]), ["site"])["site"]) == 200
    assert usable_attributes(_cases(patient=ids, constant=np.full(201, "x"))) == ()


def test_too_many_intersections_are_refused_with_the_way_out() -> None:
    rows = np.arange(20 * 20)
    cases = _cases(a=(rows // 20).astype(str), b=(rows % 20).astype(str))
    with pytest.raises(DataError, match=r"400 intersections.*fairness\.intersections to false"):
        groups_of(cases, ["a", "b"])


def test_an_attribute_of_another_length_is_refused() -> None:
    cases = _cases(sex=np.array(["f", "m"]))
    longer = Cases(
        kind="binary",
        split="test",
        targets=np.zeros(3, np.int64),
        labels=("a", "b"),
        groups=cases.groups,
    )
    with pytest.raises(DataError, match=r"one entry per case, got \(2,\) for 3 cases"):
        groups_of(longer, ["sex"])
