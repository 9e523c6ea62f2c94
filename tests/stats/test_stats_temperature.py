"""One number that makes probabilities right, and where the threshold goes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit

from pastille.stats.temperature import (
    COLDEST,
    HOTTEST,
    fit_temperature,
    is_bound,
    moved_threshold,
    root,
    settled_threshold,
    thresholded,
)
from pastille.values import Cases

ProbableKind = Literal["binary", "multiclass", "multilabel"]
KINDS: tuple[ProbableKind, ...] = ("binary", "multiclass", "multilabel")


def drawn(
    kind: ProbableKind, *, n: int = 400, temperature: float = 1.0, seed: int = 0, threshold: float = 0.5
) -> tuple[np.ndarray, Cases]:
    """Outputs that are ``temperature`` times what the targets were drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n,) if kind == "binary" else (n, 4))
    targets = (rng.random(logits.shape) < expit(logits)).astype(np.int64)
    if kind == "multiclass":
        targets = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    labels = ("no", "yes") if kind == "binary" else ("a", "b", "c", "d")
    cases = Cases(kind=kind, split="validation", targets=targets, labels=labels, threshold=threshold)
    return temperature * logits, cases


def loss(outputs: np.ndarray, cases: Cases, temperature: float) -> float:
    """Mean negative log-likelihood, written down in another way."""
    scaled = outputs / temperature
    if cases.kind == "multiclass":
        return float(-log_softmax(scaled, axis=1)[np.arange(len(scaled)), cases.targets].mean())
    return float(-np.log(np.where(cases.targets == 1, expit(scaled), expit(-scaled))).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_the_most_likely_temperature_as_scipy_finds_it(kind: ProbableKind, planted: float) -> None:
    outputs, cases = drawn(kind, temperature=planted)
    found = fit_temperature(outputs, cases)
    oracle = minimize_scalar(
        lambda t: loss(outputs, cases, t), bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}
    )
    assert found == pytest.approx(oracle.x, rel=1e-6)
    assert found == pytest.approx(planted, rel=0.25)
    assert loss(outputs, cases, found) <= loss(outputs, cases, 1.0)
    assert not is_bound(found)


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    planted=st.floats(0.2, 5),
    factor=st.floats(0.3, 3),
)
@settings(max_examples=40, deadline=None)
def test_scaled_outputs_have_a_scaled_temperature(
    seed: int, kind: ProbableKind, planted: float, factor: float
) -> None:
    outputs, cases = drawn(kind, n=60, temperature=planted, seed=seed)
    once, again = fit_temperature(outputs, cases), fit_temperature(factor * outputs, cases)
    if not is_bound(once) and not is_bound(again):
        assert again == pytest.approx(factor * once, rel=1e-8)


def test_logits_of_one_and_of_both_labels_say_the_same() -> None:
    outputs, cases = drawn("binary")
    both = np.column_stack([0.3 * outputs, 1.3 * outputs])
    column = outputs[:, None]
    assert fit_temperature(both, cases) == pytest.approx(fit_temperature(outputs, cases), rel=1e-9)
    assert fit_temperature(column, cases) == fit_temperature(outputs, cases)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_fault_has_no_best_temperature(kind: ProbableKind) -> None:
    outputs, cases = drawn(kind)
    never_wrong = np.where(cases.targets == 1, 3.0, -3.0)
    if kind == "multiclass":
        never_wrong = 3.0 * np.eye(4)[cases.targets]
    assert fit_temperature(never_wrong, cases) == COLDEST
    assert fit_temperature(-never_wrong, cases) == HOTTEST
    assert fit_temperature(0 * outputs, cases) == 1.0
    assert fit_temperature(1e5 * outputs, cases) == HOTTEST


def test_bad_input_is_named() -> None:
    outputs, cases = drawn("binary")
    with pytest.raises(ValueError, match="finite, got NaN or infinity in 1 of 400"):
        fit_temperature(np.where(np.arange(400) == 3, np.inf, outputs), cases)
    with pytest.raises(ValueError, match="one row per case and at least one, got 399 for 400 cases"):
        fit_temperature(outputs[1:], cases)
    scores, classes = drawn("multiclass")
    with pytest.raises(ValueError, match=r"shape \(N, 4\), one per label, got \(400, 3\)"):
        fit_temperature(scores[:, 1:], classes)
    many, labels = drawn("multilabel")
    with pytest.raises(ValueError, match=r"shape \(400, 4\), got \(400, 3\)"):
        fit_temperature(many[:, 1:], labels)
    numbers = Cases(kind="regression", split="test", targets=np.zeros(3), labels=())
    with pytest.raises(ValueError, match=r"kind must be one of .*got 'regression'"):
        fit_temperature(np.zeros(3), numbers)
    nobody = Cases(kind="binary", split="test", targets=np.zeros(0, int), labels=("a", "b"))
    with pytest.raises(ValueError, match="at least one"):
        fit_temperature(np.zeros(0), nobody)


@given(threshold=st.floats(0.001, 0.999), temperature=st.floats(0.05, 20))
def test_the_threshold_moves_as_the_probabilities_do(threshold: float, temperature: float) -> None:
    moved = moved_threshold(threshold, temperature)
    assert moved == pytest.approx(expit(logit(threshold) / temperature), abs=1e-12)
    assert moved_threshold(1 - threshold, temperature) == pytest.approx(1 - moved, abs=1e-9)
    if 1e-6 < moved < 1 - 1e-6:  # beyond, digits are lost
        assert moved_threshold(moved, 1 / temperature) == pytest.approx(threshold, abs=1e-6)


def test_thresholds_that_stay() -> None:
    assert [moved_threshold(x, 7.3) for x in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("threshold", "temperature"), [(-0.1, 1), (1.1, 1), (0.5, 0), (0.5, np.inf)])
def test_thresholds_out_of_range(threshold: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        moved_threshold(threshold, temperature)


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    temperature=st.floats(0.1, 10),
    positive=st.sampled_from([0, 1]),
    at_a_case=st.booleans(),
)
@settings(deadline=None)
def test_no_decision_changes_even_where_the_threshold_is_a_probability_of_a_case(
    seed: int, kind: ProbableKind, temperature: float, positive: int, at_a_case: bool
) -> None:
    raw, cases = drawn(kind, n=30, seed=seed)
    outputs = raw.astype(np.float32)
    threshold = 0.3
    if at_a_case and kind != "multiclass":
        sign = -1 if kind == "binary" and positive == 0 else 1
        threshold = float(expit(sign * outputs.astype(np.float64).ravel()[seed % 30]))
    given_cases = Cases(
        kind=kind,
        split="validation",
        targets=cases.targets,
        labels=cases.labels,
        positive=(positive,) if kind == "binary" else (),
        threshold=threshold,
    )
    scaled = outputs * np.float32(1 / temperature)
    settled = settled_threshold(outputs, scaled, given_cases, temperature)
    after = Cases(
        kind=kind,
        split="validation",
        targets=cases.targets,
        labels=cases.labels,
        positive=given_cases.positive,
        threshold=settled,
    )
    assert np.array_equal(thresholded(outputs, given_cases), thresholded(scaled, after))
    if kind == "multiclass":
        assert settled == threshold
    else:
        assert settled == pytest.approx(moved_threshold(threshold, temperature), rel=1e-5)


def test_roots() -> None:
    assert root(lambda x: (np.expm1(x), np.exp(x)), -50.0, 700.0) == pytest.approx(0, abs=1e-12)
    assert root(lambda x: (x - 3, 0.0), 0.0, 8.0) == pytest.approx(3)  # no slope: halving
    assert root(lambda x: (x - 1.0, 1.0), 0.0, 1.0) == pytest.approx(1)
