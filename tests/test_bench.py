from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser

from pastille.bench import BenchResult, bench, synthetic_batch
from pastille.errors import InferenceError, IntegrityError, UsageError
from pastille.values import Conditions, Footprint, TensorSpec, from_json, to_json

HERE = Conditions(device="", isa="", cores=1, threads=1, runtime="", runtime_version="", os="")


def file_of(path: Path, inputs: str, body: str = "y = Relu(x)", output: str = "float[n, 4] y") -> Path:
    text = f'<ir_version: 10, opset_import: ["" : 18]> g ({inputs}) => ({output}) {{ {body} }}'
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def quickly(path: Path, **options: Any) -> BenchResult:
    return bench(path, **({"budget_s": 0.1} | options))


@pytest.fixture(autouse=True)
def started(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start fresh processes, which takes seconds, in one test alone."""
    if "fresh" in request.node.name:
        return
    cost = Footprint(peak_bytes=2, runtime_bytes=1, cold_start_ms=1.0, import_ms=1.0, conditions=HERE)
    monkeypatch.setattr(importlib.import_module("pastille.bench"), "footprint", lambda *a, **k: cost)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return file_of(tmp_path_factory.mktemp("bench") / "plain.onnx", "float[n, 4] x")


def test_a_file_is_timed_for_each_batch_size(plain: Path) -> None:
    found = quickly(plain, batch_sizes=(1, 3), threads=2)
    assert [x.batch for x in found.latency] == [1, 3]
    assert {x.conditions.threads for x in found.latency} == {2}
    assert found.kernels is not None
    assert [(x.operator, x.precision, x.count) for x in found.kernels.uses] == [("Relu", "float", 1)]
    assert (found.kernels.batch, found.kernels.conditions.threads) == (1, 2)
    assert (found.against, found.speedups, found.notes) == (None, (), ())
    assert from_json(BenchResult, to_json(found)) == found


def test_a_fresh_process_is_started(plain: Path) -> None:
    found = quickly(plain, batch_sizes=(1,))
    assert found.footprint.peak_bytes > found.footprint.runtime_bytes > 1000


def test_two_files_are_compared_for_each_batch_size(plain: Path, tmp_path: Path) -> None:
    body = "h0 = Sin(x)\n" + "\n".join(f"h{i + 1} = Sin(h{i})" for i in range(60)) + "\ny = Relu(h60)"
    slow = file_of(tmp_path / "slow.onnx", "float[n, 4] x", body)
    found = quickly(slow, against=plain, batch_sizes=(1, 500))
    assert found.against == str(plain)
    assert [x.batch for x in found.speedups] == [1, 500]
    assert all(x.interval.high < 1 for x in found.speedups)


def test_an_open_size_is_asked_for(tmp_path: Path) -> None:
    path = file_of(tmp_path / "open.onnx", "float[n, t, 4] x", output="float[n, t, 4] y")
    with pytest.raises(UsageError, match=r"input 'x' has open sizes \(\?,4\).*--shape x=64,4"):
        quickly(path)
    found = quickly(path, shapes={"x": (9, 4)}, batch_sizes=(1,))
    assert found.inputs == (TensorSpec(name="x", shape=(9, 4), dtype="float32"),)


@pytest.mark.parametrize("shape", [(4,), (9, 5), (0, 4), (-1, 4), ()])
def test_a_shape_must_fit(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = file_of(tmp_path / "open.onnx", "float[n, t, 4] x", output="float[n, t, 4] y")
    with pytest.raises(UsageError, match=r"--shape of input 'x' must be like \(\?,4\)"):
        quickly(path, shapes={"x": shape})


def test_a_shape_of_nothing_is_refused(plain: Path) -> None:
    with pytest.raises(UsageError, match="--shape names 'z', but the inputs are: x"):
        quickly(plain, shapes={"z": (1,)})


def test_a_fixed_batch_is_timed_alone_and_that_is_said(tmp_path: Path, plain: Path) -> None:
    path = file_of(tmp_path / "fixed.onnx", "float[2, 4] x", output="float[2, 4] y")
    found = quickly(path, batch_sizes=(1, 2, 8))
    assert [x.batch for x in found.latency] == [2]
    assert found.notes == ("batch size fixed at 2 in the file; not timed: 1, 8",)
    assert quickly(path, batch_sizes=(2,), against=plain).notes == ()
    other = file_of(tmp_path / "other.onnx", "float[3, 4] x", output="float[3, 4] y")
    with pytest.raises(UsageError, match=r"different fixed batch sizes, \[2, 3\]"):
        quickly(path, against=other)


@pytest.mark.parametrize("sizes", [(), (0,), (1, -2)])
def test_batch_sizes_are_positive(sizes: tuple[int, ...], plain: Path) -> None:
    with pytest.raises(UsageError, match="batch sizes must be at least 1"):
        quickly(plain, batch_sizes=sizes)


def test_two_files_must_take_the_same(plain: Path, tmp_path: Path) -> None:
    other = file_of(tmp_path / "other.onnx", "float[n, 5] x", output="float[n, 5] y")
    with pytest.raises(UsageError, match=r"same inputs, got x float32\[4\] and x float32\[5\]"):
        quickly(plain, against=other)


def test_inputs_are_made_up_alike_every_time() -> None:
    specs = [
        TensorSpec(name="a", shape=(50,), dtype="float16"),
        TensorSpec(name="b", shape=(3,), dtype="int64"),
        TensorSpec(name="c", shape=(), dtype="bool"),
    ]
    batch = synthetic_batch(specs, 40)
    assert {name: (x.shape, str(x.dtype)) for name, x in batch.items()} == {
        "a": ((40, 50), "float16"),
        "b": ((40, 3), "int64"),
        "c": ((40,), "bool"),
    }
    assert not batch["b"].any()
    assert abs(float(batch["a"].astype(float).std()) - 1) < 0.1
    np.testing.assert_array_equal(batch["a"], synthetic_batch(specs, 40)["a"])
    assert (batch["a"] != synthetic_batch(specs, 40, seed=1)["a"]).any()


def test_text_cannot_be_made_up(tmp_path: Path) -> None:
    path = file_of(tmp_path / "text.onnx", "string[n] x", "y = Identity(x)", "string[n] y")
    with pytest.raises(UsageError, match="input 'x' is of type object; only numbers"):
        quickly(path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(IntegrityError):
        quickly(path)
    with pytest.raises(InferenceError, match="Unheard"):
        quickly(file_of(tmp_path / "odd.onnx", "float[n, 4] x", "y = Unheard(x)"))


def test_what_runs_is_proven_without_onnx(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = quickly(plain, batch_sizes=(1,))
    assert found.kernels is not None
    assert found.notes == ()


def test_what_is_too_large_to_be_looked_into_is_said(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pastille.runtime.kernels"), "MAX_NODES", 0)
    found = quickly(plain, batch_sizes=(1,))
    assert found.kernels is None
    assert found.notes == ("plain.onnx has 1 operators; at most 0 are looked at",)
