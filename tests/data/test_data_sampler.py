from __future__ import annotations

import numpy as np
import pytest
from data_samples import split_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pastille.data.sampler import MIN_CALIBRATION, allocate, calibration_indices
from pastille.errors import CalibrationError


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.data())
def test_allocation_sums_and_is_as_equal_as_can_be(sizes: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, sum(sizes)))
    order = np.array(data.draw(st.permutations(range(len(sizes)))))
    take = allocate(np.array(sizes), n, order=order)
    assert take.sum() == n
    assert np.all((take >= 0) & (take <= sizes))
    not_exhausted = take[take < sizes]
    # A cell that could give more gives at most one less than any other.
    assert not_exhausted.size == 0 or take.max() - not_exhausted.min() <= 1


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(MIN_CALIBRATION, 300))
def test_sorted_distinct_and_repeatable(seed: int, n: int) -> None:
    split = split_of((np.arange(200) % 3).tolist(), strata=np.repeat(["a", "b"], 100))
    found = calibration_indices(split, n, seed=seed, kind="multiclass")
    assert len(found) == min(n, 200)
    assert np.all(np.diff(found) > 0)
    np.testing.assert_array_equal(found, calibration_indices(split, n, seed=seed, kind="multiclass"))


def test_balanced_over_label_and_stratum() -> None:
    targets = np.repeat([0, 0, 1, 1], [500, 60, 40, 4])
    strata = np.repeat(["easy", "hard", "easy", "hard"], [500, 60, 40, 4])
    split = split_of(targets.tolist(), strata=strata)
    found = calibration_indices(split, 64, seed=0, kind="multiclass")
    cells = list(zip(targets[found].tolist(), strata[found].tolist(), strict=True))
    assert {cell: cells.count(cell) for cell in set(cells)} == {
        (0, "easy"): 20,
        (0, "hard"): 20,
        (1, "easy"): 20,
        (1, "hard"): 4,
    }


def test_another_seed_takes_others() -> None:
    split = split_of([0, 1] * 100)
    a, b = (calibration_indices(split, 20, seed=seed, kind="multiclass") for seed in (0, 1))
    assert a.tolist() != b.tolist()


def test_numbers_are_balanced_over_quantiles() -> None:
    split = split_of(np.linspace(0, 1, 1000).tolist())
    found = calibration_indices(split, 100, seed=0, kind="regression")
    assert np.bincount(found // 100).tolist() == [10] * 10


@pytest.mark.parametrize("n", [1, 15])
def test_too_few_in_the_split(n: int) -> None:
    with pytest.raises(
        CalibrationError,
        match=f"must have at least 16 samples, but the split holds {n}: .* bring more training data",
    ):
        calibration_indices(split_of([0] * n), 256, seed=0, kind="multiclass")


def test_too_few_asked_for() -> None:
    with pytest.raises(
        CalibrationError, match=r"calibration must have at least 16 samples, got 1; raise quantize.samples"
    ):
        calibration_indices(split_of([0] * 100), 1, seed=0, kind="multiclass")


def test_the_least_is_accepted() -> None:
    assert calibration_indices(split_of([0] * 16), 16, seed=0, kind="multiclass").tolist() == list(range(16))
