from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pastille.stats.auroc import auroc, auroc_resamples, placements
from pastille.stats.normal import critical_value


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct scores, so that ties are common, with both classes present."""
    scores = draw(st.lists(st.integers(0, 6), min_size=4, max_size=40))
    truth = draw(st.lists(st.booleans(), min_size=len(scores) - 2, max_size=len(scores) - 2))
    return np.array(scores, float), np.array([True, False, *truth])


def _naive_delong(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Area and variance straight from the definition, every pair compared."""
    above = np.sign(scores[truth][:, None] - scores[~truth][None, :]) / 2 + 0.5  # (positives, negatives)
    by_positive, by_negative = above.mean(axis=1), above.mean(axis=0)
    variance = by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)
    return float(above.mean()), float(variance)


@given(samples())
def test_agrees_with_scikit_learn(sample: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = sample
    found = auroc(scores, truth, confidence=0.95)
    assert found.value == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found.interval is not None
    assert 0 <= found.interval.low <= found.value <= found.interval.high <= 1
    assert found.interval.high > found.interval.low


@given(samples())
def test_placements_agree_with_every_pair_compared(sample: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = sample
    above = np.sign(scores[truth][:, None] - scores[~truth][None, :]) / 2 + 0.5  # (positives, negatives)
    found = placements(scores, truth)
    assert found[truth] == pytest.approx(above.mean(axis=1))
    assert found[~truth] == pytest.approx(above.mean(axis=0))


@given(samples(), st.integers(0, 1000))
def test_whole_weights_are_repeated_rows(sample: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    scores, truth = sample
    weights = np.random.default_rng(seed).integers(0, 4, (5, len(scores)))
    for times, area in zip(weights, auroc_resamples(scores, truth, weights), strict=True):
        rows = np.repeat(np.arange(len(scores)), times)
        if len(np.unique(truth[rows])) < 2:
            assert np.isnan(area)
        else:
            assert area == pytest.approx(roc_auc_score(truth[rows], scores[rows]), abs=1e-12)


def test_weights_agree_with_scikit_learn_over_several_chunks() -> None:
    rng = np.random.default_rng(12)
    truth = rng.random(30_000) < 0.2
    scores = rng.normal(size=30_000).round(2) + truth
    weights = rng.random((8, 30_000))
    expected = [roc_auc_score(truth, scores, sample_weight=each) for each in weights]
    assert auroc_resamples(scores, truth, weights) == pytest.approx(expected, abs=1e-12)


def test_resamples_need_one_entry_per_case() -> None:
    with pytest.raises(ValueError, match="one entry per case, got 2, 3 and 3"):
        auroc_resamples(np.zeros(2), np.zeros(3, bool), np.ones((1, 3)))


@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_naive_delong(ties: bool) -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(200) < 0.3
    scores = rng.normal(size=200) + truth
    scores = np.round(scores, 1) if ties else scores
    area, variance = _naive_delong(scores, truth)
    reach = critical_value(0.9) * np.sqrt(variance) / (area * (1 - area))
    found = auroc(scores, truth, confidence=0.9)
    assert found.value == pytest.approx(area)
    assert found.interval is not None
    logit = np.log(area / (1 - area))
    bounds = [1 / (1 + np.exp(-x)) for x in (logit - reach, logit + reach)]
    assert [found.interval.low, found.interval.high] == pytest.approx(bounds, abs=1e-12)
    assert found.method == "DeLong, logit scale"


@given(samples())
def test_turning_both_orders_round_changes_nothing(sample: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = sample
    one, other = auroc(scores, truth, confidence=0.95), auroc(-scores, ~truth, confidence=0.95)
    assert one.value == pytest.approx(other.value)
    assert one.interval is not None
    assert other.interval is not None
    assert one.interval.low == pytest.approx(other.interval.low, abs=1e-9)


def test_covers_the_true_area_near_1() -> None:
    """Two normals 2.33 apart have an area of 0.95."""
    rng = np.random.default_rng(5)
    truth = np.arange(140) < 40
    found = [
        auroc(rng.normal(size=140) + 2.3262 * truth, truth, confidence=0.95).interval for _ in range(1500)
    ]
    covered = np.mean([i.low <= 0.95 <= i.high for i in found if i])
    assert 0.935 <= covered <= 0.975


def test_perfect_order_is_no_certainty() -> None:
    truth = np.arange(100) < 50
    found = auroc(truth.astype(float), truth, confidence=0.95)
    assert found.value == 1.0
    assert found.method == "Newcombe score interval"
    assert found.interval is not None
    assert found.interval.high == 1.0
    assert 0.95 < found.interval.low < 0.97
    fewer = auroc(truth[45:55].astype(float), truth[45:55], confidence=0.95)
    assert fewer.interval is not None
    assert fewer.interval.low < found.interval.low


def test_subjects_with_several_cases_widen_the_interval() -> None:
    rng = np.random.default_rng(7)
    truth = np.repeat(rng.random(60) < 0.5, 5)
    scores = np.repeat(rng.normal(size=60), 5) + truth + rng.normal(0, 0.3, 300)
    subjects = np.repeat(np.arange(60), 5)
    alone, clustered = (auroc(scores, truth, confidence=0.95, clusters=c) for c in (None, subjects))
    assert alone.interval is not None
    assert clustered.interval is not None
    assert clustered.value == alone.value
    assert clustered.interval.high - clustered.interval.low > 1.8 * (alone.interval.high - alone.interval.low)
    assert "Obuchowski" in clustered.method


def test_clustered_interval_covers_the_true_area() -> None:
    rng = np.random.default_rng(8)
    subjects = np.repeat(np.arange(80), 3)
    truth = np.repeat(np.arange(80) < 40, 3)
    covered = 0
    for _ in range(800):
        # Each score is N(truth * sqrt(2), 1): an area of Phi(1) = 0.8413.
        scores = np.repeat(rng.normal(0, np.sqrt(0.7), 80), 3) + rng.normal(0, np.sqrt(0.3), 240)
        interval = auroc(scores + np.sqrt(2) * truth, truth, confidence=0.95, clusters=subjects).interval
        covered += interval is not None and interval.low <= 0.8413 <= interval.high
    assert 0.93 <= covered / 800 <= 0.975


def test_one_subject_per_case_is_no_clustering() -> None:
    rng = np.random.default_rng(9)
    truth, scores = rng.random(50) < 0.5, rng.normal(size=50)
    assert auroc(scores, truth, confidence=0.95, clusters=np.arange(50)) == auroc(
        scores, truth, confidence=0.95
    )


def test_300_000_cases_take_under_two_seconds() -> None:
    rng = np.random.default_rng(10)
    truth = rng.random(300_000) < 0.2
    scores = rng.normal(size=300_000) + truth
    start = time.process_time()
    auroc(scores, truth, confidence=0.95)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("truth", [np.zeros(3, bool), np.ones(3, bool), np.array([True, False])])
def test_needs_both_classes_and_one_score_per_case(truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="with both classes present"):
        auroc(np.zeros(3), truth, confidence=0.95)
