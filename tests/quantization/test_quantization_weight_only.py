"""Blockwise weights: against arithmetic by hand, and GPTQ against rounding to nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from quantization_layers import (
    FLOAT,
    answer,
    encoder,
    error,
    in_batches,
    normal,
    one_layer,
    operators,
    saved,
    two_layers,
)

from pastille.errors import CalibrationError, IntegrityError, PreconditionError, UsageError
from pastille.quantization.blocks import dequantized, full_range, in_blocks, packed, round_to_nearest
from pastille.quantization.conversion import constant_values
from pastille.quantization.dynamic import quantize_dynamic
from pastille.quantization.gptq import gptq, second_moments
from pastille.quantization.half import convert_half
from pastille.quantization.linear import linear_layers
from pastille.quantization.weight_only import quantize_weights


def dequantized_by_hand(path: Path) -> np.ndarray:
    """The weight of the only MatMulNBits, ``(K, N)``, bit by bit as its specification says."""
    model = onnx.load(path)
    (node,) = (n for n in model.graph.node if n.op_type == "MatMulNBits")
    a = {x.name: x.i for x in node.attribute}
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    values, scale = stored[node.input[1]], stored[node.input[2]]
    zero = stored.get(node.input[3]) if len(node.input) > 3 else None
    weight = np.empty((a["K"], a["N"]))
    for n in range(a["N"]):
        for k in range(a["K"]):
            block, place = divmod(k, a["block_size"])
            step = _number(values[n, block], place, a["bits"])
            middle = 2 ** (a["bits"] - 1) if zero is None else _number(zero[n], block, a["bits"])
            weight[k, n] = (step - middle) * float(scale[n, block])
    return weight


def _number(stored: np.ndarray, place: int, bits: int) -> int:
    if bits == 8:
        return int(stored[place])
    return (int(stored[place // 2]) >> 4 * (place % 2)) & 15


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("k", "gemm"), [(64, False), (70, True)])
def test_onnx_runtime_computes_what_is_written(
    tmp_path: Path, bits: int, block_size: int, symmetric: bool, k: int, gemm: bool
) -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = normal(rng, k, 5), normal(rng, 5), normal(rng, 7, k)
    source = one_layer(tmp_path / "a.onnx", weight, bias, gemm=gemm)
    target = tmp_path / "b.onnx"
    quantize_weights(
        source, target, bits=bits, block_size=block_size, symmetric=symmetric, activations="float"
    )
    by_hand = dequantized_by_hand(target)
    expected = round_to_nearest(weight, block_size, bits=bits, symmetric=symmetric)
    np.testing.assert_allclose(by_hand, dequantized(expected, k), atol=1e-6)
    np.testing.assert_allclose(answer(target, {"x": x}), x @ by_hand + bias, rtol=1e-4, atol=1e-4)
    step = expected.grid.scale.max() if bits == 8 else 2 * expected.grid.scale.max()
    assert np.abs(by_hand - weight).max() <= abs(step), "clipping gains less than it loses beyond a step"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 70),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    shift=st.floats(-3, 3),
)
def test_the_full_range_is_within_a_step(seed: int, k: int, bits: int, symmetric: bool, shift: float) -> None:
    blocks = in_blocks(normal(np.random.default_rng(seed), k, 3) + np.float32(shift), 16)
    grid = full_range(blocks, bits=bits, symmetric=symmetric)
    steps = np.rint(blocks / grid.scale[..., None]) + grid.zero[..., None]
    clipped = np.clip(steps, 0, 2**bits - 1)
    off = np.abs((clipped - grid.zero[..., None]) * grid.scale[..., None] - blocks)
    # Not half a step: the symmetric grid lacks one on the side of the smaller extreme, and the other
    # may round its zero point to one less.
    assert (off <= 1.01 * np.abs(grid.scale)[..., None]).all()
    assert (off[blocks == 0] == 0).all(), "zero stays zero"


def test_values_on_the_grid_are_kept_exactly() -> None:
    weight = np.repeat(np.arange(-8, 8, dtype=np.float32)[:, None], 2, axis=1)
    kept = dequantized(round_to_nearest(weight, 16, bits=4, symmetric=True), 16)
    np.testing.assert_array_equal(kept, weight)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=9))
def test_packing_is_low_half_first(values: list[int]) -> None:
    stored = packed(np.array(values, np.uint8), 4)
    assert [_number(stored, i, 4) for i in range(len(values))] == values


@pytest.mark.parametrize("k", [64, 300])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_gptq_beats_rounding_on_correlated_inputs(k: int, symmetric: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, mix = normal(rng, k, 24), normal(rng, 8, k)  # a few directions hold nearly all energy
    x, fresh = (normal(rng, 512, 8) @ mix + 0.1 * normal(rng, 512, k) for _ in range(2))
    aware = gptq(weight, x.T @ x / len(x), 32, bits=4, symmetric=symmetric)
    plain = round_to_nearest(weight, 32, bits=4, symmetric=symmetric)
    errors = [np.square(fresh @ (dequantized(b, k) - weight)).mean() for b in (aware, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_gptq_on_uncorrelated_inputs_is_rounding() -> None:
    weight = normal(np.random.default_rng(0), 40, 6)
    aware = gptq(weight, np.eye(40, dtype=np.float32), 16, bits=4, symmetric=False)
    plain = round_to_nearest(weight, 16, bits=4, symmetric=False)
    np.testing.assert_array_equal(aware.values, plain.values)
    np.testing.assert_array_equal(aware.grid.scale, plain.grid.scale)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_gptq_takes_inputs_that_span_little(rank: int) -> None:
    rng = np.random.default_rng(0)
    weight, x = normal(rng, 48, 4), normal(rng, 100, rank) @ normal(rng, rank, 48)
    blocks = gptq(weight, x.T @ x / 100, 16, bits=4, symmetric=True)
    assert np.isfinite(dequantized(blocks, 48)).all()
    plain = round_to_nearest(weight, 16, bits=4, symmetric=True)
    errors = [np.square(x @ (dequantized(b, 48) - weight)).sum() for b in (blocks, plain)]
    assert errors[0] <= errors[1]


def test_second_moments_are_those_of_the_inputs(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    model = onnx.load(source)
    x = normal(np.random.default_rng(1), 30, 32)
    found = second_moments(model, ["x", "r"], in_batches({"x": x}, 7))
    hidden = np.maximum(x @ constant_values(model, ["first"])["first"], 0)
    np.testing.assert_allclose(found["x"], x.T @ x / 30, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["r"], hidden.T @ hidden / 30, rtol=1e-3, atol=1e-3)


def test_padding_does_not_count_where_a_mask_is_named() -> None:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6, 8]),
            helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, ["n", 6]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 6, 3])],
        [numpy_helper.from_array(normal(rng, 8, 3), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x, mask = normal(rng, 12, 6, 8), rng.integers(0, 2, (12, 6))
    data = in_batches({"x": x, "mask": mask}, 5)
    real = np.maximum(x, 0)[mask == 1]
    found = second_moments(model, ["r"], data, mask="mask")["r"]
    np.testing.assert_allclose(found, real.T @ real / len(real), rtol=1e-4, atol=1e-5)
    everything = np.maximum(x, 0).reshape(-1, 8)
    found = second_moments(model, ["r"], data)["r"]
    np.testing.assert_allclose(found, everything.T @ everything / 72, rtol=1e-4, atol=1e-5)
    with pytest.raises(CalibrationError, match="mask: the model has no input 'pad'; it has: x, mask"):
        second_moments(model, ["r"], data, mask="pad")


def test_layers_inside_a_branch_stay_float(tmp_path: Path) -> None:
    weight, rng = normal(np.random.default_rng(0), 32, 32), np.random.default_rng(1)
    result = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 32])
    body = helper.make_graph([helper.make_node("MatMul", ["h", "w"], ["z"])], "body", [], [result])
    other = helper.make_graph([helper.make_node("Identity", ["h"], ["z"])], "other", [], [result])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="outside"),
        helper.make_node("Add", ["m", "b"], ["h"], name="add"),
        helper.make_node("ReduceMean", ["h"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "limit"], ["yes"]),
        helper.make_node("If", ["yes"], ["y"], name="branch", then_branch=body, else_branch=other),
    ]
    constants = {"w": weight, "b": normal(rng, 32), "limit": np.array(-1e9, np.float32)}
    source = saved(tmp_path / "a.onnx", nodes, constants, 32, 32)
    report = quantize_weights(source, target := tmp_path / "b.onnx", bits=8)
    assert report.left == {"branch": "linear layers inside a branch or loop stay float"}
    assert list(report.changed) == ["outside"]
    assert error(target, {"x": normal(rng, 6, 32)}, source) < 0.02


def test_gptq_of_a_file_beats_rounding(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    rng = np.random.default_rng(0)
    mix = normal(rng, 4, 32)
    seen, fresh = (
        {"x": (normal(rng, 200, 4) @ mix + 0.05 * normal(rng, 200, 32)).astype(np.float32)} for _ in range(2)
    )
    quantize_weights(source, tmp_path / "rtn.onnx", activations="float")
    quantize_weights(
        source, tmp_path / "gptq.onnx", method="gptq", calibration=in_batches(seen), activations="float"
    )
    assert error(tmp_path / "gptq.onnx", fresh, source) < 0.8 * error(tmp_path / "rtn.onnx", fresh, source)


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.2), (8, 0.02)])
def test_an_encoder_answers_nearly_alike(tmp_path: Path, bits: int, limit: float) -> None:
    source, data = encoder(tmp_path)
    before = onnx.load(source)
    report = quantize_weights(source, target := tmp_path / "b.onnx", bits=bits, embeddings=True)
    assert error(target, data, source) < limit
    after = onnx.load(target)
    assert [i.name for i in after.graph.input] == [i.name for i in before.graph.input]
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    assert operators(target).count("MatMulNBits") == 9
    assert len(report.changed) == 10, "nine layers and a table"
    assert set(report.left.values()) == {"both operands are computed, as in attention"}
    assert (report.bytes_before, report.bytes_after) == (source.stat().st_size, target.stat().st_size)
    names = {t.name for t in after.graph.initializer}
    assert names <= {name for n in after.graph.node for name in n.input}, "nothing unused is kept"


def test_rows_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    source, data = encoder(tmp_path)
    quantize_weights(source, target := tmp_path / "b.onnx")
    alone = np.concatenate([answer(target, {"tokens": data["tokens"][i : i + 1]}) for i in range(4)])
    np.testing.assert_allclose(answer(target, data)[:4], alone, atol=1e-5)


def test_size_is_that_of_bits_and_scales(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = one_layer(tmp_path / "a.onnx", normal(rng, 512, 256))
    weights = 512 * 256
    for bits, block_size in ((4, 32), (4, 128), (8, 64)):
        report = quantize_weights(
            source, tmp_path / "b.onnx", bits=bits, block_size=block_size, symmetric=True
        )
        expected = weights * bits / 8 + weights / block_size * 4
        assert report.bytes_after == pytest.approx(expected, rel=0.02)


def test_layers_stay_float_on_request(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    for name, kept in (("first", "one"), ("last", "two"), ("two", "two"), ("second", "two")):
        report = quantize_weights(source, tmp_path / "b.onnx", keep_float=[name])
        assert report.left == {kept: "asked to stay float"}
        assert operators(tmp_path / "b.onnx").count("MatMul") == 1
    with pytest.raises(PreconditionError, match="no layer 'three'; there are: one, two"):
        quantize_weights(source, tmp_path / "b.onnx", keep_float=["three"])


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    weight = normal(np.random.default_rng(0), 32, 32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    source = saved(tmp_path / "a.onnx", nodes, {"w": weight}, 32, 32)
    x = {"x": normal(np.random.default_rng(1), 40, 32)}
    for method in ("rtn", "gptq"):
        calibration = in_batches(x) if method == "gptq" else None
        quantize_weights(source, tmp_path / "b.onnx", method=method, calibration=calibration)
        after = onnx.load(tmp_path / "b.onnx").graph
        assert len(after.initializer) == 3
        assert after.node[0].input[1] == after.node[1].input[1]
    nodes[1] = helper.make_node("Gemm", ["a", "w"], ["y"], name="two", transB=1)
    source = saved(tmp_path / "a.onnx", nodes, {"w": weight}, 32, 32)
    quantize_weights(source, tmp_path / "b.onnx", bits=8)
    assert error(tmp_path / "b.onnx", x, source) < 0.02


def test_a_weight_behind_a_transposition_is_found(tmp_path: Path) -> None:
    weight = normal(np.random.default_rng(0), 8, 32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="layer"),
    ]
    source = saved(tmp_path / "a.onnx", nodes, {"w": weight}, 32, 8)
    (layer,) = linear_layers(onnx.load(source)).layers
    np.testing.assert_array_equal(layer.weight, weight.T)
    quantize_weights(source, tmp_path / "b.onnx")
    assert operators(tmp_path / "b.onnx") == ["MatMulNBits"]


def test_a_product_that_others_read_keeps_its_addition_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="layer"),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Mul", ["m", "s"], ["y"]),
    ]
    source = saved(tmp_path / "a.onnx", nodes, {"w": normal(rng, 32, 8), "b": normal(rng, 8)}, 32, 8)
    quantize_weights(source, tmp_path / "b.onnx", bits=8)
    assert operators(tmp_path / "b.onnx") == ["MatMulNBits", "Add", "Mul"]
    assert error(tmp_path / "b.onnx", {"x": normal(rng, 9, 32)}, source) < 0.02


def _unraisable(path: Path) -> Path:
    return saved(path, [helper.make_node("Gizmo", ["x"], ["y"])], {}, 8, 8, opset=13)


def _layer(tmp_path: Path, **attributes: Any) -> Path:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], name="odd", **attributes),
    ]
    return saved(tmp_path / "a.onnx", nodes, {"w": normal(rng, 16, 16)}, 16, 16)


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    target, rng = tmp_path / "b.onnx", np.random.default_rng(0)
    good = one_layer(tmp_path / "good.onnx", normal(rng, 32, 8))
    quantize_weights(good, done := tmp_path / "done.onnx")
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    foreign = [helper.make_node("Gizmo", ["x"], ["y"], domain="org.example")]
    infinite = np.full((32, 8), np.inf, np.float32)
    cases: list[tuple[Path, str]] = [
        (done, "is quantized already: it holds MatMulNBits"),
        (saved(tmp_path / "r.onnx", relu, {}, 8, 8), "has no linear layer with a constant weight"),
        (saved(tmp_path / "f.onnx", foreign, {}, 8, 8, domains=["org.example"]), "unknown domain 'org.exam"),
        (
            _unraisable(tmp_path / "o.onnx"),
            r"o\.onnx is of opset 13 and cannot be raised to 18: .*; export it",
        ),
        (one_layer(tmp_path / "i.onnx", infinite), "layer: its weight holds NaN or infinity"),
        (_layer(tmp_path, alpha=0.5), "odd: a Gemm that transposes its data or scales"),
    ]
    for source, message in cases:
        with pytest.raises(PreconditionError, match=message) as caught:
            quantize_weights(source, target)
        assert "\n" not in str(caught.value)
    for options, message in (
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"block_size": 48}, "block_size must be one of 16, 32, 64, 128, 256, got 48"),
        ({"method": "hqq"}, "method must be rtn or gptq, got 'hqq'"),
        ({"activations": "int4"}, "activations must be int8 or float"),
        ({"method": "gptq"}, "calibration must be given with method gptq"),
        (
            {"calibration": in_batches({"x": normal(rng, 8, 32)})},
            "calibration must be given with method gptq",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_weights(good, target, **options)
    assert not target.exists()


def test_external_data_is_refused(tmp_path: Path) -> None:
    model = onnx.load(one_layer(tmp_path / "a.onnx", normal(np.random.default_rng(0), 64, 64)))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(IntegrityError, match="another file"):
        quantize_weights(tmp_path / "e.onnx", tmp_path / "b.onnx")


def test_bad_calibration_is_refused(tmp_path: Path) -> None:
    source = one_layer(tmp_path / "a.onnx", normal(np.random.default_rng(0), 32, 8))
    for data, message in (
        ({"x": np.zeros((0, 32), np.float32)}, "at least one batch"),
        ({"x": np.full((4, 32), np.nan, np.float32)}, "NaN or infinity"),
        ({"x": np.zeros((4, 31), np.float32)}, "cannot run on a batch"),
    ):
        with pytest.raises(CalibrationError, match=message):
            quantize_weights(source, tmp_path / "b.onnx", method="gptq", calibration=in_batches(data))


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_an_older_opset_is_raised(tmp_path: Path, opset: int) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="layer"),
        helper.make_node("Softmax", ["m"], ["y"], axis=-1),
    ]
    source = saved(tmp_path / "a.onnx", nodes, {"w": normal(rng, 32, 8)}, 32, 8, opset=opset)
    quantize_weights(source, target := tmp_path / "b.onnx", bits=8)
    assert operators(target) == ["MatMulNBits", "Softmax"]
    assert error(target, {"x": normal(rng, 9, 32)}, source) < 0.02


def test_names_that_a_file_has_already_are_left_to_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [  # the scale that quantizing w asks for would be called w_scale, and the bias layer_bias
        helper.make_node("Gemm", ["x", "w", "layer_bias"], ["u"], name="layer"),
        helper.make_node("Add", ["u", "layer_bias"], ["v"], name="layer_add"),
        helper.make_node("Mul", ["v", "w_scale"], ["y"], name="layer_mul"),
    ]
    constants = {"w": normal(rng, 32, 32), "layer_bias": normal(rng, 32), "w_scale": normal(rng, 32)}
    source = saved(tmp_path / "a.onnx", nodes, constants, 32, 32)
    x = {"x": normal(rng, 9, 32)}
    quantize_weights(source, target := tmp_path / "b.onnx", bits=8)
    assert error(target, x, source) < 0.02
    quantize_dynamic(source, target)
    assert error(target, x, source) < 0.02


def test_weights_that_are_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = onnx.load(one_layer(tmp_path / "a.onnx", normal(rng, 32, 8)))
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [32, 8]))
    onnx.save(model, source := tmp_path / "listed.onnx")
    quantize_weights(source, target := tmp_path / "b.onnx", bits=8)
    assert [i.name for i in onnx.load(target).graph.input] == ["x"]
    assert error(target, {"x": normal(rng, 9, 32)}, tmp_path / "a.onnx") < 0.02


def test_a_gemm_without_a_bias_may_name_an_empty_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", ["x", "w", ""], ["y"], name="layer", transB=1)]
    source = saved(tmp_path / "a.onnx", nodes, {"w": normal(rng, 8, 32)}, 32, 8)
    quantize_weights(source, target := tmp_path / "b.onnx", bits=8)
    assert error(target, {"x": normal(rng, 9, 32)}, source) < 0.02


def test_keep_float_names_layers_and_shows_the_closest(tmp_path: Path) -> None:
    source, target = two_layers(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    with pytest.raises(PreconditionError, match=r"there is no layer 'secnd'; closest: second$"):
        quantize_weights(source, target, keep_float=["secnd"])
    with pytest.raises(
        PreconditionError, match=r"there is no layer '7'; there are: one, two, first, second$"
    ):
        quantize_weights(source, target, keep_float=["7"])
    encoded, _ = encoder(tmp_path)
    unfit = next(iter(quantize_weights(encoded, target).left))
    assert quantize_weights(encoded, target, keep_float=[unfit]).left[unfit] != "asked to stay float"


def test_the_float_file_is_not_overwritten(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    for convert in (quantize_weights, quantize_dynamic, convert_half):
        with pytest.raises(UsageError, match="must not replace the float file"):
            convert(source, tmp_path / "." / "a.onnx")
