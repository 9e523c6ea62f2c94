"""Rounding and biases: against brute force, and on the file itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from recovery_nets import calibration, planted
from torch import nn

from pastille.quantization.ranges import minmax, observer
from pastille.quantization.recovery import prepared
from pastille.quantization.recovery.auto import answers, sqnr_db
from pastille.quantization.recovery.bias_correction import bias_corrected
from pastille.quantization.recovery.equalization import equalized
from pastille.quantization.recovery.rounding import input_rows, rounded, rounded_in_turn
from pastille.quantization.rewrites import rewritten
from pastille.quantization.static import with_ranges


def both(kind: str) -> tuple[Any, Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The float graph, its plain int8 graph, and data."""
    model, fit, test, _ = planted(kind)
    model = prepared(rewritten(equalized(model)))
    ranges = minmax(observer(model), calibration(fit))
    return model, with_ranges(model, ranges, bits=7), fit, test


def loss(steps: np.ndarray, weight: np.ndarray, hessian: np.ndarray) -> float:
    error = steps - weight
    return float(((error @ hessian) * error).sum())


def test_rounding_in_turn_lies_between_the_best_of_all_and_the_nearest() -> None:
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(40):
        weight = rng.uniform(-3, 3, (1, 1, 6))
        x = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 6))  # inputs that go together
        hessian = (x.T @ x / 200)[None]
        found = rounded_in_turn(weight, hessian, np.full((1, 1, 1), 10.0))
        assert (found == np.round(found)).all()
        ups = (np.array(up).reshape(1, 1, 6) for up in itertools.product((0, 1), repeat=6))
        best = min(loss(np.floor(weight) + up, weight, hessian) for up in ups)
        losses.append((best, loss(found, weight, hessian), loss(np.round(weight), weight, hessian)))
    best, mean, nearest = np.mean(losses, axis=0)
    assert best <= mean < 0.6 * nearest


def test_what_is_zero_stays_zero() -> None:
    """The errors of 20 inputs that go together come to more than half a step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 32))
    weight = np.where(rng.random((1, 8, 32)) < 0.6, 0, rng.normal(0, 4, (1, 8, 32)))
    found = rounded_in_turn(weight, (x.T @ x / 200)[None], np.full((1, 8, 1), 63.0))
    assert not found[weight == 0].any()
    assert loss(found[0, 0], weight[0, 0], x.T @ x) < loss(np.round(weight[0, 0]), weight[0, 0], x.T @ x)


def test_groups_and_blocks_are_rounded_alike() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.uniform(-3, 3, (2, 3, 150)), rng.normal(size=(2, 400, 150))  # more than one block
    hessian = x.transpose(0, 2, 1) @ x / 400
    bound = np.full((2, 3, 1), 2.0)
    together = rounded_in_turn(weight, hessian, bound)
    for g in range(2):
        alone = rounded_in_turn(weight[g : g + 1], hessian[g : g + 1], bound[g : g + 1])
        np.testing.assert_array_equal(together[g], alone[0])
    assert np.abs(together).max() <= 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": 2},
        {"groups": 2, "padding": 1},
        {"groups": 4},
    ],
    ids=str,
)
def test_rows_times_weights_is_the_convolution(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 8, 3, bias=False, **options), torch.randn(2, 4, 7, 6)
    padding = layer.padding[0]
    assert isinstance(padding, int)
    node = onnx.helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=layer.stride,
        dilations=layer.dilation,
        pads=[padding] * 4,
        group=layer.groups,
    )
    weight = layer.weight.detach().numpy()
    rows = input_rows(node, weight.shape, x.numpy(), seed=0)  # (groups, rows, inputs)
    by_group = weight.reshape(layer.groups, 8 // layer.groups, -1)
    found = np.einsum("gri,goi->rgo", rows, by_group).reshape(-1, 8)
    wanted = layer(x).detach().numpy().transpose(0, 2, 3, 1).reshape(-1, 8)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["wild scales", "outliers"])
def test_rounded_stays_on_its_steps_and_comes_nearer(kind: str) -> None:
    model, plain, fit, test = both(kind)
    new = rounded(model, plain, calibration(fit))
    before = {t.name: onnx.numpy_helper.to_array(t) for t in plain.graph.initializer}
    changed = 0
    for tensor in new.graph.initializer:
        array, old = onnx.numpy_helper.to_array(tensor), before[tensor.name]
        assert array.dtype == old.dtype
        if (array != old).any():
            assert array.dtype == np.int8, "nothing but weights"
            assert np.abs(array.astype(int)).max() <= np.abs(old.astype(int)).max()
            changed += 1
    assert changed >= 4
    wanted = answers(model, lambda: [test])
    gain = sqnr_db(wanted, answers(new, lambda: [test])) - sqnr_db(wanted, answers(plain, lambda: [test]))
    assert gain > (-1.0 if kind == "outliers" else 0.5)


@pytest.mark.parametrize("kind", ["wild scales", "outliers"])
def test_a_corrected_mean_is_the_float_one(kind: str) -> None:
    model, plain, fit, _ = both(kind)
    (wanted,) = answers(model, calibration(fit)).values()
    off = []
    for graph in (plain, bias_corrected(model, plain, calibration(fit))):
        (found,) = answers(graph, calibration(fit)).values()
        off.append(float(np.abs((found - wanted).mean(axis=0)).max()))
    assert off[1] < off[0] / 3


def test_a_bias_that_was_spoilt_on_purpose_is_mended() -> None:
    model, plain, fit, _ = both("wild scales")
    for tensor in plain.graph.initializer:
        if tensor.name.endswith("_quantized") and tensor.data_type == onnx.TensorProto.INT32:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array + np.int32(3000), tensor.name))
    wanted = answers(model, calibration(fit))
    mended = answers(bias_corrected(model, plain, calibration(fit)), calibration(fit))
    assert sqnr_db(wanted, mended) > sqnr_db(wanted, answers(plain, calibration(fit))) + 10


def test_nothing_given_is_changed() -> None:
    model, plain, fit, _ = both("wild scales")
    bytes_ = [graph.SerializeToString(deterministic=True) for graph in (model, plain)]
    rounded(model, plain, calibration(fit))
    bias_corrected(model, plain, calibration(fit))
    assert [graph.SerializeToString(deterministic=True) for graph in (model, plain)] == bytes_
