"""Weights in 16 bits: against torch's own rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from quantization_layers import answer, encoder, error, normal, one_layer, operators, saved, two_layers

from pastille.errors import PreconditionError
from pastille.quantization.half import _bfloat16, convert_half


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_bf16_rounds_as_torch_does(values: list[float]) -> None:
    x = np.array(values, np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16)
    same = torch.from_numpy(_bfloat16(x).view(np.int16)) == expected.view(torch.int16)
    assert (same | ~torch.isfinite(expected)).all(), "beyond the largest number it stays finite"


def test_the_largest_bf16_stays_finite() -> None:
    largest = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max], np.float32)
    stored = torch.from_numpy(_bfloat16(largest).view(np.int16)).view(torch.bfloat16)
    assert torch.isfinite(stored).all()


@pytest.mark.parametrize(("kind", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_file_computes_with_rounded_weights(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    weight, x = normal(rng, 48, 8), normal(rng, 5, 48)
    report = convert_half(one_layer(tmp_path / "a.onnx", weight), target := tmp_path / "b.onnx", kind=kind)  # type: ignore[arg-type]
    expected = x @ torch.from_numpy(weight).to(dtype).float().numpy()
    np.testing.assert_allclose(answer(target, {"x": x}), expected, rtol=1e-5, atol=1e-5)
    assert report.changed == {"w": f"stored in {kind}"}
    assert "the same speed and memory as fp32" in report.notes[0]


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_an_encoder_is_half_as_large(tmp_path: Path, kind: str) -> None:
    source, data = encoder(tmp_path)
    report = convert_half(source, target := tmp_path / "b.onnx", kind=kind)  # type: ignore[arg-type]
    assert error(target, data, source) < (0.002 if kind == "fp16" else 0.02)
    assert report.bytes_after == target.stat().st_size < 0.65 * report.bytes_before
    before, after = onnx.load(source).graph, onnx.load(target).graph
    assert (list(after.input), list(after.output)) == (list(before.input), list(before.output))


def test_computing_in_fp16_says_what_it_costs(tmp_path: Path) -> None:
    source, data = encoder(tmp_path)
    report = convert_half(source, target := tmp_path / "b.onnx", compute=True)
    assert error(target, data, source) < 0.02
    graph = onnx.load(target).graph
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.output[0].name == onnx.load(source).graph.output[0].name
    assert "ONNX Runtime's CPU provider executes" in report.notes[0]
    half = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(half) >= len(report.changed)


def test_what_fp16_cannot_hold_stays_float(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    model = onnx.load(source)
    large = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    large[3, 4] = 1e5
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(large, "first"))
    onnx.save(model, source)
    x = {"x": normal(np.random.default_rng(0), 5, 32)}
    for compute in (False, True):
        report = convert_half(source, target := tmp_path / "b.onnx", compute=compute)
        assert report.left == {"first": "it reaches 1e+05, beyond fp16's 65504"}
        assert list(report.changed) == ["second"]
    convert_half(source, target)
    assert error(target, x, source) < 0.002
    assert not convert_half(source, target, kind="bf16").left


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    target = tmp_path / "b.onnx"
    with pytest.raises(ValueError, match="kind must be fp16 or bf16, got 'fp8'"):
        convert_half(source, target, kind="fp8")  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="no bf16 kernels"):
        convert_half(source, target, kind="bf16", compute=True)
    relu = saved(tmp_path / "r.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, 8, 8)
    with pytest.raises(PreconditionError, match=r"r\.onnx has no float32 weight of 64 values or more"):
        convert_half(relu, target)
    assert not target.exists()
    convert_half(source, halved := tmp_path / "h.onnx")
    with pytest.raises(PreconditionError, match="to convert: it holds its weights in 16 bits already"):
        convert_half(halved, target)


def test_stored_weights_are_cast_once(tmp_path: Path) -> None:
    convert_half(two_layers(tmp_path / "a.onnx"), target := tmp_path / "b.onnx")
    assert operators(target) == ["Cast", "Cast", "MatMul", "Relu", "MatMul"]
