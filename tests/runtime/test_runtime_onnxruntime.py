from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser
from runtime_models import linear_model, quantized_model, saved

from pastille.errors import InferenceError
from pastille.runtime import (
    ONNXRUNTIME,
    UNKNOWN_DIM,
    Runtime,
    Session,
    load,
    optimized_operators,
)
from pastille.values import TensorSpec


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(linear_model(), tmp_path_factory.mktemp("models") / "linear.onnx")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(quantized_model(), tmp_path_factory.mktemp("models") / "quantized.onnx")


def test_a_session_says_what_it_takes_and_answers(linear: Path) -> None:
    session = load(linear, threads=1)
    assert isinstance(session, Session)
    assert session.inputs == (TensorSpec(name="input", shape=(3,), dtype="float32"),)
    assert session.outputs == (TensorSpec(name="output", shape=(2,), dtype="float32"),)
    assert session.fixed_batch is None
    answer = session({"input": np.array([[1, 2, 3], [4, 5, 6]], np.float32)})
    np.testing.assert_array_equal(answer["output"], [[1, 4], [4, 10]])


def test_the_seam_fits(linear: Path) -> None:
    runtime: Runtime = ONNXRUNTIME
    assert runtime.name == "onnxruntime"
    assert runtime.version.split(".")[0].isdigit()
    assert runtime.load(linear, threads=2).threads == 2


def test_a_fixed_batch_and_open_sizes_are_told(tmp_path: Path) -> None:
    fixed = load(saved(linear_model(batch="4"), tmp_path / "fixed.onnx"))
    assert fixed.fixed_batch == 4
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (int64[n, t] ids, bool[n] mask) => (int64[n, t] output) { output = Identity(ids) }"""
    ids, mask = load(saved(parser.parse_model(text), tmp_path / "open.onnx")).inputs
    assert ids == TensorSpec(name="ids", shape=(UNKNOWN_DIM,), dtype="int64")
    assert mask == TensorSpec(name="mask", shape=(), dtype="bool")


def test_the_runtime_is_told_its_threads_and_not_to_spin(linear: Path) -> None:
    session: Any = load(linear, threads=2)
    options = session.handle.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session.handle.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        load(linear, threads=0)


@pytest.mark.parametrize(
    "inputs",
    [
        {"input": np.zeros((1, 4), np.float32)},
        {"input": np.zeros((1, 3), np.float64)},
        {"other": np.zeros((1, 3), np.float32)},
        {"input": np.zeros((1, 3), np.float32), "other": np.zeros(1, np.float32)},
        {"input": np.zeros(3, np.float32)},
        {"input": np.array([["a", "b", "c"]], object)},
        {},
    ],
    ids=["shape", "dtype", "name", "one more", "rank", "objects", "none"],
)
def test_what_does_not_fit_is_one_line_with_the_file(
    inputs: dict[str, np.ndarray], linear: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = load(linear)
    with pytest.raises(InferenceError, match=r"^linear\.onnx cannot run: ") as error:
        session(inputs)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_what_the_runtime_does_not_know_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = '<ir_version: 10, opset_import: ["" : 18]> g (float[n] x) => (float[n] y) { y = Unheard(x) }'
    path = saved(parser.parse_model(text), tmp_path / "odd.onnx")
    with pytest.raises(InferenceError, match=r"^odd\.onnx cannot be loaded: .*Unheard") as error:
        load(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_kernel_that_fails_is_one_line_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, 4] x) => (float[a, b] y) <int64[2] s = {3, 5}> { y = Reshape(x, s) }"""
    session = load(saved(parser.parse_model(text), tmp_path / "m.onnx"))
    with pytest.raises(InferenceError, match=r"^m\.onnx cannot run: .*Reshape") as error:
        session({"x": np.zeros((2, 4), np.float32)})
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_threads_may_share_a_session(linear: Path) -> None:
    session = load(linear)
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    expected = session({"input": x})["output"]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: session({"input": x})["output"], range(100)))
    assert all((answer == expected).all() for answer in answers)


def test_operators_are_sorted_by_what_executes_them(quantized: Path, linear: Path) -> None:
    found = optimized_operators(quantized)
    assert found.int8["QLinearConv"] == 1
    assert {"MaxPool", "NhwcMaxPool"} & set(found.int8)
    assert found.floating == {"Sin": 1}
    assert found.conversions == {"DequantizeLinear": 1, "QuantizeLinear": 1}
    plain = optimized_operators(linear)
    assert (plain.int8, plain.conversions) == ({}, {})
    assert plain.floating == {"MatMul": 1}


def test_arithmetic_on_shapes_is_no_operator(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, t] x) => (float[m] y) <int64[1] minus = {-1}, int64[1] two = {2}> {
          shape = Shape(x)
          doubled = Mul(shape, two)
          half = Div(doubled, two)
          wide = Reshape(x, half)
          y = Reshape(wide, minus)
        }"""
    found = optimized_operators(saved(parser.parse_model(text), tmp_path / "m.onnx"))
    assert set(found.floating) == {"Reshape"}


def test_operators_are_counted_without_onnx(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_onnx = optimized_operators(quantized)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert optimized_operators(quantized) == with_onnx


def test_importing_the_seam_imports_neither_runtime_nor_torch() -> None:
    code = (
        "import sys, pastille.runtime, pastille.measure.latency, pastille.bench; "
        "print({'onnx', 'onnxruntime', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
