"""A file that divides its answers by a temperature, and is otherwise the one it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pastille.errors import ExportError, ParityError
from pastille.export import export_onnx
from pastille.export.temperature import METADATA_KEY, scale_output, temperature_of
from pastille.quantization import quantize_static
from pastille.recipe import Quantize
from pastille.runtime import load, optimized_operators

Batch = dict[str, np.ndarray]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    ).eval()


def images(n: int = 6) -> Batch:
    return {"input": np.random.default_rng(0).normal(size=(n, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export_onnx(network(), {name: torch.from_numpy(x) for name, x in images().items()}, fp32)
    quantize_static(fp32, int8, lambda: iter([images(32)]), Quantize())
    return {"fp32": fp32, "int8": int8}


def answers(path: Path, batch: Batch) -> np.ndarray:
    session = load(path)
    return session(batch)[session.outputs[0].name]


def interface(path: Path) -> tuple[Any, Any]:
    graph = onnx.load(path).graph
    return list(graph.input), list(graph.output)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 1.7, 20.0])
def test_answers_are_divided_and_nothing_else_changes(
    precision: str, temperature: float, files: dict[str, Path], tmp_path: Path
) -> None:
    source, target = files[precision], tmp_path / "scaled.onnx"
    assert scale_output(source, target, temperature, images()) == temperature
    assert temperature_of(target) == temperature
    assert temperature_of(source) == 1.0
    for n in (1, 2, 7):
        expected = answers(source, images(n)) / temperature
        found = answers(target, images(n))
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
        assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert interface(target) == interface(source)
    assert len(onnx.load(target).graph.node) == len(onnx.load(source).graph.node) + 1
    assert optimized_operators(target).int8 == optimized_operators(source).int8
    assert bool(optimized_operators(target).conversions) == (precision == "int8")
    if precision == "fp32":
        onnx.checker.check_model(onnx.load(target), full_check=True)


@pytest.mark.parametrize("bias", [True, False])
def test_a_runtime_that_fuses_the_division_into_a_wide_product_stays_within_rounding(
    bias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4096, 3, bias=bias).eval()
    batch = {"input": np.random.default_rng(0).normal(size=(8, 4096)).astype(np.float32)}
    export_onnx(model, {"input": torch.from_numpy(batch["input"])}, tmp_path / "s.onnx")
    assert scale_output(tmp_path / "s.onnx", tmp_path / "t.onnx", 1.37, batch) == 1.37


@given(temperatures=st.lists(st.floats(0.05, 20), min_size=1, max_size=3))
@settings(max_examples=10, deadline=None)
def test_a_second_scaling_multiplies_and_adds_no_node(
    temperatures: list[float], files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("twice") / "scaled.onnx"
    source = files["fp32"]
    for temperature in temperatures:
        total = scale_output(source, target, temperature, images())
        source = target
    assert total == pytest.approx(np.prod(temperatures))
    assert temperature_of(target) == total
    assert np.allclose(answers(target, images()), answers(files["fp32"], images()) / total, rtol=1e-5)
    assert len(onnx.load(target).graph.node) == len(onnx.load(files["fp32"]).graph.node) + 1


def test_the_same_bytes_each_time_and_other_metadata_stays(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["fp32"])
    helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, tmp_path / "source.onnx")
    for name in ("one", "two"):
        scale_output(tmp_path / "source.onnx", tmp_path / name, 1.3, images())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    props = {entry.key: entry.value for entry in onnx.load(tmp_path / "one").metadata_props}
    assert props == {"author": "somebody", METADATA_KEY: "1.3"}


def saved(path: Path, nodes: Sequence[Any], dtype: int = TensorProto.FLOAT, **initializers: Any) -> Path:
    """A graph from ``x`` to ``y``, ``(N, 2)`` each."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", dtype, ["N", 2])],
        [helper.make_tensor_value_info("y", dtype, ["N", 2])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def test_an_output_that_is_read_again_inside_is_not_scaled_there(tmp_path: Path) -> None:
    """``y`` feeds a branch, whose value feeds nothing; and a side output reads ``y`` raw."""
    body = [
        helper.make_graph(
            [helper.make_node(op, ["y"], ["inner"])],
            op,
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )
        for op in ("Neg", "Identity")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=body[0], else_branch=body[1]),
        helper.make_node("Add", ["chosen", "y"], ["side"]),
    ]
    source = saved(tmp_path / "source.onnx", nodes, yes=np.array(True))
    model = onnx.load(source)
    model.graph.output.append(helper.make_tensor_value_info("side", TensorProto.FLOAT, ["N", 2]))
    onnx.save(model, source)
    batch = {"x": np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)}
    scale_output(source, tmp_path / "scaled.onnx", 4.0, batch)
    before, after = (load(path)(batch) for path in (source, tmp_path / "scaled.onnx"))
    assert after["y"].tolist() == (before["y"] / 4).tolist()
    assert after["side"].tolist() == before["side"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_double_precision(tmp_path: Path) -> None:
    source = saved(tmp_path / "s.onnx", [helper.make_node("Neg", ["x"], ["y"])], TensorProto.DOUBLE)
    batch = {"x": np.array([[1.0, 2.0]])}
    scale_output(source, tmp_path / "t.onnx", 3.0, batch)
    assert answers(tmp_path / "t.onnx", batch) == pytest.approx(-batch["x"] / 3, rel=1e-15)


@pytest.mark.parametrize(
    ("dtype", "numpy_type"),
    [(TensorProto.INT64, np.int64), (TensorProto.FLOAT16, np.float16), (TensorProto.UINT8, np.uint8)],
)
def test_an_output_that_is_not_float_is_refused(dtype: int, numpy_type: Any, tmp_path: Path) -> None:
    source = saved(tmp_path / "s.onnx", [helper.make_node("Identity", ["x"], ["y"])], dtype)
    with pytest.raises(ExportError, match="its output 'y' is not float32 or float64; leave calibrate out"):
        scale_output(source, tmp_path / "t.onnx", 2.0, {"x": np.ones((1, 2), numpy_type)})
    assert not (tmp_path / "t.onnx").exists()


def test_an_output_that_nothing_computes_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "s.onnx", [helper.make_node("Identity", ["x"], ["z"])])
    model = onnx.load(source)
    model.graph.output[0].name = "x"
    onnx.save(model, source)
    with pytest.raises(ExportError, match="its output 'x' is computed by no operator"):
        scale_output(source, tmp_path / "t.onnx", 2.0, {"x": np.ones((1, 2), np.float32)})


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_a_temperature_out_of_range(temperature: float, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        scale_output(files["fp32"], tmp_path / "t.onnx", temperature, images())


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    """An answer that the division takes out of float32 is not the old one divided."""
    source = saved(tmp_path / "s.onnx", [helper.make_node("Neg", ["x"], ["y"])])
    batch = {"x": np.full((1, 2), 1e38, np.float32)}
    (tmp_path / "t.onnx").write_bytes(b"old")
    with pytest.raises(ParityError, match=r"t\.onnx does not answer like the file it was scaled from"):
        scale_output(source, tmp_path / "t.onnx", 0.05, batch)
    assert (tmp_path / "t.onnx").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.onnx", "t.onnx"]
