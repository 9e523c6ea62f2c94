"""Samples of a scan: unbiased, with intervals that cover, and an honest word on the order of layers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from pastille.stages.scanning.sampling import draw, expected_agreement, mean_interval


def population(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How unsure a model is of each case, and a rise of the loss that goes with it."""
    doubt = rng.beta(0.3, 3.0, n)
    return doubt, 0.01 + doubt * rng.gamma(2.0, 0.4, n)


def test_every_case_is_looked_at_once_and_weights_sum_to_all() -> None:
    sample = draw(np.random.default_rng(0).random(500))
    assert sorted(sample.order) == list(range(500))
    for n in (10, 64, 499, 500):
        assert sample.weights(n).sum() == pytest.approx(500)
    assert (sample.weights(500) == 1).all()


def test_means_are_those_of_all_cases_and_doubt_makes_them_sharper() -> None:
    rng = np.random.default_rng(1)
    doubt, rises = population(rng, 900)
    by_doubt, even = ([_estimate(rises, of, seed) for seed in range(400)] for of in (doubt, np.zeros(900)))
    error = np.std(by_doubt) / np.sqrt(400)
    assert abs(np.mean(by_doubt) - rises.mean()) < 4 * error
    assert np.std(by_doubt) < 0.85 * np.std(even)


def _estimate(rises: np.ndarray, doubt: np.ndarray, seed: int) -> float:
    sample = draw(doubt, seed=seed)
    return float(np.average(rises[sample.order[:64]], weights=sample.weights(64)))


@pytest.mark.parametrize("n", [64, 256])
def test_intervals_cover(n: int) -> None:
    hits = 0
    for seed in range(800):
        rng = np.random.default_rng(seed)
        doubt, rises = population(rng, 600)
        sample = draw(doubt, seed=seed)
        values, weights = rises[sample.order[:n]], sample.weights(n)
        _, low, high = mean_interval(values, weights, confidence=0.95)
        hits += low <= 0.01 + 0.3 / 3.3 * 0.8 <= high  # of further cases of the same kind
    assert 0.92 <= hits / 800 <= 0.98


def test_cases_of_one_subject_count_as_one() -> None:
    hits, narrow = 0, 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        subjects = np.repeat(np.arange(120), 5)
        rises = rng.normal(1.0, 1.0, 120)[subjects] + rng.normal(0, 0.3, 600)
        sample = draw(np.zeros(600), seed=seed)
        rows, weights = sample.order[:200], sample.weights(200)
        _, low, high = mean_interval(rises[rows], weights, confidence=0.9, subjects=subjects[rows])
        _, low_, high_ = mean_interval(rises[rows], weights, confidence=0.9)
        hits, narrow = hits + (low <= 1.0 <= high), narrow + (low_ <= 1.0 <= high_)
    assert 0.86 <= hits / 600 <= 0.94
    assert narrow / 600 < 0.85


def test_a_small_group_is_looked_at_more_than_its_share() -> None:
    rare = np.arange(1000) < 40
    seen = [rare[draw(np.ones(1000), groups=(rare, ~rare), seed=s).order[:64]].sum() for s in range(50)]
    assert np.mean(seen) > 6


def test_the_expected_agreement_is_about_what_comes() -> None:
    said, came = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        layers = rng.gamma(0.5, 0.1, 20)[:, None] + rng.normal(0, 0.05, (20, 800))
        sample = draw(np.zeros(800), seed=seed)
        first = layers[:, sample.order[:100]]
        said.append(expected_agreement(first, sample.weights(100)))
        came.append(kendalltau(first.mean(axis=1), layers.mean(axis=1)).statistic)
    assert np.mean(said) == pytest.approx(np.mean(came), abs=0.05)
    assert expected_agreement(layers, np.ones(800)) == 1.0
