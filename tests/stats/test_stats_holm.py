from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from pastille.stats.holm import holm, p_value_of_excess
from pastille.stats.proportions import tango
from pastille.values import Comparison, Interval


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)  # the oracle is slow to start
def test_holm_agrees_with_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_holm_of_nothing() -> None:
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("bad", [1.2, -0.1, np.nan])
def test_holm_refuses_what_is_no_p_value(bad: float) -> None:
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got"):
        holm([0.5, bad])


def _found(interval: Interval | None, drop: float | None, **counts: float) -> Comparison:
    whole = {key: int(counts[key]) for key in ("newly_wrong", "newly_right") if key in counts}
    return Comparison(
        metric="any",
        n=int(counts.get("n", 100)),
        baseline=None,
        candidate=None,
        drop=drop,
        interval=interval,
        method="",
        newly_wrong=whole.get("newly_wrong"),
        newly_right=whole.get("newly_right"),
        worth=counts.get("worth"),
    )


@given(
    st.integers(1, 2000),
    st.data(),
    st.floats(0.8, 0.99),
    st.floats(0.0, 0.3),
    st.sampled_from([1.0, 0.7]),
)
def test_a_share_is_beyond_its_limit_exactly_where_its_interval_is(
    n: int, data: st.DataObject, confidence: float, limit: float, shrink: float
) -> None:
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    interval = tango(b * shrink, c * shrink, n * shrink, confidence)
    p = p_value_of_excess(
        _found(interval, (b - c) / n, n=n, newly_wrong=b, newly_right=c, worth=n * shrink), limit
    )
    assume(abs(interval.low - limit) > 1e-9)
    assert (p < (1 - confidence) / 2) == (interval.low > limit)


@given(st.floats(-0.5, 0.5), st.floats(0.001, 0.3), st.floats(0.001, 0.3), st.floats(-0.5, 0.5))
def test_any_other_metric_likewise(drop: float, down: float, up: float, limit: float) -> None:
    interval = Interval(low=drop - down, high=drop + up, confidence=0.9)
    assume(abs(interval.low - limit) > 1e-9)
    assert (p_value_of_excess(_found(interval, drop), limit) < 0.05) == (interval.low > limit)
    # At the other end: as surely within the limit as the interval is.
    at_end = p_value_of_excess(_found(interval, drop), interval.high)
    assert at_end == pytest.approx(0.95, abs=1e-9)


def test_what_cannot_be_told_is_no_evidence() -> None:
    assert p_value_of_excess(_found(None, 0.3), 0.01) == 1.0
    assert p_value_of_excess(_found(None, None), 0.01) == 1.0


def test_an_interval_without_a_width_is_certain() -> None:
    point = Interval(low=0.1, high=0.1, confidence=0.95)
    assert p_value_of_excess(_found(point, 0.1), 0.05) == 0.0
    assert p_value_of_excess(_found(point, 0.1), 0.1) == 1.0


def test_a_limit_of_everything_cannot_be_exceeded() -> None:
    found = _found(tango(10, 0, 10, 0.95), 1.0, n=10, newly_wrong=10, newly_right=0)
    assert [p_value_of_excess(found, limit) for limit in (1.0, 1.5)] == [1.0, 1.0]
    assert p_value_of_excess(found, -1.0) == 0.0
