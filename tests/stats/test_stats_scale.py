from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from pastille.stats.decisions import decisions, probabilities, sigmoid
from pastille.stats.scale import Scale, looks_like_probabilities, to_logits
from pastille.values import Kind

chances = st.lists(
    st.one_of(st.floats(0, 1), st.integers(0, 100).map(lambda x: x / 100)), min_size=1, max_size=30
)


@given(chances, st.one_of(st.floats(0, 1), st.integers(0, 100).map(lambda x: x / 100)))
def test_decisions_are_those_of_the_probabilities(values: list[float], threshold: float) -> None:
    """Also where a probability is the threshold itself, as it often is after rounding to two digits."""
    given_ = np.array(values)
    near = np.abs(given_ - threshold) <= 1e-12 * threshold
    fair = ~near | (given_ == threshold)  # what differs in the last digits alone may fall on either side
    expected = given_ >= threshold
    logits = to_logits("binary", given_, "probabilities")
    assert np.isfinite(logits).all()
    assert (decisions("binary", logits, threshold=threshold)[fair] == expected[fair]).all()
    both = to_logits("binary", np.column_stack([1 - given_, given_]), "probabilities")
    assert (decisions("binary", both, threshold=threshold)[fair] == expected[fair]).all()
    labels = to_logits("multilabel", given_[:, None], "probabilities")
    assert (decisions("multilabel", labels, threshold=threshold)[fair, 0] == expected[fair]).all()
    masks = to_logits("segmentation", given_[None, None], "probabilities")
    assert (decisions("segmentation", masks, threshold=threshold)[0, 0, fair] == expected[fair]).all()


@given(chances)
def test_the_order_is_that_of_the_probabilities(values: list[float]) -> None:
    given_ = np.sort(np.array(values))
    logits = to_logits("binary", given_, "probabilities")
    apart = np.diff(given_) > 1e-15
    assert (np.diff(logits)[apart] > 0).all()
    assert (logits[given_ == 0] < -745).all()
    np.testing.assert_allclose(sigmoid(logits), given_, rtol=1e-12, atol=0)


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=10))
def test_classes_keep_their_probabilities(rows: list[list[float]]) -> None:
    given_ = np.array(rows) + 1e-3
    given_[:, 0][given_[:, 1] > 0.5] = 0.0
    given_ /= given_.sum(axis=1, keepdims=True)
    logits = to_logits("multiclass", given_)
    assert np.isfinite(logits).all()
    assert (decisions("multiclass", logits, threshold=0.5) == given_.argmax(axis=1)).all()
    np.testing.assert_allclose(probabilities("multiclass", logits), given_, rtol=1e-12, atol=1e-300)


def test_masks_keep_their_probabilities_and_their_precision() -> None:
    given_ = softmax(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), axis=1).astype(np.float32)
    logits = to_logits("segmentation", given_)
    assert logits.dtype == np.float32
    assert (decisions("segmentation", logits, threshold=0.5) == given_.argmax(axis=1)).all()


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression", "custom"])
def test_logits_come_back_as_they_are(kind: Kind) -> None:
    logits = np.array([[0.2, 1.7], [-3.0, 0.1]])
    if kind == "regression":
        logits = logits[:, :1]
    for given_ in ("auto", "logits"):
        scale: Scale = "auto" if given_ == "auto" else "logits"
        assert to_logits(kind, logits, scale) is logits


def test_rows_that_sum_to_one_are_recognised_even_if_rounded() -> None:
    rounded = np.array([[0.333, 0.333, 0.333], [0.1, 0.2, 0.7]])
    np.testing.assert_allclose(to_logits("multiclass", rounded), np.log(rounded))
    np.testing.assert_allclose(expit(np.diff(to_logits("binary", rounded[1:, :2] / 0.3), axis=1)), 2 / 3)


@pytest.mark.parametrize(
    ("kind", "outputs", "given_", "message"),
    [
        (
            "binary",
            np.array([0.2, 0.9]),
            "auto",
            "p must be said to be logits or probabilities: all lie between",
        ),
        (
            "multilabel",
            np.array([[0.5, 0.5]]),
            "auto",
            "p must be said to be logits or probabilities: all lie",
        ),
        (
            "multiclass",
            np.array([[0.5, 0.5], [0.5, 0.3]]),
            "auto",
            "p must be said to be logits or probabilities: all lie between 0 and 1, but row 1 sums to 0.8",
        ),
        (
            "multiclass",
            np.array([[0.5, 0.5], [0.5, 0.3], [0.1, 0.1]]),
            "probabilities",
            "p must be probabilities that sum to 1, but row 1 sums to 0.8 (and 1 more do not sum to 1)",
        ),
        ("binary", np.array([[0.5, 0.7]]), "probabilities", "that sum to 1, but row 0 sums to 1.2"),
        (
            "segmentation",
            np.full((2, 3, 4, 4), 0.5),
            "probabilities",
            "p must be probabilities that sum to 1, but row 0 at (0, 0) sums to 1.5 (and 31 more do",
        ),
        (
            "binary",
            np.array([0.5, 1.5]),
            "probabilities",
            "p must be probabilities in [0, 1], got 1.5 in row 1",
        ),
        ("binary", np.array([0.5, np.nan]), "auto", "p must be finite, got NaN or infinity in row 1"),
        ("regression", np.array([0.5]), "probabilities", "p of a regression task must not be probabilities"),
        ("multiclass", np.array([0.5]), "auto", "p must fit the task: a multiclass model"),
        (
            "binary",
            np.array([0.5]),
            "percent",
            "given must be 'auto', 'logits' or 'probabilities', got 'percent'",
        ),
    ],
)
def test_what_could_be_either_is_refused(
    kind: Kind, outputs: np.ndarray, given_: Scale, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        to_logits(kind, outputs, given_, name="p")


@pytest.mark.parametrize(
    ("kind", "outputs", "expected"),
    [
        ("binary", np.array([0.1, 0.9]), True),
        ("binary", np.array([-0.1, 0.9]), False),
        ("binary", np.array([[0.1, 0.9]]), True),
        ("binary", np.array([[0.1, 0.8]]), False),
        ("multilabel", np.array([[0.1, 0.8]]), True),
        ("multiclass", np.array([[0.1, 0.9], [1.0000001, 0.0]]), True),
        ("multiclass", np.array([[0.1, np.nan]]), False),
        ("segmentation", np.full((1, 4, 2, 2), 0.25), True),
        ("segmentation", np.full((1, 2, 2), 0.3), True),
        ("regression", np.array([0.1]), False),
        ("binary", np.zeros(0), False),
    ],
)
def test_what_looks_like_probabilities(kind: Kind, outputs: np.ndarray, expected: bool) -> None:
    assert looks_like_probabilities(kind, outputs) is expected
