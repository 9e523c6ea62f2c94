from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from pastille.stats.excess import exact_p_of_excess
from pastille.stats.proportions import score_variance
from pastille.stats.tables import binomial, last_true, likely_counts


def score(b: int, c: int, n: int, limit: float) -> float:
    variance = float(score_variance(np.array(b), np.array(c), np.array(n), np.array(limit)))
    return (b - c - n * limit) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("b", "c", "n", "limit"),
    [
        (6, 1, 40, 0.05),
        (3, 0, 25, 0.02),
        (9, 9, 50, 0.1),
        (20, 0, 30, 0.3),
        (1, 0, 60, 0.01),
        (1, 4, 50, -0.2),
        (0, 3, 40, -0.1),
    ],
)
def test_it_is_the_sum_over_all_tables_as_extreme(b: int, c: int, n: int, limit: float) -> None:
    variance = float(score_variance(np.array(b), np.array(c), np.array(n), np.array(limit)))
    discordance = variance / n + limit**2
    shares = np.maximum(0.0, [(discordance + limit) / 2, (discordance - limit) / 2, 1 - discordance])
    observed = score(b, c, n, limit)
    expected = sum(
        multinomial.pmf([i, j, n - i - j], n, shares)
        for i in range(n + 1)
        for j in range(n + 1 - i)
        if score(i, j, n, limit) >= observed - 1e-9
    )
    assert exact_p_of_excess(b, c, n, limit) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("b", "c"), [(7, 1), (3, 0), (30, 14)])
def test_at_a_limit_of_zero_it_is_close_to_mcnemar(b: int, c: int) -> None:
    """Which conditions on b + c, and is more cautious for it."""
    found = exact_p_of_excess(b, c, 10_000, 0.0)
    conditional = float(binomtest(b, b + c, alternative="greater").pvalue)
    assert conditional / 3 < found <= conditional


@pytest.mark.parametrize(("n", "limit"), [(50, 0.05), (100, 0.02), (300, 0.01), (1000, 0.005), (1000, 0.02)])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 5.0])
def test_a_candidate_at_the_limit_is_named_no_more_often_than_the_level(
    n: int, limit: float, ratio: float
) -> None:
    rng = np.random.default_rng(8)
    shares = [(ratio + 1) * limit / 2, (ratio - 1) * limit / 2, 1 - ratio * limit]
    tables, times = np.unique(rng.multinomial(n, shares, size=20_000)[:, :2], axis=0, return_counts=True)
    p = np.array([exact_p_of_excess(int(b), int(c), n, limit) for b, c in tables])
    for level in (0.025, 0.0025):
        found = float(np.average(p <= level, weights=times))
        assert found <= level + 2.6 * math.sqrt(level / 20_000)


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 2000), st.data(), st.floats(0.001, 0.5))
def test_of_as_many_changed_decisions_more_newly_wrong_are_more_surprising(
    n: int, data: st.DataObject, limit: float
) -> None:
    m = data.draw(st.integers(1, n))
    b = data.draw(st.integers(0, m - 1))
    less, more = (exact_p_of_excess(x, m - x, n, limit) for x in (b, b + 1))
    assert 0 <= more <= less + 1e-8 <= 1 + 1e-7


def test_where_nothing_is_left_to_chance() -> None:
    assert exact_p_of_excess(0, 0, 100, 0.0) == 1.0
    assert exact_p_of_excess(100, 0, 100, 1.0) == 1.0
    assert exact_p_of_excess(0, 0, 100, 0.05) == pytest.approx(1.0, abs=1e-8)
    assert exact_p_of_excess(100, 0, 100, 0.05) < 1e-12


def test_worth_need_not_be_whole() -> None:
    low, high = exact_p_of_excess(16, 3, 240, 0.02), exact_p_of_excess(17, 3, 241, 0.02)
    assert min(low, high) * 0.7 < exact_p_of_excess(16.5, 3, 240.5, 0.02) < max(low, high) * 1.3


def test_bad_arguments() -> None:
    with pytest.raises(
        ValueError, match=r"b and c must be at least 0 and b \+ c at most n, got b=3, c=3, n=5"
    ):
        exact_p_of_excess(3, 3, 5, 0.1)
    with pytest.raises(ValueError, match=r"limit must be in \[-1, 1\], got 2"):
        exact_p_of_excess(1, 1, 5, 2)


@pytest.mark.parametrize(("n", "share"), [(10, 0.5), (1000, 0.01), (100_000, 0.3), (50, 0.0), (50, 1.0)])
def test_the_likely_counts_hold_all_but_nothing(n: int, share: float) -> None:
    low, high = likely_counts(n, share)
    assert 0 <= low <= high <= n
    chances = binomial(np.arange(low, high + 1), np.array(n), share)
    assert chances.sum() == pytest.approx(1.0, abs=1e-8)


@given(st.integers(1, 500), st.integers(0, 499))
def test_the_search_finds_the_border(high: int, border: int) -> None:
    found = last_true(lambda x: x <= border, np.array([-1.0]), np.array([float(high)]))
    assert found[0] == min(border, high - 1)
