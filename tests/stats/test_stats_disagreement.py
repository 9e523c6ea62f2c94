from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

from pastille.stats.alignment import align, check_same_order, first_repeat, shown
from pastille.stats.changes import changes, mask_dice
from pastille.stats.disagreement import disagreement
from pastille.values import Cases, Disagreement, Kind, from_json, to_json


def cases_of(kind: Kind, targets: np.ndarray, labels: tuple[str, ...] = (), **more: Any) -> Cases:
    return Cases(kind=kind, split="test", targets=targets, labels=labels, **more)


def compared(before: np.ndarray, after: np.ndarray, cases: Cases, **more: Any) -> Disagreement:
    found = disagreement(before, after, cases, **more)
    assert found is not None
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 80))
def test_counts_agree_with_scikit_learn(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth, before, after = rng.integers(0, 4, (3, n))
    found = compared(before, after, cases_of("multiclass", truth, ("a", "b", "c", "d"), positive=(1, 3)))
    table = confusion_matrix(before, after, labels=range(4))  # baseline by candidate
    named = {(one, other): count for one, other, count in found.transitions}
    assert named == {
        ("abcd"[i], "abcd"[j]): table[i, j] for i in range(4) for j in range(4) if i != j and table[i, j]
    }
    positive = confusion_matrix(np.isin(before, (1, 3)), np.isin(after, (1, 3)), labels=[False, True])
    assert (found.positive_to_negative, found.negative_to_positive) == (positive[1, 0], positive[0, 1])
    right = confusion_matrix(before == truth, after == truth, labels=[False, True])
    assert (found.newly_wrong, found.newly_right) == (right[1, 0], right[0, 1])
    assert (found.n, found.changed) == (n, n - np.trace(table))


def test_the_most_frequent_transition_comes_first() -> None:
    before, after = np.array([0, 0, 0, 1, 2]), np.array([1, 2, 2, 0, 2])
    found = compared(before, after, cases_of("multiclass", before, ("a", "b", "c")))
    assert found.transitions == (("a", "c", 2), ("a", "b", 1), ("b", "a", 1))
    assert found.positive_to_negative is found.negative_to_positive is None


def test_directions_follow_the_positive_label_of_a_binary_task() -> None:
    cases = cases_of("binary", np.array([0, 0, 1]), ("ill", "well"), positive=(0,))
    found = compared(np.array([0, 0, 1]), np.array([1, 1, 0]), cases)
    assert (found.positive_to_negative, found.negative_to_positive) == (2, 1)


def test_labels_change_one_by_one_and_a_case_once() -> None:
    truth = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    before = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    after = np.array([[0, 1, 1], [1, 1, 0], [0, 1, 0]])
    cases = cases_of("multilabel", truth, ("nodule", "effusion", "device"), positive=(0, 1))
    found = compared(before, after, cases)
    assert (found.changed, found.newly_wrong, found.newly_right) == (3, 1, 1)
    assert (found.positive_to_negative, found.negative_to_positive) == (1, 3)  # the first case is in both
    assert found.transitions == (
        ("device", "no device", 2),
        ("no effusion", "effusion", 2),
        ("no nodule", "nodule", 1),
        ("nodule", "no nodule", 1),
    )


def masks(*rows: str) -> np.ndarray:
    return np.array([[[int(pixel) for pixel in row]] for row in rows])


def test_masks_change_where_their_outlines_do() -> None:
    truth = masks("1111111111", "1110000000", "0000000000", "2222211111", "1111100000")
    before = masks("1111111110", "1110000000", "0000000000", "2222211111", "1111100000")
    after = masks("1111111100", "0000000000", "0000000001", "2222211110", "2222200000")
    cases = cases_of("segmentation", truth, ("ground", "lesion", "vessel"), positive=(1,))
    found = changes(before, after, cases)
    assert found is not None
    assert found.lost is not None
    assert found.gained is not None
    # Dice 0.94, lost, one pixel gained, 0.89, taken for something else
    assert found.changed.tolist() == [False, True, True, True, True]
    assert found.lost.tolist() == [False, True, False, False, True]
    assert found.gained.tolist() == [False, False, True, False, False]
    assert found.newly_wrong.tolist() == [False, True, True, True, True]
    assert not found.newly_right.any()
    assert found.transitions == (
        ("lesion", "no lesion", 2),
        ("lesion", "lesion, another outline", 1),
        ("no lesion", "lesion", 1),
        ("no vessel", "vessel", 1),
    )
    back = changes(after, before, cases)
    assert back is not None
    assert back.newly_right.tolist() == found.newly_wrong.tolist()


def test_a_change_for_neither_better_nor_worse_is_a_change() -> None:
    drawn = cases_of("segmentation", masks("1100"), ("ground", "lesion"))
    number = cases_of("regression", np.array([0.0, 10.0]))
    for found in (
        compared(masks("1000"), masks("0100"), drawn),
        compared(np.array([2.0, 10.0]), np.array([-2.0, 10.0]), number),
    ):
        assert (found.changed, found.newly_wrong, found.newly_right) == (1, 0, 0)


def test_dice_of_masks_agrees_with_scikit_learn() -> None:
    one, other = np.random.default_rng(0).integers(0, 3, (2, 5, 4, 4))
    expected = [
        f1_score(a.ravel(), b.ravel(), labels=[1, 2], average=None, zero_division=1)
        for a, b in zip(one, other, strict=True)
    ]
    assert mask_dice(one, other, 3) == pytest.approx(np.array(expected))


def test_numbers_change_by_a_tenth_of_the_spread_of_the_targets() -> None:
    truth = np.array([0.0, 20.0, 0.0, 20.0, 0.0, 20.0])  # standard deviation 10
    after = truth + np.array([0.99, -1.01, 1.01, 0.0, -3.0, 0.5])
    found = compared(truth, after, cases_of("regression", truth))
    assert (found.changed, found.newly_wrong, found.newly_right) == (3, 3, 0)
    assert found.transitions == (
        ("prediction", "lower prediction", 2),
        ("prediction", "higher prediction", 1),
    )
    assert compared(after, truth, cases_of("regression", truth)).newly_right == 3
    assert found.summary.startswith(
        "3 of 6 predictions moved by more than 10 % of the targets' standard deviation (50.0 %): "
        "3 for the worse, 0 for the better. The 3 changed decisions are spread evenly over target as far"
    )


def test_a_custom_task_has_no_decisions() -> None:
    assert disagreement(np.zeros((2, 5)), np.ones((2, 5)), cases_of("custom", np.zeros(2))) is None


def test_decisions_must_have_the_shape_of_the_targets() -> None:
    message = "after must be decisions of shape (3,) like the targets, got (3, 2)"
    with pytest.raises(ValueError, match=re.escape(message)):
        changes(np.zeros(3, int), np.zeros((3, 2)), cases_of("binary", np.array([0, 1, 1]), ("a", "b")))


def binary(n: int, **more: Any) -> Cases:
    return cases_of("binary", np.arange(n) % 2, ("well", "ill"), positive=(1,), **more)


def test_no_changes_at_all() -> None:
    cases = binary(540, groups={"sex": np.resize(["F", "M"], 540)})
    found = compared(cases.targets, cases.targets, cases)
    assert (found.changed, found.transitions, found.concentrations) == (0, (), ())
    assert found.summary == "The two models decide all 540 cases alike."
    flat = cases_of("regression", np.arange(4.0))
    assert compared(flat.targets, flat.targets, flat).summary.startswith("0 of 4 predictions moved by more")


def test_everything_changed() -> None:
    cases = binary(50)
    found = compared(cases.targets, 1 - cases.targets, cases)
    assert found.summary == (
        "50 of 50 cases are decided otherwise (100.0 %): 25 from positive to negative, 25 from negative to "
        "positive; 50 newly wrong, 0 newly right."
    )


def test_what_is_newly_wrong_is_asked_apart_only_where_it_differs() -> None:
    cases = binary(50)
    worse = compared(cases.targets, np.where(np.arange(50) < 5, 1 - cases.targets, cases.targets), cases)
    mixed = compared(np.where(np.arange(50) < 3, 1 - cases.targets, cases.targets), cases.targets * 0, cases)
    assert {x.outcome for x in worse.concentrations} == {"changed"}
    assert {x.outcome for x in mixed.concentrations} == {"changed", "newly wrong"}


def test_one_case() -> None:
    cases = binary(1, groups={"sex": np.array(["F"])}, subjects=np.array(["p"]), ids=np.array(["x.png"]))
    assert compared(np.array([0]), np.array([0]), cases).summary == "The two models decide the case alike."
    found = compared(np.array([0]), np.array([1]), cases, confidence_of_baseline=np.array([0.3]))
    assert found.summary.startswith("1 of 1 cases is decided otherwise (100.0 %): 0 from positive to neg")
    assert found.concentrations == ()


def test_nine_scattered_changes_are_called_even() -> None:
    cases = binary(
        540,
        groups={
            "sex": np.resize(["F", "F", "M", "M"], 540),
            "age_band": np.resize(["<65"] * 4 + ["65+"], 540),
        },
    )
    after = cases.targets.copy()
    after[::60] = 1 - after[::60]
    after[[60, 180]], after[[61, 182]] = cases.targets[[60, 180]], 1 - cases.targets[[61, 182]]
    found = compared(cases.targets, after, cases, confidence_of_baseline=np.arange(540) * 97 % 540)
    assert found.summary.endswith(
        " The 9 changed decisions are spread evenly over age band, class, confidence and sex as far as 540 "
        "cases can tell."
    )


def test_a_planted_pile_is_in_the_summary_and_what_is_expected_comes_after() -> None:
    rng = np.random.default_rng(1)
    old, confidence = rng.random(2000) < 0.15, rng.random(2000)
    changed = (rng.random(2000) < np.where(old, 0.15, 0.01)) | ((confidence < 0.2) & (rng.random(2000) < 0.1))
    cases = binary(
        2000, groups={"age_band": np.where(old, "65+", "<65"), "sex": rng.choice(["F", "M"], 2000)}
    )
    found = compared(
        cases.targets,
        np.where(changed, 1 - cases.targets, cases.targets),
        cases,
        confidence_of_baseline=confidence,
    )
    assert found.changed == changed.sum()
    places = {(x.attribute, x.value) for x in found.concentrations if x.adjusted_p <= 0.05}
    assert places == {("age_band", "65+"), ("confidence", "lowest quarter")}
    pile, expected, even = (
        found.summary.index(text) for text in ("pile up in age band 65+", "As expected", "Otherwise")
    )
    assert pile < expected < even
    assert found.summary.endswith(
        "Otherwise they are spread evenly over class and sex as far as 2000 cases can tell."
    )


def test_changes_of_one_patient_are_no_pile() -> None:
    subjects = np.repeat(np.arange(100), 8)
    targets = np.arange(800) % 2
    after = np.where(subjects == 4, 1 - targets, targets)
    sex = {"sex": np.where(subjects % 2, "M", "F")}
    alone = cases_of("binary", targets, ("well", "ill"), groups=sex)
    together = cases_of("binary", targets, ("well", "ill"), groups=sex, subjects=subjects)
    assert "pile up in sex F" in compared(targets, after, alone).summary
    assert "pile up" not in compared(targets, after, together).summary


def test_a_result_is_bounded_and_goes_through_json() -> None:
    rng = np.random.default_rng(0)
    strata = np.array([f"device {i} " + "x" * 5000 for i in range(200)])[rng.integers(0, 200, 1000)]
    cases = binary(1000, strata=strata)
    after = np.where(rng.random(1000) < 0.2, 1 - cases.targets, cases.targets)
    found = compared(cases.targets, after, cases)
    assert len(found.concentrations) == 50
    assert max(len(x.sentence) for x in found.concentrations) < 300
    assert from_json(Disagreement, to_json(found)) == found


def test_hostile_names_do_not_steer_a_terminal() -> None:
    cases = binary(40, groups={"site": np.resize(["ok", "\x1b[2J\nx"], 40)})
    after = np.where(np.arange(40) % 2, 1 - cases.targets, cases.targets)
    assert compared(cases.targets, after, cases).summary.isprintable()


@given(st.lists(st.text(max_size=5), min_size=1, unique=True), st.randoms(use_true_random=False))
def test_align_brings_any_order_back(names: list[str], random: Any) -> None:
    ids = np.array([name.rstrip("\0") + "." for name in names])
    shuffled = ids.tolist()
    random.shuffle(shuffled)
    at_hand = np.array(shuffled)
    assert (at_hand[align(ids, at_hand)] == ids).all()
    check_same_order(ids, at_hand[align(ids, at_hand)])


@pytest.mark.parametrize(
    ("ids", "other", "message"),
    [
        (
            ["a", "b"],
            ["b", "a"],
            "ids must come in the same order, but row 0 is 'a' in one and 'b' in the other",
        ),
        (["a", "b", "a"], ["a", "b"], "ids must differ from each other, but 'a' is in rows 0 and 2"),
        (list("abcdef"), ["a"], "but 5 are in the first but not in the second: 'b', 'c', 'd' and 2 more"),
        (
            ["a"],
            ["a", "b"],
            "ids must be of the same cases, but 1 are in the second but not in the first: 'b'",
        ),
        ([["a"]], ["a"], "ids must have shape (N,), got (1, 1)"),
        (["x" * 9999], ["\n"], "but 1 are in the first but not in the second: '" + "x" * 40 + "…'"),
    ],
)
def test_predictions_of_other_cases_are_refused(ids: list[Any], other: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        check_same_order(np.array(ids), np.array(other))
    assert "\n" not in str(caught.value)
    if "order" not in message:
        with pytest.raises(ValueError, match=re.escape(message)):
            align(np.array(ids), np.array(other))


def test_numbers_name_cases_too() -> None:
    assert align(np.array([7, 12]), np.array(["12", "7"])).tolist() == [1, 0]
    assert first_repeat(np.array([])) is None
    assert shown("a\u202eb") == "a\\u202eb"
