from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from pastille.stats.bootstrap import bca, bca_of_sums, bca_of_values, draws, left_out, resample_sums

Statistic = Callable[[np.ndarray], float]


def _widened(confidence: float, n: int) -> float:
    """The normal confidence that reaches as far as ours does for n units."""
    reach = math.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + confidence / 2, n - 1)
    return float(2 * stats.norm.cdf(reach) - 1)


@pytest.mark.parametrize(("statistic", "n"), [(np.mean, 40), (np.mean, 300), (np.median, 41), (np.std, 40)])
def test_agrees_with_scipy(statistic: Statistic, n: int) -> None:
    sample = np.random.default_rng(1).gamma(2.0, size=n)
    expected = stats.bootstrap(
        (sample,),
        statistic,
        method="BCa",
        n_resamples=15_000,
        confidence_level=_widened(0.9, n),
        rng=np.random.default_rng(2),
    ).confidence_interval
    found = bca(lambda rows: float(statistic(sample[rows])), n, confidence=0.9, resamples=15_000)
    assert found is not None
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.04 * width)
    assert found.high == pytest.approx(expected.high, abs=0.04 * width)


def _mean(sums: np.ndarray) -> np.ndarray:
    mean: np.ndarray = sums[..., 0] / sums[..., 1]
    return mean


@pytest.mark.parametrize("clustered", [False, True])
def test_both_ways_agree(clustered: bool) -> None:
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 60, 200) if clustered else None
    sample = rng.exponential(size=200) + (0 if clusters is None else clusters % 7)
    slow = bca(lambda rows: float(sample[rows].mean()), 200, clusters=clusters, confidence=0.95)
    sums = resample_sums(np.column_stack([sample, np.ones(200)]), clusters=clusters)
    fast = bca_of_sums(sums, _mean, confidence=0.95)
    assert slow is not None
    assert fast is not None
    assert (slow.low, slow.high) == pytest.approx((fast.low, fast.high), rel=1e-9)


def test_whole_clusters_are_drawn() -> None:
    clusters = np.array(["a", "b", "a", "c", "b"])
    seen = []

    def count(rows: np.ndarray) -> float:
        seen.append(np.bincount(rows, minlength=5))
        return float(rows.mean())

    bca(count, 5, clusters=clusters, confidence=0.95, resamples=50)
    assert all(times[0] == times[2] and times[1] == times[4] for times in seen)


def test_draws_count_whole_clusters_and_as_many_of_them() -> None:
    clusters = np.array(["a", "b", "a", "c", "b"])
    times = np.concatenate(list(draws(5, clusters=clusters, resamples=200)))
    assert times.shape == (200, 5)
    assert (times[:, [0, 1]] == times[:, [2, 4]]).all()
    assert (times[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert times[:, 3].mean() == pytest.approx(1, abs=0.2)


def test_draws_are_those_of_the_sums() -> None:
    columns = np.random.default_rng(8).normal(size=(3000, 2))
    times = np.concatenate(list(draws(3000, resamples=300, seed=4)))
    assert times @ columns == pytest.approx(resample_sums(columns, resamples=300, seed=4).replicates)


def test_each_cluster_is_left_out_once_or_in_blocks() -> None:
    clusters = np.repeat(np.arange(30), 2)
    alone, blocks = (np.concatenate(list(left_out(60, clusters=clusters, most=m))) for m in (30, 7))
    assert (alone.shape, blocks.shape) == ((30, 60), (7, 60))
    assert (alone.sum(axis=1) == 58).all()
    for found in (alone, blocks):
        assert (found.sum(axis=0) == len(found) - 1).all()
        assert (found[:, ::2] == found[:, 1::2]).all()


def test_values_computed_elsewhere_have_the_same_interval() -> None:
    sample = np.random.default_rng(9).exponential(size=150)
    columns = np.column_stack([sample, np.ones(150)])
    expected = bca_of_sums(resample_sums(columns), _mean, confidence=0.95)
    values = [
        np.concatenate([_mean(times @ columns) for times in chunks]) for chunks in (draws(150), left_out(150))
    ]
    found = bca_of_values(float(sample.mean()), values[0], values[1], confidence=0.95)
    assert expected is not None
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(50), 8)
    columns = np.column_stack([np.repeat(rng.normal(size=50), 8), np.ones(400)])
    alone, together = (
        bca_of_sums(resample_sums(columns, clusters=c), _mean, confidence=0.95) for c in (None, clusters)
    )
    assert alone is not None
    assert together is not None
    assert together.high - together.low > 2.3 * (alone.high - alone.low)


def test_a_seed_repeats_and_another_differs() -> None:
    columns = np.column_stack([np.arange(50.0) ** 2, np.ones(50)])
    first, again, other = (
        bca_of_sums(resample_sums(columns, seed=seed), _mean, confidence=0.95) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_covers_the_true_mean_of_a_skewed_sample() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(600):
        columns = np.column_stack([rng.exponential(size=60), np.ones(60)])
        interval = bca_of_sums(resample_sums(columns, resamples=600, seed=seed), _mean, confidence=0.95)
        covered += interval is not None and interval.low <= 1.0 <= interval.high
    assert 0.925 <= covered / 600 <= 0.975


def test_a_constant_has_no_width() -> None:
    columns = np.column_stack([np.full(30, 0.1), np.ones(30)])
    interval = bca_of_sums(resample_sums(columns), _mean, confidence=0.95)
    assert interval is not None
    assert interval.low == interval.high == pytest.approx(0.1)


def test_resamples_that_agree_by_chance_say_nothing() -> None:
    """One row in 1,000 differs: two resamples miss it, the jackknife does not."""
    columns = np.column_stack([np.eye(1, 1000, 7).ravel(), np.ones(1000)])
    sums = resample_sums(columns, resamples=2, seed=5)
    assert np.ptp(sums.replicates[:, 0]) == 0
    assert bca_of_sums(sums, _mean, confidence=0.95) is None


def test_tiny_units_are_not_taken_for_rounding() -> None:
    sample = np.random.default_rng(6).normal(size=50)
    small, large = (
        bca_of_sums(resample_sums(np.column_stack([sample * unit, np.ones(50)])), _mean, confidence=0.95)
        for unit in (1e-15, 1.0)
    )
    assert small is not None
    assert large is not None
    assert small.low == pytest.approx(large.low * 1e-15)


@pytest.mark.parametrize("clusters", [np.array([1]), None])
def test_one_unit_cannot_tell(clusters: np.ndarray | None) -> None:
    assert bca(lambda rows: 1.0, 1, clusters=clusters, confidence=0.95) is None
    assert bca_of_sums(resample_sums(np.ones((1, 2))), _mean, confidence=0.95) is None


def test_a_statistic_that_is_often_undefined_cannot_tell() -> None:
    columns = np.column_stack([np.zeros(20), np.eye(1, 20, 3).ravel()])  # one row has all the weight
    assert bca_of_sums(resample_sums(columns), _mean, confidence=0.95) is None


def test_a_statistic_that_is_undefined_in_a_tenth_of_the_resamples_cannot_tell() -> None:
    weight = (np.arange(20) < 2).astype(float)  # (18/20)^20: 12 % of the resamples have none
    columns = np.column_stack([weight * np.arange(20), weight])
    assert bca_of_sums(resample_sums(columns), _mean, confidence=0.95) is None


def test_a_statistic_that_is_rarely_undefined_can() -> None:
    weight = (np.arange(20) < 4).astype(float)  # (16/20)^20: 1.2 % of the resamples have none
    columns = np.column_stack([weight * np.arange(20), weight])
    assert bca_of_sums(resample_sums(columns), _mean, confidence=0.95) is not None


def test_r2_of_10_000_rows_takes_under_a_second() -> None:
    rng = np.random.default_rng(7)
    columns = rng.normal(size=(10_000, 6))
    start = time.process_time()
    bca_of_sums(resample_sums(columns), lambda s: 1 - s[..., 3] / s[..., 5], confidence=0.95)
    assert time.process_time() - start < 1


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="clusters must have one entry per row, got 2 for 3 rows"):
        resample_sums(np.ones((3, 1)), clusters=np.zeros(2))
    with pytest.raises(ValueError, match="clusters must have one entry per row, got 2 for 3 rows"):
        bca(lambda rows: 0.0, 3, clusters=np.zeros(2), confidence=0.95)
