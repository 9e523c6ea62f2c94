from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.stats.normal import critical_value
from pastille.stats.power import cases_by_width, cases_needed
from pastille.stats.proportions import tango


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
