from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pastille.stats.chi_square import chi_square_below, chi_square_quantile
from pastille.stats.confidence import quantile_bins, quantile_grid
from pastille.stats.drift import bin_counts, ks_distance, ks_limit, ks_p_value, psi, psi_limit
from pastille.stats.drift_check import DriftCheck
from pastille.values.reference import VariantReference


def reference_of(values: np.ndarray) -> VariantReference:
    edges, shares = quantile_bins(values)
    return VariantReference(
        variant="int8",
        cases=len(values),
        edges=tuple(edges.tolist()),
        shares=tuple(shares.tolist()),
        grid=tuple(quantile_grid(values).tolist()),
        sensitivity=(),
    )


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 19, 50, 200])
def test_quantiles_of_chi_square_are_those_of_scipy(degrees: int) -> None:
    for probability in (0.001, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999999):
        expected = stats.chi2.ppf(probability, degrees)
        assert chi_square_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)
        assert chi_square_below(expected, degrees) == pytest.approx(probability, rel=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 1), (1.0, 1), (0.5, 0)])
def test_quantiles_that_do_not_exist_are_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        chi_square_quantile(probability, degrees)


def test_psi_is_what_it_is_by_hand() -> None:
    p, q = (Fraction(3, 8), Fraction(5, 8)), (Fraction(13, 24), Fraction(11, 24))
    expected = sum(float(a - b) * np.log(float(a / b)) for a, b in zip(p, q, strict=True))
    assert float(psi(np.array([2.5, 4.5]), np.array([12.5, 10.5]))) == pytest.approx(expected)


def test_values_on_an_edge_and_outside_are_counted_once() -> None:
    edges = np.array([0.0, 0.5, 0.9, 1.0])
    values = np.array([-0.1, 0.0, 0.5, 0.89, 0.9, 1.0, 1.1])
    assert bin_counts(values, edges).tolist() == [2, 2, 3]
    inside = values[1:6]
    assert bin_counts(inside, edges).tolist() == np.histogram(inside, edges)[0].tolist()


@given(
    st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1), min_size=3, max_size=40),
    st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1), min_size=3, max_size=150),
)
def test_the_distance_is_never_more_than_that_to_the_cases(now: list[float], then: list[float]) -> None:
    """And less by no more than the grid leaves open, ties or not."""
    exact = stats.ks_2samp(now, then, method="asymp").statistic
    found = ks_distance(np.array(now), quantile_grid(np.array(then)), len(then))
    assert exact - 0.01 - 2 / len(then) - 1e-9 <= found <= exact + 1e-9


def test_limits_and_p_values_of_the_distance_are_those_of_scipy() -> None:
    for n, m, significance in ((50, 500, 0.01), (500, 5000, 0.01), (200, 200, 0.0001)):
        limit = ks_limit(n, m, significance)
        assert limit * np.sqrt(n * m / (n + m)) == pytest.approx(stats.kstwobign.isf(significance), rel=1e-4)
        assert ks_p_value(limit, n, m) == pytest.approx(significance, rel=1e-3)
    for distance in (0.0, 0.01, 0.05, 0.1, 0.3, 1.0):
        expected = stats.kstwobign.sf(distance * np.sqrt(100 * 300 / 400))
        assert ks_p_value(distance, 100, 300) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [50, 100, 500, 2000])
def test_a_limit_of_psi_is_exceeded_by_chance_as_often_as_it_says(n: int) -> None:
    rng, runs, m = np.random.default_rng(n), 2000, 1000
    edges = np.arange(11) / 10  # quantiles of the uniform: counts are multinomial
    now = rng.multinomial(n, np.diff(edges), runs)
    then = rng.multinomial(m, np.diff(edges), runs)
    found = psi(now, then)
    share = float((found > psi_limit(n, m, 10, 0.01)).mean())
    assert 0.003 < share < 0.018  # 1 % within 3 standard errors, and 0.8 to 1.5 % as it is
    if n <= 100:
        assert float((found > 0.1).mean()) > 0.3  # the usual limit is none


def test_blocks_are_tested_at_their_part_of_the_significance() -> None:
    """30 blocks, two distances: 1 in 6,000 looks each."""
    rng = np.random.default_rng(3)
    m, n = 1000, 500
    counts = rng.multinomial(n, np.full(10, 0.1), 200_000)
    then = rng.multinomial(m, np.full(10, 0.1), 200_000)
    share = float((psi(counts, then) > psi_limit(n, m, 10, 0.01 / 60)).mean())
    assert share < 2.2 * 0.01 / 60


def test_nothing_is_said_below_the_minimum() -> None:
    check = DriftCheck(reference_of(np.linspace(0.5, 1, 400)))
    check.update([0.5] * 49)
    found = check.finding()
    assert (found.state, found.n, found.psi, found.psi_limit, found.ks, found.now) == (
        "not_enough_data",
        49,
        None,
        None,
        None,
        (),
    )
    assert found.words == "Not enough data: 49 of 50 answers."


def test_nothing_is_decided_before_the_first_whole_block() -> None:
    """However far the first look is beyond its limit, it is neither an alarm nor as expected."""
    check = DriftCheck(reference_of(np.linspace(0.5, 1, 400)))
    check.update([0.5] * 499)
    found = check.finding()
    assert (found.state, found.now != ()) == ("not_enough_data", True)
    assert found.words == "Decided for the first time after 500 answers; 499 so far."
    check.update([0.5])
    assert check.finding().state == "alarm"


def test_drift_is_an_alarm_at_the_next_whole_block_and_ends_with_one_that_passes() -> None:
    rng = np.random.default_rng(0)
    seen = rng.beta(8, 2, 1000)
    check = DriftCheck(reference_of(seen), window=200)
    check.update(rng.beta(8, 2, 300))
    assert check.finding().state == "ok"
    check.update(rng.beta(5, 2, 200))  # half of the second block, half of the third
    check.update(rng.beta(5, 2, 99))
    before = check.finding()
    assert (before.blocks, before.n) == (2, 200)
    assert before.psi is not None
    assert before.psi_limit is not None
    assert before.psi > before.psi_limit
    check.update(rng.beta(5, 2, 1))
    assert check.finding().state == "alarm"
    check.update(rng.beta(8, 2, 200))
    assert check.finding().state == "ok"
    assert check.finding().blocks == 4


def test_the_window_holds_the_last_cases_however_they_come() -> None:
    rng = np.random.default_rng(1)
    values = rng.random(737)
    reference = reference_of(np.linspace(0, 1, 500))
    at_once, one_by_one, last = (DriftCheck(reference, window=100) for _ in range(3))
    at_once.update(values)
    for value in values:
        one_by_one.update([value])
    assert at_once.finding() == one_by_one.finding()
    last.update(values[-100:])
    assert last.finding().now == at_once.finding().now
    assert last.finding().ks == at_once.finding().ks


def test_saturated_confidences_are_compared_as_far_as_they_can_be() -> None:
    """All of validation at 1: one bin, no PSI; KS still sees what is not at 1."""
    check = DriftCheck(reference_of(np.ones(300)), window=100)
    check.update(np.ones(100))
    assert check.finding().psi is None
    assert check.finding().state == "ok"
    check.update(np.r_[np.full(50, 0.7), np.ones(50)])
    assert check.finding().ks == pytest.approx(0.5)
    assert check.finding().state == "alarm"


def test_a_confidence_that_is_no_number_is_left_out() -> None:
    check = DriftCheck(reference_of(np.linspace(0, 1, 100)))
    check.update([float("nan"), 0.5, float("inf")])
    assert check.finding().n == 1


@pytest.mark.parametrize(
    "wrong", [{"minimum": 0}, {"minimum": 501}, {"looks": 0}, {"significance": 0.0}, {"significance": 1.0}]
)
def test_a_check_that_can_not_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DriftCheck(reference_of(np.linspace(0, 1, 100)), **wrong)  # type: ignore[arg-type]
