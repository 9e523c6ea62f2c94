from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.stats.auroc import placements
from pastille.stats.bounded import Losses, Part, losses, score_interval, score_reach
from pastille.stats.normal import critical_value
from pastille.stats.proportions import tango


def _share(change: np.ndarray) -> list[Part]:
    return [Part(rows=np.ones(len(change), bool), change=change, weight=1.0)]


@given(st.integers(2, 5000), st.floats(0.5, 0.999))
def test_without_any_change_it_is_tangos(n: int, confidence: float) -> None:
    found = score_interval(losses(0.0, _share(np.zeros(n)), subjects=None), confidence)
    expected = tango(0, 0, n, confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(2, 500), st.data())
def test_it_is_hardly_narrower_than_tangos(n: int, data: st.DataObject) -> None:
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    change = np.repeat([1.0, -1.0, 0.0], [b, c, n - b - c])
    found = score_interval(losses((b - c) / n, _share(change), subjects=None), 0.95)
    expected = tango(b, c, n, 0.95)
    assert found.high >= expected.high - 0.1 * (expected.high - (b - c) / n) - 1e-9


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 5), st.floats(0.1, 4))
def test_the_end_is_where_the_score_is_z(error: float, jump: float, bound: float, z: float) -> None:
    e = score_reach(error, jump, bound=bound, z=z)
    assert e**2 == pytest.approx(z**2 * (error**2 + e * jump * (1 - e / bound)), abs=1e-9, rel=1e-6)


def test_nothing_unseen_is_a_plain_interval() -> None:
    assert score_reach(0.01, 0.0, bound=math.inf, z=1.96) == pytest.approx(0.0196)


def _ranked(change: np.ndarray, truth: np.ndarray) -> list[Part]:
    return [Part(rows=rows, change=change, weight=1.0) for rows in (truth, ~truth)]


def test_variance_of_an_area_is_delongs() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(90) < 0.3
    one, other = rng.normal(size=(2, 90)).round(1) + truth
    change = placements(one, truth) - placements(other, truth)
    found = losses(float(change[truth].mean()), _ranked(change, truth), subjects=None)
    assert found.variance == pytest.approx(_naive_variance(one, other, truth))
    assert found.jump == pytest.approx(1 / min(truth.sum(), (~truth).sum()))


def _naive_variance(one: np.ndarray, other: np.ndarray, truth: np.ndarray) -> float:
    """DeLong's variance of a difference, every pair of cases compared."""

    def kernel(scores: np.ndarray) -> np.ndarray:
        above: np.ndarray = np.sign(scores[truth][:, None] - scores[~truth][None, :]) / 2 + 0.5
        return above

    by_case = kernel(one) - kernel(other)
    return float(
        by_case.mean(axis=1).var(ddof=1) / truth.sum() + by_case.mean(axis=0).var(ddof=1) / (~truth).sum()
    )


def test_whole_subjects_may_fall() -> None:
    truth = np.repeat(np.arange(40) % 2 == 0, 3)
    subjects = np.repeat(np.arange(40), 3)
    flat = np.zeros(120)
    assert losses(0.0, _ranked(flat, truth), subjects=None).jump == pytest.approx(1 / 60)
    assert losses(0.0, _ranked(flat, truth), subjects=subjects).jump == pytest.approx(1 / 20)


def test_a_subject_in_both_classes_may_lose_in_both() -> None:
    truth = np.arange(80) % 2 == 0
    found = losses(0.0, _ranked(np.zeros(80), truth), subjects=np.arange(80) // 2)
    assert found.jump == pytest.approx(2 / 40)


def test_one_case_of_a_class_proves_next_to_nothing() -> None:
    truth = np.arange(100) == 0
    found = score_interval(losses(0.0, _ranked(np.zeros(100), truth), subjects=None), 0.95)
    assert found.high > 0.75


def test_why_delongs_variance_alone_does_not_decide() -> None:
    """A few positives fall below everything: it has seen none of them, and approves every other time."""
    rng = np.random.default_rng(2)
    truth = np.arange(200) < 60
    alone, with_unseen = [], []
    for _ in range(400):
        baseline = rng.normal(size=200) + 2.5 * truth
        fallen = truth & (rng.random(200) < 0.02)
        candidate = np.where(fallen, -50.0, baseline + 0.02 * rng.normal(size=200))
        change = placements(baseline, truth) - placements(candidate, truth)
        found = losses(float(change[truth].mean()), _ranked(change, truth), subjects=None)
        limit = 0.02 * 0.961  # what a fallen case loses: the area under the baseline's curve
        alone.append(found.drop + critical_value(0.95) * math.sqrt(found.variance) <= limit)
        with_unseen.append(score_interval(found, 0.95).high <= limit)
    assert np.mean(alone) > 0.25
    assert np.mean(with_unseen) <= 0.025


@given(st.floats(-1, 1), st.floats(0, 0.2), st.floats(1e-4, 1))
def test_ends_are_possible_drops_around_the_estimate(drop: float, variance: float, jump: float) -> None:
    found = score_interval(Losses(drop=drop, variance=variance, jump=jump), 0.95)
    assert -1 <= found.low <= drop + 1e-12
    assert drop - 1e-12 <= found.high <= 1
    assert found.high > found.low
