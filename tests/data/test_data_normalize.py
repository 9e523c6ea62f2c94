from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pastille.data.normalize import IMAGENET, measure_normalization, normalization_for, normalized
from pastille.errors import DataError
from pastille.progress import SILENT
from pastille.recipe import Norm
from pastille.values import Normalization

SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, max_side=40)
VALUES = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(hnp.arrays(np.float32, SHAPES, elements=VALUES))
def test_measures_what_numpy_measures_on_everything_at_once(x: np.ndarray) -> None:
    found = measure_normalization(list(x), progress=SILENT)
    rest = (0, *range(2, x.ndim))
    exact = x.astype(np.float64)
    scale = np.abs(x).max() + 1e-3
    np.testing.assert_allclose(found.mean, exact.mean(axis=rest), rtol=1e-5, atol=1e-9 * scale)
    std = exact.std(axis=rest)
    clear = std > 1e-6 * scale  # below, rounding decides between nearly 0 and exactly 0
    np.testing.assert_allclose(np.array(found.std)[clear], std[clear], rtol=1e-5)


def test_normalizing_what_was_measured_gives_mean_0_and_std_1() -> None:
    x = np.random.default_rng(0).normal(5, 3, (100, 2, 4, 4)).astype(np.float32)
    found = measure_normalization(list(x), progress=SILENT)
    y = np.stack([normalized(row, found) for row in x])
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, atol=1e-4)


def test_a_large_offset_costs_no_precision() -> None:
    x = np.array([[1e8], [1e8 + 2.0]])
    assert measure_normalization(list(x), progress=SILENT) == Normalization(mean=(1e8,), std=(1.0,))


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    found = measure_normalization(list(np.full((70, 1), 0.1, np.float32)), progress=SILENT)
    assert found.std == (1.0,)


def test_none_changes_nothing() -> None:
    x = np.ones((1, 2))
    assert normalized(x, None) is x
    assert normalization_for("none", [x], channels=1, progress=SILENT) is None


def test_imagenet_and_explicit_numbers_do_not_read_the_data() -> None:
    given_numbers = Norm(mean=[0.1], std=[0.2])
    assert normalization_for("imagenet", [], channels=3, progress=SILENT) == IMAGENET
    assert normalization_for(given_numbers, [], channels=1, progress=SILENT) == Normalization(
        mean=(0.1,), std=(0.2,)
    )


@pytest.mark.parametrize(
    ("asked", "channels", "message"),
    [
        ("imagenet", 1, "one mean and one std for each of 1 channels, got 3 and 3"),
        (Norm(mean=[0.5], std=[0.5, 0.5]), 1, "one mean and one std for each of 1 channels, got 1 and 2"),
    ],
)
def test_numbers_that_do_not_fit_the_channels(asked: Norm, channels: int, message: str) -> None:
    with pytest.raises(DataError, match=f"data.normalize must give {message}"):
        normalization_for(asked, [], channels=channels, progress=SILENT)


def test_nan_is_named_before_it_spreads_over_the_mean() -> None:
    x = np.zeros((70, 2), np.float32)
    x[40, 1] = np.nan
    with pytest.raises(
        DataError, match=r"input 'input' of train\[40\] holds NaN or infinity in 1 of 2 values"
    ):
        measure_normalization(list(x), progress=SILENT)


def test_an_empty_train_split() -> None:
    with pytest.raises(DataError, match="split train is empty"):
        measure_normalization(list(np.zeros((0, 2))), progress=SILENT)
