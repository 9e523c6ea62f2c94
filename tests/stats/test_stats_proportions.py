from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from pastille.stats.normal import critical_value
from pastille.stats.proportions import mcnemar_exact, tango, tango_upper, wilson
from pastille.values import Interval


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """Discordant counts b and c, and all cases n."""
    n = draw(st.integers(1, 2000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


confidences = st.floats(0.5, 0.999)


@given(st.integers(1, 5000), st.data(), confidences)
def test_wilson_agrees_with_statsmodels(n: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    found = wilson(successes, n, confidence)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert 0 <= found.low <= successes / n <= found.high <= 1


def test_wilson_has_a_width_at_the_ends() -> None:
    assert wilson(0, 20, 0.95).low == 0.0
    assert wilson(20, 20, 0.95).high == 1.0
    assert wilson(20, 20, 0.95).low == pytest.approx(0.8389, abs=1e-4)


def test_tango_agrees_with_the_published_table() -> None:
    """Bentur's data in Fagerland, Lydersen and Laake (2014): (a, b, c, d) = (1, 1, 7, 12)."""
    found = tango(1, 7, 21, 0.95)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)


def _likelihood_variance(b: int, c: int, n: int, difference: float) -> float:
    """The variance under a null difference, by maximising the likelihood numerically."""

    def loss(share_c: float) -> float:
        shares = np.array([share_c + difference, share_c, 1 - 2 * share_c - difference])
        return -float(np.array([b, c, n - b - c]) @ np.log(np.maximum(shares, 1e-300)))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share_c = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return n * (2 * share_c + difference * (1 - difference))


@pytest.mark.parametrize("table", [(5, 2, 540), (30, 40, 100), (3, 9, 25), (1, 1, 50), (60, 10, 80)])
def test_tango_bounds_are_where_a_score_test_just_rejects(table: tuple[int, int, int]) -> None:
    b, c, n = table
    found = tango(b, c, n, 0.95)
    for bound in (found.low, found.high):
        score = (b - c - n * bound) / np.sqrt(_likelihood_variance(b, c, n, bound))
        assert abs(score) == pytest.approx(critical_value(0.95), abs=1e-4)


def _one_upper(b: float, c: float, n: float, z: float) -> float:
    """One upper end alone, in plain Python: where the score is z, by bisection."""
    low, high = (b - c) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        linear = (2 * n - b + c) * middle - b - c
        constant = -c * middle * (1 - middle)
        share_c = (max(0.0, linear**2 - 8 * n * constant) ** 0.5 - linear) / (4 * n)
        variance = n * (2 * share_c + middle * (1 - middle))
        rejected = (n * middle - b + c) ** 2 > z * z * max(0.0, variance)
        low, high = (low, middle) if rejected else (middle, high)
    return high


@given(st.lists(tables(), min_size=1, max_size=20), st.floats(0.6, 0.999), st.sampled_from([1.0, 0.37]))
def test_many_tangos_at_once_agree_with_one_by_one(
    found: list[tuple[int, int, int]], confidence: float, shrink: float
) -> None:
    b, c, n = shrink * np.array(found).T
    z = critical_value(confidence)
    expected = [_one_upper(*table, z) for table in zip(b, c, n, strict=True)]
    assert tango_upper(b, c, n, confidence) == pytest.approx(expected, abs=1e-9)
    assert [tango(*t, confidence).high for t in zip(b, c, n, strict=True)] == pytest.approx(
        expected, abs=1e-9
    )


def test_many_tangos_broadcast() -> None:
    found = tango_upper(np.arange(3)[:, None], np.zeros(2), np.array([50, 80]), 0.95)
    assert found.shape == (3, 2)
    assert found[1, 1] == pytest.approx(tango(1, 0, 80, 0.95).high, abs=1e-12)
    with pytest.raises(
        ValueError, match="b and c must be at least 0 and b \\+ c at most n, got b=3, c=0, n=2"
    ):
        tango_upper(np.array([1, 3]), np.array(0), np.array(2), 0.95)


@given(tables(), confidences)
def test_tango_is_antisymmetric_and_holds_the_estimate(
    table: tuple[int, int, int], confidence: float
) -> None:
    b, c, n = table
    found, mirrored = tango(b, c, n, confidence), tango(c, b, n, confidence)
    assert (found.low, found.high) == (-mirrored.high, -mirrored.low)
    assert -1 <= found.low <= (b - c) / n <= found.high <= 1
    assert found.high > found.low


@given(tables(), st.floats(0.5, 0.99), st.floats(0.001, 0.0099))
def test_tango_widens_with_confidence(table: tuple[int, int, int], confidence: float, more: float) -> None:
    narrow, wide = tango(*table, confidence), tango(*table, confidence + more)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@given(st.integers(1, 100_000), confidences)
def test_tango_without_disagreement_has_a_closed_form(n: int, confidence: float) -> None:
    z2 = critical_value(confidence) ** 2
    found = tango(0, 0, n, confidence)
    assert found.high == pytest.approx(z2 / (n + z2), abs=1e-10)
    assert found.low == -found.high


def test_no_disagreement_in_100_cases_still_allows_a_loss_of_3_7_points() -> None:
    assert round(tango(0, 0, 100, 0.95).high, 3) == 0.037


def test_tango_at_the_extremes() -> None:
    assert tango(10, 0, 10, 0.95).high == 1.0
    assert tango(0, 10, 10, 0.95).low == -1.0
    assert tango(1, 0, 1, 0.95).high == 1.0


@cache
def _upper(b: int, c: int, n: int) -> Interval:
    return tango(b, c, n, 0.95)


@pytest.mark.parametrize(
    ("n", "share_b", "share_c"), [(200, 0.05, 0.03), (500, 0.03, 0.01), (1000, 0.02, 0.02)]
)
def test_tango_covers_the_true_difference(n: int, share_b: float, share_c: float) -> None:
    rng = np.random.default_rng(20)
    draws = rng.multinomial(n, [share_b, share_c, 1 - share_b - share_c], size=4000)
    found = [_upper(int(b), int(c), n) for b, c, _ in draws]
    covered = np.mean([i.low <= share_b - share_c <= i.high for i in found])
    assert covered == pytest.approx(0.95, abs=0.015)
    # A limit equal to the true drop is approved wrongly in 2.5 %, but for Monte Carlo error.
    wrongly_approved = np.mean([i.high <= share_b - share_c for i in found])
    assert wrongly_approved <= 0.025 + 2.6 * np.sqrt(0.025 * 0.975 / 4000) + 0.004


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_statsmodels(b: int, c: int) -> None:
    expected = mcnemar([[7, b], [c, 9]], exact=True).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("bad", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_tango_refuses_impossible_counts(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="b and c must be at least 0 and b \\+ c at most n, got b="):
        tango(*bad, 0.95)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"successes must be in \[0, n\] with n positive, got 3 of 2"):
        wilson(3, 2, 0.95)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        wilson(1, 2, 95)
    with pytest.raises(ValueError, match="b and c must be at least 0, got b=-1, c=0"):
        mcnemar_exact(-1, 0)
