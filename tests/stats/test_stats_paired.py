from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from pastille.stats.forms import Form, MeanOfRankings, MeanOfShares, OfSums, OfWeights, Ranking, Share
from pastille.stats.paired import compare
from pastille.stats.proportions import tango
from pastille.values import Comparison, Estimate, Interval

# DeLong, DeLong and Clarke-Pearson (1988): albumin, total protein, K-G score, whether surgery helped.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def _compare(before: Form, after: Form, subjects: np.ndarray | None = None) -> Comparison:
    return compare(before, after, metric="any", subjects=subjects, confidence=0.95)


def _interval(found: Comparison) -> Interval:
    assert found.interval is not None
    return found.interval


def _share(hits: np.ndarray, among: np.ndarray | None = None) -> Share:
    among = np.ones(len(hits), bool) if among is None else among
    return Share(hits=hits & among, among=among)


def _ranking(scores: np.ndarray, truth: np.ndarray) -> Ranking:
    return Ranking(scores=scores, truth=truth, among=np.ones(len(truth), bool))


def f1(sums: np.ndarray) -> np.ndarray:
    value: np.ndarray = 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])
    return value


def _f1(decided: np.ndarray, truth: np.ndarray) -> OfSums:
    columns = np.column_stack([decided & truth, decided, truth]).astype(float)
    return OfSums(columns=columns, among=np.ones(len(truth), bool), statistic=f1)


def rmse(sums: np.ndarray) -> np.ndarray:
    value: np.ndarray = np.sqrt(sums[..., 1] / sums[..., 0])
    return value


def _rmse(errors: np.ndarray) -> OfSums:
    columns = np.column_stack([np.ones(len(errors)), errors**2])
    return OfSums(columns=columns, among=np.ones(len(errors), bool), statistic=rmse, higher_is_better=False)


def test_a_share_has_tangos_interval_of_the_published_table() -> None:
    """Bentur's data in Fagerland, Lydersen and Laake (2014): (a, b, c, d) = (1, 1, 7, 12)."""
    before = np.repeat([True, True, False, False], [1, 1, 7, 12])
    after = np.repeat([True, False, True, False], [1, 1, 7, 12])
    found = _compare(_share(before), _share(after))
    assert (round(_interval(found).low, 3), round(_interval(found).high, 3)) == (-0.517, -0.026)
    assert (found.newly_wrong, found.newly_right, found.n, found.worth) == (1, 7, 21, None)
    assert found.mcnemar == pytest.approx(mcnemar([[1, 1], [7, 12]], exact=True).pvalue)
    assert found.drop == pytest.approx(-6 / 21)


def test_a_share_of_repeated_subjects_rests_on_independent_cases() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(300) < 0.9, rng.random(300) < 0.9
    found = _compare(_share(before), _share(after), np.repeat(np.arange(100), 3))
    assert found.worth is not None
    assert 100 <= found.worth < 300
    shrink = found.worth / 300
    assert found.newly_wrong is not None
    assert found.newly_right is not None
    expected = tango(found.newly_wrong * shrink, found.newly_right * shrink, found.worth, 0.95)
    assert _interval(found) == expected
    assert "300 cases of 100 subjects worth" in found.method


def test_subjects_that_do_not_repeat_among_the_asked_count_as_cases() -> None:
    among = np.arange(100) % 2 == 0
    found = _compare(
        _share(np.ones(100, bool), among), _share(np.ones(100, bool), among), np.arange(100) // 2
    )
    assert (found.worth, found.n) == (None, 50)


@pytest.mark.parametrize(
    ("column", "area", "difference", "error"), [(0, 0.7366, 0.0108, 0.0953), (1, 0.6478, -0.0780, 0.1046)]
)
def test_areas_agree_with_the_published_ovarian_data(
    column: int, area: float, difference: float, error: float
) -> None:
    """PROC LOGISTIC prints these for the data of DeLong et al. (1988); the interval is ours, and wider."""
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    truth = table[:, 3] == 1
    found = _compare(_ranking(table[:, column], truth), _ranking(10 - table[:, 2], truth))
    assert found.baseline is not None
    assert found.candidate is not None
    assert found.baseline.value == pytest.approx(area, abs=5e-5)
    assert found.candidate.value == pytest.approx(0.7258, abs=5e-5)
    assert found.drop == pytest.approx(difference, abs=5e-5)
    e, z2 = _interval(found).high - difference, stats.norm.ppf(0.975) ** 2
    room = 1 - difference
    # Solved back for DeLong's standard error, with 12 cases without benefit of which each may lose all.
    assert np.sqrt(e**2 / z2 - e / 12 * (room - e)) == pytest.approx(error, abs=2e-4)


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_areas_and_their_mean_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat([0, 1, 2], [20, 10, 15]))
    one, other = rng.normal(size=(2, 45, 3)).round(1) + np.eye(3)[truth]
    parts = [{str(k): _ranking(scores[:, k], truth == k) for k in range(3)} for scores in (one, other)]
    found = _compare(MeanOfRankings(parts=parts[0]), MeanOfRankings(parts=parts[1]))
    expected = [np.mean([roc_auc_score(truth == k, s[:, k]) for k in range(3)]) for s in (one, other)]
    assert found.drop == pytest.approx(expected[0] - expected[1])
    single = _compare(parts[0]["1"], parts[1]["1"])
    assert single.drop == pytest.approx(
        roc_auc_score(truth == 1, one[:, 1]) - roc_auc_score(truth == 1, other[:, 1])
    )


def test_a_mean_of_areas_sees_that_its_parts_vary_together() -> None:
    """Two parts that are the same twice over are as uncertain as one of them."""
    rng = np.random.default_rng(3)
    truth = rng.random(400) < 0.4
    one, other = rng.normal(size=(2, 400)) + truth
    single = _interval(_compare(_ranking(one, truth), _ranking(other, truth)))
    twice = [MeanOfRankings(parts={"a": _ranking(s, truth), "b": _ranking(s, truth)}) for s in (one, other)]
    doubled = _interval(_compare(twice[0], twice[1]))
    assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high))


def test_a_mean_of_shares_sees_that_its_parts_vary_together() -> None:
    rng = np.random.default_rng(4)
    before, after = (_share(rng.random(400) < 0.9) for _ in range(2))
    twice = [MeanOfShares(parts={"a": share, "b": share}) for share in (before, after)]
    once = [MeanOfShares(parts={"a": share}) for share in (before, after)]
    single, doubled = _interval(_compare(once[0], once[1])), _interval(_compare(twice[0], twice[1]))
    assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high))


def test_parts_that_no_case_defines_are_left_out() -> None:
    hits = np.arange(60) % 5 > 0
    none = np.zeros(60, bool)
    parts = {"a": _share(hits), "b": Share(hits=none, among=none)}
    found = _compare(MeanOfShares(parts=parts), MeanOfShares(parts=parts))
    assert (found.n, found.drop) == (60, 0.0)
    truth = np.arange(60) < 20
    ranked = {"a": _ranking(hits * 1.0, truth), "b": _ranking(hits * 1.0, none)}
    found = _compare(MeanOfRankings(parts=ranked), MeanOfRankings(parts=ranked))
    assert (found.n, found.drop) == (60, 0.0)


_TRUTH = np.arange(200) % 2 == 0
_NONE = np.zeros(200, bool)
_ALIKE: dict[str, Form] = {
    "share": _share(np.ones(200, bool)),
    "mean of shares": MeanOfShares(parts={"a": _share(_TRUTH, _TRUTH), "b": _share(~_TRUTH, ~_TRUTH)}),
    "perfect ranking": _ranking(_TRUTH * 1.0, _TRUTH),
    "ranking": _ranking(np.random.default_rng(5).normal(size=200) + _TRUTH, _TRUTH),
    "perfect f1": _f1(_TRUTH, _TRUTH),
    "f1": _f1(_TRUTH ^ (np.arange(200) % 20 == 0), _TRUTH),
    "rmse": _rmse(np.random.default_rng(6).normal(size=200)),
}


@pytest.mark.parametrize("form", _ALIKE.values(), ids=_ALIKE)
@pytest.mark.parametrize("each", [1, 2])
def test_models_that_never_disagree_still_may(form: Form, each: int) -> None:
    """No interval without a width: at 200 cases, 100 of each class, no loss of 1 point is excluded."""
    interval = _interval(_compare(form, form, np.arange(200) // each))
    assert interval.high > 0.01
    assert interval.low < -0.01


@pytest.mark.parametrize("form", [_f1(_TRUTH, _TRUTH), _f1(_TRUTH ^ (np.arange(200) % 20 == 0), _TRUTH)])
def test_of_f1_as_much_may_be_unseen_as_of_sensitivity(form: Form) -> None:
    positives = tango(0, 0, 100, 0.95).high
    assert 0.4 * positives < _interval(_compare(form, form)).high < 1.2 * positives


@pytest.mark.parametrize("name", ["mean of shares", "ranking", "perfect f1", "f1"])
def test_unseen_subjects_may_lose_all_of_their_cases(name: str) -> None:
    form = _ALIKE[name]
    alone, pairs = (_interval(_compare(form, form, np.arange(200) // each)).high for each in (1, 2))
    assert 1.8 < pairs / alone < 2.2


_UNDEFINED: dict[str, Form] = {
    "share of nobody": Share(hits=_NONE, among=_NONE),
    "mean of nothing": MeanOfShares(parts={}),
    "mean of shares of nobody": MeanOfShares(parts={"a": Share(hits=_NONE, among=_NONE)}),
    "one class": _ranking(np.zeros(200), _NONE),
    "mean of one class": MeanOfRankings(parts={"a": _ranking(np.zeros(200), _NONE)}),
    "f1 of no positive": _f1(_NONE, _NONE),
    "f1 of nobody": OfSums(columns=np.ones((200, 3)), among=_NONE, statistic=f1),
    "weights of nobody": OfWeights(statistic=lambda w: w.sum(axis=1), among=_NONE),
}


@pytest.mark.parametrize("form", _UNDEFINED.values(), ids=_UNDEFINED)
def test_what_the_cases_cannot_define_has_no_drop(form: Form) -> None:
    found = _compare(form, form, np.arange(200) // 2)
    assert (found.drop, found.interval, found.baseline, found.candidate) == (None, None, None, None)


def test_f1_and_its_bootstrap_agree_with_scikit_learn_and_scipy() -> None:
    """With 150 of 500 cases changed, what is unseen adds little to the resamples."""
    rng = np.random.default_rng(7)
    truth = rng.random(500) < 0.4
    one, other = (truth ^ (rng.random(500) < share) for share in (0.15, 0.2))
    found = _compare(_f1(one, truth), _f1(other, truth))
    assert found.drop == pytest.approx(f1_score(truth, one) - f1_score(truth, other))

    def drop(rows: np.ndarray) -> float:
        t = truth[rows]
        return float(_quick_f1(one[rows], t) - _quick_f1(other[rows], t))

    expected = stats.bootstrap(
        (np.arange(500),), drop, vectorized=False, n_resamples=3000, rng=np.random.default_rng(8)
    ).confidence_interval
    width = expected.high - expected.low
    assert expected.high < _interval(found).high < expected.high + 0.12 * width
    assert expected.low > _interval(found).low > expected.low - 0.12 * width


def _quick_f1(decided: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (decided & truth).sum() / (decided.sum() + truth.sum()))


def test_an_error_that_grows_is_a_drop() -> None:
    errors = np.random.default_rng(9).normal(size=400)
    found = _compare(_rmse(errors), _rmse(1.1 * errors))
    assert found.drop == pytest.approx(0.1 * np.sqrt(np.mean(errors**2)))
    assert _interval(found).low > 0.05
    turned = _compare(_rmse(1.1 * errors), _rmse(errors))
    assert turned.drop == pytest.approx(-(found.drop or 0))


def _weighted(right: np.ndarray) -> OfWeights:
    """Accuracy, as a function of how often each case counts."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        value: np.ndarray = weights @ right / weights.sum(axis=1)
        return value

    return OfWeights(statistic=statistic, among=np.ones(len(right), bool))


def _summed(right: np.ndarray) -> OfSums:
    return OfSums(
        columns=np.column_stack([right, np.ones(len(right))]).astype(float),
        among=np.ones(len(right), bool),
        statistic=lambda s: s[..., 0] / s[..., 1],
    )


@pytest.mark.parametrize("each", [1, 4])
def test_weights_and_sums_agree(each: int) -> None:
    rng = np.random.default_rng(10)
    one, other = rng.random((2, 400)) < 0.8
    subjects = np.arange(400) // each
    by_weights, by_sums = (
        _interval(_compare(form(one), form(other), subjects)) for form in (_weighted, _summed)
    )
    assert by_weights.low == pytest.approx(by_sums.low, abs=0.01)
    assert by_weights.high == pytest.approx(by_sums.high, abs=0.01)


def test_weights_of_models_that_do_not_differ_cannot_tell() -> None:
    right = np.random.default_rng(11).random(300) < 0.8
    found = _compare(_weighted(right), _weighted(right))
    assert (found.drop, found.interval) == (0.0, None)


def test_weights_leave_out_who_is_not_among() -> None:
    rng = np.random.default_rng(12)
    one, other = rng.random((2, 300)) < 0.8
    rows = np.arange(300) < 200
    whole, part = (
        _compare(_weighted(one).within(rows), _weighted(other).within(rows)),
        _compare(_weighted(one[rows]), _weighted(other[rows])),
    )
    assert whole.n == 200
    assert whole.drop == pytest.approx(part.drop)
    assert _interval(whole) == _interval(part)


@pytest.mark.parametrize("make", [_weighted, _summed])
@pytest.mark.parametrize(("n", "each"), [(19, 1), (57, 3)])
def test_few_units_have_no_bootstrap_interval(make: Callable[[np.ndarray], Form], n: int, each: int) -> None:
    rng = np.random.default_rng(13)
    found = _compare(make(rng.random(n) < 0.7), make(rng.random(n) < 0.7), np.arange(n) // each)
    assert found.interval is None
    assert found.drop is not None


@pytest.mark.parametrize("make", [_share, _summed, _weighted])
def test_exchanging_the_models_turns_the_sign(make: Callable[[np.ndarray], Form]) -> None:
    rng = np.random.default_rng(14)
    one, other = (make(rng.random(300) < share) for share in (0.9, 0.8))
    there, back = _compare(one, other), _compare(other, one)
    assert there.drop == pytest.approx(-(back.drop or 0.0))
    assert _interval(there).low == pytest.approx(-_interval(back).high, abs=0.01)


def test_groups_are_the_cases_alone() -> None:
    rng = np.random.default_rng(15)
    truth, rows = rng.random(300) < 0.4, np.arange(300) < 180
    one, other = (_ranking(rng.normal(size=300) + truth, truth) for _ in range(2))
    whole = _compare(one.within(rows), other.within(rows))
    narrow = [_ranking(x.scores[rows], truth[rows]) for x in (one, other)]
    part = _compare(narrow[0], narrow[1])
    assert whole.n == 180
    assert _interval(whole).high == pytest.approx(_interval(part).high)


def test_estimates_and_place_of_the_caller_are_kept() -> None:
    share = _share(np.arange(50) > 3)
    known = Estimate(
        value=0.92, interval=Interval(low=0.8, high=0.98, confidence=0.95), n=50, method="Wilson"
    )
    found = compare(
        share, share, metric="accuracy", where={"sex": "female"}, subjects=None, confidence=0.95,
        baseline=known,
    )  # fmt: skip
    assert found.baseline == known
    assert found.candidate is not None
    assert (found.candidate.value, found.candidate.interval) == (0.92, None)
    assert found.where == {"sex": "female"}


def test_refuses_what_is_not_made_of_the_same_cases() -> None:
    one, other = _share(np.ones(9, bool)), _share(np.ones(9, bool), np.arange(9) < 5)
    with pytest.raises(ValueError, match="made of the same cases, but they differ in among"):
        _compare(one, other)
    with pytest.raises(ValueError, match="same form of the same cases, got Share and MeanOfShares"):
        _compare(one, MeanOfShares(parts={"a": one}))
    with pytest.raises(ValueError, match="differ in among of b"):
        _compare(MeanOfShares(parts={"a": one}), MeanOfShares(parts={"a": one, "b": one}))
    with pytest.raises(ValueError, match="differ in truth"):
        _compare(_ranking(np.zeros(9), np.arange(9) < 3), _ranking(np.zeros(9), np.arange(9) < 4))
    with pytest.raises(ValueError, match="differ in direction"):
        _compare(_rmse(np.ones(9)), replace(_rmse(np.ones(9)), higher_is_better=True))
    with pytest.raises(ValueError, match="subjects must have one entry per case, got 3 for 9"):
        _compare(one, one, np.zeros(3))
