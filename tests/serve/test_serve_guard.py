"""What lies far outside validation is said, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from pastille.measure.reference import input_reference
from pastille.serve.guard import guard_for
from pastille.values import (
    NumberColumn,
    Preprocessing,
    Reference,
    SignalDecoding,
    TableEncoding,
)


def reference(**inputs: np.ndarray) -> Reference:
    rows = [{name: x[i] for name, x in inputs.items()} for i in range(len(next(iter(inputs.values()))))]
    return Reference(cases=len(rows), inputs=input_reference(rows), variants=())


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(500, 3, 8, 8)).astype(np.float32)


def test_what_validation_saw_is_not_unusual(images: np.ndarray) -> None:
    guard = guard_for(reference(x=images))
    assert guard.unusual({"x": images}) == ()
    assert guard.unusual({"x": np.random.default_rng(1).uniform(size=(50, 3, 8, 8))}) == ()


def test_another_scale_is_named_with_the_range(images: np.ndarray) -> None:
    scaled = images[:4].copy()
    scaled[2, 1] *= 255
    mean = scaled[2, 1].mean()
    said = guard_for(reference(x=images)).unusual({"x": scaled})
    assert said[0].startswith(
        f"input 'x' channel 1 lies far outside what validation saw: mean {mean:.4g}, validation 0.3"
    )
    assert said[1].startswith("input 'x' channel 1 varies far more than in validation: deviation")
    assert len(said) == 2
    assert len(guard_for(reference(x=images)).unusual({"x": images[:1] * 255})) == 3


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_a_blank_image(images: np.ndarray, grey: float) -> None:
    blank = np.full((1, 3, 8, 8), grey, np.float32)
    assert (
        guard_for(reference(x=images)).unusual({"x": blank})[0]
        == "input 'x' is blank: all its values are alike"
    )
    partly = images[:1].copy()
    partly[:, 0] = 0.5  # one channel alone may be
    assert guard_for(reference(x=images)).unusual({"x": partly}) == ()


def test_features_are_looked_at_one_by_one() -> None:
    rng = np.random.default_rng(0)
    table = np.stack([rng.normal(size=2000), rng.normal(size=2000), np.arange(2000) == 7], axis=1)
    of = reference(x=table.astype(np.float32))
    for row, channels in [([0, 0, 1], ""), ([0, -40, 0], "1"), ([99, 0, 90], "02")]:
        said = guard_for(of).unusual({"x": np.array([row], np.float32)})
        assert "".join(sentence[18] for sentence in said) == channels


def test_columns_and_leads_are_called_by_their_names() -> None:
    of = reference(x=np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32))
    columns = (NumberColumn(name="age"), NumberColumn(name="weight"))
    signal = SignalDecoding(channels=("I", "II"), samples=1, rate_hz=1)
    for how, name in [
        (Preprocessing(table=TableEncoding(columns=columns)), "weight"),
        (Preprocessing(signal=signal), "II"),
    ]:
        (said,) = guard_for(of, how).unusual({"x": np.array([[0, 99]], np.float32)})
        assert said.startswith(f"input 'x': '{name}' lies far outside")
    more = Preprocessing(table=TableEncoding(columns=columns[:1]))
    assert "channel 1" in guard_for(of, more).unusual({"x": np.array([[0, 99]], np.float32)})[0]


def test_a_large_mean_does_not_hide_a_small_deviation() -> None:
    rng = np.random.default_rng(0)
    x = (1e4 + rng.normal(size=(100, 1, 50, 50))).astype(np.float32)
    assert guard_for(reference(x=x)).unusual({"x": x[:5]}) == ()
    assert guard_for(reference(x=x)).unusual({"x": np.full((1, 1, 50, 50), 1e4, np.float32)}) != ()


def test_token_ids_and_missing_references_say_nothing() -> None:
    tokens = np.random.default_rng(0).integers(0, 99, (20, 6))
    of = reference(ids=tokens)
    assert of.inputs == ()
    assert guard_for(of).unusual({"ids": tokens + 10**6}) == guard_for(None).unusual({"ids": tokens}) == ()
