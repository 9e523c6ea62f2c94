from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pastille.stats import power as power_module
from pastille.stats.normal import critical_value
from pastille.stats.power import (
    EXACT_CASES,
    bearable_discordance,
    cases_by_width,
    cases_needed,
    exact_cases_needed,
    power_of,
    smallest_provable_limit,
)
from pastille.stats.proportions import tango, tango_upper


@pytest.mark.parametrize(
    ("discordance", "limit", "cases"),
    [
        (0.01, 0.005, 3140),
        (0.01, 0.01, 785),
        (0.01, 0.02, 197),
        (0.02, 0.005, 6280),
        (0.02, 0.01, 1570),
        (0.02, 0.02, 393),
        (0.05, 0.005, 15698),
        (0.05, 0.01, 3925),
        (0.05, 0.02, 982),
    ],
)
def test_published_figures(discordance: float, limit: float, cases: int) -> None:
    assert cases_needed(discordance, limit, confidence=0.95) == cases


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_without_disagreement_it_is_the_fewest_that_tango_approves(limit: float, confidence: float) -> None:
    n = cases_needed(0.0, limit, confidence=confidence)
    assert tango(0, 0, n, confidence).high <= limit + 1e-9
    assert n == 1 or tango(0, 0, n - 1, confidence).high > limit


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1))
def test_more_disagreement_never_needs_fewer_cases(one: float, other: float, limit: float) -> None:
    less, more = sorted((one, other))
    assert cases_needed(less, limit, confidence=0.95) <= cases_needed(more, limit, confidence=0.95)


def test_a_true_drop_leaves_less_room() -> None:
    assert cases_needed(0.02, 0.02, confidence=0.95, drop=0.01) == cases_needed(0.02, 0.01, confidence=0.95)


def test_by_width_is_exact_where_the_interval_must_just_fit() -> None:
    # Half the room needs four times the cases; power 50 % adds nothing.
    assert cases_by_width(100, 0.02, 0.01, confidence=0.95, power=0.5) == 400
    assert cases_by_width(100, 0.02, 0.02, confidence=0.95, power=0.5) == 100


def test_by_width_agrees_with_the_formula_for_shares() -> None:
    reach = critical_value(0.95) * (0.02 / 1000) ** 0.5
    assert cases_by_width(1000, reach, 0.01, confidence=0.95) == cases_needed(0.02, 0.01, confidence=0.95)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"discordance must be in \[0, 1\], got 1.5"):
        cases_needed(1.5, 0.01, confidence=0.95)
    with pytest.raises(
        ValueError, match=r"limit must be in .* and above the drop, got limit=0.01, drop=0.01"
    ):
        cases_needed(0.1, 0.01, confidence=0.95, drop=0.01)
    with pytest.raises(ValueError, match="limit must be in"):
        cases_needed(0.1, 0.0, confidence=0.95)
    with pytest.raises(ValueError, match=r"power must be in \[0.5, 1\), got 1"):
        cases_needed(0.1, 0.01, confidence=0.95, power=1)
    with pytest.raises(ValueError, match="n and room must be positive"):
        cases_by_width(0, 0.1, 0.1, confidence=0.95)


def enumerated(n: int, discordance: float, limit: float, confidence: float, drop: float) -> float:
    """Probability of every pair of counts that the interval itself approves, one by one."""
    newly_wrong, newly_right = (discordance + drop) / 2, (discordance - drop) / 2
    tables = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    b, c = np.array(tables).T
    upper = tango_upper(b, c, np.array(n), confidence)
    return sum(
        math.comb(n, b)
        * math.comb(n - b, c)
        * newly_wrong**b
        * newly_right**c
        * (1 - discordance) ** (n - b - c)
        for (b, c), high in zip(tables, upper, strict=True)
        if high <= limit
    )


@pytest.mark.parametrize("n", [1, 7, 30, 55])
@pytest.mark.parametrize(
    ("discordance", "limit", "drop"),
    [
        (0.0, 0.1, 0.0),
        (0.1, 0.1, 0.0),
        (0.3, 0.2, 0.1),
        (0.3, 0.2, 0.2),
        (0.3, 0.05, -0.3),
        (1.0, 0.3, 0.0),
        (0.2, 0.2, 0.2),
    ],
)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_power_is_the_sum_over_all_tables(
    n: int, discordance: float, limit: float, drop: float, confidence: float
) -> None:
    expected = enumerated(n, discordance, limit, confidence, drop)
    found = power_of(n, discordance, limit, confidence=confidence, drop=drop)
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("n", "discordance", "limit", "drop"),
    [(300, 0.05, 0.05, 0.0), (2000, 0.02, 0.01, 0.002), (10_000, 0.1, 0.01, 0.0), (1000, 0.2, 0.05, 0.05)],
)
def test_power_agrees_with_simulation(n: int, discordance: float, limit: float, drop: float) -> None:
    rng = np.random.default_rng(11)
    shares = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    tables, times = np.unique(rng.multinomial(n, shares, size=4000)[:, :2], axis=0, return_counts=True)
    approved = tango_upper(tables[:, 0], tables[:, 1], np.array(n), 0.95) <= limit
    simulated = float(np.average(approved, weights=times))
    found = power_of(n, discordance, limit, confidence=0.95, drop=drop)
    assert found == pytest.approx(simulated, abs=4 * math.sqrt(0.25 / 4000))


@pytest.mark.parametrize(
    ("fewest", "most", "level"),
    [(50, 100, 0.03), (100, 300, 0.029), (300, 1000, 0.026), (1000, 10_000, 0.0254)],
)
@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.05])
def test_the_exact_level_is_what_the_docs_say(fewest: int, most: int, level: float, limit: float) -> None:
    """How often a candidate truly at the limit is approved; nominally 2.5 %, and the test is approximate."""
    for n in np.unique(np.geomspace(fewest, most, 20).astype(int)):
        for discordance in np.unique(np.append(np.geomspace(limit, 0.2, 15), [2 * limit, 0.1722])):
            if discordance < limit:
                continue
            found = power_of(int(n), float(discordance), limit, confidence=0.95, drop=limit)
            assert found <= level
            if found > 0.026:
                assert power_of(int(n), float(discordance), limit, confidence=0.95) < 0.2


@pytest.mark.parametrize(
    ("discordance", "limit", "power"),
    [
        (0.0, 0.02, 0.8),
        (0.002, 0.02, 0.8),  # falls below 80 % again for forty cases
        (0.01, 0.05, 0.9),
        (0.05, 0.02, 0.6),
        (0.05, 0.05, 0.5),
        (0.1, 0.02, 0.8),
        (0.1, 0.1, 0.95),
        (0.3, 0.1, 0.8),
    ],
)
def test_enough_cases_stay_enough(discordance: float, limit: float, power: float) -> None:
    """Power climbs in teeth: every number from the answer on must do, and one fewer must not."""
    needed = exact_cases_needed(discordance, limit, confidence=0.95, power=power)
    powers = [power_of(n, discordance, limit, confidence=0.95) for n in range(max(1, needed - 1), 3 * needed)]
    assert powers[0] < power
    assert min(powers[1:]) >= power


@pytest.mark.parametrize("discordance", [0.01, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02])
def test_the_formula_asks_for_a_little_less_than_is_needed(discordance: float, limit: float) -> None:
    short = exact_cases_needed(discordance, limit, confidence=0.95) - cases_needed(
        discordance, limit, confidence=0.95
    )
    assert 0 < short < 4 / discordance


@settings(deadline=None, max_examples=30)
@given(st.integers(50, 5000), st.floats(0, 0.3), st.floats(0.6, 0.95))
def test_the_smallest_limit_is_on_the_edge(n: int, discordance: float, power: float) -> None:
    limit = smallest_provable_limit(n, discordance, confidence=0.95, power=power)
    assert power_of(n, discordance, limit, confidence=0.95) >= power
    assert power_of(n, discordance, limit - 1e-5, confidence=0.95) < power


@settings(deadline=None, max_examples=30)
@given(st.integers(80, 5000), st.floats(0.005, 0.2), st.floats(0.6, 0.95))
def test_the_bearable_discordance_is_on_the_edge(n: int, limit: float, power: float) -> None:
    most = bearable_discordance(n, limit, confidence=0.95, power=power)
    if most is None:
        assert n < cases_needed(0.0, limit, confidence=0.95)
    else:
        assert power_of(n, most, limit, confidence=0.95) >= power
        assert most == 1 or power_of(n, min(1.0, most + 1e-5), limit, confidence=0.95) < power


def test_without_disagreement_the_smallest_limit_is_tangos_upper_end() -> None:
    found = smallest_provable_limit(100, 0.0, confidence=0.95)
    assert found == pytest.approx(tango(0, 0, 100, 0.95).high, abs=2e-6)


def test_cases_of_one_subject_count_less() -> None:
    alone = power_of(1000, 0.02, 0.02, confidence=0.95)
    assert power_of(2000, 0.02, 0.02, confidence=0.95, design_effect=2.0) == alone
    assert exact_cases_needed(0.02, 0.02, confidence=0.95, design_effect=1.5) == 777  # of 518
    assert smallest_provable_limit(200, 0.0, confidence=0.95, design_effect=2.0) == pytest.approx(
        0.037, abs=1e-4
    )
    assert bearable_discordance(760, 0.01, confidence=0.95, design_effect=2.0) is None


def test_chunks_find_what_one_sum_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [(0.0, 0.02), (0.002, 0.02), (0.05, 0.02), (0.3, 0.1)]
    found = [exact_cases_needed(*each, confidence=0.95) for each in asked]
    monkeypatch.setattr(power_module, "_CELLS", 100)
    assert [exact_cases_needed(*each, confidence=0.95) for each in asked] == found


@pytest.mark.parametrize("discordance", [0.01, 0.1, 0.5])
def test_beyond_the_exact_sum_the_formula_goes_on(discordance: float) -> None:
    limits = [
        smallest_provable_limit(n, discordance, confidence=0.95) for n in (EXACT_CASES, EXACT_CASES + 1)
    ]
    assert limits[1] == pytest.approx(limits[0], rel=0.002)
    powers = [power_of(n, discordance, limits[0], confidence=0.95) for n in (EXACT_CASES, EXACT_CASES + 1)]
    assert powers[1] == pytest.approx(powers[0], abs=0.003)
    assert exact_cases_needed(discordance, 1e-4, confidence=0.95) == cases_needed(
        discordance, 1e-4, confidence=0.95
    )


def test_without_disagreement_any_number_of_cases_proves_what_tango_says() -> None:
    for n in (EXACT_CASES, 100 * EXACT_CASES):
        limit = smallest_provable_limit(n, 0.0, confidence=0.95)
        assert limit == pytest.approx(tango(0, 0, n, 0.95).high, rel=2e-3)
        assert power_of(n, 0.0, limit, confidence=0.95) == 1.0
        assert power_of(n, 0.0, 0.99 * limit, confidence=0.95) == 0.0
    assert bearable_discordance(10 * EXACT_CASES, 1e-7, confidence=0.95) is None


def test_any_limit_holds_where_it_is_everything() -> None:
    assert power_of(1, 0.5, 1.0, confidence=0.95) == pytest.approx(1.0)
    assert bearable_discordance(1, 1.0, confidence=0.95) == 1.0


def test_bad_arguments_of_the_exact_ones() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        power_of(0, 0.02, 0.01, confidence=0.95)
    with pytest.raises(ValueError, match=r"discordance must be in \[0, 1\], got -0.1"):
        power_of(10, -0.1, 0.01, confidence=0.95)
    with pytest.raises(ValueError, match=r"limit must be in \(0, 1\], got 0"):
        power_of(10, 0.1, 0, confidence=0.95)
    with pytest.raises(ValueError, match=r"drop must not exceed the discordance 0\.02, got 0\.03"):
        power_of(10, 0.02, 0.01, confidence=0.95, drop=0.03)
    with pytest.raises(ValueError, match=r"design_effect must be at least 1, got 0\.5"):
        power_of(10, 0.02, 0.01, confidence=0.95, design_effect=0.5)
    with pytest.raises(ValueError, match=r"drop must be below the limit, got limit=0\.01, drop=0\.01"):
        exact_cases_needed(0.02, 0.01, confidence=0.95, drop=0.01)
    with pytest.raises(ValueError, match=r"power must be in \[0.5, 1\), got 1.0"):
        smallest_provable_limit(10, 0.1, confidence=0.95, power=1.0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        power_of(10, 0.1, 0.1, confidence=95)
