"""The widest student that fits, where to begin, and when the gap is too wide."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pastille.distillation.students_fitting import gap_warning, suggested, widest
from pastille.errors import PreconditionError
from pastille.recipe import DistillTraining


@given(st.floats(0.02, 0.98), st.sampled_from([1.0, 1.6, 2.0]), st.floats(0.0, 0.5))
def test_the_widest_spends_its_limit(share: float, power: float, fixed: float) -> None:
    tried: list[float] = []

    def costs(width: float) -> dict[str, float]:
        tried.append(width)
        return {"max_size": fixed + width**power, "max_latency.p95": 0.0}

    limit = fixed + share
    found = widest(costs, {"max_size": limit, "max_latency.p95": 1.0})
    at_most = share ** (1 / power)
    assert found.width <= at_most + 1e-9
    assert costs(found.width)["max_size"] >= 0.95 * limit or found.width > 0.99 * at_most
    assert len(tried) <= 10


def test_where_widths_come_in_steps_the_last_one_below_is_found() -> None:
    def costs(width: float) -> dict[str, float]:
        return {"max_size": float(max(1, round(8 * width)) ** 2)}

    found = widest(costs, {"max_size": 30.0})
    assert found.costs == {"max_size": 25.0}


def test_every_limit_is_kept() -> None:
    def costs(width: float) -> dict[str, float]:
        return {"max_size": 10e6 * width**2, "max_latency.p95": 8 * width}

    found = widest(costs, {"max_size": 5e6, "max_latency.p95": 2.0})
    assert 0.95 * 0.25 <= found.width <= 0.25


def test_a_budget_that_is_kept_already_or_never_says_so() -> None:
    with pytest.raises(PreconditionError, match="already keeps to max_size 20 MB"):
        widest(lambda width: {"max_size": 1e7 * width}, {"max_size": 20e6})
    with pytest.raises(
        PreconditionError, match=r"no width keeps to max_latency\.p95 1 ms: at 0\.\d+ it takes"
    ):
        widest(lambda width: {"max_latency.p95": 3 + width}, {"max_latency.p95": 1.0})


def test_where_nothing_is_left_to_be_cut_the_search_ends() -> None:
    tried: list[float] = []

    def costs(width: float) -> dict[str, float]:
        tried.append(width)
        return {"max_size": max(1e3, 1e6 * width**2)}

    with pytest.raises(PreconditionError, match="no width keeps to max_size"):
        widest(costs, {"max_size": 10.0})
    assert len(tried) == 3


@pytest.mark.parametrize("parameters", [1_000_000, 23_500_000])
def test_three_to_four_times_smaller_is_where_to_begin(parameters: int) -> None:
    found = suggested(parameters)
    assert [parameters / size for size in found.parameters] == pytest.approx([4, 3], rel=1e-5)
    assert [w**-2 for w in found.widths] == pytest.approx([4, 3], rel=0.02)
    assert "3 to 4 times smaller" in found.words


def test_no_warning_from_a_tenth_on() -> None:
    assert gap_warning(0.1) == gap_warning(0.9) == ""


@given(st.floats(1e-4, 0.0999))
def test_the_list_in_the_warning_is_a_recipe_and_ends_at_that_student(share: float) -> None:
    text = gap_warning(share)
    asked = yaml.safe_load(text[text.index("student: [") :])
    students = DistillTraining.model_validate({"epochs": 1, **asked}).students
    assert students is not None
    assert len(students) >= 2
    widths = [student.width for student in students if student.width is not None]
    assert math.prod(widths) ** 2 == pytest.approx(share, rel=0.15)
    assert all(width**2 >= 0.15 for width in widths)  # no step is as large as the gap was
