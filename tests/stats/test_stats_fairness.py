"""Groups and gaps, against fairlearn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import (
    MetricFrame,
    equal_opportunity_difference,
    equalized_odds_difference,
    false_negative_rate,
    true_negative_rate,
    true_positive_rate,
)
from sklearn.metrics import accuracy_score, mean_squared_error, roc_auc_score

from pastille.stats.fairness import fairness, gap_metrics
from pastille.stats.kinds import forms
from pastille.values import Cases, Comparison, CustomMetric, Fairness

Logits = tuple[np.ndarray, np.ndarray]


def _binary(seed: int, size: int = 600, bands: int = 3) -> tuple[Cases, Logits]:
    """Cases of two attributes, and two models that answer them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, size)
    groups = {
        "sex": rng.choice(["female", "male"], size),
        "age_band": rng.integers(0, bands, size).astype(str),
    }
    cases = Cases(
        kind="binary",
        split="test",
        targets=truth,
        labels=("healthy", "ill"),
        positive=(1,),
        groups=groups,
    )
    before = rng.normal(2.0 * truth - 1)
    return cases, (before, before + rng.normal(0, 0.5, size))


def _judged(cases: Cases, logits: Logits, **options: object) -> tuple[Fairness, ...]:
    before, after = (forms(x, cases).overall for x in logits)
    asked: dict[str, object] = {"by": list(cases.groups), "min_group": 2} | options
    return fairness(before, after, cases, **asked)  # type: ignore[arg-type]


def _named(found: Fairness, metric: str) -> dict[str, Comparison]:
    return {" × ".join(c.where.values()): c for c in found.groups if c.metric == metric}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gaps_and_rates_agree_with_fairlearn(seed: int) -> None:
    cases, logits = _binary(seed)
    crossed = np.char.add(np.char.add(cases.groups["sex"], " × "), cases.groups["age_band"])
    columns = {**cases.groups, "sex × age_band": crossed}
    truth, called = cases.targets, [(x >= 0).astype(int) for x in logits]
    for found in _judged(cases, logits):
        column = columns[found.attribute]
        gaps = {each.name: each for each in found.gaps}
        for index, side in enumerate(("baseline", "candidate")):
            odds = equalized_odds_difference(truth, called[index], sensitive_features=column)
            assert getattr(gaps["equalized odds difference"], side) == pytest.approx(odds)
            chance = equal_opportunity_difference(truth, called[index], sensitive_features=column)
            assert getattr(gaps["equal opportunity gap"], side) == pytest.approx(chance)
            frame = MetricFrame(
                metrics={
                    "sensitivity": true_positive_rate,
                    "specificity": true_negative_rate,
                    "underdiagnosis": false_negative_rate,
                    "accuracy": accuracy_score,
                },
                y_true=truth,
                y_pred=called[index],
                sensitive_features=column,
            )
            assert gaps["accuracy gap"].growth == pytest.approx(
                gaps["accuracy gap"].candidate - gaps["accuracy gap"].baseline
            )
            differences = frame.difference()
            missed = differences["underdiagnosis"]
            assert getattr(gaps["equal opportunity gap"], side) == pytest.approx(missed)
            assert getattr(gaps["accuracy gap"], side) == pytest.approx(differences["accuracy"])
            for metric in frame.by_group.columns:
                for group, compared in _named(found, metric).items():
                    estimate = getattr(compared, side)
                    assert estimate.value == pytest.approx(frame.by_group.loc[group, metric])
                    assert estimate.interval.low <= estimate.value <= estimate.interval.high


def test_auroc_of_each_group_agrees_with_scikit_learn() -> None:
    cases, logits = _binary(1)
    for group, compared in _named(_judged(cases, logits)[0], "auroc").items():
        rows = cases.groups["sex"] == group
        before, after = (roc_auc_score(cases.targets[rows], x[rows]) for x in logits)
        assert compared.baseline is not None
        assert compared.candidate is not None
        assert (compared.baseline.value, compared.candidate.value) == pytest.approx((before, after))
        assert compared.drop == pytest.approx(before - after)
        assert compared.interval is not None
        assert compared.interval.low < before - after < compared.interval.high


def test_underdiagnosis_is_the_other_side_of_sensitivity() -> None:
    (found,) = _judged(*_binary(2), by=["sex"])
    missed, caught = (_named(found, name)["female"] for name in ("underdiagnosis", "sensitivity"))
    assert missed.baseline is not None
    assert caught.baseline is not None
    assert missed.baseline.interval is not None
    assert caught.baseline.interval is not None
    assert missed.baseline.value == pytest.approx(1 - caught.baseline.value)
    assert missed.baseline.interval.low == pytest.approx(1 - caught.baseline.interval.high)
    assert (missed.drop, missed.interval, missed.n) == (caught.drop, caught.interval, caught.n)


def test_newly_wrong_and_right_are_counted_within_the_group() -> None:
    cases, logits = _binary(3)
    found = _named(_judged(cases, logits)[2], "sensitivity")
    for group, compared in found.items():
        sex, band = group.split(" × ")
        wrong = right = n = 0
        for i, truth in enumerate(cases.targets):
            if truth == 1 and cases.groups["sex"][i] == sex and cases.groups["age_band"][i] == band:
                n += 1
                wrong += logits[0][i] >= 0 > logits[1][i]
                right += logits[1][i] >= 0 > logits[0][i]
        assert (compared.n, compared.newly_wrong, compared.newly_right) == (n, wrong, right)


def test_the_group_that_loses_most_is_named_unless_it_is_too_small() -> None:
    cases, (before, _) = _binary(4)
    women = (cases.groups["sex"] == "female") & (cases.targets == 1) & (before >= 0)
    after = np.where(women & (np.arange(len(before)) < 300), -before - 0.01, before)
    assert _judged(cases, (before, after), by=["sex"])[0].worst == "female"
    assert _judged(cases, (before, after), by=["sex"], min_group=1000)[0].worst == ""
    assert _judged(cases, (before, before), by=["sex"])[0].worst == ""


def test_several_cases_of_a_subject_widen_the_intervals() -> None:
    cases, (before, after) = _binary(5)
    once = _judged(cases, (before, after), by=["sex"])[0]
    repeated = Cases(
        kind="binary",
        split="test",
        targets=np.repeat(cases.targets, 3),
        labels=cases.labels,
        positive=(1,),
        groups={"sex": np.repeat(cases.groups["sex"], 3)},
        subjects=np.repeat(np.arange(600), 3).astype(str),
    )
    thrice = _judged(repeated, (np.repeat(before, 3), np.repeat(after, 3)), by=["sex"])[0]
    for one, three in zip(once.groups, thrice.groups, strict=True):
        assert one.interval is not None
        assert three.interval is not None
        assert three.drop == pytest.approx(one.drop)
        assert three.interval.high - three.interval.low >= 0.99 * (one.interval.high - one.interval.low)


def test_a_regression_is_compared_by_its_error_and_bias() -> None:
    rng = np.random.default_rng(6)
    truth, sex = rng.normal(50, 10, 400), rng.choice(["female", "male"], 400)
    before = truth + rng.normal(0, 2, 400)
    after = before + np.where(sex == "female", 3.0, 0.0)
    cases = Cases(kind="regression", split="test", targets=truth, labels=(), groups={"sex": sex})
    (found,) = _judged(cases, (before, after))
    rmse = _named(found, "rmse")
    for group, compared in rmse.items():
        rows = sex == group
        assert compared.candidate is not None
        assert compared.candidate.value == pytest.approx(mean_squared_error(truth[rows], after[rows]) ** 0.5)
    assert set(_named(found, "bias")) == {"female", "male"}
    (gap,) = found.gaps
    assert (gap.name, gap.worst_after) == ("rmse gap", "female")
    assert gap.interval is not None
    assert gap.interval.low > 0.5
    assert found.worst == "female"


def test_a_segmentation_is_compared_by_dice() -> None:
    rng = np.random.default_rng(7)
    masks, sex = rng.integers(0, 2, (80, 6, 6)), np.tile(["female", "male"], 40)
    logits = np.stack([1.0 - 2 * masks, 2.0 * masks - 1], axis=1)
    after = np.where(
        (sex == "female")[:, None, None, None] & (rng.random((80, 1, 6, 6)) < 0.3), -logits, logits
    )
    cases = Cases(
        kind="segmentation",
        split="test",
        targets=masks,
        labels=("background", "lesion"),
        groups={"sex": sex},
    )
    (found,) = _judged(cases, (logits, after))
    assert (found.worst, found.gaps[0].name) == ("female", "dice gap")
    assert found.gaps[0].growth > 0.1


def test_a_multilabel_task_has_gaps_too() -> None:
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 2, (300, 3))
    before = rng.normal(2.0 * truth - 1)
    cases = Cases(
        kind="multilabel",
        split="test",
        targets=truth,
        labels=("a", "b", "c"),
        positive=(0, 1),
        groups={"sex": rng.choice(["female", "male"], 300)},
    )
    (found,) = _judged(cases, (before, before + rng.normal(0, 1, truth.shape)))
    assert found.gaps[0].name == "equalized odds difference"
    assert {c.metric for c in found.groups} >= {"sensitivity", "specificity", "accuracy", "underdiagnosis"}


def test_a_metric_of_the_users_own_is_compared_within_groups() -> None:
    answers = np.arange(80) % 7
    cases = Cases(
        kind="custom",
        split="test",
        targets=answers,
        labels=(),
        groups={"site": np.repeat(["a", "b"], 40)},
        metrics=(CustomMetric(name="hits", function=lambda y, t: float((y == t).mean())),),
    )
    worse = np.where(np.arange(80) < 20, -1, answers)
    (found,) = _judged(cases, (answers, worse))
    hits = _named(found, "hits")
    assert hits["a"].drop == pytest.approx(0.5)
    assert hits["b"].drop == 0.0
    assert (found.gaps[0].name, found.worst) == ("hits gap", "a")


def test_a_group_of_one_class_or_of_one_case_is_listed_and_breaks_nothing() -> None:
    cases, logits = _binary(9)
    sex = np.where(cases.targets == 1, "female", "male").astype(object)
    sex[0] = "other"
    odd = Cases(
        kind="binary",
        split="test",
        targets=cases.targets,
        labels=cases.labels,
        positive=(1,),
        groups={"sex": sex},
    )
    (found,) = _judged(odd, logits, min_group=30)
    assert found.too_small == {"other": 1}
    assert _named(found, "specificity")["female"].n == 0
    assert _named(found, "specificity")["female"].interval is None
    assert _named(found, "auroc")["female"].interval is None
    # Sensitivity is defined of women alone, specificity of men alone: there is nothing to compare.
    assert [gap.name for gap in found.gaps] == ["accuracy gap"]


def test_one_group_only_has_no_gap() -> None:
    cases, logits = _binary(10)
    alone = Cases(
        kind="binary",
        split="test",
        targets=cases.targets,
        labels=cases.labels,
        positive=(1,),
        groups={"site": np.full(600, "north")},
    )
    (found,) = _judged(alone, logits)
    assert found.gaps == ()
    assert {c.where["site"] for c in found.groups} == {"north"}


def test_the_gap_with_a_limit_comes_first() -> None:
    assert next(iter(gap_metrics(["auroc", "accuracy", "specificity", "sensitivity"]))).startswith(
        "equalized"
    )
    assert list(gap_metrics(["accuracy", "auroc"])) == ["accuracy gap"]
