"""Dynamic quantization: against integer arithmetic by hand, and what stays float."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper
from quantization_layers import (
    Batch,
    answer,
    encoder,
    error,
    normal,
    one_layer,
    operators,
    recurrent,
    saved,
    two_layers,
)
from torch import nn

from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.quantization.dynamic import int8_columns, quantize_dynamic
from pastille.quantization.embeddings import int8_embeddings
from pastille.quantization.weight_only import quantize_weights
from pastille.runtime import optimized_operators


def by_hand(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """As ONNX specifies DynamicQuantizeLinear and MatMulInteger."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255
    zero = np.clip(np.rint(-low / step), 0, 255)
    quantized = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64)
    columns = int8_columns(weight)
    sums = (quantized - int(zero)) @ columns.values.astype(np.int64)
    product: np.ndarray = sums * (step * columns.scale)
    return product


@pytest.mark.parametrize("gemm", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_onnx_runtime_computes_what_is_specified(tmp_path: Path, gemm: bool, biased: bool) -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = normal(rng, 50, 6), normal(rng, 6), normal(rng, 9, 50)
    source = one_layer(tmp_path / "a.onnx", weight, bias if biased else None, gemm=gemm)
    report = quantize_dynamic(source, target := tmp_path / "b.onnx")
    expected = by_hand(x, weight) + (bias if biased else 0)
    np.testing.assert_allclose(answer(target, {"x": x}), expected, rtol=1e-4, atol=1e-4)
    assert report.changed == {"layer": "MatMulInteger, 8 bits"}
    assert optimized_operators(target).int8 == {"DynamicQuantizeMatMul": 1}, "one fused kernel"


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 4)),
        elements=st.floats(-100, 100, width=32).map(lambda v: v if abs(v) > 1e-3 else 0.0),
    )
)
def test_no_two_neighbours_saturate(weight: np.ndarray) -> None:
    columns = int8_columns(weight)
    wide = columns.values.astype(np.int64)
    for part in (np.maximum(wide, 0), np.maximum(-wide, 0)):
        sums = part[:-1] + part[1:]
        assert not sums.size or 255 * sums.max() <= 32767
    off = np.abs(wide * columns.scale - weight)
    assert (off <= 0.501 * columns.scale + 1e-6).all(), "rounded, never clipped"
    largest = np.abs(weight).max(axis=0)
    assert (columns.scale[largest > 0] <= 1.001 * 2 * largest[largest > 0] / 127).all(), "7 bits at worst"


def test_at_least_as_fine_as_seven_bits_everywhere_and_eight_where_safe() -> None:
    rng = np.random.default_rng(0)
    weight = normal(rng, 256, 64)
    largest = np.abs(weight).max(axis=0)
    scale = int8_columns(weight).scale
    assert (scale <= largest / 63.5 * 1.0001).all()
    assert scale.mean() < 0.75 * (largest / 63.5).mean(), "most columns get more than 7 bits"
    weight[1::2] = 0
    np.testing.assert_allclose(int8_columns(weight).scale, np.abs(weight).max(axis=0) / 127, rtol=1e-6)


def test_an_encoder_answers_nearly_alike(tmp_path: Path) -> None:
    source, data = encoder(tmp_path)
    for embeddings in (False, True):
        report = quantize_dynamic(source, target := tmp_path / "b.onnx", embeddings=embeddings)
        assert error(target, data, source) < 0.05
        assert len(report.changed) == 9 + embeddings
        assert set(report.left.values()) == {"both operands are computed, as in attention"}
        assert "depends a little on what else is in the batch" in report.notes[0]
        kernels = optimized_operators(target).int8
        assert kernels.get("DynamicQuantizeMatMul", 0) + kernels.get("MatMulIntegerToFloat", 0) == 9
        assert report.bytes_after == target.stat().st_size
    stored = onnx.load(target).graph.initializer
    large_floats = [t.name for t in stored if t.data_type == 1 and len(t.dims) > 1 and t.dims[1] > 1]
    assert not large_floats, "no float weight is left behind"


def test_an_input_that_several_layers_read_is_quantized_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["x", "v"], ["b"], name="two"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    source = saved(tmp_path / "a.onnx", nodes, {"w": normal(rng, 32, 8), "v": normal(rng, 32, 8)}, 32, 8)
    quantize_dynamic(source, tmp_path / "b.onnx")
    assert operators(tmp_path / "b.onnx").count("DynamicQuantizeLinear") == 1
    assert error(tmp_path / "b.onnx", {"x": normal(rng, 40, 32)}, source) < 0.02


def test_ranges_by_row_answer_alike_in_any_batch(tmp_path: Path) -> None:
    source, data = encoder(tmp_path)
    loud = {"tokens": data["tokens"][:8]}
    for ranges, alike in (("batch", False), ("row", True)):
        report = quantize_dynamic(source, target := tmp_path / "b.onnx", ranges=ranges)  # type: ignore[arg-type]
        alone = np.concatenate([answer(target, {"tokens": loud["tokens"][i : i + 1]}) for i in range(8)])
        difference = np.abs(answer(target, loud) - alone).max()
        assert bool(difference < 1e-5) == alike
        assert bool(report.notes) != alike
        assert error(target, data, source) < 0.05


def test_an_lstm_runs_in_8_bits(tmp_path: Path) -> None:
    source, data = recurrent(tmp_path, nn.LSTM)
    report = quantize_dynamic(source, target := tmp_path / "b.onnx")
    assert optimized_operators(target).int8["DynamicQuantizeLSTM"] == 1
    assert set(report.changed.values()) == {"MatMulInteger, 8 bits", "DynamicQuantizeLSTM, 8 bits"}
    assert not report.left
    assert error(target, data, source) < 0.03
    # Weights that exporters stack from slices are stored in 8 bits all the same.
    assert report.bytes_after < 0.5 * report.bytes_before


@pytest.mark.parametrize("ranges", ["batch", "row"])
def test_an_lstm_has_a_note_of_its_own_that_advises_nothing_that_was_given(
    tmp_path: Path, ranges: Literal["batch", "row"]
) -> None:
    source, data = recurrent(tmp_path, nn.LSTM)
    report = quantize_dynamic(source, target := tmp_path / "b.onnx", ranges=ranges)
    of_lstm = [note for note in report.notes if note.startswith("a range of an LSTM covers the whole batch")]
    name = next(name for name, how in report.changed.items() if "LSTM" in how)
    assert len(of_lstm) == 1
    assert of_lstm[0].endswith(
        f"judge at the batch size that is served, or keep it float (keep_float: {name})"
    )
    advised = [note for note in report.notes if note.endswith("or use ranges='row'")]
    linear = any("LSTM" not in how for how in report.changed.values())
    assert bool(advised) == (linear and ranges == "batch")
    kept = quantize_dynamic(source, tmp_path / "c.onnx", ranges=ranges, keep_float=[name])
    assert not any("LSTM" in note for note in kept.notes)
    alone = np.concatenate([answer(target, {"x": data["x"][i : i + 1]}) for i in range(32)])
    assert np.abs(answer(target, data) - alone).max() > 1e-4, "what the note says is so"


def test_convolutions_that_hold_the_weights_are_sent_to_static_quantization(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(1, 32, 3), nn.ReLU(), nn.Conv1d(32, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    export_onnx(net.eval(), {"input": torch.zeros(2, 1, 8)}, tmp_path / "a.onnx")
    said = "2 convolutions hold 94% of the weights, which dynamic quantization leaves float: use method: ptq"
    assert said in quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx").notes
    said = said.replace("dynamic", "weight")
    assert said in quantize_weights(tmp_path / "a.onnx", tmp_path / "b.onnx").notes


def test_an_lstm_has_the_weights_that_it_had(tmp_path: Path) -> None:
    """Inputs that 8 bits hold exactly, and coarse weights: a wrong order of either would show."""
    rng = np.random.default_rng(0)
    hidden, inputs = 4, 6
    signs = {
        "w": rng.choice([-0.5, 0.5], (1, 4 * hidden, inputs)).astype(np.float32),
        "r": rng.choice([-0.5, 0.5], (1, 4 * hidden, hidden)).astype(np.float32),
        "b": normal(rng, 1, 8 * hidden),
        "axes": np.array([1], np.int64),
        "first": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["sequence"]),
        helper.make_node("LSTM", ["sequence", "w", "r", "b"], ["", "h"], name="lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "first"], ["y"]),
    ]
    source = saved(tmp_path / "a.onnx", nodes, signs, inputs, hidden)
    x = rng.choice([0.0, 1.0], (5, inputs)).astype(np.float32)
    quantize_dynamic(source, target := tmp_path / "b.onnx")
    np.testing.assert_allclose(answer(target, {"x": x}), answer(source, {"x": x}), atol=4e-3)


def test_a_gru_stays_float_and_says_so(tmp_path: Path) -> None:
    source, data = recurrent(tmp_path, nn.GRU)
    report = quantize_dynamic(source, target := tmp_path / "b.onnx")
    assert list(report.left.values()) == ["ONNX Runtime has no 8-bit GRU"]
    assert error(target, data, source) < 0.03


def test_layers_stay_float_on_request(tmp_path: Path) -> None:
    report = quantize_dynamic(
        two_layers(tmp_path / "a.onnx"), target := tmp_path / "b.onnx", keep_float=["first"]
    )
    assert report.left == {"one": "asked to stay float"}
    assert operators(target).count("MatMul") == 1
    source, _ = recurrent(tmp_path, nn.LSTM)
    (lstm,) = (n.name for n in onnx.load(source).graph.node if n.op_type == "LSTM")
    report = quantize_dynamic(source, target, keep_float=[lstm])
    assert report.left == {lstm: "asked to stay float"}


def _tied(tmp_path: Path, *, transposed: bool) -> tuple[Path, dict[str, np.ndarray]]:
    """Words looked up in a table that the head multiplies with, and six texts of three words."""
    rng = np.random.default_rng(0)
    head = helper.make_node("Gemm", ["mean", "table"], ["y"], name="head", transB=int(transposed))
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["rows"], name="look"),
        helper.make_node("ReduceMean", ["rows", "axes"], ["mean"], keepdims=0),
        head,
    ]
    rows = 32 if transposed else 16
    constants = {"table": normal(rng, rows, 16), "axes": np.array([1], np.int64)}
    source = saved(tmp_path / "a.onnx", nodes, constants, 3, rows)
    return source, {"x": rng.integers(0, rows, (6, 3)).astype(np.float32)}


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("ranges", ["batch", "row"])
def test_a_table_that_is_the_head_too_is_converted_for_both(
    tmp_path: Path, transposed: bool, ranges: Literal["batch", "row"]
) -> None:
    source, x = _tied(tmp_path, transposed=transposed)
    report = quantize_dynamic(source, target := tmp_path / "b.onnx", embeddings=True, ranges=ranges)
    assert set(report.changed) == {"head", "look"}
    assert not report.left
    stored = {t.name: t.data_type for t in onnx.load(target).graph.initializer}
    assert "table" not in stored
    assert error(target, x, source) < 0.03


def test_a_table_that_is_stored_twice_is_pointed_out(tmp_path: Path) -> None:
    source, _ = _tied(tmp_path, transposed=True)
    report = quantize_dynamic(source, tmp_path / "b.onnx")
    assert "table is stored twice, in fewer bits and in float32, as look reads it" in report.notes[-1]
    left = {"look": "its table is the weight of a layer that stays float too, and would be stored twice"}
    assert int8_embeddings(onnx.load(source)).left == left


def test_words_that_a_layer_reads_at_once_have_names_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["rows"], name="look"),
        helper.make_node("MatMul", ["rows", "w"], ["m"], name="layer"),
        helper.make_node("Squeeze", ["m", "axes"], ["y"]),
    ]
    constants = {"table": normal(rng, 20, 16), "w": normal(rng, 16, 8), "axes": np.array([1], np.int64)}
    source = saved(tmp_path / "a.onnx", nodes, constants, 1, 8)
    quantize_dynamic(source, target := tmp_path / "b.onnx", embeddings=True)
    assert error(target, {"x": np.arange(20, dtype=np.float32)[:, None]}, source) < 0.03


@pytest.mark.parametrize("attributes", [{}, {"clip": 0.5}, {"input_forget": 1}, {"direction": "reverse"}])
def test_an_lstm_may_have_peepholes(tmp_path: Path, attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (1, 32, 6), "r": (1, 32, 8), "b": (1, 64), "p": (1, 24)}
    constants = {name: normal(rng, *shape) for name, shape in shapes.items()}
    inputs = ["steps", "w", "r", "b", "", "", "", "p"]
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["steps"]),
        helper.make_node("LSTM", inputs, ["h"], name="lstm", hidden_size=8, **attributes),
        helper.make_node("Squeeze", ["h", "axes"], ["y"]),
    ]
    axes = {"axes": np.array([1], np.int64)}
    source = saved(tmp_path / "a.onnx", nodes, constants | axes, 6, 8)
    model = onnx.load(source)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    onnx.save(model, source)
    report = quantize_dynamic(source, target := tmp_path / "b.onnx")
    assert report.changed == {"lstm": "DynamicQuantizeLSTM, 8 bits"}
    x = {"x": normal(rng, 7, 6)}
    assert error(target, x, source) < 0.03
    constants["p"] *= 0
    flat = saved(tmp_path / "flat.onnx", nodes, constants | axes, 6, 8)
    assert error(flat, x, source) > 0.06, "the peepholes matter"


def test_convolutions_alone_are_sent_to_static_quantization(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["line"]),
        helper.make_node("Conv", ["line", "kernel"], ["filtered"]),
        helper.make_node("Squeeze", ["filtered", "axes"], ["y"]),
    ]
    constants: Batch = {"kernel": np.ones((1, 1, 3), np.float32), "axes": np.array([1], np.int64)}
    saved(tmp_path / "a.onnx", nodes, constants, 8, 6)
    with pytest.raises(PreconditionError, match=r"no linear layer or LSTM to convert; static quantization"):
        quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_embeddings_have_a_scale_per_row(tmp_path: Path) -> None:
    table = normal(np.random.default_rng(0), 20, 16) * np.logspace(-3, 3, 20, dtype=np.float32)[:, None]
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["rows"], name="look"),
        helper.make_node("Squeeze", ["rows", "axes"], ["y"]),
    ]
    source = saved(tmp_path / "a.onnx", nodes, {"table": table, "axes": np.array([1], np.int64)}, 1, 16)
    quantize_dynamic(source, target := tmp_path / "b.onnx", embeddings=True)
    found = answer(target, {"x": np.arange(20, dtype=np.float32)[:, None]})
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - table) <= 0.501 * steps).all()


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    target = tmp_path / "b.onnx"
    with pytest.raises(ValueError, match="ranges must be batch or row, got 'token'"):
        quantize_dynamic(source, target, ranges="token")  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="there is no layer 'none'"):
        quantize_dynamic(source, target, keep_float=["none"])
    relu = saved(tmp_path / "r.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, 8, 8)
    with pytest.raises(PreconditionError, match=r"r\.onnx has no linear layer or LSTM to convert$"):
        quantize_dynamic(relu, target)
    assert not target.exists()
    quantize_dynamic(source, target)
    with pytest.raises(PreconditionError, match="quantized already: it holds DynamicQuantizeLinear"):
        quantize_dynamic(target, tmp_path / "c.onnx")


def test_weights_are_what_is_stored(tmp_path: Path) -> None:
    weight = normal(np.random.default_rng(0), 32, 8)
    quantize_dynamic(one_layer(tmp_path / "a.onnx", weight), target := tmp_path / "b.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}
    assert {a.dtype.name for a in stored.values()} == {"int8", "float32"}
    np.testing.assert_array_equal(stored["w_q8"], int8_columns(weight).values)
