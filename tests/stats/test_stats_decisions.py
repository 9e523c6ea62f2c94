from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from pastille.stats.decisions import (
    class_log_odds,
    decide,
    decisions,
    log_odds,
    output_problem,
    predictions,
    probabilities,
)
from pastille.values import Cases, Kind

logits = st.lists(st.floats(-800, 800), min_size=1, max_size=30)


@given(logits)
def test_one_logit_and_two_give_the_same_probability(values: list[float]) -> None:
    one = np.array(values)
    two = np.column_stack([np.zeros(len(one)), one])
    for form in (one, one[:, None], two):
        np.testing.assert_allclose(probabilities("binary", form), expit(one), rtol=1e-12, atol=1e-300)


@given(logits)
def test_log_odds_do_not_saturate(values: list[float]) -> None:
    odds = log_odds(np.array(values))
    assert (np.argsort(odds, kind="stable") == np.argsort(values, kind="stable")).all()


def test_softmax_agrees_with_scipy_even_for_huge_logits() -> None:
    outputs = np.random.default_rng(0).normal(0, 500, (50, 7))
    np.testing.assert_allclose(probabilities("multiclass", outputs), softmax(outputs, axis=1), atol=1e-15)


def test_float32_outputs_are_raised_to_double() -> None:
    assert probabilities("multiclass", np.zeros((2, 3), np.float32)).dtype == np.float64
    assert predictions(np.zeros((2, 1), np.float32)).dtype == np.float64


@pytest.mark.parametrize("outputs", [np.zeros(3), np.zeros((3, 1)), np.ones((3, 2))])
def test_a_probability_equal_to_the_threshold_is_positive(outputs: np.ndarray) -> None:
    assert decisions("binary", outputs, threshold=0.5).tolist() == [1, 1, 1]


def test_threshold_moves_the_decision() -> None:
    outputs = np.log(np.array([0.2, 0.3, 0.4]) / np.array([0.8, 0.7, 0.6]))
    assert decisions("binary", outputs, threshold=0.29).tolist() == [0, 1, 1]
    assert decisions("binary", outputs, threshold=0.35).dtype == np.int64


def test_threshold_speaks_of_the_positive_label() -> None:
    """A case is called the positive label from the threshold on, whichever label that is."""
    outputs = np.array([-1.0, 1.0])  # probability of label 0: 0.73, 0.27
    assert decisions("binary", outputs, threshold=0.2, positive=0).tolist() == [0, 0]
    assert decisions("binary", outputs, threshold=0.3, positive=0).tolist() == [0, 1]
    cases = Cases(
        kind="binary",
        split="test",
        targets=np.array([0, 1]),
        labels=("ill", "well"),
        positive=(0,),
        threshold=0.2,
    )
    assert decide(outputs, cases).tolist() == [0, 0]
    assert decisions("binary", np.zeros(1), threshold=0.5, positive=0).tolist() == [0]


def test_multiclass_takes_the_largest_and_the_first_of_equals() -> None:
    outputs = np.array([[1.0, 3.0, 2.0], [2.0, 2.0, 1.0]])
    assert decisions("multiclass", outputs, threshold=0.5).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("kind", "labels", "shape"),
    [
        ("binary", 2, (5,)),
        ("binary", 2, (5, 1)),
        ("binary", 2, (5, 2)),
        ("multiclass", 4, (5, 4)),
        ("regression", 0, (5,)),
        ("regression", 0, (5, 1)),
        ("multilabel", 3, (5, 3)),
        ("multilabel", 1, (5, 1)),
        ("segmentation", 3, (5, 3, 8, 9)),
        ("segmentation", 2, (5, 2, 8, 9)),
        ("segmentation", 2, (5, 1, 8, 9)),
        ("segmentation", 2, (5, 8, 9)),
        ("custom", 0, (5, 100, 6)),
        ("custom", 0, (5,)),
    ],
)
def test_fitting_shapes(kind: Kind, labels: int, shape: tuple[int, ...]) -> None:
    assert output_problem(kind, labels, shape) is None


@pytest.mark.parametrize(
    ("kind", "labels", "shape", "message"),
    [
        ("binary", 2, (5, 3), "a binary model must answer with shape (N,) or (N, 1) or (N, 2), got (5, 3)"),
        (
            "multiclass",
            4,
            (5, 3),
            "a multiclass model with 4 labels must answer with shape (N, 4), got (5, 3)",
        ),
        ("multiclass", 4, (5,), "a multiclass model with 4 labels must answer with shape (N, 4), got (5,)"),
        ("regression", 0, (5, 2), "a regression model must answer with shape (N,) or (N, 1), got (5, 2)"),
        ("regression", 0, (), "a regression model must answer with shape (N,) or (N, 1), got ()"),
        ("multilabel", 1, (5,), "a multilabel model with 1 label must answer with shape (N, 1), got (5,)"),
        (
            "segmentation",
            3,
            (5, 8, 9),
            "a segmentation model with 3 labels must answer with shape (N, 3, H, W), got (5, 8, 9)",
        ),
        (
            "segmentation",
            2,
            (5, 3, 8, 9),
            "a segmentation model with 2 labels must answer with shape (N, 2, H, W) or (N, 1, H, W) or "
            "(N, H, W), got (5, 3, 8, 9)",
        ),
        ("custom", 0, (), "a custom model must answer with shape (N, ...), got ()"),
    ],
)
def test_shapes_that_do_not_fit(kind: Kind, labels: int, shape: tuple[int, ...], message: str) -> None:
    assert output_problem(kind, labels, shape) == message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(bad: float) -> None:
    message = "outputs must be finite, got NaN or infinity in 1 of 2 values"
    with pytest.raises(ValueError, match=message):
        decisions("binary", np.array([0.0, bad]), threshold=0.5)
    with pytest.raises(ValueError, match=message):
        decisions("multiclass", np.array([[0.0, bad]]), threshold=0.5)
    with pytest.raises(ValueError, match=message):
        predictions(np.array([0.0, bad]))


def test_the_rows_must_fit_the_cases() -> None:
    cases = Cases(kind="binary", split="test", targets=np.array([0, 1]), labels=("a", "b"))
    with pytest.raises(ValueError, match=r"one row per case, got \(3,\) for 2 cases"):
        decide(np.zeros(3), cases)
    three = Cases(kind="multiclass", split="test", targets=np.array([0, 1]), labels=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"outputs must fit the task: .* shape \(N, 3\), got \(2, 4\)"):
        decide(np.zeros((2, 4)), three)


@pytest.mark.parametrize("kind", ["regression", "custom"])
def test_numbers_have_no_probabilities_and_decide_nothing(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"kind must be one that has probabilities, got '{kind}'"):
        probabilities(kind, np.zeros(3))
    with pytest.raises(ValueError, match=f"kind must be one that decides, got '{kind}'"):
        decisions(kind, np.zeros(3), threshold=0.5)


def test_each_label_of_several_is_decided_on_its_own() -> None:
    outputs = np.log(np.array([[0.3, 0.6], [0.4, 0.1]]) / (1 - np.array([[0.3, 0.6], [0.4, 0.1]])))
    np.testing.assert_allclose(probabilities("multilabel", outputs), [[0.3, 0.6], [0.4, 0.1]])
    decided = decisions("multilabel", outputs, threshold=0.35)
    assert decided.tolist() == [[0, 1], [1, 0]]
    assert decided.dtype == np.int64


def test_masks_by_softmax_take_the_largest_and_the_first_of_equals() -> None:
    outputs = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    outputs[0, 1:3, 0, 0] = 9.0
    decided = decisions("segmentation", outputs, threshold=0.5)
    assert decided.dtype == np.int64
    for image in range(3):
        for row in range(5):
            for column in range(6):
                assert decided[image, row, column] == np.argmax(outputs[image, :, row, column])
    assert decided[0, 0, 0] == 1
    np.testing.assert_allclose(probabilities("segmentation", outputs), softmax(outputs, axis=1), atol=1e-6)


def test_masks_by_sigmoid_use_the_threshold() -> None:
    odds = np.random.default_rng(0).normal(size=(3, 5, 6))
    for outputs in (odds, odds[:, None]):
        np.testing.assert_array_equal(decisions("segmentation", outputs, threshold=0.3), expit(odds) >= 0.3)
        np.testing.assert_allclose(probabilities("segmentation", outputs), expit(odds))


def test_an_image_that_is_not_finite_is_refused() -> None:
    outputs = np.zeros((2, 3, 4, 4))
    outputs[1, 2, 0, 0] = np.nan
    with pytest.raises(ValueError, match="outputs must be finite, got NaN or infinity in 1 of"):
        decisions("segmentation", outputs, threshold=0.5)


def test_masks_must_be_as_large_as_the_targets() -> None:
    cases = Cases(
        kind="segmentation", split="test", targets=np.zeros((2, 4, 4), np.int64), labels=("none", "lesion")
    )
    assert decide(np.zeros((2, 4, 4)), cases).shape == (2, 4, 4)
    with pytest.raises(
        ValueError, match=r"as high and wide as the targets, got \(2, 2, 8, 8\) for \(2, 4, 4\)"
    ):
        decide(np.zeros((2, 2, 8, 8)), cases)


@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=20))
def test_log_odds_of_a_class_are_those_of_its_probability(values: list[list[float]]) -> None:
    outputs = np.array(values)
    chances = softmax(outputs, axis=1)
    np.testing.assert_allclose(expit(class_log_odds(outputs)), chances, rtol=1e-9, atol=1e-300)


def test_log_odds_of_a_class_do_not_saturate() -> None:
    outputs = np.array([[0.0, 100.0, -3.0], [0.0, 101.0, -3.0], [0.0, 900.0, -900.0]])
    assert (softmax(outputs, axis=1)[:, 1] == 1.0).all()  # probabilities could not tell them apart
    np.testing.assert_allclose(class_log_odds(outputs)[:, 1], [99.951413, 100.951413, 900.0], rtol=1e-7)
    np.testing.assert_allclose(
        class_log_odds(np.array([[2.0, 5.0]])), [[-3.0, 3.0]]
    )  # of two classes, the plain difference
