"""Golden cases: chosen, written, read and replayed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from bundle_parts import golden, model_folder, samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pastille.bundle import Golden, Replay, answer_cases, choose_cases
from pastille.bundle.golden import golden_bytes, read_golden, replay, tolerance_of
from pastille.errors import InferenceError
from pastille.runtime import load
from pastille.values import TensorSpec


class Fake:
    """A session that answers as a function of its input."""

    inputs = (TensorSpec(name="x", shape=(2,), dtype="float32"),)
    outputs = (TensorSpec(name="y", shape=(2,), dtype="float32"),)
    fixed_batch: int | None = None
    threads = 1

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": self.function(inputs["x"])}


X = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 2.9]], np.float32)
CASES = Golden(inputs={"x": X}, outputs={"fp32": X, "int8": X})


def replayed(function: Callable[[np.ndarray], np.ndarray], variant: str = "fp32") -> Replay:
    return replay(Fake(function), CASES, variant, kind="multiclass", output="y", precision=variant)


def test_equal_answers_pass() -> None:
    result = replayed(lambda x: x)
    assert (result.variant, result.cases, result.equal_decisions, result.passes) == ("fp32", 3, 3, True)
    assert result.max_abs_difference == 0
    assert result.tolerance == pytest.approx(3e-4)


@pytest.mark.parametrize(("variant", "off", "passes"), [("fp32", 2e-4, True), ("fp32", 4e-4, False)])
def test_fp32_is_held_to_a_ten_thousandth_of_its_scale(variant: str, off: float, passes: bool) -> None:
    assert replayed(lambda x: x + np.float32(off), variant).passes is passes


@pytest.mark.parametrize(("steps", "passes"), [(7, True), (9, False)])
def test_int8_is_held_to_a_few_steps(steps: int, passes: bool) -> None:
    assert replayed(lambda x: x + np.float32(steps * 3 / 255), "int8").passes is passes


def test_a_flipped_decision_fails_though_values_are_near() -> None:
    result = replayed(lambda x: x - np.float32(0.06) * (x == 3), "int8")
    assert result.max_abs_difference < 8 * 3 / 255
    result = replayed(lambda x: x - np.float32(0.09) * (x == 3) + np.float32(0.02) * (x > 2.5), "int8")
    assert result.max_abs_difference < result.tolerance
    assert result.passes
    near_tie = replayed(lambda x: np.where(x == 3, np.float32(2.95), x + np.float32(0.06)), "int8")
    assert near_tie.max_abs_difference < near_tie.tolerance
    assert (near_tie.equal_decisions, near_tie.passes) == (2, False)


def test_other_decisions_in_a_batch_than_alone_fail() -> None:
    """What a runtime that mishandles the batch axis does."""
    assert not replayed(lambda x: x if len(x) == 1 else x[:, ::-1]).passes
    result = replayed(lambda x: x[:, ::-1] if len(x) == 1 else x)
    assert (result.equal_decisions, result.passes) == (0, False)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_answer_that_is_no_number_fails(broken: float) -> None:
    result = replayed(lambda x: np.where(x == 2, np.float32(broken), x))
    assert (result.equal_decisions, result.max_abs_difference, result.passes) == (2, np.inf, False)


def test_an_answer_of_another_shape_is_an_error() -> None:
    with pytest.raises(InferenceError, match=r"shape \(3, 1\) instead of \(3, 2\)"):
        replayed(lambda x: x[:, :1])
    with pytest.raises(InferenceError, match="has no output 'z', but \\['y'\\]"):
        replay(Fake(lambda x: x), CASES, "fp32", kind="multiclass", output="z", precision="fp32")


def test_regression_is_judged_by_its_values() -> None:
    cases = Golden(inputs={"x": X}, outputs={"fp32": X[:, :1]})

    def ask(off: float) -> Replay:
        session = Fake(lambda x: x[:, :1] + np.float32(off) * (x[:, :1] == 3))
        return replay(session, cases, "fp32", kind="regression", output="y", precision="fp32")

    assert ask(0.0).passes
    assert (ask(0.1).equal_decisions, ask(0.1).passes) == (2, False)


@pytest.mark.parametrize(("positive", "equal"), [(1, 1), (0, 2)])
def test_binary_threshold_speaks_of_the_positive_label(positive: int, equal: int) -> None:
    """From 0.7 to 0.4: with a threshold of 0.6, label 1 falls under it and label 0 comes to it."""
    then, now = np.array([[0.85], [5.0]]), np.array([[-0.41], [5.0]])
    cases = Golden(inputs={"x": then}, outputs={"int8": then})
    threshold = 0.6 if positive == 1 else 0.65
    result = replay(
        Fake(lambda x: np.where(x == then[0], now[0], x)),
        cases,
        "int8",
        kind="binary",
        output="y",
        precision="int8",
        threshold=threshold,
        positive=positive,
    )
    assert result.equal_decisions == equal


def test_tolerance_of_outputs_that_are_all_zero() -> None:
    assert tolerance_of(np.zeros(3), "fp32") == 1e-4
    assert tolerance_of(np.zeros(3), "int8") == 1e-4


def test_real_models_replay_with_any_number_of_threads() -> None:
    for variant in ("int8", "fp32"):
        session = load(model_folder() / f"{variant}.onnx", threads=2)
        result = replay(session, golden(), variant, kind="multiclass", output="logits", precision=variant)
        assert result.passes
        assert result.equal_decisions == 16


def test_bytes_do_not_depend_on_time_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    first = golden_bytes(golden())
    monkeypatch.setattr(time, "time", lambda: 2e9)
    turned = Golden(inputs=golden().inputs, outputs=dict(sorted(golden().outputs.items())))
    assert list(turned.outputs) != list(golden().outputs)
    assert golden_bytes(turned) == first
    assert first[:4] == b"PK\x03\x04"


def test_numpy_reads_it_as_well() -> None:
    with np.load(io.BytesIO(golden_bytes(golden())), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["input.input", "output.fp32", "output.int8"]
        np.testing.assert_array_equal(arrays["input.input"], golden().inputs["input"])


NUMBERS = st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1", ">f4"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 4))
def test_reads_back_what_it_wrote(tmp_path: Path, data: st.DataObject, n: int) -> None:
    def array() -> np.ndarray:
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
        kind: np.dtype = np.dtype(data.draw(NUMBERS))
        finite = {"allow_nan": False, "allow_infinity": False} if kind.kind == "f" else {}
        return data.draw(hnp.arrays(kind, (n, *shape), elements=finite or None))

    written = Golden(inputs={"x": array(), "a/b": array()}, outputs={"fp32": array()})
    path = tmp_path / "cases.npz"
    path.write_bytes(golden_bytes(written))
    read = read_golden(path, inputs=["x", "a/b"], variants=["fp32"])
    for name, expected in written.members().items():
        np.testing.assert_array_equal(read.members()[name], expected)
        assert read.members()[name].dtype == expected.dtype.newbyteorder("<")


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({}, {"fp32": X}, "one row per case"),
        ({"x": X[:0]}, {"fp32": X[:0]}, r"one row per case, got lengths \[0\]"),
        ({"x": X}, {"fp32": X[:2]}, r"got lengths \[2, 3\]"),
        ({"x": X}, {"fp32": X * np.nan}, "'output.fp32' must hold finite numbers"),
        ({"x": np.array([["a"]])}, {"fp32": X[:1]}, "'input.x' must hold finite numbers"),
    ],
)
def test_refuses_cases_that_are_none(
    inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Golden(inputs=inputs, outputs=outputs)


def test_answers_come_from_every_session() -> None:
    made = answer_cases({"x": X}, {"fp32": Fake(lambda x: x), "int8": Fake(lambda x: -x)}, output="y")
    np.testing.assert_array_equal(made.outputs["int8"], -X)
    assert made.cases == 3


def test_chooses_typical_cases_of_every_decision() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 4)) * 3
    logits[:, 0] += 4  # most are of class 0
    chosen = choose_cases([logits], kind="multiclass", count=16)
    assert len(set(chosen)) == 16
    assert sorted(chosen) == list(chosen)
    assert np.bincount(logits[chosen].argmax(axis=1)).tolist() == [4, 4, 4, 4]
    top = np.sort(logits, axis=1)
    margin = top[:, -1] - top[:, -2]
    assert margin[chosen].min() > np.quantile(margin, 0.1)


def test_chooses_only_cases_that_all_variants_decide_alike() -> None:
    one = np.array([[2.0, 0], [2.0, 0], [0, 2.0]])
    two = np.array([[2.0, 0], [0, 2.0], [0, 2.0]])
    assert choose_cases([one, two], kind="multiclass").tolist() == [0, 2]
    with pytest.raises(ValueError, match="at least one case"):
        choose_cases([one, -one], kind="multiclass")


def test_chooses_binary_cases_away_from_the_threshold() -> None:
    odds = np.linspace(-4, 4, 81)[:, None]
    for positive in (0, 1):
        chosen = choose_cases([odds], kind="binary", threshold=0.2, positive=positive, count=8)
        probability = 1 / (1 + np.exp(-odds[chosen, 0] * (1 if positive else -1)))
        assert (np.abs(probability - 0.2) > 0.05).all()
        assert 0 < (probability >= 0.2).sum() < 8
    mirrored = choose_cases([odds + 0.01], kind="binary", threshold=0.8, positive=1, count=8)
    same = choose_cases([odds + 0.01], kind="binary", threshold=0.2, positive=0, count=8)
    assert mirrored.tolist() == same.tolist()


def test_chooses_regression_cases_over_the_whole_range() -> None:
    outputs = np.arange(100.0)[::-1, None]
    chosen = choose_cases([outputs], kind="regression", count=5)
    assert chosen.tolist() == [0, 25, 49, 74, 99]
    assert choose_cases([outputs[:3]], kind="regression", count=5).tolist() == [0, 1, 2]


def test_more_cases_than_one_batch_of_inputs() -> None:
    many = answer_cases({"x": samples(40, seed=1)[:, :2]}, {"fp32": Fake(lambda x: x)}, output="y")
    result = replay(Fake(lambda x: x), many, "fp32", kind="multiclass", output="y", precision="fp32")
    assert (result.cases, result.passes) == (40, True)
