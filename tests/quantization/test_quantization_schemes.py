"""Of whose kernels a file is: bits and signs by target, and that none saturates where it may not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from quantization_nets import Batch, answer, constants, in_batches, quantized, quantized_net
from torch import nn

from pastille.quantization import static
from pastille.quantization.nodes import sort_
from pastille.quantization.recovery.auto import Choice, prepared, quantized_by
from pastille.quantization.saturation import saturating, saturating_layers
from pastille.quantization.spans import view
from pastille.runtime import optimized_operators
from pastille.runtime.emulated import answers_on

NETS = ("residual", "depthwise", "squeeze-excite", "concat", "transformer", "1-D", "transposed", "tied")
CONTRIB = "com.microsoft"
CONTRIBUTED = {"concat"}  # holds an operator whose shapes ONNX cannot infer


def error(path: Path, source: Path, data: Batch) -> float:
    expected = answer(source, data)
    return float(np.abs(answer(path, data) - expected).max() / np.ptp(expected))


def read_by(path: Path, *operators: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stored weights, and their scales along the axis that the DequantizeLinear names."""
    graph = onnx.load(path).graph
    seen, found = view(graph), []
    for node in graph.node:
        pair = seen.maker(node.input[1], "DequantizeLinear") if node.op_type in operators else None
        weights = seen.array(pair.input[0]) if pair is not None else None
        if pair is not None and weights is not None:
            scale = seen.array(pair.input[1])
            assert scale is not None
            found.append((weights, scale))
    return found


def heaviest_pair(weights: np.ndarray) -> int:
    """Over every way to put a tensor's neighbours side by side, the largest like-signed sum."""
    w = weights.astype(int)
    pairs = [np.abs(np.delete(w, 0, axis) + np.delete(w, -1, axis)) for axis in range(w.ndim)]
    return max(int(p.max(initial=0)) for p in pairs)


@pytest.mark.parametrize("bits", [7, "auto"])
@pytest.mark.parametrize("name", NETS)
def test_no_layer_of_an_x86_file_can_saturate(name: str, bits: Any, tmp_path: Path) -> None:
    """Seven bits are the default; both hold with every rewrite: fused SiLU, padded stem, float answers."""
    data, source, target = quantized_net(name, tmp_path, weight_bits=bits, scheme="x86")
    assert saturating_layers(target) == ()
    assert error(target, source, data) <= 0.1
    onnx.checker.check_model(onnx.load(target), full_check=name not in CONTRIBUTED)


@pytest.mark.parametrize("bits", [7, 8, "auto"])
def test_a_padded_stem_is_counted_with_its_padding(bits: Any, tmp_path: Path) -> None:
    """Three colours become four before the first layer, so each third weight has a zero for a neighbour."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(2))
    data = {"input": np.random.default_rng(0).normal(size=(8, 3, 64, 64)).astype(np.float32)}
    _, target = quantized(net.eval(), data, tmp_path, weight_bits=bits, scheme="x86")
    assert "Pad" in {node.op_type for node in onnx.load(target).graph.node}
    assert bool(saturating_layers(target)) == (bits == 8)
    stem = next(w for w, _ in read_by(target, "Conv") if w.shape == (16, 4, 3, 3))
    assert not stem[:, 3].any()


@pytest.mark.parametrize("name", ["residual", "mlp", "transformer"])
def test_auto_uses_eight_bits_wherever_neighbours_are_light(name: str, tmp_path: Path) -> None:
    folders = {bits: tmp_path / str(bits) for bits in (7, 8, "auto")}
    files = {}
    for bits, folder in folders.items():
        folder.mkdir()
        files[bits] = quantized_net(name, folder, weight_bits=bits, scheme="x86")[2]
    kinds = ("Conv", "Gemm", "MatMul")
    seven, eight, auto = (read_by(files[bits], *kinds) for bits in (7, 8, "auto"))
    assert saturating_layers(files[8])
    widened = [a[1] / e[1] for a, e in zip(auto, eight, strict=True)]
    assert all((ratio >= 1).all() for ratio in widened)
    assert all((a[1] <= s[1] * 1.02).all() for a, s in zip(auto, seven, strict=True)), "no wider than 7 bits"
    assert any((ratio == 1).any() for ratio in widened) or np.mean(np.concatenate(widened)) < 1.9
    assert max(int(np.abs(w).max()) for w, _ in auto) > 64


def test_rounding_anew_is_repaired_too(tmp_path: Path) -> None:
    """Two neighbours that rounding moves up together may saturate although neither is heavier than before."""
    data, source, _ = quantized_net("residual", tmp_path)
    model = prepared(onnx.load(source))
    choice = Choice(techniques=frozenset({"rounding"}), bits="auto", scheme="x86")
    assert saturating(quantized_by(model, in_batches(data), choice)) == ()


def test_a_neighbour_that_rounds_up_is_caught_by_the_second_repair() -> None:
    heavy = np.array([[100, 29, 0, 0]], np.int8)  # 129 together
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,4] input) => (float[n,1] output)
        <float s = {0.1}, uint8 z = {0}, float[1] ws = {0.01}, int8[1] wz = {0}, int8[1,4] w = {0,0,0,0}> {
          q = QuantizeLinear(input, s, z)
          x = DequantizeLinear(q, s, z)
          f = DequantizeLinear<axis=0>(w, ws, wz)
          output = Gemm<transB=1>(x, f)
        }"""
    )
    stored = next(t for t in model.graph.initializer if t.name == "w")
    stored.CopyFrom(onnx.numpy_helper.from_array(heavy, "w"))
    assert saturating(model)
    assert saturating(static.unsaturated(model, {}, bits="auto", scheme="x86")) == ()
    for bits, scheme in ((7, "x86"), (8, "x86"), ("auto", "arm"), ("auto", "tensorrt")):
        same = static.unsaturated(model, {}, bits=bits, scheme=scheme)  # type: ignore[arg-type]
        assert same is model


def test_nodes_stand_behind_what_they_read_and_else_where_they_were() -> None:
    """Also what only the body of a branch reads."""
    body = onnx.parser.parse_graph("body () => (float[n] b) { b = Neg(late) }")
    branch = onnx.helper.make_node("If", ["flag"], ["c"], then_branch=body, else_branch=body)
    late, first, last = (
        onnx.helper.make_node("Relu", [read], [made])
        for read, made in (("x", "late"), ("x", "a"), ("c", "d"))
    )
    graph = onnx.helper.make_graph([first, last, branch, late], "g", [], [])
    sort_(graph)
    assert [node.output[0] for node in graph.node] == ["a", "late", "c", "d"]
    sort_(graph)
    assert [node.output[0] for node in graph.node] == ["a", "late", "c", "d"]


@pytest.mark.parametrize("name", NETS)
def test_arm_multiplies_signed_by_signed_eight_bits(name: str, tmp_path: Path) -> None:
    data, source, target = quantized_net(name, tmp_path, scheme="arm")
    graph, known = onnx.load(target).graph, constants(target)
    points = {known[n.input[2]].dtype for n in graph.node if n.op_type == "QuantizeLinear"}
    assert points == {np.dtype(np.int8)}
    stored = read_by(target, "Conv", "Gemm", "MatMul")
    assert max(int(np.abs(w).max()) for w, _ in stored) == 127, "whatever weight_bits says"
    assert all(w.dtype == np.int8 and scale.size > 1 for w, scale in stored)
    assert error(target, source, data) <= 0.1
    assert optimized_operators(target).int8


@pytest.mark.parametrize("name", NETS)
def test_tensorrt_gets_what_its_parser_takes(name: str, tmp_path: Path) -> None:
    """Zero points of 0, float biases, pairs on what layers read alone, the standard operators alone."""
    data, source, target = quantized_net(name, tmp_path, scheme="tensorrt")
    model, known = onnx.load(target), constants(target)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} | {o.domain for o in model.opset_import} <= {
        "",
        "ai.onnx",
    }
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for pair in pairs:
        zero = known[pair.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    assert TensorProto.INT32 not in {t.data_type for t in model.graph.initializer}, "no quantized bias"
    assert error(target, source, data) <= 0.1
    _only_layers_read_pairs(model)


def _only_layers_read_pairs(model: Any) -> None:
    """What a layer answers goes on in float: between it and its activation stands no pair."""
    made = {name: node for node in model.graph.node for name in node.output}
    activations = ("Relu", "Clip", "Sigmoid", "Gelu", "Softmax", "HardSwish", "LeakyRelu")
    for node in model.graph.node:
        maker = made.get(node.input[0])
        assert node.op_type not in activations or maker is None or maker.op_type != "DequantizeLinear"


@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_weights_for_tensorrt_have_a_scale_per_output_channel(name: str, tmp_path: Path) -> None:
    _, _, target = quantized_net(name, tmp_path, scheme="tensorrt")
    stored = read_by(target, "Conv", "Gemm", "MatMul")
    assert stored
    for weights, scale in stored:
        assert weights.dtype == np.int8
        assert weights.min() >= -127
        assert scale.size in (weights.shape[0], weights.shape[-1])


def test_a_silu_stays_two_operators_for_tensorrt_and_one_elsewhere(tmp_path: Path) -> None:
    found = {}
    for scheme in ("x86", "arm", "tensorrt"):
        (tmp_path / scheme).mkdir()
        target = quantized_net("concat", tmp_path / scheme, scheme=scheme)[2]
        found[scheme] = {(n.domain, n.op_type) for n in onnx.load(target).graph.node}
    assert (CONTRIB, "QuickGelu") in found["x86"] & found["arm"]
    assert ("", "Sigmoid") in found["tensorrt"] - found["x86"]


@pytest.mark.parametrize(
    ("isa", "scheme"),
    [
        ("avx512-vnni", "x86"),
        ("avx2", "x86"),
        ("amd64", "x86"),
        ("neon-i8mm", "arm"),
        ("neon", "arm"),
        ("arm64", "arm"),
        ("aarch64", "arm"),
    ],
)
def test_auto_is_the_scheme_of_this_machine(
    isa: str, scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(static, "isa", lambda: isa)
    assert static.scheme_here() == scheme
    auto = quantized_net("mlp", tmp_path)[2].read_bytes()
    assert auto == quantized_net("mlp", tmp_path, scheme=scheme)[2].read_bytes()


@pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None, reason="no QEMU here: apt-get install qemu-user-static"
)
def test_auto_answers_to_the_last_bit_alike_without_vnni_and_eight_bits_do_not(tmp_path: Path) -> None:
    """Large inputs drive activations to the end of their range, where 8-bit weights saturate."""
    for bits in ("auto", 8):
        (tmp_path / str(bits)).mkdir()
        data, _, target = quantized_net("residual", tmp_path / str(bits), weight_bits=bits, scheme="x86")
        asked = {"input": 3 * data["input"][:16]}
        there, here = (answers_on(isa, target, asked).outputs["output"] for isa in ("avx2", "native"))
        assert (bits == "auto") == bool((there == here).all())
