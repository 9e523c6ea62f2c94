"""Who is clipped, and what another draw would have decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from recovery_nets import calibration, planted

from pastille.errors import CalibrationError
from pastille.quantization.coverage import coverage, ranges_of, spread
from pastille.quantization.ranges import minmax, observer
from pastille.quantization.recovery import Choice, quantized_by

GRAPH = '<ir_version: 10, opset_import: ["" : 18]> g (float[n, 10] x) => (float[n, 10] y) { y = Relu(x) }'


def observe() -> Any:
    return observer(onnx.shape_inference.infer_shapes(parser.parse_model(GRAPH)))


def scanners(n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Scanner B gives values twice as large, some beyond the range."""
    x = np.random.default_rng(0).uniform(0, 1, (n, 10)).astype(np.float32)
    strata = np.where(np.arange(n) % 4 == 0, "B", "A")
    x[strata == "B"] *= 2
    return x, strata


def test_shares_are_counted_exactly_and_the_label_is_named() -> None:
    x, strata = scanners()
    found = coverage(observe(), {"x": (0.0, 1.0)}, lambda: [{"x": x[:30]}, {"x": x[30:]}], strata=strata)
    outside = x > 1 + 1 / 255 / 2
    assert found.share["x"] == pytest.approx(outside.mean())
    (worst, other) = found.worst
    assert (worst.label, worst.tensor, worst.cases) == ("B", "x", 25)
    assert worst.share == pytest.approx(outside[strata == "B"].mean())
    assert worst.others == other.share == 0
    (warning,) = found.warnings
    assert warning.startswith("inputs of stratum 'B' clip ")
    assert f"{100 * worst.share:.1f} % of values at 'x', others 0.0 %" in warning


def test_groups_are_columns_too_and_what_is_even_is_no_warning() -> None:
    x, strata = scanners()
    sex = np.where(np.arange(100) % 2, "f", "m")
    found = coverage(observe(), {"x": (0.0, 5.0)}, lambda: [{"x": x}], strata=strata, groups={"sex": sex})
    assert {(c.column, c.label) for c in found.worst} == {
        *(("stratum", "A"), ("stratum", "B"), ("sex", "f"), ("sex", "m"))
    }
    assert not found.warnings
    assert coverage(observe(), {"x": (0.0, 1.0)}, lambda: [{"x": x}]).worst == ()


def test_few_cases_are_no_warning() -> None:
    x, strata = scanners(8)  # two of B
    assert not coverage(observe(), {"x": (0.0, 1.0)}, lambda: [{"x": x}], strata=strata).warnings


def test_columns_must_fit_and_batches_must_come() -> None:
    x, strata = scanners()
    with pytest.raises(ValueError, match="stratum must have one label per case, got 99 for 100"):
        coverage(observe(), {"x": (0.0, 1.0)}, lambda: [{"x": x}], strata=strata[:99])
    with pytest.raises(CalibrationError, match="at least one batch"):
        coverage(observe(), {"x": (0.0, 1.0)}, list)


def test_ranges_of_a_file_are_those_it_was_made_with() -> None:
    model, fit, _, _ = planted("wild scales")
    quantized = quantized_by(model, calibration(fit), Choice())
    found, known = ranges_of(quantized), minmax(observer(model), calibration(fit))
    shared = [name for name in found if name in known]
    assert len(shared) >= 4
    for name in shared:
        low, high = min(known[name][0], 0.0), max(known[name][1], 0.0)
        step = (high - low) / 255
        assert found[name] == pytest.approx((low, high), abs=1.01 * step), name


def test_spread_of_equal_draws_is_nothing() -> None:
    y = np.random.default_rng(0).normal(size=(50, 3))
    found = spread([y, y, y], lambda x: x.argmax(axis=1))
    assert (found.undecided, found.pairs) == (0.0, (0.0, 0.0, 0.0))
    assert found.deviation == pytest.approx(0, abs=1e-12)


def test_spread_is_the_deviation_over_draws() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4000, 3))
    found = spread([y + 0.1 * rng.normal(size=y.shape) for _ in range(3)])
    assert found.deviation == pytest.approx(0.1, rel=0.05)
    assert found.undecided is None
    assert found.pairs == ()


@pytest.mark.parametrize("outputs", [[np.zeros((2, 2))], [np.zeros((2, 2)), np.zeros((3, 2))], []])
def test_spread_needs_draws_of_one_shape(outputs: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least two draws and one shape"):
        spread(outputs)
