from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from pastille.stats.decisions import decide, decisions, log_odds, output_problem, predictions, probabilities
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


def test_regression_has_no_probabilities() -> None:
    with pytest.raises(ValueError, match="kind must be 'binary' or 'multiclass', got 'regression'"):
        probabilities("regression", np.zeros(3))
