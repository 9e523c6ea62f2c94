"""What truly runs in int8: models of which that is known, taken apart by their proof."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from runtime_models import linear_model, quantized_model, saved

from pastille.errors import InferenceError, IntegrityError, UsageError
from pastille.runtime import kernels, load, optimized_operators
from pastille.runtime.why_float import COMPUTING, MOVING
from pastille.values import FloatKernel, KernelProof, from_json, to_json

SCALE, ZERO = np.float32(0.05), np.uint8(128)
IMAGE = (4, 8, 8)
Arrays = Mapping[str, np.ndarray | np.generic]
NOTHING: Arrays = {}


def rng_floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pair(
    source: str, result: str, scale: str = "scale", zero: str = "zero", **axis: int
) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{result}_q"], **axis),
        helper.make_node("DequantizeLinear", [f"{result}_q", scale, zero], [result], **axis),
    ]


def weight(name: str, values: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """int8 constants that a DequantizeLinear gives as ``name``."""
    stored = np.clip(np.round(values / 0.02), -63, 63).astype(np.int8)
    node = helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [name])
    return [node], {f"{name}_q": stored, f"{name}_s": np.float32(0.02), f"{name}_z": np.int8(0)}


def model(
    nodes: Sequence[onnx.NodeProto],
    arrays: Arrays = NOTHING,
    *,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = ("output",),
) -> onnx.ModelProto:
    given = inputs or {"input": IMAGE}
    floats = TensorProto.FLOAT
    constants = {"scale": SCALE, "zero": ZERO, "wider": np.float32(0.1)} | dict(arrays)
    graph = helper.make_graph(
        list(nodes),
        "known",
        [helper.make_tensor_value_info(n, floats, ["batch", *shape]) for n, shape in given.items()],
        [helper.make_tensor_value_info(name, floats, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def between_pairs(
    op: str,
    constants: Arrays = NOTHING,
    *,
    inputs: int = 1,
    shape: tuple[int, ...] = IMAGE,
    **attributes: Any,
) -> onnx.ModelProto:
    """One operator between Q/DQ pairs; a constant called W is quantized."""
    nodes: list[onnx.NodeProto] = []
    arrays: dict[str, Any] = {}
    read: list[str] = []
    outputs = attributes.pop("outputs", 1)
    for i in range(inputs):
        nodes += pair(f"input{i}", f"x{i}")
        read.append(f"x{i}")
    for name, values in constants.items():
        if name == "W":
            made, stored = weight("W", np.asarray(values))
            nodes, arrays = [*nodes, *made], arrays | stored
        else:
            arrays[name] = values
        read.append(name)
    results = [f"y{i}" for i in range(outputs)]
    nodes.append(helper.make_node(op, read, results, name="the_node", **attributes))
    for name in results:
        nodes += pair(name, f"{name}_again")
    given = {f"input{i}": shape for i in range(inputs)}
    return model(nodes, arrays, inputs=given, outputs=[f"{name}_again" for name in results])


def proven(found: onnx.ModelProto, folder: Path, *, batch: int = 1, **options: Any) -> KernelProof:
    path = saved(found, folder / "model.onnx")
    return kernels(path, random_batch(path, batch), **options)


def random_batch(path: Path, size: int = 1) -> dict[str, np.ndarray]:
    return {spec.name: rng_floats(size, *spec.shape) for spec in load(path).inputs}


def uses(proof: KernelProof, precision: str) -> dict[str, int]:
    return {use.operator: use.count for use in proof.uses if use.precision == precision}


def the_float(proof: KernelProof, operator: str) -> FloatKernel:
    (found,) = [kernel for kernel in proof.floats if kernel.operator == operator]
    return found


def test_everything_in_int8(tmp_path: Path) -> None:
    proof = proven(between_pairs("Conv", {"W": rng_floats(8, 4, 3, 3)}), tmp_path, batch=3)
    assert uses(proof, "int8")["QLinearConv"] == 1
    assert uses(proof, "float") == {}
    assert (proof.int8_count, proof.int8_macs, proof.floats) == (1.0, 1.0, ())
    assert (proof.batch, proof.calls, proof.note) == (3, 20, "")
    assert sum(use.macs or 0 for use in proof.uses) == 3 * 8 * 6 * 6 * 4 * 9
    shares = [proof.time(kind) for kind in ("int8", "float", "conversion", "other")]
    assert sum(share or 0 for share in shares) == pytest.approx(1)
    assert from_json(KernelProof, to_json(proof)) == proof


def test_an_island_of_float_is_named_with_its_reason_and_its_cost(tmp_path: Path) -> None:
    proof = proven(quantized_model(), tmp_path)
    sin = the_float(proof, "Sin")
    assert sin.name == "Sin output"
    assert sin.reason.startswith("no int8 kernel for Sin in ONNX Runtime ")
    assert (sin.share or 0) > 0
    assert (sin.conversions or 0) > 0, "the DequantizeLinear before it is paid for by it"
    assert proof.int8_macs == 1.0
    assert 0 < (proof.int8_count or 0) < 1


def test_nothing_in_int8(tmp_path: Path) -> None:
    proof = proven(linear_model(), tmp_path)
    assert (proof.int8_count, proof.int8_macs, proof.time("int8")) == (0.0, 0.0, 0.0)
    assert proof.floats[0].reason == "nothing in the file is quantized"


@pytest.mark.parametrize("op", ["Sin", "Tanh", "HardSigmoid", "Sqrt", "LayerNormalization"])
def test_a_float_kernel_between_pairs_is_never_called_int8(op: str, tmp_path: Path) -> None:
    constants = {"gamma": np.ones(8, np.float32)} if op == "LayerNormalization" else NOTHING
    proof = proven(between_pairs(op, constants), tmp_path)
    assert uses(proof, "int8") == {}
    assert proof.int8_count == 0.0
    assert the_float(proof, op).name == f"{op} the_node"
    assert sum(uses(proof, "conversion").values()) == 4


def test_half_of_the_products_in_float(tmp_path: Path) -> None:
    """Two equal matrices, the weights of one of them left as they are."""
    made, stored = weight("W", rng_floats(8, 8))
    nodes = [
        *pair("input", "x"),
        *made,
        helper.make_node("MatMul", ["x", "W"], ["a"], name="quantized"),
        *pair("a", "b"),
        helper.make_node("MatMul", ["b", "plain"], ["c"], name="left"),
        *pair("c", "output"),
    ]
    proof = proven(model(nodes, {**stored, "plain": rng_floats(8, 8)}), tmp_path)
    assert proof.int8_macs == 0.5
    left = the_float(proof, "MatMul")
    assert (left.name, left.reason) == ("MatMul left", "its weights are not quantized")
    assert left.macs == 4 * 8 * 8 * 8


CONV = {"W": rng_floats(8, 4, 3, 3)}


def _unfusable() -> dict[str, tuple[onnx.ModelProto, str, str]]:
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    made, stored = weight("W", CONV["W"])
    conv = [*made, helper.make_node("Conv", ["x", "W"], ["y"])]
    sine = helper.make_node("Sin", ["y"], ["output"])
    moving = [helper.make_node("ReduceMax", ["input"], ["peak"], keepdims=0)]
    per_channel: Arrays = {"scales": np.full(4, 0.05, np.float32), "zeros": np.full(4, 128, np.uint8)}
    return {
        "other scale": (
            model([*pair("input", "x"), pool, *pair("y", "output", "wider")]),
            "MaxPool",
            "not fused: the scales before and after it differ",
        ),
        "scale that is computed": (
            model([*moving, *pair("input", "x", "peak"), pool, *pair("y", "output", "peak")]),
            "MaxPool",
            "not fused: a scale or zero point around it is not constant",
        ),
        "scale per channel": (
            model(
                [
                    *pair("input", "x", "scales", "zeros", axis=1),
                    pool,
                    *pair("y", "output", "scales", "zeros", axis=1),
                ],
                per_channel,
            ),
            "MaxPool",
            "not fused: activations around it are quantized per channel",
        ),
        "the answer": (
            model([*pair("input", "x"), *conv, helper.make_node("Identity", ["y"], ["output"])], stored),
            "Conv",
            "its output is the model's answer, kept float",
        ),
        "read in float": (
            model([*pair("input", "x"), *conv, sine, *pair("output", "again")], stored, outputs=["again"]),
            "Conv",
            "its output is not quantized: Sin after it reads float",
        ),
        "input in float": (
            model(
                [
                    helper.make_node("Sin", ["input"], ["x"]),
                    *conv,
                    *pair("y", "output"),
                ],
                stored,
            ),
            "Conv",
            "its input is not quantized: Sin before it gives float",
        ),
        "fed in float": (
            model([helper.make_node("Sigmoid", ["input"], ["y"]), *pair("y", "output")]),
            "Sigmoid",
            "its input is not quantized: the model is fed float",
        ),
        "interpolation": (
            between_pairs(
                "Resize",
                {"roi": np.zeros(0, np.float32), "sizes": np.array([1, 1, 2, 2], np.float32)},
                mode="linear",
            ),
            "Resize",
            "no int8 kernel for Resize in this mode in ONNX Runtime",
        ),
    }


UNFUSABLE = _unfusable()


@pytest.mark.parametrize("name", UNFUSABLE)
def test_why_the_runtime_did_not_fuse_is_said(name: str, tmp_path: Path) -> None:
    found, operator, reason = UNFUSABLE[name]
    proof = proven(found, tmp_path)
    told = next(k for k in proof.floats if k.operator in {operator, f"Fused{operator}"})
    assert told.reason.startswith(reason)
    assert operator not in uses(proof, "int8")


def _fusable() -> dict[str, onnx.ModelProto]:
    shape = {"shape": np.array([0, -1], np.int64)}
    axes = {"axes": np.array([1], np.int64)}
    cut = {n: np.array([v], np.int64) for n, v in (("start", 0), ("end", 2), ("axis", 1))}
    parts = {"parts": np.array([2, 2], np.int64)}
    resize = {"roi": np.zeros(0, np.float32), "sizes": np.array([1, 1, 2, 2], np.float32)}
    return {
        "Conv": between_pairs("Conv", CONV),
        "MatMul": between_pairs("MatMul", {"W": rng_floats(8, 5)}),
        "Gemm": between_pairs("Gemm", {"W": rng_floats(8, 5)}, shape=(8,)),
        **{op: between_pairs(op, inputs=2) for op in ("Add", "Mul")},
        "Concat": between_pairs("Concat", inputs=2, axis=1),
        "AveragePool": between_pairs("AveragePool", kernel_shape=[2, 2]),
        "MaxPool": between_pairs("MaxPool", kernel_shape=[2, 2]),
        **{op: between_pairs(op) for op in ("GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")},
        **{op: between_pairs(op) for op in ("Flatten", "Transpose")},
        "Resize": between_pairs("Resize", resize, mode="nearest"),
        "Reshape": between_pairs("Reshape", shape),
        "Squeeze": between_pairs("Squeeze", axes, shape=(1, 8, 8)),
        "Unsqueeze": between_pairs("Unsqueeze", axes),
        "Slice": between_pairs("Slice", cut),
        "Split": between_pairs("Split", parts, axis=1, outputs=2),
        "Gather": between_pairs("Gather", {"which": np.array([0, 1], np.int64)}, axis=1),
        "DepthToSpace": between_pairs("DepthToSpace", blocksize=2),
        "Tile": between_pairs("Tile", {"times": np.array([1, 1, 1, 2], np.int64)}),
    }


FUSABLE = _fusable()


@pytest.mark.parametrize("op", FUSABLE)
def test_the_table_of_int8_kernels_is_true_of_the_installed_runtime(op: str, tmp_path: Path) -> None:
    assert op in COMPUTING | MOVING
    proof = proven(FUSABLE[op], tmp_path, calls=1)
    assert uses(proof, "float") == {}
    assert uses(proof, "int8")


def test_what_only_moves_data_counts_by_what_it_moves(tmp_path: Path) -> None:
    assert set(uses(proven(FUSABLE["Transpose"], tmp_path), "int8")) == {"Transpose"}


def test_arithmetic_on_shapes_is_neither(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, t] input) => (float[m] y) <int64[1] minus = {-1}, int64[1] two = {2}> {
          shape = Shape(input)
          doubled = Mul(shape, two)
          half = Div(doubled, two)
          wide = Reshape(input, half)
          y = Reshape(wide, minus)
        }"""
    path = saved(parser.parse_model(text), tmp_path / "m.onnx")
    proof = kernels(path, {"input": rng_floats(2, 3)})
    assert set(uses(proof, "float")) == {"Reshape"}
    assert set(uses(proof, "other")) == {"Shape", "Mul", "Div"}
    assert proof.int8_macs is None


def test_it_agrees_with_the_count_of_operators(tmp_path: Path) -> None:
    path = saved(quantized_model(), tmp_path / "m.onnx")
    found, proof = optimized_operators(path), kernels(path, random_batch(path))
    assert uses(proof, "int8") == found.int8
    assert uses(proof, "float") == found.floating
    assert uses(proof, "conversion") == found.conversions


def test_an_edge_box_needs_no_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(quantized_model(), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert kernels(path, random_batch(path)).int8_macs == 1.0


def test_names_that_break_json_do_no_harm(tmp_path: Path) -> None:
    names = ['"},{"name":"x_kernel_time', "a\nb\\", "", "model_run", "plain", ""]
    ops = ["Sin", "Cos", "Tanh", "Exp", "Sin", "Sin"]
    tensors = ["input", *(f"t{i}" for i in range(len(ops) - 1)), "output"]
    nodes = [
        helper.make_node(op, [tensors[i]], [tensors[i + 1]], name=name)
        for i, (op, name) in enumerate(zip(ops, names, strict=True))
    ]
    proof = proven(model(nodes), tmp_path)
    assert (proof.note, proof.calls) == ("", 20)
    assert uses(proof, "float") == {"Sin": 3, "Cos": 1, "Tanh": 1, "Exp": 1}


def test_the_branches_of_an_if_belong_to_it(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, 4] input, bool yes) => (float[n, 4] y) {
          z = Sin(input)
          w = If(yes) <
            then_branch = a () => (float[n, 4] p) { q = Cos(z)  p = Tanh(q) },
            else_branch = b () => (float[n, 4] r) { r = Exp(z) }
          >
          y = Relu(w)
        }"""
    path = saved(parser.parse_model(text), tmp_path / "m.onnx")
    proof = kernels(path, {"input": rng_floats(1, 4), "yes": np.array(True)})
    assert (proof.note, uses(proof, "float")) == ("", {"Sin": 1, "If": 1, "Relu": 1})


def test_a_graph_too_large_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    one = helper.make_node("Unheard", ["input"], ["output"])
    found = model([one])
    found.graph.node.extend([one] * 20_000)
    path = saved(found, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"^m\.onnx has 20,001 operators; at most 20,000 are looked at"):
        kernels(path, {"input": rng_floats(1, *IMAGE)})


def test_many_operators_get_fewer_calls_and_too_many_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("pastille.runtime.kernels")
    monkeypatch.setattr(module, "_EVENTS", 25)
    proof = proven(quantized_model(), tmp_path)
    assert 0 < proof.calls < 20
    monkeypatch.setattr(module, "_EVENTS", 2)
    proof = proven(quantized_model(), tmp_path)
    assert (proof.calls, proof.time("int8"), proof.int8_macs) == (0, None, None)
    assert proof.note == "the graph has too many operators to be timed"
    assert uses(proof, "int8")["QLinearConv"] == 1
    assert the_float(proof, "Sin").share is None


def test_time_is_bounded(tmp_path: Path) -> None:
    assert proven(quantized_model(), tmp_path, budget_s=0.0).calls == 1


def test_only_the_dearest_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pastille.runtime.kernels"), "_LISTED", 3)
    tensors = ["input", *(f"t{i}" for i in range(7)), "output"]
    nodes = [helper.make_node("Sin", [a], [b]) for a, b in pairwise(tensors)]
    proof = proven(model(nodes), tmp_path)
    assert (len(proof.floats), proof.more_floats, proof.count("float")) == (3, 5, 8)
    costs = [kernel.share or 0 for kernel in proof.floats]
    assert costs == sorted(costs, reverse=True)


def test_what_does_not_load_or_run_is_an_error_of_ours(tmp_path: Path) -> None:
    path = saved(quantized_model(), tmp_path / "m.onnx")
    with pytest.raises(InferenceError, match=r"^m\.onnx cannot run: "):
        kernels(path, {"input": rng_floats(1, 9, 9, 9)})
    path.write_bytes(b"nonsense")
    with pytest.raises(IntegrityError):
        kernels(path, {})
