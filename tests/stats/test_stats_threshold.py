from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import roc_curve

from pastille.recipe import ThresholdGoal
from pastille.stats.decisions import decide, sigmoid
from pastille.stats.metrics import score
from pastille.stats.scale import to_logits
from pastille.stats.threshold import Goal, choose_threshold
from pastille.values import Cases


def _cases(targets: np.ndarray, positive: tuple[int, ...] = (1,)) -> Cases:
    return Cases(
        kind="binary", split="validation", targets=targets, labels=("well", "ill"), positive=positive
    )


def _sample(n: int = 400, seed: int = 0) -> tuple[np.ndarray, Cases]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.3).astype(np.int64)
    return np.round(rng.normal(size=n) + 2 * targets - 1, 2), _cases(targets)


def test_youden_agrees_with_the_roc_curve() -> None:
    outputs, cases = _sample()
    found = choose_threshold(outputs, cases, "youden")
    false, true, _ = roc_curve(cases.targets, expit(outputs), drop_intermediate=False)
    assert found.sensitivity.value + found.specificity.value - 1 == pytest.approx((true - false).max())


@pytest.mark.parametrize("goal", [0.8, 0.9, 0.95, 0.99])
def test_a_goal_is_reached_and_the_next_threshold_would_miss_it(goal: float) -> None:
    outputs, cases = _sample()
    chances = expit(outputs)
    found = choose_threshold(outputs, cases, ThresholdGoal(sensitivity=goal))
    assert found.sensitivity.value >= goal
    higher = np.min(chances[chances > found.threshold])
    assert np.mean(chances[cases.targets == 1] > higher) < goal
    found = choose_threshold(outputs, cases, ThresholdGoal(specificity=goal))
    assert found.specificity.value >= goal
    lower = np.max(chances[chances < found.threshold])
    assert np.mean(chances[cases.targets == 0] < lower) < goal


def test_exactly_the_goal_reaches_it() -> None:
    """19 of 20 are 95 %, whatever a float makes of it."""
    outputs = np.concatenate([[-5.0], np.linspace(1, 2, 19), np.linspace(-1, 0, 20)])
    cases = _cases(np.repeat([1, 0], 20))
    found = choose_threshold(outputs, cases, ThresholdGoal(sensitivity=0.95))
    assert (found.sensitivity.value, found.specificity.value) == (0.95, 1.0)
    assert found.threshold == pytest.approx((expit(0) + expit(1)) / 2)


@pytest.mark.parametrize("goal", ["youden", ThresholdGoal(sensitivity=0.9), ThresholdGoal(specificity=0.9)])
@pytest.mark.parametrize("positive", [0, 1])
def test_what_is_reached_is_what_scoring_says(goal: Goal, positive: int) -> None:
    outputs, cases = _sample()
    cases = replace(cases, positive=(positive,))
    found = choose_threshold(outputs, cases, goal)
    overall = score(outputs, replace(cases, threshold=found.threshold)).overall
    assert (overall["sensitivity"], overall["specificity"]) == (found.sensitivity, found.specificity)
    assert found.sensitivity.interval is not None
    assert choose_threshold(outputs, cases, goal) == found
    assert choose_threshold(np.column_stack([0 * outputs, outputs]), cases, goal) == found


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(-60, 60), st.booleans()), min_size=2, max_size=25), st.booleans())
def test_a_threshold_parts_the_cases_with_room_on_both_sides(
    rows: list[tuple[float, bool]], youden: bool
) -> None:
    outputs, truth = (np.array(column) for column in zip(*rows, strict=True))
    assume(truth.any() and not truth.all())
    cases = _cases(truth.astype(np.int64))
    goal: Goal = "youden" if youden else ThresholdGoal(sensitivity=0.5)
    try:
        found = choose_threshold(outputs, cases, goal)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert 0 < found.threshold <= 1
    decided = decide(outputs, replace(cases, threshold=found.threshold))
    assert 0 < decided.sum() < len(decided)
    chances = expit(outputs)
    below, above = chances[decided == 0].max(), chances[decided == 1].min()
    assert below < found.threshold <= above
    if above - below > 1e-9:
        assert found.threshold == pytest.approx((below + above) / 2)


def test_rounding_does_not_carry_a_case_over() -> None:
    outputs, cases = _sample()
    cases = replace(cases, threshold=choose_threshold(outputs, cases, "youden").threshold)
    assert (decide(outputs.astype(np.float32), cases) == decide(outputs, cases)).all()


@pytest.mark.parametrize("low", [0.5, np.nextafter(0.5, 1)])
def test_neighbouring_floats_are_parted(low: float) -> None:
    """There is nothing between them, and their mean rounds to either."""
    chances = np.array([low, np.nextafter(low, 1)])
    outputs = to_logits("binary", chances, "probabilities")
    np.testing.assert_array_equal(sigmoid(outputs), chances)
    found = choose_threshold(outputs, _cases(np.array([0, 1])), "youden")
    assert found.threshold == chances[1]
    assert (found.sensitivity.value, found.specificity.value) == (1.0, 1.0)


def test_the_most_sensitive_of_equals() -> None:
    found = choose_threshold(np.array([-2.0, -1.0, 1.0, 2.0]), _cases(np.array([0, 1, 0, 1])), "youden")
    assert (found.sensitivity.value, found.specificity.value) == (1.0, 0.5)


def test_subjects_widen_the_intervals() -> None:
    outputs, cases = _sample(100)
    found = choose_threshold(
        np.repeat(outputs, 4),
        replace(_cases(np.repeat(cases.targets, 4)), subjects=np.repeat(np.arange(100), 4)),
        "youden",
    )
    once = choose_threshold(outputs, cases, "youden")
    assert found.threshold == once.threshold
    assert "subjects" in found.sensitivity.method
    assert found.sensitivity.interval is not None
    assert once.sensitivity.interval is not None
    assert found.sensitivity.interval.low == pytest.approx(once.sensitivity.interval.low)


def test_the_sentence() -> None:
    found = choose_threshold(
        np.array([-2.0, -1.0, 0.5, 3.0]), _cases(np.array([0, 0, 1, 1])), ThresholdGoal(sensitivity=0.9)
    )
    assert found.sentence == (
        "A case is called ill from a probability of 0.4457 on, chosen on validation for a sensitivity of at "
        "least 90 %: sensitivity 100.0 % (95 % CI 34.2 to 100.0, 2 cases), specificity 100.0 % (95 % CI 34.2 "
        "to 100.0, 2 cases)"
    )


@pytest.mark.parametrize(
    ("outputs", "targets", "goal", "message"),
    [
        (
            np.zeros(4),
            [0, 1, 0, 1],
            "youden",
            "outputs must tell cases apart .* all 4 have the probability 0.5",
        ),
        (np.arange(4.0), [0, 0, 0, 0], "youden", "cases must hold both labels .* got 0 of 4 positive"),
        (np.arange(4.0), [1, 1, 0, 0], "youden", "outputs must do better than chance"),
        (
            np.arange(4.0),
            [1, 0, 1, 0],
            ThresholdGoal(sensitivity=0.95),
            "no threshold reaches a sensitivity of 95 % without calling every case alike; the most is 50.0 %",
        ),
        (np.arange(3.0), [0, 1, 0, 1], "youden", "one row per case"),
        (np.array([0.0, np.nan]), [0, 1], "youden", "outputs must be finite"),
        (np.arange(2.0), [0, 2], "youden", "targets must be between 0 and 1"),
    ],
)
def test_what_cannot_be_chosen(outputs: np.ndarray, targets: list[int], goal: Goal, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_threshold(outputs, _cases(np.array(targets)), goal)


def test_only_a_binary_task_chooses() -> None:
    cases = Cases(kind="regression", split="validation", targets=np.arange(3.0), labels=())
    with pytest.raises(ValueError, match="cases must be of a binary task for a threshold to be chosen"):
        choose_threshold(np.arange(3.0), cases, "youden")
