"""Saturation decided from the weights, against a simulation of `vpmaddubsw`; and its repair."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper, shape_inference
from quantization_nets import answer, quantized_net

from pastille.quantization.repair import repaired, rounded_from
from pastille.quantization.saturation import (
    Saturating,
    saturates,
    saturating,
    saturating_layers,
    signed_layers,
    worst_sums,
)
from pastille.quantization.spans import view
from pastille.runtime.emulated import answers_on

Attributes = dict[str, Any]


def vpmaddubsw(unsigned: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Intel's definition: neighbouring products are added and held within 16 bits. Both ``(..., 2n)``."""
    products = unsigned.astype(np.int32) * signed.astype(np.int32)
    sums: np.ndarray = np.clip(products[..., 0::2] + products[..., 1::2], -32768, 32767)
    return sums


def dot_without_vnni(unsigned: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """A product over the last axis as the AVX2 kernels compute it: four at a time, zeros at the end."""
    padding = [(0, 0)] * (unsigned.ndim - 1) + [(0, -unsigned.shape[-1] % 4)]
    total: np.ndarray = vpmaddubsw(np.pad(unsigned, padding), np.pad(signed, padding)).sum(axis=-1)
    return total


def qdq_model(
    operator: str,
    weights: np.ndarray,
    shape: tuple[int | str, ...],
    *,
    before: str | None = None,
    zero: int = 0,
    scale: np.ndarray | float = 0.01,
    axis: int = 0,
    activation: type = np.uint8,
    bias: np.ndarray | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """One layer between Q/DQ pairs; activations have the scale 0.05."""
    constants = {
        "x_scale": np.float32(0.05),
        "x_zero": activation(zero),
        "w_q": weights,
        "w_scale": np.asarray(scale, np.float32),
        "w_zero": np.zeros(np.shape(scale), np.int8),
        "zero": np.float32(0),
        "one": np.float32(1),
    }
    nodes = [helper.make_node("Clip", ["input", "zero", "one"], ["before"])] if before == "clip" else []
    nodes += [helper.make_node("Relu", ["input"], ["before"])] if before == "relu" else []
    nodes += [
        helper.make_node("QuantizeLinear", ["before" if before else "input", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], axis=axis),
    ]
    operands = ["x", "w"]
    if bias is not None:
        constants |= {
            "b_q": bias.astype(np.int32),
            "b_scale": np.asarray(0.05 * np.asarray(scale), np.float32),
            "b_zero": np.zeros(np.shape(scale), np.int32),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["b_q", "b_scale", "b_zero"], ["b"], axis=0))
        operands.append("b")
    nodes.append(helper.make_node(operator, operands, ["output"], name="layer", **attributes))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return shape_inference.infer_shapes(model, strict_mode=True)


int8_matrices = arrays.arrays(
    np.int8,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.integers(-128, 127),
)
spans = st.tuples(st.integers(0, 255), st.integers(0, 255)).map(lambda ends: (min(ends), max(ends)))


@given(int8_matrices, spans)
@example(np.array([[64, 65]], np.int8), (0, 255))
@example(np.array([[-64, -65]], np.int8), (0, 255))
@example(np.array([[64, 64]], np.int8), (0, 255))
@example(np.array([[-128, 127]], np.int8), (3, 255))
@settings(max_examples=300, deadline=None)
def test_a_row_is_said_to_saturate_exactly_where_a_simulation_of_the_instruction_does(
    rows: np.ndarray, span: tuple[int, int]
) -> None:
    """A sum of two products is extreme at ends of the span, so four inputs per pair are all that count."""
    low, high = span
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    corners = np.array([(low, low), (low, high), (high, low), (high, high)], np.uint8)
    inputs = np.tile(corners, (1, padded.shape[1] // 2))[:, None, :]  # (4, 1, K)
    exact = (inputs.astype(int) * padded).reshape(4, len(rows), -1, 2).sum(axis=-1)
    simulated = (vpmaddubsw(inputs, padded[None]) != exact).any(axis=(0, 2))
    assert saturates(worst_sums(rows, span)).tolist() == simulated.tolist()
    ends = np.stack([exact.max(axis=(0, 2)), exact.min(axis=(0, 2))], axis=1)
    np.testing.assert_array_equal(worst_sums(rows, span), ends)
    anyhow = saturates(worst_sums(rows, span, paired=False))
    assert (anyhow | ~simulated).all()  # never safe where the known packing saturates


@given(int8_matrices)
@settings(max_examples=100, deadline=None)
def test_where_the_packing_is_unknown_every_order_is_covered(rows: np.ndarray) -> None:
    safe = ~saturates(worst_sums(rows, paired=False))
    shuffled = np.random.default_rng(0).permuted(np.tile(rows, (20, 1, 1)), axis=2)
    for order in shuffled:
        assert not (saturates(worst_sums(order)) & safe).any()


def as_columns(images: np.ndarray, kernel: int, groups: int) -> np.ndarray:
    """Windows in the order (kernel position, channel) within each group, ``(N, groups, places, K)``."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (kernel, kernel), axis=(2, 3))
    n, c, h, w = windows.shape[:4]
    grouped = windows.reshape(n, groups, c // groups, h, w, kernel * kernel)
    return grouped.transpose(0, 1, 3, 4, 5, 2).reshape(n, groups, h * w, -1)


@given(
    channels=st.sampled_from([(1, 3, 2), (1, 4, 3), (2, 3, 2), (2, 2, 4)]),
    kernel=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([40, 64, 80, 128]),
)
@settings(max_examples=80, deadline=None)
def test_no_channel_of_a_convolution_is_called_safe_that_saturates(
    channels: tuple[int, int, int], kernel: int, seed: int, spread: int
) -> None:
    groups, inputs, outputs = channels  # per group
    rng = np.random.default_rng(seed)
    weights = rng.integers(-spread, spread, (groups * outputs, inputs, kernel, kernel)).astype(np.int8)
    model = qdq_model("Conv", weights, ("n", groups * inputs, 6, 6), group=groups)
    said = {c for layer in saturating(model) for c in layer.channels}
    images = rng.choice([0, 255], (16, groups * inputs, 6, 6)).astype(np.uint8)
    images[0] = 255
    columns = as_columns(images, kernel, groups)  # (N, G, P, K)
    rows = weights.transpose(0, 2, 3, 1).reshape(groups, outputs, -1)
    exact = np.einsum("ngpk,gok->ngpo", columns.astype(int), rows.astype(int))
    found = dot_without_vnni(columns[:, :, :, None, :], rows[None, :, None])
    differs = (found != exact).any(axis=(0, 2)).reshape(-1)
    assert set(np.flatnonzero(differs).tolist()) <= said
    for channel in said:  # and each that is named can be driven there: 255 under the like signs of a pair
        row = rows.reshape(groups * outputs, -1)[channel].astype(int)
        driven = [np.where(sign * row > 0, 255, 0) for sign in (1, -1)]
        assert any(dot_without_vnni(x, row) != x @ row for x in driven)


@pytest.mark.parametrize(
    ("operator", "shape", "axis", "attributes"),
    [("MatMul", (4, 2), 1, {}), ("Gemm", (4, 2), 1, {}), ("Gemm", (2, 4), 0, {"transB": 1})],
)
def test_neighbours_of_a_matrix_lie_along_its_rows(
    operator: str, shape: tuple[int, int], axis: int, attributes: Attributes
) -> None:
    apart = np.array([[100, 0, 100, 0], [100, 100, 0, 0]], np.int8)  # channel 0 never has two in one pair
    weights = apart if shape == (2, 4) else apart.T.copy()
    model = qdq_model(operator, weights, ("n", 4), scale=np.full(2, 0.01), axis=axis, **attributes)
    (found,) = saturating(model)
    assert found == Saturating(
        node="layer", operator=operator, weight="w_q", channels=(1,), of=2, worst_sum=51000, exact=True
    )


def test_weights_that_the_graph_transposes_are_followed() -> None:
    weights = np.array([[100, 0, 100, 0], [100, 100, 0, 0]], np.int8)
    (found,) = saturating(_transposed(weights))
    assert found.channels == (1,)


def _transposed(weights: np.ndarray) -> onnx.ModelProto:
    model = qdq_model("MatMul", weights.T.copy(), ("n", 4))
    tensor = next(t for t in model.graph.initializer if t.name == "w_q")
    tensor.CopyFrom(numpy_helper.from_array(weights, "w_q"))
    layer = model.graph.node[-1]
    layer.input[1] = "w_t"
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Transpose", ["w"], ["w_t"]))
    return model


HEAVY = np.full((4, 4, 1, 1), 100, np.int8)


@pytest.mark.parametrize(
    ("before", "zero", "activation", "safe"),
    [
        (None, 0, np.uint8, False),
        ("relu", 0, np.uint8, False),
        ("clip", 0, np.uint8, True),  # at most 1 / 0.05 = 20 of 255 steps
        ("clip", 128, np.uint8, True),  # 148 · 200 = 29600
        ("clip", 200, np.uint8, False),  # 220 · 200 = 44000
        ("clip", 0, np.int8, True),  # shifted by 128 on x86
        ("clip", 80, np.int8, False),
    ],
)
def test_a_narrow_range_of_the_activations_makes_heavy_weights_safe(
    before: str | None, zero: int, activation: type, safe: bool
) -> None:
    model = qdq_model("Conv", HEAVY, ("n", 4, 2, 2), before=before, zero=zero, activation=activation)
    assert (saturating(model) == ()) is safe


@pytest.mark.parametrize(
    ("weights", "groups"),
    [
        (HEAVY.astype(np.uint8), 1),  # U8U8 kernels add in 32 bits
        (np.full((4, 1, 3, 3), 127, np.int8), 4),  # depthwise kernels too
        (np.full((4, 4, 1, 1), 64, np.int8), 1),  # 7 bits
        (np.tile(np.array([[[[127]], [[-128]]]], np.int8), (4, 2, 1, 1)), 1),  # unlike signs
    ],
)
def test_what_cannot_saturate_is_not_named(weights: np.ndarray, groups: int) -> None:
    if weights.dtype == np.uint8:
        model = qdq_model("Conv", weights.astype(np.int8), ("n", 4, 4, 4))
        for tensor in model.graph.initializer:
            if tensor.name in {"w_q", "w_zero"}:
                array = weights if tensor.name == "w_q" else np.uint8(0)
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
    else:
        model = qdq_model("Conv", weights, ("n", 4, 4, 4), group=groups)
    assert saturating(model) == ()


def test_integer_operators_are_judged_too(tmp_path: Path) -> None:
    weights = np.array([[100, 100], [100, 0], [0, 100]], np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["output"]),
        ],
        "dynamic",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("output", TensorProto.INT32, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "dynamic.onnx"
    path.write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    (found,) = saturating_layers(path)
    assert (found.node, found.channels, found.of) == ("output", (0,), 2)


@pytest.mark.parametrize("with_floats", [False, True])
def test_repair_widens_only_the_channels_concerned_and_only_as_needed(with_floats: bool) -> None:
    rng = np.random.default_rng(0)
    floats = rng.uniform(-0.4, 0.4, (6, 8, 3, 3)).astype(np.float32)
    floats[1] *= 0.5  # within 40 steps
    scale = np.full(6, 0.4 / 80, np.float32)
    steps = np.rint(floats / scale.reshape(-1, 1, 1, 1)).clip(-127, 127).astype(np.int8)
    bias = np.arange(6) * 1000
    model = qdq_model("Conv", steps, ("n", 8, 5, 5), scale=scale, bias=bias)
    (before,) = saturating(model)
    assert 1 not in before.channels
    mended = repaired(model, {"w_q": floats} if with_floats else {})
    assert saturating(mended) == ()
    (layer,) = signed_layers(mended)
    seen = view(mended.graph)
    new_scale = seen.array(seen.makers["w"].input[1])
    new_bias = seen.array(seen.makers["b"].input[0])
    new_bias_scale = seen.array(seen.makers["b"].input[1])
    weights = seen.array(layer.weight)
    assert new_scale is not None
    assert new_bias is not None
    assert weights is not None
    assert new_bias_scale is not None
    widened = new_scale / scale
    assert widened[1] == 1.0
    assert ((widened > 1.0) & (widened <= 1.3))[list(before.channels)].all()  # 160 / 128 at most
    np.testing.assert_allclose(new_bias * new_bias_scale, bias * 0.05 * scale, atol=0.05 * new_scale.max())
    np.testing.assert_allclose(new_bias_scale, 0.05 * new_scale, rtol=1e-6)
    error = np.abs(weights * new_scale.reshape(-1, 1, 1, 1) - floats) / new_scale.reshape(-1, 1, 1, 1)
    assert error.max() <= (0.501 if with_floats else 1.0)
    assert len(mended.graph.initializer) == len(model.graph.initializer)
    onnx.checker.check_model(mended, full_check=True)


def test_repair_of_a_shared_scale_widens_all_of_it_and_no_other_tensor() -> None:
    weights = np.zeros((2, 4, 1, 1), np.int8)
    weights[0, :2] = 127
    weights[1, 0] = 100
    model = qdq_model("Conv", weights, ("n", 4, 3, 3), scale=0.01)
    for node in model.graph.node:  # one constant as the scale of the activations and of the weights
        node.input[:] = ["x_scale" if name == "w_scale" else name for name in node.input]
    mended = repaired(model)
    assert saturating(mended) == ()
    seen = view(mended.graph)
    scale = seen.array(seen.makers["w"].input[1])
    assert scale is not None
    assert scale.shape == ()
    assert 1.9 <= scale / np.float32(0.05) <= 2.0
    assert seen.makers["x"].input[1] == "x_scale"
    assert seen.array("x_scale") == np.float32(0.05)


@given(arrays.arrays(np.int8, (3, 5), elements=st.integers(-128, 127)))
@settings(max_examples=100, deadline=None)
def test_after_repair_nothing_saturates(weights: np.ndarray) -> None:
    model = qdq_model("Gemm", weights, ("n", 5), scale=np.full(3, 0.01), transB=1)
    assert saturating(repaired(model)) == ()


def test_a_model_without_danger_is_not_changed() -> None:
    model = qdq_model("Conv", np.full((4, 4, 1, 1), 64, np.int8), ("n", 4, 2, 2))
    assert repaired(model) == model


@pytest.mark.parametrize("name", ["residual", "depthwise", "transformer", "transposed"])
def test_seven_bits_never_saturate_whatever_the_network(name: str, tmp_path: Path) -> None:
    _, _, target = quantized_net(name, tmp_path)
    assert saturating_layers(target) == ()


def test_eight_bits_repaired_answer_as_near_as_seven(tmp_path: Path) -> None:
    data, source, seven = quantized_net("residual", tmp_path)
    (tmp_path / "eight").mkdir()
    eight = quantized_net("residual", tmp_path / "eight", weight_bits=8)[2]
    assert saturating_layers(eight)
    mended = tmp_path / "mended.onnx"
    model = repaired(onnx.load(eight), rounded_from(onnx.load(source)))
    mended.write_bytes(model.SerializeToString())
    assert saturating_layers(mended) == ()
    expected = answer(source, data)
    errors = {path: float(np.abs(answer(path, data) - expected).mean()) for path in (seven, eight, mended)}
    assert errors[mended] <= 1.2 * errors[seven]


def flat(shape: tuple[int, ...], operator: str) -> np.ndarray:
    """Two heavy weights in each of four channels, where the packed row has 0, 1; 1, 2; 2, 3; its end."""
    channels, depth = (shape[-1], shape[0]) if operator == "MatMul" else (shape[0], int(np.prod(shape[1:])))
    rows = np.zeros((channels, depth), np.int8)
    for channel, first in enumerate([0, 1, 2, depth - 2]):
        rows[channel, first : first + 2] = 127
    if operator == "MatMul":
        return rows.T.copy()
    kernel = shape[2:]
    return np.moveaxis(rows.reshape(channels, *kernel, shape[1]), -1, 1).copy()


@pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None, reason="no QEMU here: apt-get install qemu-user-static"
)
def test_the_kernels_of_an_emulated_avx2_saturate_in_the_channels_that_are_named(tmp_path: Path) -> None:
    """Every activation is 255, so each dangerous pair saturates; the packing is ONNX Runtime's own."""
    layers: dict[str, tuple[str, tuple[int, ...], Attributes]] = {
        "blocked": ("Conv", (16, 12, 3, 3), {}),
        "packed": ("Conv", (5, 12, 3, 3), {}),
        "grouped": ("Conv", (16, 3, 3, 3), {"group": 4}),
        "point": ("Conv", (16, 12, 1, 1), {}),
        "matrix": ("MatMul", (7, 9), {}),
    }
    path = tmp_path / "layers.onnx"
    path.write_bytes(_side_by_side(layers).SerializeToString())
    said = {layer.node: layer.channels for layer in saturating_layers(path)}
    cases = {"image": np.ones((2, 12, 5, 5), np.float32), "rows": np.ones((2, 3, 7), np.float32)}
    there, here = (answers_on(isa, path, cases).outputs for isa in ("avx2", "native"))
    for name, (operator, _, _) in layers.items():
        differs = np.moveaxis(np.abs(there[name] - here[name]) > 0.5, -1 if operator == "MatMul" else 1, -1)
        channels = differs.reshape(-1, differs.shape[-1]).any(axis=0)
        assert said[name] == tuple(np.flatnonzero(channels).tolist()), name
        assert len(said[name]) in (2, 3)


def _side_by_side(layers: dict[str, tuple[str, tuple[int, ...], Attributes]]) -> onnx.ModelProto:
    constants: dict[str, Any] = {
        "x_scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "w_zero": np.int8(0),
        "w_scale": np.float32(1 / 127),
        "y_scale": np.float32(0.01),
    }
    nodes = []
    for name in ("image", "rows"):
        nodes += _pair(name, f"{name}_x", "x_scale")
    for name, (operator, shape, attributes) in layers.items():
        constants[f"{name}_q"] = flat(shape, operator)
        data = "rows_x" if operator == "MatMul" else "image_x"
        nodes += [
            helper.make_node("DequantizeLinear", [f"{name}_q", "w_scale", "w_zero"], [f"{name}_w"]),
            helper.make_node(operator, [data, f"{name}_w"], [f"{name}_y"], name=name, **attributes),
            *_pair(f"{name}_y", name, "y_scale"),
        ]
    graph = helper.make_graph(
        nodes,
        "side by side",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 12, 5, 5]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 3, 7]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in layers],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _pair(source: str, result: str, scale: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, scale, "zero"], [f"{result}_u8"]),
        helper.make_node("DequantizeLinear", [f"{result}_u8", scale, "zero"], [result]),
    ]
