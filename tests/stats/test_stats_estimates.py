from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import ndtri

from pastille.stats.auroc import auroc
from pastille.stats.estimates import estimate, estimate_all, value
from pastille.stats.forms import Form, MeanOfRankings, MeanOfShares, OfSums, OfWeights, Ranking, Share
from pastille.stats.proportions import wilson
from pastille.stats.yes_or_no import f1_of, precision_of
from pastille.values import Estimate, Interval


def _everyone(n: int) -> np.ndarray:
    return np.ones(n, bool)


def _mean(columns: np.ndarray) -> OfSums:
    table = np.column_stack([columns, np.ones(len(columns))])
    return OfSums(columns=table, among=_everyone(len(columns)), statistic=lambda s: s[..., 0] / s[..., 1])


def _known(form: Form, subjects: np.ndarray | None = None) -> tuple[Estimate, Interval]:
    found = estimate(form, subjects=subjects, confidence=0.95)
    assert found is not None
    assert found.interval is not None
    return found, found.interval


def _sample_of_every_form(n: int = 80) -> dict[str, Form]:
    rng = np.random.default_rng(0)
    truth, hits = rng.random(n) < 0.4, rng.random((n, 3)) < 0.8
    shares = {str(i): Share(hits=hits[:, i], among=_everyone(n)) for i in range(3)}
    rankings = {
        str(i): Ranking(scores=rng.normal(size=n) + truth, truth=truth, among=_everyone(n)) for i in range(3)
    }
    return {
        "share": shares["0"],
        "mean of shares": MeanOfShares(parts=shares),
        "ranking": rankings["0"],
        "mean of rankings": MeanOfRankings(parts=rankings),
        "of sums": _mean(rng.normal(size=n)),
        "of weights": OfWeights(statistic=lambda w: (w * hits[:, 0]).sum(1) / w.sum(1), among=_everyone(n)),
    }


@pytest.mark.parametrize("name", list(_sample_of_every_form()))
def test_every_form_of_some_cases(name: str) -> None:
    """None of the cases left: no estimate. Half of them: its own, with an interval around the value."""
    form = _sample_of_every_form()[name]
    assert estimate(form.within(np.zeros(80, bool)), subjects=None, confidence=0.95) is None
    assert np.isnan(value(form.within(np.zeros(80, bool))))
    half = form.within(np.arange(80) < 40)
    found, interval = _known(half)
    assert found.n == 40
    assert found.value == pytest.approx(value(half))
    assert interval.low < found.value < interval.high
    _, whole = _known(form)
    assert whole.high - whole.low < interval.high - interval.low


@pytest.mark.parametrize("name", list(_sample_of_every_form()))
def test_four_copies_of_a_subject_tell_no_more_than_one(name: str) -> None:
    form = _sample_of_every_form()[name]
    four = {n: f for n, f in _repeated(80, 4).items() if n == name}[name]
    once, alone = _known(form)
    found, clustered = _known(four, np.repeat(np.arange(80), 4))
    assert found.value == pytest.approx(once.value)
    assert clustered.low == pytest.approx(alone.low, abs=0.01)
    assert clustered.high == pytest.approx(alone.high, abs=0.01)
    assert "ubject" in found.method


def _repeated(n: int, times: int) -> dict[str, Form]:
    """The sample, every case several times in a row."""

    def again(form: Form) -> Form:
        match form:
            case Share():
                return Share(hits=form.hits.repeat(times), among=form.among.repeat(times))
            case Ranking():
                scores, truth, among = (x.repeat(times) for x in (form.scores, form.truth, form.among))
                return Ranking(scores=scores, truth=truth, among=among)
            case MeanOfShares():
                parts = {
                    k: Share(hits=p.hits.repeat(times), among=p.among.repeat(times))
                    for k, p in form.parts.items()
                }
                return MeanOfShares(parts=parts)
            case MeanOfRankings():
                return MeanOfRankings(
                    parts={
                        k: Ranking(
                            scores=p.scores.repeat(times),
                            truth=p.truth.repeat(times),
                            among=p.among.repeat(times),
                        )
                        for k, p in form.parts.items()
                    }
                )
            case OfSums():
                return OfSums(
                    columns=form.columns.repeat(times, axis=0),
                    among=form.among.repeat(times),
                    statistic=form.statistic,
                )
            case OfWeights():
                inner = form.statistic
                return OfWeights(
                    statistic=lambda w: inner(w.reshape(len(w), -1, times).sum(2)),
                    among=form.among.repeat(times),
                )

    return {name: again(form) for name, form in _sample_of_every_form(n).items()}


def test_a_mean_of_one_is_that_one() -> None:
    hits = np.arange(50) < 41
    found, interval = _known(MeanOfShares(parts={"a": Share(hits=hits, among=_everyone(50))}))
    one = wilson(41, 50, 0.95)
    assert (interval.low, interval.high) == pytest.approx((one.low, one.high))
    rng = np.random.default_rng(1)
    truth = rng.random(60) < 0.5
    scores = rng.normal(size=60) + truth
    area = auroc(scores, truth, confidence=0.95)
    found, interval = _known(
        MeanOfRankings(parts={"a": Ranking(scores=scores, truth=truth, among=_everyone(60))})
    )
    assert area.interval is not None
    assert (found.value, interval.low, interval.high) == pytest.approx(
        (area.value, area.interval.low, area.interval.high)
    )


def test_parts_that_are_one_another_tell_no_more_than_one() -> None:
    """Two labels that every case has both or neither right: their mean is as uncertain as either."""
    share = Share(hits=np.arange(50) < 41, among=_everyone(50))
    _, one = _known(share)
    _, mean = _known(MeanOfShares(parts={"a": share, "b": share}))
    assert (mean.low, mean.high) == pytest.approx((one.low, one.high))
    _, apart = _known(
        MeanOfShares(parts={"a": share, "b": Share(hits=np.arange(50) >= 9, among=_everyone(50))})
    )
    assert apart.high - apart.low < 0.8 * (mean.high - mean.low)  # wrong on different cases


@pytest.mark.parametrize("subjects", [None, np.arange(40) // 2])
def test_a_perfect_mean_is_still_uncertain(subjects: np.ndarray | None) -> None:
    truth = np.arange(40) % 2 == 0
    right = Share(hits=_everyone(40), among=_everyone(40))
    ranking = Ranking(scores=truth.astype(float), truth=truth, among=_everyone(40))
    for form in (
        MeanOfShares(parts={"a": right, "b": right}),
        MeanOfRankings(parts={"a": ranking, "b": ranking}),
    ):
        found, interval = _known(form, subjects)
        assert (found.value, interval.high) == (1.0, 1.0)
        assert 0.7 < interval.low < 0.95


def test_parts_that_no_case_can_define_are_left_out() -> None:
    truth = np.arange(40) % 2 == 0
    ranking = Ranking(scores=np.arange(40.0) + 9 * truth, truth=truth, among=_everyone(40))
    empty = Ranking(scores=np.arange(40.0), truth=np.zeros(40, bool), among=_everyone(40))
    one, two = (_known(MeanOfRankings(parts=parts)) for parts in ({"a": ranking}, {"a": ranking, "b": empty}))
    assert one == two


def _labels(rng: np.random.Generator) -> tuple[Form, np.ndarray | None]:
    """Six labels of 150 cases, whose errors go together."""
    latent = 0.8 * rng.normal(size=(150, 1)) + 0.6 * rng.normal(size=(150, 6))
    hits = latent < ndtri(0.93)
    return MeanOfShares(parts={str(i): Share(hits=hits[:, i], among=_everyone(150)) for i in range(6)}), None


def _patients(rng: np.random.Generator) -> tuple[Form, np.ndarray | None]:
    """Two classes of 60 patients with four cases each, two of either class."""
    patients, second = np.repeat(np.arange(60), 4), np.arange(240) % 2 == 1
    latent = 0.77 * rng.normal(size=60)[patients] + 0.64 * rng.normal(size=240)
    right = latent < ndtri(0.93)
    parts = {"a": Share(hits=right & ~second, among=~second), "b": Share(hits=right & second, among=second)}
    return MeanOfShares(parts=parts), patients


@pytest.mark.parametrize("draw", [_labels, _patients])
def test_a_mean_of_dependent_shares_covers_the_truth(
    draw: Callable[[np.random.Generator], tuple[Form, np.ndarray | None]],
) -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        form, subjects = draw(rng)
        _, interval = _known(form, subjects)
        covered += interval.low <= 0.93 <= interval.high
    assert 0.925 <= covered / 400 <= 0.99


def test_a_mean_of_areas_covers_the_truth() -> None:
    """Three classes one against the rest, with the truth from a large sample."""
    rng = np.random.default_rng(8)

    def draw(n: int) -> MeanOfRankings:
        targets = rng.integers(0, 3, n)
        scores = rng.normal(size=(n, 3))
        scores[np.arange(n), targets] += 1.5
        scores -= scores.mean(axis=1, keepdims=True)
        return MeanOfRankings(
            parts={
                str(k): Ranking(scores=scores[:, k], truth=targets == k, among=_everyone(n)) for k in range(3)
            }
        )

    truth = value(draw(300_000))
    covered = 0
    for _ in range(300):
        _, interval = _known(draw(90))
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 300 <= 0.985


def test_metrics_of_the_same_columns_are_estimated_as_alone() -> None:
    found = _sample_of_every_form()
    of_sums = found["of sums"]
    assert isinstance(of_sums, OfSums)
    twice = OfSums(
        columns=of_sums.columns, among=of_sums.among, statistic=lambda s: 2 * s[..., 0] / s[..., 1]
    )
    other = found["of weights"]
    together = estimate_all(
        {"once": of_sums, "weights": other, "twice": twice}, subjects=None, confidence=0.95
    )
    assert list(together) == ["once", "weights", "twice"]
    for name, form in (("once", of_sums), ("weights", other), ("twice", twice)):
        assert together[name] == estimate(form, subjects=None, confidence=0.95)
    one, two = together["once"].interval, together["twice"].interval
    assert one is not None
    assert two is not None
    assert (two.low, two.high) == pytest.approx((2 * one.low, 2 * one.high))


def test_the_bootstrap_of_weights_is_that_of_sums() -> None:
    """A mean can be written either way; the draws are the same."""
    values = np.random.default_rng(2).exponential(size=150)
    _, of_sums = _known(_mean(values))
    _, of_weights = _known(
        OfWeights(statistic=lambda w: (w * values).sum(1) / w.sum(1), among=_everyone(150))
    )
    assert (of_weights.low, of_weights.high) == pytest.approx((of_sums.low, of_sums.high), abs=1e-6)


def test_without_the_bootstrap_only_closed_forms_have_an_interval() -> None:
    found = estimate_all(_sample_of_every_form(), subjects=None, confidence=0.95, bootstrap=False)
    bare = {name for name, estimated in found.items() if estimated.interval is None}
    assert bare == {"of sums", "of weights"}
    assert {found[name].method for name in bare} == {"value alone"}
    full = estimate_all(_sample_of_every_form(), subjects=None, confidence=0.95)
    assert {n: e.value for n, e in full.items()} == {n: e.value for n, e in found.items()}


@pytest.mark.parametrize("cases", [60, 300])
def test_a_perfect_precision_is_still_uncertain(cases: int) -> None:
    truth = np.arange(cases) % 2 == 0
    columns = np.column_stack([truth, truth, truth]).astype(float)
    for statistic in (precision_of, f1_of):
        form = OfSums(columns=columns, among=np.ones(cases, bool), statistic=statistic)
        found = estimate(form, subjects=None, confidence=0.95)
        assert found is not None
        assert found.interval is not None
        assert found.interval.high == 1
        assert found.interval.low == pytest.approx(wilson(cases // 2, cases // 2, 0.95).low, abs=0.004)
        by_pair = estimate(form, subjects=np.arange(cases) // 2, confidence=0.95)
        assert by_pair is not None
        assert by_pair.interval is not None
        assert by_pair.interval.low < found.interval.low


def test_precision_covers_the_truth_where_errors_are_rare() -> None:
    """400 draws: 0.8 % misses at 99 % of 60 cases, 65 % of the draws without any error."""
    rng, missed, runs = np.random.default_rng(0), 0, 200
    for _ in range(runs):
        truth = rng.random(60) < 0.5
        called = np.where(rng.random(60) < 0.99, truth, ~truth)
        columns = np.column_stack([truth & called, called, truth]).astype(float)
        form = OfSums(columns=columns, among=np.ones(60, bool), statistic=precision_of)
        found = estimate(form, subjects=None, confidence=0.95)
        assert found is not None
        assert found.interval is not None
        missed += not found.interval.low <= 0.99 <= found.interval.high
    assert missed <= 0.05 * runs


def test_nothing_is_claimed_of_a_perfect_custom_metric() -> None:
    form = OfWeights(statistic=lambda w: np.ones(len(w)), among=np.ones(50, bool))
    found = estimate(form, subjects=None, confidence=0.95)
    assert found is not None
    assert (found.value, found.interval) == (1.0, None)
