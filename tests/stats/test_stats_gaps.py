"""The growth of a gap: its interval against simulation, its value against plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.stats.clusters import effective_cases
from pastille.stats.gaps import gap
from pastille.stats.proportions import tango, wilson
from pastille.values import Comparison, Estimate, Gap, Interval

CONFIDENCE = 0.95


@cache
def _estimate(hits: float, n: float) -> Estimate:
    return Estimate(value=hits / n, interval=wilson(hits, n, CONFIDENCE), n=int(n), method="Wilson")


@cache
def _tango(b: float, c: float, n: float) -> Interval:
    return tango(b, c, n, CONFIDENCE)


def _comparison(metric: str, group: str, table: Sequence[float], worth: float | None = None) -> Comparison:
    """``table``: right with both models, only the baseline, only the candidate, none."""
    n = sum(table)
    both, b, c, _ = (count * (worth or n) / n for count in table)
    worth = worth or n
    return Comparison(
        metric=metric,
        where={"group": group},
        n=int(n),
        baseline=_estimate(both + b, worth),
        candidate=_estimate(both + c, worth),
        drop=(b - c) / worth,
        interval=_tango(b, c, worth),
        method="Tango score interval",
    )


def _gap(tables: Sequence[Sequence[Sequence[float]]], *, min_group: int = 1) -> Gap | None:
    """``tables[metric][group]``."""
    found = [
        [_comparison(str(metric), str(group), table) for group, table in enumerate(of_groups)]
        for metric, of_groups in enumerate(tables)
    ]
    return gap("gap", "group", found, min_group=min_group, confidence=CONFIDENCE)


tables_of_a_group = st.tuples(st.integers(1, 200), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
tables_of_a_metric = st.lists(tables_of_a_group, min_size=2, max_size=5)


@given(st.lists(tables_of_a_metric, min_size=1, max_size=2))
def test_a_gap_agrees_with_a_plain_loop_and_lies_in_its_interval(
    tables: list[list[tuple[int, int, int, int]]],
) -> None:
    found = _gap(tables)
    assert found is not None
    before, after = 0.0, 0.0
    for of_groups in tables:
        for one, other in product(of_groups, repeat=2):
            before = max(before, (one[0] + one[1]) / sum(one) - (other[0] + other[1]) / sum(other))
            after = max(after, (one[0] + one[2]) / sum(one) - (other[0] + other[2]) / sum(other))
    assert (found.baseline, found.candidate) == pytest.approx((before, after))
    assert found.growth == pytest.approx(after - before)
    assert found.interval is not None
    assert found.interval.low - 1e-9 <= found.growth <= found.interval.high + 1e-9


@given(tables_of_a_metric)
def test_the_interval_does_not_depend_on_the_order_of_the_groups(
    tables: list[tuple[int, int, int, int]],
) -> None:
    one, other = _gap([tables]), _gap([tables[::-1]])
    assert one is not None
    assert other is not None
    assert one.interval == other.interval


@given(tables_of_a_metric)
def test_going_back_from_the_candidate_to_the_baseline_turns_the_interval_round_where_pairs_are_clear(
    tables: list[tuple[int, int, int, int]],
) -> None:
    far = [(900, 5, 5, 10), *[(100 + t[0], t[1], t[2], 5000) for t in tables[:1]]]
    forth, back = _gap([far]), _gap([[(a, c, b, d) for a, b, c, d in far]])
    assert forth is not None
    assert back is not None
    assert forth.interval is not None
    assert back.interval is not None
    assert (forth.interval.low, forth.interval.high) == pytest.approx(
        (-back.interval.high, -back.interval.low)
    )


def _truth(tables: Sequence[Sequence[np.ndarray]]) -> float:
    """The true growth, from the chances of each outcome."""
    before = max(float(np.ptp([p[0] + p[1] for p in groups])) for groups in tables)
    after = max(float(np.ptp([p[0] + p[2] for p in groups])) for groups in tables)
    return after - before


def _chances(before: float, after: float, extra: float = 0.01) -> np.ndarray:
    """Of each outcome, where ``extra`` of the cases change in either direction beside the drop."""
    b, c = max(0.0, before - after) + extra, max(0.0, after - before) + extra
    return np.array([before - b, b, c, 1 - before - c])


Scenario = tuple[Sequence[Sequence[int]], Sequence[Sequence[tuple[float, float]]]]
# Sizes of the groups, then sensitivity (and specificity) before and after. The true growth is 2 points,
# where a name does not say otherwise.
SCENARIOS: dict[str, Scenario] = {
    "two groups far apart": ([(600, 600)], [[(0.95, 0.95), (0.75, 0.73)]]),
    "two groups, true gap zero": ([(300, 300)], [[(0.9, 0.9), (0.9, 0.88)]]),
    "two groups, the gap changes its sign": ([(300, 300)], [[(0.9, 0.85), (0.87, 0.9)]]),
    "five unequal groups": (
        [(800, 400, 200, 100, 50)],
        [[(0.9, 0.9), (0.88, 0.88), (0.92, 0.92), (0.85, 0.85), (0.8, 0.78)]],
    ),
    "five equal groups": ([(500,) * 5], [[*[(0.9, 0.9)] * 4, (0.9, 0.88)]]),
    "the better group becomes the worse, 9 points": ([(800, 400)], [[(0.87, 0.87), (0.9, 0.75)]]),
    "equalized odds of three groups": (
        [(300, 200, 100), (900, 600, 300)],
        [[(0.9, 0.9), (0.88, 0.88), (0.85, 0.83)], [(0.85, 0.85), (0.82, 0.82), (0.84, 0.83)]],
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_interval_misses_the_true_growth_in_at_most_the_nominal_share_at_either_end(name: str) -> None:
    """`benchmarks/gap_growth.py` prints the table; 2,000 repeats, nominal 2.5 %.

    Upper end below the truth: 2.3 % (groups far apart), 0.0 to 0.2 % (true gap zero, sign change, five
    groups, equalized odds). Lower end above it: 2.6 %, 0.0 to 0.2 %. A percentile bootstrap's upper end lies
    below the truth in 6 to 20 % with five groups, and in 11 % where a harm opens a gap that was zero.
    """
    sizes, rates = SCENARIOS[name]
    chances = [[_chances(*rate) for rate in of_groups] for of_groups in rates]
    truth = _truth(chances)
    assert truth == pytest.approx(0.09 if "9 points" in name else 0.02)
    rng, runs, above, below = np.random.default_rng(7), 400, 0, 0
    for _ in range(runs):
        tables = [
            [rng.multinomial(n, p).tolist() for n, p in zip(*of, strict=True)]
            for of in zip(sizes, chances, strict=True)
        ]
        found = _gap(tables)
        assert found is not None
        assert found.interval is not None
        above += found.interval.low > truth + 1e-9
        below += found.interval.high < truth - 1e-9
    allowed = 0.025 * runs + 2.6 * (runs * 0.025 * 0.975) ** 0.5
    assert above <= allowed
    assert below <= allowed


def test_subjects_with_several_cases_do_not_make_the_interval_too_sure() -> None:
    """Four cases of each subject that change together; the comparisons count what they are worth."""
    rng, runs, above, below = np.random.default_rng(3), 300, 0, 0
    rates = [_chances(0.95, 0.95), _chances(0.75, 0.73)]
    for _ in range(runs):
        found = []
        for group, p in enumerate(rates):
            outcome = np.repeat(rng.choice(4, 250, p=p), 4)  # (1000,)
            change = (outcome == 1).astype(float) - (outcome == 2)
            worth = effective_cases(
                change, np.repeat(np.arange(250), 4), rare=change != 0, confidence=CONFIDENCE
            )
            table = np.bincount(outcome, minlength=4).tolist()
            found.append(_comparison("sensitivity", str(group), table, worth))
        measured = gap("gap", "group", [found], min_group=30, confidence=CONFIDENCE)
        assert measured is not None
        assert measured.interval is not None
        above += measured.interval.low > 0.02
        below += measured.interval.high < 0.02
    assert max(above, below) <= 0.025 * runs + 2.6 * (runs * 0.025 * 0.975) ** 0.5


def test_it_has_power_where_groups_are_clearly_unequal_or_large() -> None:
    harmed = _gap([[(950, 2, 2, 46), (700, 100, 2, 198)]])
    assert harmed is not None
    assert harmed.interval is not None
    assert harmed.interval.low > 0.05
    alike = _gap([[(5000, 5, 5, 300), (4000, 4, 4, 250)]])
    assert alike is not None
    assert alike.interval is not None
    assert alike.interval.high < 0.01


def test_the_wider_of_two_metrics_is_the_gap_and_its_worst_group_is_named() -> None:
    found = _gap([[(90, 0, 0, 10), (85, 0, 0, 15)], [(50, 0, 0, 50), (90, 0, 0, 10)]])
    assert found is not None
    assert found.baseline == pytest.approx(0.4)
    assert (found.worst_before, found.worst_after) == ("0", "0")


def test_nobody_fares_worst_where_all_are_alike() -> None:
    found = _gap([[(90, 0, 0, 10), (180, 0, 0, 20)]])
    assert found is not None
    assert (found.growth, found.worst_before, found.worst_after) == (0.0, "", "")


def test_small_groups_are_left_out_and_listed() -> None:
    found = _gap([[(90, 0, 0, 10), (80, 0, 0, 20), (1, 0, 0, 4)]], min_group=30)
    assert found is not None
    assert found.left_out == {"2": 5}
    assert found.candidate == pytest.approx(0.1)


def test_there_is_no_gap_of_fewer_than_two_groups_in_any_metric() -> None:
    assert _gap([[(90, 0, 0, 10)]]) is None
    assert _gap([[(90, 0, 0, 10), (90, 0, 0, 10)], [(90, 0, 0, 10), (1, 0, 0, 0)]], min_group=30) is None


def test_an_error_that_grows_is_a_gap_that_grows() -> None:
    def of(group: str, before: float, after: float) -> Comparison:
        return Comparison(
            metric="rmse",
            where={"group": group},
            n=100,
            baseline=Estimate(value=before, interval=_around(before), n=100, method=""),
            candidate=Estimate(value=after, interval=_around(after), n=100, method=""),
            drop=after - before,
            interval=Interval(low=after - before - 0.01, high=after - before + 0.03, confidence=CONFIDENCE),
            method="",
        )

    comparisons = [of("a", 1.0, 1.0), of("b", 2.0, 2.5)]
    found = gap(
        "rmse gap", "group", [comparisons], min_group=2, confidence=CONFIDENCE, higher_is_better=False
    )
    assert found is not None
    assert (found.baseline, found.candidate, found.worst_after) == (1.0, 1.5, "b")
    assert found.interval is not None
    assert found.interval.low < 0.5 < found.interval.high < 0.6


def _around(value: float) -> Interval:
    return Interval(low=value - 0.1, high=value + 0.1, confidence=CONFIDENCE)


def test_without_an_interval_of_a_group_there_is_none_of_the_growth() -> None:
    found = [_comparison("m", "a", (90, 0, 0, 10)), _comparison("m", "b", (80, 1, 0, 20))]
    blind = Comparison(
        metric="m",
        where={"group": "c"},
        n=50,
        baseline=found[0].baseline,
        candidate=found[0].candidate,
        drop=0.0,
        interval=None,
        method="",
    )
    measured = gap("gap", "group", [[*found, blind]], min_group=2, confidence=CONFIDENCE)
    assert measured is not None
    assert measured.interval is None
