"""Observed ranges against numpy, and what cannot be observed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from pastille.errors import CalibrationError
from pastille.quantization.ranges import (
    ESTIMATORS,
    Batches,
    Estimator,
    Range,
    clipped,
    estimated,
    least_divergent,
    least_squared,
    minmax,
    moving_average,
    observer,
    percentile,
)

GRAPH = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[n, 4] input) => (float[n, 4] output) <float[4] w = {1.0, -2.0, 3.0, 0.5}>
    { scaled = Mul(input, w)  positive = Relu(scaled)  root = Sqrt(input)  output = Add(positive, root) }"""


def observe() -> Any:

    return observer(onnx.shape_inference.infer_shapes(parser.parse_model(GRAPH)))


def of(*arrays: np.ndarray) -> Batches:
    def batches() -> Iterable[dict[str, np.ndarray]]:
        yield from ({"input": x.astype(np.float32)} for x in arrays)

    return batches


def samples(n: int = 3001) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, size=(n, 4)).astype(np.float32)


def expected(x: np.ndarray) -> dict[str, np.ndarray]:
    scaled = x * np.array([1, -2, 3, 0.5], np.float32)
    positive, root = np.maximum(scaled, 0), np.sqrt(x)
    return {"input": x, "scaled": scaled, "positive": positive, "root": root, "output": positive + root}


def test_minmax_is_numpys() -> None:
    x = samples()
    found = minmax(observe(), of(x[:1000], x[1000:1001], x[1001:]))
    assert set(found) == set(expected(x))
    for name, array in expected(x).items():
        np.testing.assert_allclose(found[name], (array.min(), array.max()), rtol=1e-6)


@pytest.mark.parametrize("q", [90.0, 99.0, 99.9])
def test_percentile_is_brute_force_to_one_bin(q: float) -> None:
    x = samples()
    found = percentile(observe(), of(x[:1000], x[1000:]), q)
    for name, array in expected(x).items():
        one_bin = float(np.ptp(array)) / 4096
        ordered, tail = np.sort(array, axis=None), int((1 - q / 100) * array.size)
        low, high = float(ordered[tail]), float(ordered[-1 - tail])
        assert found[name] == pytest.approx((low, high), abs=1.01 * one_bin), name
        share = [(array < found[name][0]).mean(), (array > found[name][1]).mean()]
        assert max(share) <= (1 - q / 100) + 1e-9, "no more is clipped than asked for"


def test_percentile_100_is_minmax() -> None:
    x = samples(100)
    found, full = percentile(observe(), of(x), 100.0), minmax(observe(), of(x))
    assert all(found[name] == pytest.approx(full[name], rel=1e-12) for name in full)


@pytest.mark.parametrize(
    "ranges", [minmax, lambda o, b: percentile(o, b, 99.0)], ids=["minmax", "percentile"]
)
def test_order_and_size_of_batches_do_not_matter(ranges: Any) -> None:
    x = samples(600)
    shuffled = np.random.default_rng(1).permutation(x)
    assert ranges(observe(), of(x)) == ranges(observe(), of(*np.split(shuffled, 6)))


def test_a_constant_tensor_keeps_its_value() -> None:
    found = percentile(observe(), of(np.full((8, 4), 4.0)), 99.0)
    assert found["root"] == (2.0, 2.0)
    assert found["input"] == (4.0, 4.0)


def test_a_range_narrower_than_single_precision_has_bins() -> None:
    x = np.array([[1, 1, 1, np.nextafter(np.float32(1), np.float32(2))]], np.float32)
    low, high = percentile(observe(), of(x), 99.99)["input"]
    assert 1.0 <= low <= high <= float(x.max())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["first batch", "middle", "last"])
def test_what_is_not_finite_is_named_wherever_it_comes(wrong: float, place: int) -> None:
    x = np.split(samples(30), 3)
    x[place][4, 1] = wrong
    for ranges in (minmax, lambda o, b: percentile(o, b, 99.0)):
        with pytest.raises(CalibrationError) as caught:
            ranges(observe(), of(*x))
        assert "'input'" in str(caught.value), "where it began, not where it led"
        assert str(wrong) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nan_that_the_model_makes_is_named_where_it_arises() -> None:
    x = samples(30)
    x[7, 2] = -1.0
    with pytest.raises(CalibrationError, match=r"'root' takes the value nan"):
        minmax(observe(), of(x))


@pytest.mark.parametrize("batches", [of(), of(np.empty((0, 4)))], ids=["none", "empty"])
def test_no_batches(batches: Batches) -> None:
    for ranges in (minmax, lambda o, b: percentile(o, b, 99.0)):
        with pytest.raises(CalibrationError, match="at least one batch"):
            ranges(observe(), batches)


@pytest.mark.parametrize("batch", [{"wrong": samples(4)}, {"input": samples(4)[:, :3]}, {}], ids=str)
def test_a_batch_that_does_not_fit_is_one_line(batch: dict[str, np.ndarray]) -> None:
    with pytest.raises(CalibrationError) as caught:
        minmax(observe(), lambda: [batch])
    assert "\n" not in str(caught.value)
    assert "input" in str(caught.value) or "wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "q", "range_"),
    [
        ([1, 49, 49, 1], 100.0, (0.0, 4.0)),
        ([1, 49, 49, 1], 98.0, (1.0, 3.0)),
        ([0, 100, 0, 0], 99.0, (1.0, 2.0)),
        ([100, 0, 0, 0], 99.0, (0.0, 1.0)),
    ],
)
def test_clipped(counts: list[int], q: float, range_: Range) -> None:
    assert clipped(np.array(counts), (0.0, 4.0), q) == pytest.approx(range_)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_estimator_stays_within_what_was_seen(method: Estimator) -> None:
    x = samples(400)
    x[0] = 60.0  # an outlier
    full, found = minmax(observe(), of(x)), estimated(observe(), of(x[:200], x[200:]), method, q=99.0)
    assert set(found) == set(full)
    for name, (low, high) in found.items():
        assert full[name][0] <= low <= high <= full[name][1]
    assert estimated(observe(), of(np.full((8, 4), 4.0)), method)["root"] == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_estimator_refuses_nothing_and_nonsense(method: Estimator) -> None:
    x = samples(30)
    x[9, 0] = np.nan
    with pytest.raises(CalibrationError, match="at least one batch"):
        estimated(observe(), of(), method)
    with pytest.raises(CalibrationError, match="'input' takes the value nan"):
        estimated(observe(), of(x), method)


@pytest.mark.parametrize("method", [m for m in ESTIMATORS if m != "moving_average"])
def test_only_a_moving_average_depends_on_order(method: Estimator) -> None:
    x = samples(600)
    parts = np.split(np.random.default_rng(1).permutation(x), 6)
    assert estimated(observe(), of(x), method) == estimated(observe(), of(*parts), method)


def test_moving_average_is_the_recursion() -> None:
    parts = np.split(samples(60), 3)
    high = float(parts[0].max())
    for part in parts[1:]:
        high = 0.9 * high + 0.1 * float(part.max())
    assert moving_average(observe(), of(*parts))["input"][1] == pytest.approx(high)


def squared_error(x: np.ndarray, ends: Range) -> float:
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return float(np.square((np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale - x).mean())


@pytest.mark.parametrize("seed", range(4))
def test_least_squared_is_no_worse_than_any_range_of_a_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, size=20000) * [1.0, 1.0, 5.0, 0.1][seed]
    span = (float(x.min()), float(x.max()))
    found = least_squared(np.histogram(x, 4096, span)[0], span)
    grid = [(span[0] * a, span[1] * b) for a in np.linspace(0.1, 1, 10) for b in np.linspace(0.1, 1, 10)]
    assert squared_error(x, found) <= 1.05 * min(squared_error(x, ends) for ends in grid)
    assert squared_error(x, found) < squared_error(x, span)


def test_least_divergent_clips_a_lone_outlier_and_keeps_what_is_even() -> None:
    x = np.append(np.random.default_rng(0).normal(size=50000), 1000.0)
    counts, span = np.histogram(x, 4096, (x.min(), 1000.0))[0], (float(x.min()), 1000.0)
    assert least_divergent(counts, span)[1] < 100
    assert least_divergent(np.full(4096, 10), (-1.0, 1.0)) == (-1.0, 1.0)


def test_zeros_after_a_relu_do_not_narrow_the_range() -> None:
    x = np.maximum(np.random.default_rng(0).normal(size=100000), 0)
    span = (0.0, float(x.max()))
    assert least_divergent(np.histogram(x, 4096, span)[0], span)[1] > 2.5


@pytest.mark.parametrize("span", [(2.0, 5.0), (-5.0, -2.0)])
@pytest.mark.parametrize("choose", [least_squared, least_divergent])
def test_a_range_beside_zero_keeps_its_inner_end(choose: Any, span: Range) -> None:
    low, high = choose(np.full(4096, 3), span)
    assert span[0] <= low < high <= span[1]


def test_an_unknown_estimator_is_named() -> None:
    wrong: Any = "median"
    with pytest.raises(ValueError, match=r"method must be one of minmax, .*, got 'median'"):
        estimated(observe(), of(samples(8)), wrong)


@settings(max_examples=200, deadline=None)
@given(
    ends=st.tuples(st.floats(-1e3, 1e3), st.floats(1e-6, 1e3)),
    counts=st.lists(st.integers(0, 1000), min_size=8, max_size=64).filter(any),
)
@pytest.mark.parametrize("search", [least_divergent, least_squared])
def test_any_histogram_gives_a_range_within_it(
    search: Any, ends: tuple[float, float], counts: list[int]
) -> None:
    span = (ends[0], ends[0] + ends[1])
    low, high = search(np.array(counts), span)
    assert low < high
    assert span[0] - 1e-9 <= low
    assert high <= span[1] + 1e-9
