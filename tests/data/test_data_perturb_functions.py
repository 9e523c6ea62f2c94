"""One contract for every perturbation: same kind of thing out, deterministic, worse with severity."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pastille.data.perturb import SEVERITIES, Perturbation
from pastille.data.perturb.images import IMAGES, rotation
from pastille.data.perturb.perturbation import at
from pastille.data.perturb.signals import SIGNALS, lead_dropout, time_shift
from pastille.data.perturb.tables import TABLES, missing_values, tables, unit_slip
from pastille.data.perturb.text import TEXTS, truncation

TABLE = tables(np.full(20, 5.0))
ARRAYS = {**IMAGES, **SIGNALS, **TABLE}


def image(number: int, shape: tuple[int, int, int] = (3, 24, 32)) -> np.ndarray:
    noise = np.random.default_rng(number).random(shape)
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    return np.asarray((smooth - smooth.min()) / np.ptp(smooth), np.float32)


def signal(number: int, shape: tuple[int, int] = (3, 200)) -> np.ndarray:
    return np.asarray(np.random.default_rng(number).normal(size=shape).cumsum(axis=1), np.float32)


def row(number: int) -> np.ndarray:
    return np.random.default_rng(number).uniform(1, 9, 20).astype(np.float32)


def original(name: str, number: int) -> np.ndarray:
    make = image if name in IMAGES else signal if name in SIGNALS else row
    return make(number)


def sentence(number: int) -> str:
    words = ["chest", "PAIN", "since", "Monday", "no", "fever", "and", "cough", "BP", "normal"]
    return " ".join(np.random.default_rng(number).choice(words, 40))


def apply(perturbation: Perturbation, x: Any, severity: int, seed: int = 0) -> Any:
    return perturbation.function(x, severity, np.random.default_rng(seed))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ARRAYS)
def test_shape_and_dtype_stay_and_the_original_is_left_alone(
    name: str, dtype: np.dtype[Any], severity: int
) -> None:
    x = original(name, 0).astype(dtype)
    kept = x.copy()
    found = apply(ARRAYS[name], x, severity)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert np.isfinite(found).all()
    assert not np.array_equal(found, x)
    np.testing.assert_array_equal(x, kept)
    assert not np.shares_memory(found, x)


@pytest.mark.parametrize("name", ARRAYS)
def test_the_same_seed_gives_the_same(name: str) -> None:
    x = original(name, 1)
    np.testing.assert_array_equal(apply(ARRAYS[name], x, 3, 7), apply(ARRAYS[name], x, 3, 7))


@pytest.mark.parametrize("name", ARRAYS)
def test_it_gets_worse_with_severity(name: str) -> None:
    changes = [
        np.mean(
            [
                np.abs(apply(ARRAYS[name], x, severity, seed) - x).mean()
                for seed in range(40)
                for x in [original(name, seed)]
            ]
        )
        for severity in SEVERITIES
    ]
    assert (np.diff(changes) > 0).all(), changes


@pytest.mark.parametrize("name", TEXTS)
def test_text_gets_worse_with_severity(name: str) -> None:
    def likeness(severity: int) -> float:
        pairs = [(text, apply(TEXTS[name], text, severity, n)) for n in range(20) for text in [sentence(n)]]
        assert all(isinstance(found, str) and found != text for text, found in pairs)
        return float(np.mean([difflib.SequenceMatcher(None, *pair, False).ratio() for pair in pairs]))

    found = [likeness(severity) for severity in SEVERITIES]
    assert (np.diff(found) < 0).all(), found
    assert apply(TEXTS[name], sentence(1), 2, 5) == apply(TEXTS[name], sentence(1), 2, 5)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (4, 9, 5), (3, 1, 1), (1, 2, 30)])
@pytest.mark.parametrize("severity", [1, 5])
def test_images_of_any_size_stay_in_range(name: str, shape: tuple[int, int, int], severity: int) -> None:
    for x in (np.zeros(shape, np.float32), np.ones(shape, np.float32), np.full(shape, 0.5, np.float32)):
        found = apply(IMAGES[name], x, severity)
        assert found.shape == shape
        assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (12, 3)])
def test_signals_of_any_length_are_taken(name: str, shape: tuple[int, int]) -> None:
    for severity in SEVERITIES:
        assert np.isfinite(apply(SIGNALS[name], np.ones(shape, np.float32), severity)).all()


@given(st.text(max_size=60), st.sampled_from(SEVERITIES), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_any_text_is_taken(text: str, severity: int, seed: int) -> None:
    for perturbation in TEXTS.values():
        assert isinstance(apply(perturbation, text, severity, seed), str)


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_there_are_five_severities(severity: int) -> None:
    with pytest.raises(ValueError, match=f"severity must be between 1 and 5, got {severity}"):
        at((1, 2, 3, 4, 5), severity)


def test_every_perturbation_says_what_its_severities_mean() -> None:
    everything: list[Mapping[str, Perturbation]] = [IMAGES, SIGNALS, TABLE, TEXTS]
    assert all(one.setting and one.name == name for group in everything for name, one in group.items())
    assert tuple(TABLE) == TABLES


def test_registries_are_frozen() -> None:
    with pytest.raises(TypeError):
        IMAGES["mine"] = IMAGES["jpeg"]  # type: ignore[index]


def test_rotation_turns_about_the_centre_by_the_angle_said() -> None:
    x = np.zeros((1, 101, 101))
    x[0, 50, 80] = x[0, 50, 79] = x[0, 49, 80] = x[0, 51, 80] = 1.0
    found = rotation(x, 5, np.random.default_rng(0))[0]
    y, z = (np.asarray(c) for c in ndimage.center_of_mass(found))
    angle = np.degrees(np.arctan2(y - 50, z - 50))
    assert abs(angle) == pytest.approx(15, abs=0.7)


def test_lead_dropout_flattens_the_share_it_says() -> None:
    x = signal(0, (12, 500))
    found = lead_dropout(x, 3, np.random.default_rng(0))
    flat = found != x
    assert flat.mean() == pytest.approx(0.2, abs=0.005)
    assert sorted(flat.sum(axis=1))[-2:] == [500, 500]  # two whole leads
    np.testing.assert_allclose(found[flat.all(axis=1)].std(axis=1), 0, atol=1e-5)


def test_a_shift_keeps_the_signal_and_repeats_the_edge() -> None:
    x = np.arange(100.0)[None]
    found = time_shift(x, 5, np.random.default_rng(0))[0]
    by = int(found[50] - 50)
    assert abs(by) == 10
    np.testing.assert_array_equal(found, np.clip(np.arange(100) + by, 0, 99))


def test_missing_values_are_typical_ones() -> None:
    found = missing_values(np.zeros(20), 5, np.random.default_rng(0), typical=np.arange(20.0) + 1)
    assert np.count_nonzero(found) == 10
    np.testing.assert_array_equal(found[found > 0], np.arange(20.0)[found > 0] + 1)
    with pytest.raises(ValueError, match=r"one value per feature, \(20,\), got \(3,\)"):
        missing_values(np.zeros(20), 1, np.random.default_rng(0), typical=np.zeros(3))


@pytest.mark.parametrize(("severity", "count", "factor"), [(1, 1, 2.2), (2, 1, 10), (4, 3, 10), (5, 5, 10)])
def test_units_slip_either_way(severity: int, count: int, factor: float) -> None:
    ratios = np.concatenate(
        [unit_slip(np.ones(8), severity, np.random.default_rng(seed)) for seed in range(50)]
    )
    slipped = ratios[ratios != 1]
    assert len(slipped) == 50 * count
    assert set(np.round(slipped, 9)) == {factor, round(1 / factor, 9)}


def test_text_is_cut_off_at_the_end() -> None:
    assert truncation("abcdefghij", 5, np.random.default_rng(0)) == "abcd"
