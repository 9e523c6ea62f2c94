"""Parity fails whenever the file's answers are not the model's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_nets import Function, conv_net, rows
from onnx import numpy_helper
from torch import Tensor, nn

from pastille.errors import ParityError
from pastille.export import check_parity, export_onnx

BATCH = {"input": rows(n=4)}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def model() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    export_onnx(small(), BATCH, path)
    return path.read_bytes()


@pytest.fixture
def path(exported: bytes, tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(exported)
    return tmp_path / "m.onnx"


def failure(model: nn.Module, path: Path, batch: dict[str, Tensor] = BATCH) -> ParityError:
    with pytest.raises(ParityError) as caught:
        check_parity(model, path, batch)
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_right_file_passes(model: nn.Module, path: Path) -> None:
    found = check_parity(model, path, BATCH)
    with torch.no_grad():
        largest = float(model(BATCH["input"]).abs().max())
    assert found.tolerance == pytest.approx(largest / 1000)
    assert found.max_abs_error < 1e-5


def test_a_changed_file(model: nn.Module, path: Path) -> None:
    file = onnx.load(path)
    bias = next(t for t in file.graph.initializer if numpy_helper.to_array(t).shape == (3,))
    bias.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(bias) + np.array([0, 0, 0.5], np.float32), bias.name)
    )
    path.write_bytes(file.SerializeToString())
    error = failure(model, path)
    assert error.max_abs_error == pytest.approx(0.5, abs=1e-4)
    assert error.max_abs_error > error.tolerance
    assert "m.onnx" in str(error)
    assert "0.5" in str(error)


def test_a_changed_model(model: nn.Module, path: Path) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    failure(model, path)


def test_small_answers_are_held_to_a_small_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(Function(lambda net, x: x * 1e-4), BATCH, path)
    failure(Function(lambda net, x: x * 2e-4), path)


def test_a_model_that_answers_nan(tmp_path: Path) -> None:
    model, path = Function(lambda net, x: x * math.nan), tmp_path / "m.onnx"
    export_onnx(model, BATCH, path)
    assert "NaN" in str(failure(model, path))


def test_a_nan_in_a_late_row(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(Function(lambda net, x: x.clamp(min=0).sqrt()), BATCH, path)
    x = rows(n=4).abs()
    x[3, 0] = math.nan  # only the batch of four has it
    failure(Function(lambda net, x: x.nan_to_num().sqrt()), path, {"input": x})


@pytest.mark.parametrize("wrong", [math.inf])
def test_a_file_that_answers_infinity(wrong: float, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(Function(lambda net, x: x + wrong), BATCH, path)
    failure(Function(lambda net, x: x), path)


def test_another_shape_is_another_answer(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(Function(lambda net, x: x.reshape(-1, 2, 4)), BATCH, path)
    error = failure(Function(lambda net, x: x), path)
    assert "(1, 2, 4)" in str(error)
    assert "(1, 8)" in str(error)


def test_a_file_exported_before_training_went_on(tmp_path: Path) -> None:
    model, x = conv_net(), {"input": rows(3, 8, 8)}
    export_onnx(model, x, tmp_path / "m.onnx")
    model.train()(x["input"])  # moves the running statistics
    failure(model.eval(), tmp_path / "m.onnx", x)
