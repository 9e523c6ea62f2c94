from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaincc, betaln

from pastille.stats.confidence_sequence import rate_sequence
from pastille.stats.eprocess import (
    HELD_BACK,
    HORIZON,
    RateAlarm,
    bets_beyond,
    held_back,
    played,
    played_share,
)
from pastille.stats.proportions import wilson


def integral(yes: int, n: int, limit: float) -> float:
    """The truncated Beta(1, 9) mixture in closed form."""
    above = betaln(yes + 1, n - yes + 9) + np.log(betaincc(yes + 1, n - yes + 9, limit))
    prior = np.log(9) - 9 * np.log(1 - limit)
    return float(np.exp(prior + above - yes * np.log(limit) - (n - yes) * np.log(1 - limit)))


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("yes", "n"), [(0, 0), (1, 1), (5, 20), (0, 200), (300, 5000), (20, 100)])
def test_the_sum_over_rates_is_close_to_the_integral(limit: float, yes: int, n: int) -> None:
    bets = bets_beyond(limit)
    found = float(played(bets.weights, bets, yes, n, fresh=0.0).sum())
    if found < 1e6:  # far beyond any alarm it need not be
        assert found == pytest.approx(integral(yes, n, limit), rel=1e-3)


@given(st.floats(0.001, 0.9), st.floats(0, 1))
def test_no_rate_within_the_limit_wins_a_bet(limit: float, part: float) -> None:
    """What makes it an e-process: expected winnings are at most the stake, and equal to it at the limit."""
    bets = bets_beyond(limit)
    won, lost = (played(bets.weights, bets, yes, 1, fresh=0.0) for yes in (1, 0))
    assert limit * won + (1 - limit) * lost == pytest.approx(bets.weights, rel=1e-9)
    rate = part * limit
    assert (rate * won + (1 - rate) * lost <= bets.weights * (1 + 1e-9)).all()


def test_at_the_limit_the_evidence_is_expected_to_stay_what_was_staked() -> None:
    """1 for 5,000 cases, what is held back included; then a tenth more for each 5,000."""
    limit, bets = 0.05, bets_beyond(0.05)
    mean = bets.weights * (1 - HELD_BACK)
    expected = {}
    for n in range(1, 3 * HORIZON + 1):
        mean = limit * played(mean, bets, 1, 1) + (1 - limit) * played(mean, bets, 0, 1)
        expected[n] = float(mean.sum()) + held_back(n)
    assert [expected[n] for n in (1, 100, HORIZON)] == pytest.approx([1.0] * 3)
    assert [expected[2 * HORIZON], expected[3 * HORIZON]] == pytest.approx([1.1, 1.2])
    assert RateAlarm(limit).evidence == 1.0


def test_it_is_the_sum_of_bets_that_began_at_each_case() -> None:
    rng = np.random.default_rng(0)
    cases = (rng.random(60) < 0.3).tolist()
    alarm, bets = RateAlarm(0.05), bets_beyond(0.05)
    for case in cases:
        alarm.update(int(case))

    def bet(since: int) -> float:
        return float(played(bets.weights, bets, sum(cases[since:]), len(cases) - since, fresh=0.0).sum())

    fresh = HELD_BACK / HORIZON
    expected = (1 - HELD_BACK) * bet(0) + fresh * sum(bet(since) for since in range(60)) + held_back(60)
    assert alarm.evidence == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_cases_that_are_alike_win_no_bet_together(parts: list[tuple[float, float]]) -> None:
    """Whatever the spread of a request's share: the stake is expected to grow as its mean says, no more."""
    bets, total = bets_beyond(0.05), sum(chance for chance, _ in parts)
    mean = sum(chance * share for chance, share in parts) / total
    won = sum(chance / total * played_share(bets.weights, bets, share, fresh=0.0) for chance, share in parts)
    assert won == pytest.approx(played_share(bets.weights, bets, mean, fresh=0.0), rel=1e-9)
    assert played_share(bets.weights, bets, 0.05, fresh=0.0) == pytest.approx(bets.weights, rel=1e-9)


def test_the_slices_of_one_scan_count_as_one_case() -> None:
    scan, single = RateAlarm(0.05), RateAlarm(0.05)
    for disagreed in (0, 1, 0):
        scan.update_together(64 * disagreed, 64)
        single.update(disagreed)
    assert scan.evidence == pytest.approx(single.evidence)
    assert not scan.alarm, "one odd scan shows no rate"
    assert (scan.n, scan.disagreed, scan.looks, scan.shares) == (192, 64, 3, 1.0)


def test_scans_whose_slices_go_together_raise_no_more_false_alarms_than_promised() -> None:
    """One request in twenty disagrees, and then on all of its 64 cases."""
    rng, fired, singly = np.random.default_rng(0), 0, 0
    for _ in range(60):
        together, apart = RateAlarm(0.05), RateAlarm(0.05)
        for odd in (rng.random(300) < 0.05).tolist():
            together.update_together(64 * odd, 64)
            apart.update(64 * odd, 64)
        fired, singly = fired + together.alarm, singly + apart.alarm
    assert fired <= 3
    assert singly == 60


def test_the_sequence_of_shares_is_that_of_the_mean_share() -> None:
    rng = np.random.default_rng(1)
    shares = rng.choice([0.0, 0.25, 1.0], (200, 300), p=[0.88, 0.08, 0.04])  # a mean of 0.06
    sums = shares.cumsum(axis=1)
    missed = 0
    for run in sums:
        looks = [rate_sequence(float(run[n - 1]), n) for n in (1, 10, 50, 150, 300)]
        missed += any(not look.low <= 0.06 <= look.high for look in looks)
    assert missed <= 0.05 * len(sums)


def test_an_alarm_stays_until_it_is_reset() -> None:
    alarm = RateAlarm(0.05, 0.01)
    alarm.update(12, n=24)
    assert alarm.alarm
    assert (alarm.n, alarm.disagreed) == (24, 12)
    alarm.update(0, n=5000)
    assert alarm.alarm
    assert alarm.evidence < 1
    assert alarm.most > alarm.alarm_at
    alarm.reset()
    assert (alarm.alarm, alarm.n, alarm.evidence) == (False, 0, 1.0)


def test_huge_counts_neither_overflow_nor_lose_it() -> None:
    alarm = RateAlarm(0.05)
    alarm.update(10**6, n=10**6)
    alarm.update(10**6, n=10**6)
    assert np.isfinite(alarm.evidence)
    calm = RateAlarm(0.05)
    calm.update(0, n=10**9)
    assert not calm.alarm
    assert 0 <= calm.evidence < 1


@pytest.mark.parametrize(("limit", "significance"), [(0.0, 0.01), (1.0, 0.01), (0.05, 0.0), (0.05, 1.0)])
def test_what_is_no_rate_is_refused(limit: float, significance: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        RateAlarm(limit, significance)


@pytest.mark.parametrize(("yes", "n"), [(-1, 1), (2, 1)])
def test_impossible_counts_are_refused(yes: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"disagreed must be in \[0, n\]"):
        RateAlarm(0.05).update(yes, n)
    with pytest.raises(ValueError, match=r"successes must be in \[0, n\]"):
        rate_sequence(yes, n)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 100), (3, 100), (50, 100), (100, 100), (50_000, 10**6)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_the_ends_of_the_sequence_are_where_the_bet_is_won(k: int, n: int, confidence: float) -> None:
    found = rate_sequence(k, n, confidence)
    for end in (found.low, found.high):
        if 0 < end < 1:
            log = betaln(0.5 + k, 0.5 + n - k) - betaln(0.5, 0.5) - k * np.log(end) - (n - k) * np.log1p(-end)
            assert np.exp(log) == pytest.approx(1 / (1 - confidence), rel=1e-4)
    assert found.low <= k / n <= found.high
    assert (found.low == 0) == (k == 0)
    assert (found.high == 1) == (k == n)


def test_the_sequence_is_wider_than_one_look_needs_but_not_by_much() -> None:
    for k, n in ((3, 100), (50, 1000), (500, 10_000)):
        once, always = wilson(k, n, 0.95), rate_sequence(k, n, 0.95)
        assert 1.5 < (always.high - always.low) / (once.high - once.low) < 2.1


def test_nothing_seen_allows_any_rate() -> None:
    found = rate_sequence(0, 0)
    assert (found.low, found.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="confidence"):
        rate_sequence(1, 2, 1.0)
