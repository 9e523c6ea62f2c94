"""The int8 file: what is in it, what runs, and how near its answers are."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from quantization_nets import (
    NETS,
    answer,
    built,
    constants,
    in_batches,
    quantized,
    quantized_net,
    to_tensors,
    two_inputs,
)
from torch import nn

from pastille.errors import CalibrationError, OutputError
from pastille.export import export_onnx
from pastille.quantization import quantize_static
from pastille.recipe import Quantize
from pastille.runtime import load, optimized_operators
from pastille.runtime.onnx_file import check_self_contained

SCALARS = {"passes its input", "one relu", "identity"}  # nothing in them has an int8 kernel


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: x.astype(int) for name, x in constants(path).items() if x.dtype == np.int8 and x.ndim > 1}


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network_answers_nearly_the_same_in_float(name: str, tmp_path: Path) -> None:
    data, source, target = quantized_net(name, tmp_path)
    check_self_contained(target)
    expected, found = answer(source, data), answer(target, data)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 0.05 * np.ptp(expected)
    assert load(target).fixed_batch is None
    one = {k: x[:1] for k, x in data.items()}
    np.testing.assert_allclose(answer(target, one), found[:1], atol=1e-5)
    assert bool(optimized_operators(target).int8) == (name not in SCALARS | {"ends in conv relu"})


@pytest.mark.parametrize("name", [name for name in NETS if name.startswith("ends in")])
def test_the_output_takes_more_than_256_values(name: str, tmp_path: Path) -> None:
    """An output on a grid of 256 steps would make classes tie, also where a Sigmoid bends the grid."""
    data, source, target = quantized_net(name, tmp_path)
    expected, found = answer(source, data), answer(target, data)
    assert len(np.unique(found)) > 0.9 * len(np.unique(expected))
    makers = {out: node for node in onnx.load(target).graph.node for out in node.output}
    assert makers["output"].op_type != "DequantizeLinear"


@pytest.mark.parametrize(("name", "low", "high"), [("ends in relu", 0, np.inf), ("ends in clip", -0.1, 0.1)])
def test_a_last_activation_still_clips(name: str, low: float, high: float, tmp_path: Path) -> None:
    data, _, target = quantized_net(name, tmp_path)
    found = answer(target, {"input": 3 * data["input"]})  # beyond what it was calibrated on, too
    assert low == pytest.approx(found.min(), abs=1e-7)
    assert found.max() <= high + 1e-7


def test_a_residual_network_runs_wholly_in_int8(tmp_path: Path) -> None:
    _, _, target = quantized_net("residual", tmp_path)
    ran = optimized_operators(target)
    assert dict(ran.floating) == {}
    assert dict(ran.conversions) == {"QuantizeLinear": 1}, "of the input"
    kernels = ("QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm")
    assert [ran.int8[k] for k in kernels] == [3, 1, 1, 1]


@pytest.mark.parametrize("name", ["residual", "depthwise", "squeeze-excite", "transformer", "mlp", "tied"])
def test_seven_bits_cannot_saturate(name: str, tmp_path: Path) -> None:
    _, _, target = quantized_net(name, tmp_path)
    found = weights(target)
    assert found
    for w in found.values():
        for axis in range(w.ndim):  # whichever axis the kernel adds along
            pairs = np.abs(np.delete(w, 0, axis)) + np.abs(np.delete(w, -1, axis))
            assert (255 * pairs).max(initial=0) <= 32767
        assert np.abs(w).max() > 32, "7 bits are used"


def test_eight_bits_reach_127(tmp_path: Path) -> None:
    _, _, target = quantized_net("residual", tmp_path, weight_bits=8)
    assert {int(np.abs(w).max()) for w in weights(target).values()} == {127}


def test_one_scale_per_output_channel(tmp_path: Path) -> None:
    _, _, target = quantized_net("residual", tmp_path)
    file, known = onnx.load(target), constants(target)
    shapes = {}
    for node in file.graph.node:
        weight = known.get(node.input[0])
        if node.op_type == "DequantizeLinear" and weight is not None and weight.dtype == np.int8:
            shapes[weight.shape] = known[node.input[1]].shape
            assert not known[node.input[2]].any(), "symmetric"
            axis = next(a.i for a in node.attribute if a.name == "axis")
            assert known[node.input[1]].shape == (weight.shape[axis],)
    assert shapes == {(8, 3, 3, 3): (8,), (8, 8, 3, 3): (8,), (16, 8, 3, 3): (16,), (4, 16): (4,)}


def test_channels_of_very_different_size_all_keep_their_precision(tmp_path: Path) -> None:
    model, data = built("mlp")
    with torch.no_grad():
        model[2].weight[0] *= 1e-3  # type: ignore[index]
        model[2].bias[0] *= 1e-3  # type: ignore[index]
    source, target = quantized(model, data, tmp_path)
    small, found = answer(source, data)[:, 0], answer(target, data)[:, 0]
    assert np.abs(found - small).max() < 0.05 * np.ptp(small)


def test_activations_are_unsigned(tmp_path: Path) -> None:
    _, _, target = quantized_net("residual", tmp_path)
    known = {t.name: t.data_type for t in onnx.load(target).graph.initializer}
    points = [known[n.input[2]] for n in onnx.load(target).graph.node if n.op_type == "QuantizeLinear"]
    assert set(points) == {TensorProto.UINT8}


def test_nothing_unused_stays_in_the_file(tmp_path: Path) -> None:
    _, _, target = quantized_net("ends in softmax", tmp_path)
    graph = onnx.load(target).graph
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    assert {t.name for t in graph.initializer} <= used
    assert all(used.intersection(node.output) for node in graph.node)


def test_two_named_inputs(tmp_path: Path) -> None:
    model, data = two_inputs()
    source, target = quantized(model, data, tmp_path)
    expected = answer(source, data)
    assert np.abs(answer(target, data) - expected).max() <= 0.05 * np.ptp(expected)
    assert [s.name for s in load(target).inputs] == ["image", "age"]


def test_what_else_reads_the_last_tensor_still_runs_in_int8(tmp_path: Path) -> None:
    _, _, target = quantized_net("reused output", tmp_path)
    assert optimized_operators(target).int8["QGemm"] == 3


def test_decisions_agree_where_classes_are_separable(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 256)
    x = (np.eye(8)[labels] * 3 + rng.normal(size=(256, 8)) * 0.4).astype(np.float32)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    source, target = quantized(model, {"input": x}, tmp_path)
    decided = answer(source, {"input": x}).argmax(1)
    assert (decided == labels).mean() > 0.99
    assert (answer(target, {"input": x}).argmax(1) == decided).all()


@pytest.mark.parametrize("settings", [{}, {"calibration": "percentile"}], ids=["minmax", "percentile"])
def test_the_same_bytes_each_time(settings: dict[str, Any], tmp_path: Path) -> None:
    model, data = built("squeeze-excite")
    files = []
    for i, size in enumerate((16, 64)):
        (tmp_path / str(i)).mkdir()
        source, target = tmp_path / "float.onnx", tmp_path / str(i) / "int8.onnx"
        export_onnx(model, to_tensors(data), source)
        quantize_static(source, target, in_batches(data, size), Quantize(**settings))
        files.append(target.read_bytes())
    assert files[0] == files[1]


def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from quantization_nets import *;"
        "quantized(*built('squeeze-excite'), pathlib.Path(sys.argv[1]))"
    )
    _, _, here = quantized_net("squeeze-excite", tmp_path)
    digests = [hashlib.sha256(here.read_bytes()).hexdigest()]
    for seed in ("1",):
        (tmp_path / seed).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", script, str(tmp_path / seed)]
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")
        digests.append(hashlib.sha256((tmp_path / seed / "int8.onnx").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert str(tmp_path).encode() not in (tmp_path / "1" / "int8.onnx").read_bytes()


def test_percentile_clips_an_outlier_that_minmax_keeps(tmp_path: Path) -> None:
    model, data = built("mlp")
    data["input"][0, 0] = 1000.0
    export_onnx(model, to_tensors(data), tmp_path / "float.onnx")
    scales = []
    for settings in (Quantize(), Quantize(calibration="percentile", percentile=99.0)):
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", in_batches(data), settings)
        scales.append(float(constants(tmp_path / "int8.onnx")["input_scale"]))
    assert scales[0] > 1000 / 256
    assert scales[1] < 10 / 256


def test_constant_activations_do_not_divide_by_zero(tmp_path: Path) -> None:
    for settings in ({}, {"calibration": "percentile"}):
        data, _, target = quantized_net("dead", tmp_path, **settings)
        assert np.isfinite(answer(target, data)).all()


def test_all_zero_weights_and_inputs(tmp_path: Path) -> None:
    model, data = built("mlp")
    for p in model.parameters():
        nn.init.zeros_(p)
    _, target = quantized(model, {"input": np.zeros_like(data["input"])}, tmp_path)
    assert not answer(target, {"input": np.zeros_like(data["input"])}).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_nothing_written(wrong: float, tmp_path: Path) -> None:
    model, data = built("mlp")
    data["input"][40, 3] = wrong
    with pytest.raises(CalibrationError, match="'input'"):
        quantized(model, data, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["float.onnx"]


def test_no_batches(tmp_path: Path) -> None:
    model, data = built("mlp")
    export_onnx(model, to_tensors(data), tmp_path / "float.onnx")
    with pytest.raises(CalibrationError, match="at least one batch"):
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", list, Quantize())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    data, source, _ = quantized_net("mlp", tmp_path)
    with pytest.raises(OutputError):
        quantize_static(source, source / "int8.onnx", in_batches(data), Quantize())


def test_it_leaves_logging_and_the_source_as_they_were_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []  # as in a program that set up no logging
    try:
        model, data = built("squeeze-excite")
        export_onnx(model, to_tensors(data), tmp_path / "float.onnx")
        before, level = (tmp_path / "float.onnx").read_bytes(), root.level
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", in_batches(data), Quantize())
        assert root.handlers == []
        assert (root.level, root.manager.disable) == (level, logging.NOTSET)
    finally:
        root.handlers = kept
    assert (tmp_path / "float.onnx").read_bytes() == before
    assert capfd.readouterr() == ("", "")
