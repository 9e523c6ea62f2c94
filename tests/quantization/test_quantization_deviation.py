"""When answers that moved are worth a warning, and which case stands apart from the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import parser

from pastille.errors import CalibrationError
from pastille.quantization.deviation import Deviation, deviation, far_out, too_far
from pastille.quantization.ranges import observer
from pastille.quantization.recovery.auto import answers
from pastille.recipe import DynamicQuantize, HalfPrecision, Quantize, WeightQuantize


def found(same: float | None, db: float = 30.0) -> Deviation:
    return Deviation(cases=100, sqnr_db=db, max_abs_error=0.0, same_decisions=same)


@pytest.mark.parametrize(
    ("same", "db", "words"),
    [
        (1.0, 30, None),
        (0.98, 15, None),
        (None, 15, None),
        (0.97, 30, "3 % of the answers changed (3 of 100 held-out cases): try"),
        (0.0, 30, "100 % of the answers changed (100 of 100"),
        (1.0, 14.9, "the error lies only 14.9 dB below the signal: try"),
        (None, -3, "the error is as large as the signal: try"),
        (0.5, 3, "held-out cases) and the error lies only 3.0 dB"),
    ],
)
def test_what_is_worth_a_warning(same: float | None, db: float, words: str | None) -> None:
    said = too_far(found(same, db), Quantize())
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


@pytest.mark.parametrize(
    ("plain", "given", "key"),
    [
        (Quantize(recover="none"), Quantize(), "recover: auto"),
        (DynamicQuantize(method="dynamic"), DynamicQuantize(method="dynamic", ranges="row"), "ranges: row"),
        (
            WeightQuantize(method="int4"),
            WeightQuantize(method="int4", activations="float"),
            "activations: float",
        ),
        (HalfPrecision(method="fp16"), HalfPrecision(method="bf16"), "method: bf16"),
    ],
)
def test_what_was_given_is_not_advised(plain: Quantize, given: Quantize, key: str) -> None:
    (first,), (second,) = too_far(found(0.5), plain), too_far(found(0.5), given)
    assert key in first
    assert key not in second


def test_a_deviation_is_that_of_the_arrays() -> None:
    wanted = np.array([[3.0, 1.0], [1.0, 2.0], [0.0, 4.0], [5.0, 4.0]])
    moved = wanted + np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    made = deviation({"y": wanted}, {"y": moved})
    assert (made.cases, made.same_decisions, made.max_abs_error) == (4, 0.75, 1.5)
    centred = wanted - wanted.mean(axis=0)
    assert made.sqnr_db == pytest.approx(-10 * np.log10(1.5**2 / (centred**2).sum()))
    assert deviation({"y": wanted[:, 0]}, {"y": moved[:, 0]}).same_decisions is None


def test_a_case_that_is_far_out_is_named_by_its_number() -> None:
    x = np.random.default_rng(0).normal(size=(12, 3, 4)).astype(np.float32)
    x[9] *= 1e9
    x[2] *= 1e5
    ids = np.r_[1_000_000, np.ones(11, np.int64)][:, None]
    calm = np.ones((12, 2), np.float32) * 999
    calm[5] = 1
    rows = range(100, 112)
    (said,) = far_out(
        [{"x": x[:8], "ids": ids[:8], "c": calm[:8]}, {"x": x[8:], "ids": ids[8:], "c": calm[8:]}], rows
    )
    sizes = np.abs(x).reshape(12, -1).max(axis=1)
    assert (
        f"input 'x' of case 109 reaches {sizes[9]:.3g}, a typical one {np.median(sizes):.3g} (1 more" in said
    )
    assert not far_out([{"x": x[3:8]}], rows)
    assert not far_out([{"x": np.zeros((4, 2), np.float32)}], rows)


@pytest.mark.parametrize("asks", [lambda m, b: answers(m, lambda: [b]), lambda m, b: list(observer(m)(b))])
def test_a_batch_that_fails_is_one_line_and_prints_nothing(
    asks: Callable[[Any, dict[str, np.ndarray]], object], capfd: pytest.CaptureFixture[str]
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, 4] x) => (float[a, b] y) <int64[2] s = {3, 5}> { y = Reshape(x, s) }"""
    with pytest.raises(CalibrationError, match="cannot run on a batch: ") as error:
        asks(parser.parse_model(text), {"x": np.zeros((2, 4), np.float32)})
    assert "cannot be reshaped to the requested shape" in str(error.value)
    assert "::" not in str(error.value)
    assert capfd.readouterr() == ("", "")
