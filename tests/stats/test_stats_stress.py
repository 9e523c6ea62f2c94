"""Excess degradation: the interval holds its level, with few changes or many, by case and by subject."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize

from pastille.stats.forms import MeanOfShares, OfSums, OfWeights, Share
from pastille.stats.proportions import tango
from pastille.stats.regression import regression_forms
from pastille.stats.stress import _constrained_variance, _likeliest, excess, mean_change_interval
from pastille.values import Cases

# What one case adds to the excess, with what probability, if the true excess is `limit`.
SCENARIOS: dict[str, Mapping[str, float]] = {
    "only changes by two": {"two": 0.5},
    "half of it by two": {"two": 0.25, "one": 0.5},
    "the candidate only loses": {"one": 1.0},
    "some are gained": {"one": 1.5, "minus": 0.5},
}


VALUES = np.arange(-2, 3)
Z = 1.959963984540054


def probabilities(name: str, limit: float) -> list[float]:
    """Of -2, -1, 0, 1, 2."""
    parts = {key: limit * share for key, share in SCENARIOS[name].items()}
    two, one, minus = (parts.get(key, 0.0) for key in ("two", "one", "minus"))
    return [0.0, minus, 1 - two - one - minus, one, two]


def approved(counts: np.ndarray, limit: float) -> bool:
    """The score test whose inversion the interval is: some thirty times faster than the interval."""
    n, mean = counts.sum(), float(counts @ VALUES) / counts.sum()
    variance = _constrained_variance(tuple(map(float, counts)), limit) if mean < limit else 0.0
    return bool(mean < limit and n * (limit - mean) ** 2 >= Z**2 * variance)


def approvals(chances: list[float], n: int, limit: float, repeats: int) -> float:
    drawn = np.random.default_rng(n).multinomial(n, chances, size=repeats)
    tables, times = np.unique(drawn, axis=0, return_counts=True)
    return sum(int(t) for table, t in zip(tables, times, strict=True) if approved(table, limit)) / repeats


def test_the_test_is_the_interval() -> None:
    drawn = np.random.default_rng(0).multinomial(300, [0.002, 0.01, 0.96, 0.02, 0.008], size=60)
    by_interval = [mean_change_interval(dict(zip(VALUES, c, strict=True)), 0.95).high <= 0.05 for c in drawn]
    assert by_interval == [approved(counts, 0.05) for counts in drawn]
    assert 5 < sum(by_interval) < 55


@pytest.mark.parametrize("limit", [0.02, 0.05])
@pytest.mark.parametrize("n", [100, 300, 1000])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_candidate_at_the_limit_is_rarely_approved(scenario: str, n: int, limit: float) -> None:
    """With 20,000 repeats each it is at most 2.6 %."""
    repeats = 4000
    chance = approvals(probabilities(scenario, limit), n, limit, repeats)
    assert chance <= 0.025 + 3 * (0.025 * 0.975 / repeats) ** 0.5


def test_the_level_is_used_where_there_are_many_changes() -> None:
    assert approvals([0, 0.05, 0.88, 0.07, 0], 1000, 0.02, 3000) == pytest.approx(0.025, abs=0.009)


def test_two_tango_intervals_together_would_approve_too_often() -> None:
    """Why the sum of two paired intervals is not taken: the two drops can be negatively correlated."""
    n, limit, repeats = 1000, 0.02, 2000
    changed = np.random.default_rng(0).binomial(n, limit / 2, size=repeats)  # both drops change, oppositely
    before = {int(k): tango(0, int(k), n, 0.95) for k in np.unique(changed)}
    after = {int(k): tango(int(k), 0, n, 0.95) for k in np.unique(changed)}
    high = [2 * k / n + np.hypot(after[k].high - k / n, -k / n - before[k].low) for k in map(int, changed)]
    assert np.mean(np.array(high) <= limit) > 0.05
    assert approvals(probabilities("only changes by two", limit), n, limit, repeats) < 0.03


@pytest.mark.parametrize(("b", "c", "n"), [(10, 3, 500), (30, 20, 500), (7, 7, 80), (60, 1, 90)])
def test_without_changes_by_two_it_is_tangos(b: int, c: int, n: int) -> None:
    found, expected = mean_change_interval({1: b, -1: c, 0: n - b - c}, 0.95), tango(b, c, n, 0.95)
    assert found.high == pytest.approx(max(found.high, expected.high), abs=1e-8)
    assert found.low <= expected.low + 1e-8
    if b > 20 and c > 5:
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-7)


@pytest.mark.parametrize("n", [1, 20, 100, 500, 3000])
def test_without_any_change_there_is_a_width(n: int) -> None:
    """All of what was not seen may be changes by two: ``n d^2 = z^2 (2 d - d^2)``."""
    z2 = 1.959963984540054**2
    found = mean_change_interval({0: n}, 0.95)
    assert found.high == -found.low == pytest.approx(2 * z2 / (n + z2), rel=1e-8)


@pytest.mark.parametrize("counts", [(0, 2, 90, 5, 1), (1, 10, 60, 20, 4), (0, 0, 50, 3, 0), (3, 0, 20, 0, 3)])
@pytest.mark.parametrize("further", [0.05, 0.3, 0.9])
def test_the_constrained_likelihood_is_the_largest(counts: tuple[int, ...], further: float) -> None:
    """Against a general optimiser over the probabilities of the five values."""
    observed = float(np.dot(counts, VALUES)) / sum(counts)
    mean = observed + further * (2 - observed)
    mass = np.array(_likeliest(tuple(map(float, counts)), mean))
    assert mass.min() >= 0
    assert (mass.sum(), mass @ VALUES) == pytest.approx((1, mean), abs=1e-7)

    def loss(p: np.ndarray) -> float:
        return -float(np.dot(counts, np.log(np.maximum(p, 1e-300))))

    constraint = LinearConstraint(np.vstack([np.ones(5), VALUES]), [1, mean], [1, mean])
    starts = [np.full(5, 0.2), np.clip(mass + 0.05, 0.01, 1)]
    found = [
        minimize(loss, start, bounds=[(1e-12, 1.0)] * 5, constraints=constraint, method="SLSQP", tol=1e-12)
        for start in starts
    ]
    feasible = [r.x for r in found if abs(r.x.sum() - 1) + abs(r.x @ VALUES - mean) < 1e-7]
    assert feasible
    assert loss(mass) <= min(map(loss, feasible)) + 1e-4
    assert loss(mass) == pytest.approx(min(map(loss, feasible)), rel=2e-3)


@given(st.lists(st.integers(0, 40), min_size=5, max_size=5).filter(any), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=150, deadline=None)
def test_it_holds_the_estimate_turns_with_its_sign_and_widens(counts: list[int], confidence: float) -> None:
    table = dict(zip(range(-2, 3), counts, strict=True))
    found = mean_change_interval(table, confidence)
    mean = sum(v * c for v, c in table.items()) / sum(counts)
    assert -2 <= found.low <= mean + 1e-9
    assert mean - 1e-9 <= found.high <= 2
    assert found.high > found.low
    turned = mean_change_interval({-v: c for v, c in table.items()}, confidence)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    wider = mean_change_interval(table, 0.999)
    assert wider.low <= found.low + 1e-9
    assert wider.high >= found.high - 1e-9


@pytest.mark.parametrize("counts", [{}, {0: 0}, {3: 1}, {0: 5, 1: -1}, {1.5: 2}])
def test_what_is_no_count_is_refused(counts: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="counts must be at least 0, of values from -2 to 2"):
        mean_change_interval(counts, 0.95)


def answers(
    rng: np.random.Generator, n: int, *, limit: float, subjects: int | None
) -> tuple[np.ndarray, ...]:
    """Four columns of right answers; the candidate's true excess is ``limit``, clustered by subject."""
    unit = np.arange(n) if subjects is None else np.arange(n) % subjects
    hurt = (rng.random(unit.max() + 1) < limit / 0.9)[unit]  # nine in ten of their cases turn wrong
    before = rng.random(n) < 1.0
    baseline = np.ones(n, bool)
    candidate = ~(hurt & (rng.random(n) < 0.9))
    return before, before.copy(), baseline, candidate


def share(hits: np.ndarray) -> Share:
    return Share(hits=hits, among=np.ones(len(hits), bool))


def test_cases_of_one_subject_do_not_count_as_many() -> None:
    rng, limit, repeats = np.random.default_rng(5), 0.05, 500
    subjects = np.arange(600) % 200
    found = {"by case": 0, "by subject": 0}
    for _ in range(repeats):
        one, two, three, four = map(share, answers(rng, 600, limit=limit, subjects=200))
        for name, known in (("by case", None), ("by subject", subjects)):
            measured = excess((one, two), (three, four), subjects=known, confidence=0.95)
            assert measured is not None
            assert measured.interval is not None
            found[name] += measured.interval.high <= limit
    assert found["by subject"] / repeats <= 0.025 + 3 * (0.025 * 0.975 / repeats) ** 0.5
    assert found["by case"] / repeats > 0.05  # what would go wrong


def test_the_excess_is_the_difference_of_the_losses() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((4, 400)) < np.array([[0.95], [0.94], [0.8], [0.7]])
    forms = [share(hits) for hits in truth]
    found = excess((forms[0], forms[1]), (forms[2], forms[3]), subjects=None, confidence=0.95)
    assert found is not None
    a, b, c, d = truth.mean(axis=1)
    assert found.value == pytest.approx((b - d) - (a - c))
    assert found.method == "score interval"
    assert found.n == 400


def test_of_a_share_only_the_cases_asked_count() -> None:
    asked = np.arange(300) < 100
    right = Share(hits=asked.copy(), among=asked)
    wrong = Share(hits=asked & (np.arange(300) > 9), among=asked)
    found = excess((right, right), (right, wrong), subjects=None, confidence=0.95)
    assert found is not None
    assert (found.value, found.n) == (0.1, 100)
    nobody = Share(hits=np.zeros(5, bool), among=np.zeros(5, bool))
    assert excess((nobody, nobody), (nobody, nobody), subjects=None, confidence=0.95) is None


def regression(seed: int, noise: float, n: int = 200) -> tuple[np.ndarray, Cases]:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=n)
    cases = Cases(kind="regression", split="test", targets=targets, labels=())
    return targets + noise * np.random.default_rng(seed).normal(size=n), cases


def test_the_excess_of_r2_and_of_errors_has_the_right_sign() -> None:
    columns = [regression(seed, noise) for seed, noise in enumerate((0.1, 0.1, 0.3, 0.6))]
    found = [regression_forms(outputs, cases) for outputs, cases in columns]
    for metric in ("r2", "rmse", "mae"):
        one, two, three, four = (forms[metric] for forms in found)
        measured = excess((one, two), (three, four), subjects=None, confidence=0.95)
        assert measured is not None
        assert measured.interval is not None
        values = [float(f.statistic(f.columns.sum(axis=0))) for f in (one, two, three, four)]
        growth = (values[1] - values[3]) - (values[0] - values[2])
        assert measured.value == pytest.approx(growth if metric == "r2" else -growth)
        assert 0 < measured.interval.low < measured.value < measured.interval.high
        assert measured.method == "paired BCa bootstrap"
        by_subject = excess((one, two), (three, four), subjects=np.arange(200) // 2, confidence=0.95)
        assert by_subject is not None
        assert by_subject.method == "paired BCa bootstrap of 100 subjects"


def test_a_few_cases_have_no_bootstrap_interval() -> None:
    outputs, cases = regression(0, 0.2, n=15)
    form = regression_forms(outputs, cases)["r2"]
    found = excess((form, form), (form, form), subjects=None, confidence=0.95)
    assert found is not None
    assert found.interval is None


def test_a_metric_of_weights_is_resampled_as_one() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((4, 60)) * np.array([[0.1], [0.1], [0.2], [0.5]])

    def form(values: np.ndarray) -> OfWeights:
        return OfWeights(
            statistic=lambda w: (w @ values) / w.sum(axis=1), among=np.ones(60, bool), higher_is_better=False
        )

    one, two, three, four = map(form, losses)
    found = excess((one, two), (three, four), subjects=None, confidence=0.95)
    assert found is not None
    assert found.interval is not None
    a, b, c, d = losses.mean(axis=1)
    assert found.value == pytest.approx((d - b) - (c - a))
    assert found.interval.low < found.value < found.interval.high


def test_what_cannot_be_stressed_is_refused() -> None:
    right = share(np.ones(5, bool))
    mean = MeanOfShares(parts={"a": right})
    with pytest.raises(ValueError, match="must all be shares, sums or weights, got MeanOfShares"):
        excess((mean, mean), (mean, mean), subjects=None, confidence=0.95)
    sums = OfSums(columns=np.ones((5, 1)), among=np.ones(5, bool), statistic=lambda s: s[..., 0])
    with pytest.raises(ValueError, match="got OfSums, Share"):
        excess((right, right), (sums, sums), subjects=None, confidence=0.95)
    other = Share(hits=np.zeros(5, bool), among=np.arange(5) > 1)
    with pytest.raises(ValueError, match="put to the same cases"):
        excess((right, right), (right, other), subjects=None, confidence=0.95)
