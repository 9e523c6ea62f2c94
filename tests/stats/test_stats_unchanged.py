"""What is foretold of a candidate that decides as its baseline is what the gates then say of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pastille.gates.groups import gap_checks
from pastille.recipe import CalibrationLimits, FairnessLimits, StressLimits
from pastille.stats.fairness import fairness
from pastille.stats.forms import Share
from pastille.stats.kinds import forms
from pastille.stats.stress import excess, mean_change_interval, stressed_rows
from pastille.stats.unchanged import Stressed, Unchanged, hopeless_sentence, not_foretold, unchanged
from pastille.values import Cases, Status


def binary(sizes: list[tuple[int, int]], **others: Any) -> Cases:
    """Positive and negative cases of each site."""
    targets = np.concatenate([np.repeat([1, 0], size) for size in sizes])
    sites = np.repeat([f"site {i}" for i in range(len(sizes))], [sum(size) for size in sizes])
    return Cases(
        kind="binary",
        split="test",
        targets=targets,
        labels=("well", "ill"),
        positive=(1,),
        groups={"site": sites},
        **others,
    )


def gate(cases: Cases, limits: FairnessLimits, seed: int) -> list[Status]:
    """What becomes of a candidate that decides exactly as a baseline that errs at random."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(0.5, 1, len(np.unique(cases.groups["site"])))
    by_case = quality[np.unique(cases.groups["site"], return_inverse=True)[1]]
    right, ill = rng.random(len(cases.targets)) < by_case, cases.targets == 1
    known = {
        "sensitivity": Share(hits=right & ill, among=ill),
        "specificity": Share(hits=right & ~ill, among=~ill),
    }
    found = fairness(known, known, cases, by=["site"], min_group=limits.min_group, confidence=0.95)
    checks = gap_checks(found, limit=limits.max_gap_increase, min_group=limits.min_group)
    return [check.status for check in checks]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(20, 400), st.integers(20, 400)), min_size=1, max_size=4),
    st.just(0.0) | st.floats(0.001, 0.15),
    st.booleans(),
    st.integers(0, 1000),
)
def test_a_gap_is_foretold_as_the_gate_decides(
    sizes: list[tuple[int, int]], limit: float, repeated: bool, seed: int
) -> None:
    subjects = np.arange(sum(map(sum, sizes))) // 2 if repeated else None
    cases = binary(sizes, subjects=subjects)
    limits = FairnessLimits(by=["site"], max_gap_increase=limit)
    found = unchanged(cases, fairness=limits, confidence=0.95)
    for each, status in zip(found, gate(cases, limits, seed), strict=True):
        if each.foretold:
            assert status is (Status.INCONCLUSIVE if each.hopeless else Status.APPROVED)


@pytest.mark.parametrize("sizes", [[(100, 100), (100, 100)], [(60, 200), (90, 300)]])
def test_with_the_cases_that_it_takes_a_gap_can_be_approved(sizes: list[tuple[int, int]]) -> None:
    limits = FairnessLimits(by=["site"], max_gap_increase=0.02)
    _, opportunity = unchanged(binary(sizes), fairness=limits, confidence=0.95)
    assert opportunity.hopeless
    assert opportunity.needed is not None
    times = opportunity.needed / sum(positive for positive, _ in sizes)
    for share, enough in ((1.0, True), (0.9, False)):
        grown = [(math.ceil(share * times * positive), negative) for positive, negative in sizes]
        _, again = unchanged(binary(grown), fairness=limits, confidence=0.95)
        assert again.hopeless is not enough
        assert again.foretold


def test_a_gap_that_depends_on_the_baseline_is_not_foretold() -> None:
    cases = binary([(500, 500), (500, 500), (40, 40)])
    limits = FairnessLimits(by=["site"], max_gap_increase=0.05)
    assert not any(each.foretold for each in unchanged(cases, fairness=limits, confidence=0.95))
    assert not_foretold(cases, fairness=limits, confidence=0.95) == (
        "equalized odds difference between groups of site",
        "equal opportunity gap between groups of site",
    )


def test_no_number_of_cases_is_enough_for_a_growth_of_nothing() -> None:
    limits = FairnessLimits(by=["site"], max_gap_increase=0.0)
    found, _ = unchanged(binary([(900, 900), (900, 900)]), fairness=limits, confidence=0.95)
    assert hopeless_sentence(found).endswith("and the limit is 0 points; no number of cases is enough")


def stress_of(cases: Cases, limit: float, drawn: int = 500, metrics: tuple[str, ...] = ()) -> Stressed:
    limits = StressLimits(max_extra_drop=limit, cases=drawn)
    return Stressed(limits=limits, cases=cases, seed=3, metrics=metrics)


def stressed(cases: Cases, limit: float, drawn: int = 500, metrics: tuple[str, ...] = ()) -> list[Unchanged]:
    return list(unchanged(cases, stress=stress_of(cases, limit, drawn, metrics), confidence=0.95))


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.05, 0.3])
def test_the_cases_that_a_stress_test_takes_are_the_fewest(limit: float) -> None:
    (found,) = stressed(binary([(15, 15)]), limit, metrics=("accuracy",))
    assert found.needed is not None
    assert mean_change_interval({0: found.needed}, 0.95).high <= limit
    assert mean_change_interval({0: found.needed - 1}, 0.95).high > limit


def test_stress_rests_on_the_cases_that_are_drawn() -> None:
    cases = binary([(300, 700)])
    accuracy, sensitivity = stressed(cases, 0.05, drawn=400)
    ill = int(cases.targets[stressed_rows(1000, 400, 3)].sum())
    assert not accuracy.hopeless
    assert hopeless_sentence(sensitivity) == (
        "sensitivity under perturbed inputs cannot be approved even if no decision changes: with "
        f"{ill} cases of a positive class of the test split the extra loss may still be 6.6 points, and the "
        "limit is 5 points; it takes about 150 (requirements.stress.cases is 400)"
    )
    right = forms(np.where(cases.targets == 1, 3.0, -3.0), cases).overall["sensitivity"]
    found = excess((right, right), (right, right), subjects=None, confidence=0.95)
    (whole,) = stressed(cases, 0.05, drawn=1000, metrics=("sensitivity",))
    assert found is not None
    assert found.interval is not None
    assert whole.least == found.interval.high


def test_repeated_subjects_count_less_under_stress() -> None:
    alone, repeated = (
        stressed(binary([(100, 100)], subjects=subjects), 0.02, metrics=("accuracy",))[0]
        for subjects in (None, np.arange(200) // 2)
    )
    assert alone.needed == 381
    assert repeated.needed in (761, 762)


def test_what_is_no_share_is_not_foretold() -> None:
    cases = binary([(50, 50)])
    asked = CalibrationLimits(max_brier_increase=0.01)
    stress = stress_of(cases, 0.02, metrics=("f1",))
    names = not_foretold(cases, calibration=asked, stress=stress, confidence=0.95)
    assert names == ("F1 under perturbed inputs", "expected calibration error", "Brier score")
    assert unchanged(cases, stress=stress, confidence=0.95) == ()
    other = Cases(kind="regression", split="test", targets=np.arange(5.0), labels=())
    limits = FairnessLimits(by=["site"])
    assert not_foretold(other, fairness=limits, calibration=asked, confidence=0.95) == (
        "gaps between groups",
    )
    assert not_foretold(other, stress=stress_of(other, 0.02), confidence=0.95) == (
        "the metrics under perturbed inputs",
    )


def test_labels_of_a_multilabel_task_are_not_foretold() -> None:
    targets = np.column_stack([np.arange(400) % 2, np.arange(400) % 8 == 0]).astype(np.int64)
    groups = {"site": np.tile(["north", "south"], 200)}
    cases = Cases(kind="multilabel", split="test", targets=targets, labels=("afib", "block"), groups=groups)
    limits = FairnessLimits(by=["site"])
    assert unchanged(cases, fairness=limits, confidence=0.95) == ()
    assert not_foretold(cases, fairness=limits, confidence=0.95) == ("gaps between groups",)
