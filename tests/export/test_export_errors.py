"""What cannot be exported ends in one line that names the operator, the module and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_nets import Branching, Folding, Function, Inside, Strange, rows
from torch import Tensor, nn

from pastille.errors import ExportError
from pastille.export import export_onnx


def refusal(model: nn.Module, path: Path) -> ExportError:
    with pytest.raises(ExportError) as caught:
        export_onnx(model, {"input": rows()[:2]}, path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not list(path.parent.iterdir()), "nothing was written"
    return caught.value


def test_a_branch_on_values_names_module_and_line(tmp_path: Path) -> None:
    error = refusal(Inside(Branching()), tmp_path / "m.onnx")
    assert error.module_name == "body.1"
    for part in ("body.1", "if x.sum() > 0:", "export_nets.py:", "torch.where", "torch.cond"):
        assert part in str(error)


def test_a_branch_in_the_model_itself(tmp_path: Path) -> None:
    error = refusal(Branching(), tmp_path / "m.onnx")
    assert "the model itself" in str(error)
    assert "if x.sum() > 0:" in str(error)


def test_a_value_read_out_of_a_tensor(tmp_path: Path) -> None:
    error = refusal(
        Function(lambda net, x: x * float(x[0, 0].item()) if x[0, 0].item() > 0 else x), tmp_path / "m"
    )
    assert "test_export_errors.py:" in str(error)


def test_an_operator_without_an_onnx_form(tmp_path: Path) -> None:
    error = refusal(Inside(Strange()), tmp_path / "m.onnx")
    assert "pastille_tests" in error.operator
    assert "strange" in error.operator
    assert error.module_name == "body.1"
    assert error.operator in str(error)
    assert "has no ONNX form" in str(error)


def test_a_fixed_batch_size(tmp_path: Path) -> None:
    error = refusal(Inside(Folding()), tmp_path / "m.onnx")
    assert error.operator == "batch axis"
    for part in ("fixes the batch size", "2", "x.shape[0] or -1"):
        assert part in str(error)


def test_a_batch_size_used_as_a_number_of_features(tmp_path: Path) -> None:
    model = Function(lambda net, x: net.head(x.T).T, head=nn.Linear(2, 2))
    assert refusal(model, tmp_path / "m.onnx").operator == "batch axis"


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the sensor\nis not calibrated")


def test_an_exception_of_the_model_names_module_and_line(tmp_path: Path) -> None:
    error = refusal(Inside(Broken()), tmp_path / "m.onnx")
    assert error.module_name == "body.1"
    assert "the sensor is not calibrated" in str(error)
    assert "test_export_errors.py:" in str(error)


def test_a_shape_error_inside_a_library_layer(tmp_path: Path) -> None:
    error = refusal(nn.Sequential(nn.Linear(8, 8), nn.Linear(7, 2)), tmp_path / "m.onnx")
    assert error.module_name == "1"
    assert "pastille" not in str(error), "no line of our own"


def test_a_model_that_returns_no_tensor(tmp_path: Path) -> None:
    error = refusal(Function(lambda net, x: {"logits": x}), tmp_path / "m.onnx")
    for part in ("dict", "tensor", "return"):
        assert part in str(error)


def test_a_model_that_cannot_be_copied(tmp_path: Path) -> None:
    model = nn.Linear(8, 2)
    model.cached = model(rows()) * 2
    assert "copy" in str(refusal(model, tmp_path / "m.onnx"))


def test_hooks_are_taken_off_after_an_error(tmp_path: Path) -> None:
    model = Inside(Branching())
    refusal(model, tmp_path / "m.onnx")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.is_grad_enabled()
