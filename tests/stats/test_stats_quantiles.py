from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.stats.quantiles import latency_quantiles, samples_needed


@pytest.mark.parametrize(
    ("q", "needed"), [(0.99, (459, 662, 838)), (0.95, (90, 130, 165)), (0.9, (44, 64, 81))]
)
def test_samples_needed_agree_with_loadgen(q: float, needed: tuple[int, int, int]) -> None:
    assert tuple(samples_needed(q, over=over) for over in range(3)) == needed


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("over", [0, 1, 2, 5])
def test_the_bound_moves_down_exactly_where_one_more_sample_may_lie_above(q: float, over: int) -> None:
    n = samples_needed(q, over=over)
    (at,) = latency_quantiles(range(n), qs=(q,))
    assert at.upper_ms == n - 1 - over
    before = latency_quantiles(range(n - 1), qs=(q,))
    if over == 0:
        assert before == () if q == 0.99 else before[0].upper_ms is None
    else:
        assert before[0].upper_ms == n - 1 - over  # one fewer may lie above n - 2


def test_p99_is_absent_below_459_samples() -> None:
    assert [x.q for x in latency_quantiles(range(458))] == [0.5, 0.9, 0.95]
    assert [x.q for x in latency_quantiles(range(459))] == [0.5, 0.9, 0.95, 0.99]


def test_two_samples_have_a_median_and_no_bound() -> None:
    found = latency_quantiles([3.0, 1.0])
    assert [(x.q, x.value_ms, x.upper_ms) for x in found] == [
        (0.5, 1.0, None),
        (0.9, 3.0, None),
        (0.95, 3.0, None),
    ]


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=600))
def test_value_occurred_and_the_bound_is_not_below_it(samples: list[float]) -> None:
    for found in latency_quantiles(samples):
        assert found.value_ms in samples
        assert np.mean(np.array(samples) <= found.value_ms) >= found.q - 1e-9
        assert found.upper_ms is None or found.upper_ms >= found.value_ms


@pytest.mark.parametrize(("q", "n"), [(0.5, 30), (0.9, 100), (0.95, 200), (0.99, 700)])
def test_the_bound_fails_in_at_most_one_percent(q: float, n: int) -> None:
    rng = np.random.default_rng(4)
    truth = -np.log(1 - q)  # of the exponential
    bounds = [latency_quantiles(rng.exponential(size=n), qs=(q,))[0].upper_ms for _ in range(3000)]
    failed = np.mean([bound is not None and bound < truth for bound in bounds])
    assert failed <= 0.01 + 2.6 * np.sqrt(0.01 * 0.99 / 3000)


@pytest.mark.parametrize("samples", [[], [np.nan], [1.0, np.inf], [[1.0]]])
def test_unusable_samples_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples_ms must be finite and at least one"):
        latency_quantiles(samples)


def test_bad_percentiles_are_refused() -> None:
    with pytest.raises(ValueError, match="got q=1, over=0"):
        samples_needed(1)
