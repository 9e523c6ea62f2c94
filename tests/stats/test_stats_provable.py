from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pastille.errors import DataError
from pastille.recipe import FairnessLimits
from pastille.stats.power import power_of
from pastille.stats.proportions import tango
from pastille.stats.provable import Outlook, outlooks, provable, sentence, unforeseeable
from pastille.values import Cases


def cases_of(positive: int, negative: int, **others: Any) -> Cases:
    targets = np.repeat([1, 0], [positive, negative])
    return Cases(
        kind="binary", split="test", targets=targets, labels=("well", "ill"), positive=(1,), **others
    )


def by_metric(found: tuple[Outlook, ...]) -> dict[str, Outlook]:
    return {outlook.asked.metric: outlook for outlook in found}


def test_each_metric_rests_on_its_own_cases() -> None:
    limits = {"accuracy": 0.02, "sensitivity": 0.02, "specificity": 0.02, "auroc": 0.02}
    found = by_metric(outlooks(cases_of(100, 900), max_drop=limits, confidence=0.95))
    assert {name: o.asked.cases for name, o in found.items()} == {
        "accuracy": 1000,
        "sensitivity": 100,
        "specificity": 900,
    }
    assert found["accuracy"].power == power_of(1000, 0.02, 0.02, confidence=0.95)
    assert found["accuracy"].sure
    assert found["accuracy"].needed == 518
    assert found["sensitivity"].bearable is None
    assert found["sensitivity"].asked.fewest == 189
    assert unforeseeable(cases_of(100, 900), limits) == ("auroc",)


def test_what_is_said_to_be_bearable_is_approved_and_no_more() -> None:
    (found,) = outlooks(cases_of(300, 300), max_drop={"accuracy": 0.02}, confidence=0.95)
    assert found.bearable is not None
    assert power_of(600, found.bearable, 0.02, confidence=0.95) >= 0.8
    assert power_of(600, found.bearable + 1e-4, 0.02, confidence=0.95) < 0.8
    assert "no more than 2.4 % of the decisions change" in sentence(found)


@pytest.mark.parametrize("n", [72, 73])
def test_the_border_is_tangos_without_a_change(n: int) -> None:
    cases = Cases(kind="multiclass", split="test", targets=np.arange(n) % 3, labels=("a", "b", "c"))
    lines = provable(cases, max_drop={"accuracy": 0.05, "macro": 0.1}, confidence=0.95)
    assert bool(lines) is (tango(0, 0, n, 0.95).high > 0.05)
    if lines:
        assert f"has {n} cases for accuracy" in lines[0]
        assert "takes at least 73" in lines[0]


def test_repeated_subjects_count_less() -> None:
    subjects = np.repeat(np.arange(100), 4)
    cases = cases_of(200, 200, subjects=subjects)
    (found,) = outlooks(cases, max_drop={"accuracy": 0.02}, confidence=0.95)
    assert (found.asked.cases, found.asked.subjects, found.asked.worth) == (400, 100, 100)
    assert found.asked.fewest == 4 * 189
    assert found.bearable is None
    assert "400 cases (of 100 subjects, worth 100) cannot show" in sentence(found)
    (alone,) = outlooks(
        cases_of(200, 200, subjects=np.arange(400)), max_drop={"accuracy": 0.02}, confidence=0.95
    )
    assert alone.asked.subjects is None
    assert alone.bearable is not None


def test_groups_and_intersections_below_need_are_named() -> None:
    sex = np.tile(["female", "male"], 500)
    age = np.where(np.arange(1000) % 100 < 2, "65+", "<65")
    cases = cases_of(500, 500, groups={"sex": sex, "age_band": age})
    fairness = FairnessLimits(by=["sex", "age_band"], max_drop={"sensitivity": 0.05})
    found = outlooks(cases, max_drop={"accuracy": 0.05}, fairness=fairness, confidence=0.95)
    groups = {" ".join(o.asked.where.values()): o for o in found if o.asked.where}
    assert set(groups) == {"female", "male", "<65", "65+", "female <65", "female 65+", "male <65", "male 65+"}
    assert groups["female 65+"].asked.cases == 5
    assert "too few to be judged; fairness.min_group asks for 30" in sentence(groups["female 65+"])
    line, *gaps = provable(cases, max_drop={"accuracy": 0.05}, fairness=fairness, confidence=0.95)
    assert "3 of 8 groups of the test split have too few cases" in line
    assert "sex female and age band 65+ has 5 cases of a positive class" in line
    assert "it takes at least 73): the verdict cannot be approved" in line
    lenient = fairness.model_copy(update={"undecided": "report"})
    assert any(
        each.startswith("caution: equalized odds difference between groups of age band") for each in gaps
    )
    assert any(
        each.endswith("fewer than two groups of the test split have 30 cases of a positive class")
        for each in gaps
    )
    line, *gaps = provable(cases, max_drop={}, fairness=lenient, confidence=0.95)
    assert line.endswith("they are only reported")
    assert all(each.endswith("; it is only reported") for each in gaps)


def test_a_group_may_be_large_enough_for_tango_and_below_min_group() -> None:
    cases = cases_of(60, 60, groups={"site": np.tile(["north", "south"], 60)})
    fairness = FairnessLimits(by=["site"], max_drop={"accuracy": 0.3}, min_group=100)
    (one, _) = outlooks(cases, max_drop={}, fairness=fairness, confidence=0.95)
    assert one.asked.fewest is not None
    assert one.asked.fewest < 60 < one.asked.least
    assert one.bearable is None
    assert provable(cases, max_drop={}, fairness=fairness, confidence=0.95)


def test_classes_are_spoken_of_together() -> None:
    targets = np.repeat([0, 1, 2], [400, 50, 30])
    cases = Cases(kind="multiclass", split="validation", targets=targets, labels=("nv", "mel", "bcc"))
    (line,) = provable(cases, max_drop={}, max_class_drop={"recall": 0.05}, confidence=0.95)
    assert "2 of 3 classes of the validation split" in line
    assert "class bcc has 30 cases" in line
    found = outlooks(cases, max_drop={}, max_class_drop={"recall": 0.05}, confidence=0.95)
    assert [o.asked.where for o in found] == [{"class": "nv"}, {"class": "mel"}, {"class": "bcc"}]


def test_labels_of_a_multilabel_task() -> None:
    targets = np.column_stack([np.arange(400) % 2, np.arange(400) % 8 == 0]).astype(np.int64)
    cases = Cases(kind="multilabel", split="test", targets=targets, labels=("afib", "block"))
    found = outlooks(
        cases,
        max_drop={"exact_match": 0.05, "balanced_accuracy": 0.05},
        max_class_drop={"sensitivity": 0.05},
        confidence=0.95,
    )
    assert [(o.asked.metric, o.asked.cases) for o in found] == [
        ("exact_match", 400),
        ("sensitivity", 200),
        ("sensitivity", 50),
    ]
    assert unforeseeable(cases, {"exact_match": 0.05, "balanced_accuracy": 0.05}) == ("balanced_accuracy",)


@pytest.mark.parametrize("kind", ["regression", "segmentation", "custom"])
def test_other_tasks_are_not_foretold(kind: Any) -> None:
    cases = Cases(kind=kind, split="test", targets=np.arange(5.0), labels=())
    assert outlooks(cases, max_drop={"r2": 0.01}, confidence=0.95) == ()
    assert provable(cases, max_drop={"r2": 0.01}, confidence=0.95) == ()
    assert unforeseeable(cases, {"r2": 0.01}) == ("r2",)


def test_a_split_without_positive_cases() -> None:
    (found,) = outlooks(cases_of(0, 50), max_drop={"sensitivity": 0.05}, confidence=0.95)
    assert found.asked.cases == 0
    assert found.bearable is None
    assert "0 cases of a positive class cannot show" in sentence(found)
    assert provable(cases_of(0, 50), max_drop={"sensitivity": 0.05}, confidence=0.95)


def test_no_number_of_cases_proves_a_limit_of_zero() -> None:
    fairness = FairnessLimits(by=["site"], max_drop={"accuracy": 0.0}, max_gap_increase=0.5)
    cases = cases_of(500, 500, groups={"site": np.tile(["north", "south"], 500)})
    limits = {"accuracy": 0.0, "sensitivity": 0.3}
    found = outlooks(cases, max_drop=limits, fairness=fairness, confidence=0.95)
    zero = [each for each in found if each.asked.limit == 0]
    assert len(zero) == 3
    for each in zero:
        assert (each.bearable, each.needed, each.asked.fewest) == (None, None, None)
        assert "no number of cases can show a loss of at most 0 points" in sentence(each)
    overall, of_groups = provable(cases, max_drop=limits, fairness=fairness, confidence=0.95)
    assert overall.startswith("caution: accuracy: no number of cases can show a loss of at most 0 points")
    assert of_groups.startswith("caution: accuracy of groups: no number of cases")


def test_a_limit_of_everything_is_shown() -> None:
    (found,) = outlooks(cases_of(50, 50), max_drop={"accuracy": 1.0}, confidence=0.95)
    assert found.bearable == 1.0


def test_numbers_in_sentences() -> None:
    (one,) = outlooks(cases_of(1, 50), max_drop={"sensitivity": 0.05}, confidence=0.95)
    assert "sensitivity: 1 case of a positive class cannot show" in sentence(one)
    (many,) = outlooks(cases_of(6000, 6000), max_drop={"accuracy": 0.0001}, confidence=0.95)
    assert "12,000 cases cannot show a loss of at most 0.01 points" in sentence(many)
    assert "that takes 38,411" in sentence(many)


def test_a_wide_limit_bears_any_change() -> None:
    (found,) = outlooks(cases_of(500, 500), max_drop={"accuracy": 0.3}, confidence=0.95)
    assert found.bearable == 1.0
    assert sentence(found).endswith("however many decisions change")


def test_an_unknown_attribute_is_refused() -> None:
    fairness = FairnessLimits(by=["gender"], max_drop={"accuracy": 0.05})
    with pytest.raises(DataError, match=r"fairness\.by must name attributes"):
        outlooks(cases_of(5, 5), max_drop={}, fairness=fairness, confidence=0.95)


def test_any_threshold_and_either_positive_label_will_do() -> None:
    cases = Cases(
        kind="binary",
        split="test",
        targets=np.repeat([0, 1], [80, 20]),
        labels=("ill", "well"),
        positive=(0,),
        threshold=0.999,
    )
    (found,) = outlooks(cases, max_drop={"sensitivity": 0.05}, confidence=0.95)
    assert found.asked.cases == 80
