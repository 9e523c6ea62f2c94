"""What each layer of a file holds and multiplies, against PyTorch's own counts of the module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from measure_models import exported, mlp_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pastille import Quantize, quantize
from pastille.measure.counts import macs, parameters
from pastille.measure.layers import layer_costs, macs_by_layer, parameters_by_layer
from pastille.values import LayerCost


class Block(nn.Module):
    """Convolutions, a linear layer before an activation (it is turned), and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        y = y + self.mlp(y)
        y = (y @ y.transpose(1, 2)).softmax(2) @ y
        out: torch.Tensor = self.head(y.mean(1))
        return out


@pytest.fixture(scope="module")
def block(models: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Block().eval()
    return model, exported(model, torch.randn(2, 3, 8, 8), models / "block.onnx")


def by_torch(model: nn.Module) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 8, 8))
    found = {
        name.partition(".")[2]: sum(counts.values()) // 2
        for name, counts in counter.get_flop_counts().items()
    }
    return {name: n for name, n in found.items() if isinstance(_at(model, name), nn.Conv2d | nn.Linear)}


def _at(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name) if name else None


def test_macs_of_each_layer_are_half_of_torchs_flops(block: tuple[nn.Module, Path]) -> None:
    model, path = block
    found = macs_by_layer(path)
    expected = by_torch(model)
    assert set(expected) == {"conv", "mlp.0", "mlp.2", "head"}
    assert {name: found[name] for name in expected} == expected
    assert found[""] == 2 * 36 * 36 * 8, "the two products of activations have no layer"
    assert sum(found.values()) == macs(path)


def test_parameters_of_each_layer_are_those_of_the_module(block: tuple[nn.Module, Path]) -> None:
    model, path = block
    found = parameters_by_layer(path)
    for name in ("conv", "mlp.0", "mlp.2", "head"):
        assert found[name] == sum(p.numel() for p in model.get_submodule(name).parameters()), name
    assert sum(found.values()) == parameters(path)


def test_a_bias_that_stands_for_several_layers_names_none(models: Path) -> None:
    twins = nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8))
    for layer in ("1", "3"):
        nn.init.zeros_(twins.get_parameter(f"{layer}.bias"))
    path = exported(twins, torch.randn(2, 3, 8, 8), models / "twins.onnx")
    # The exporter keeps one of two equal constants: whose products these are is not known by it.
    assert dict(macs_by_layer(path)) == {"": 3 * (64 * 8 + 8 * 8)}


def test_the_quantized_file_has_the_same_layers(block: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, path = block
    cases = [{"input": x} for x in np.random.default_rng(0).normal(size=(4, 8, 3, 8, 8)).astype(np.float32)]
    target = tmp_path / "int8.onnx"
    quantize(path, target, lambda: iter(cases), Quantize())
    # How it is cut into operators differs; what each layer multiplies does not.
    assert macs_by_layer(target) == macs_by_layer(path)
    assert {n: c for n, c in parameters_by_layer(target).items() if n} == {
        n: c for n, c in parameters_by_layer(path).items() if n
    }


def test_a_list_that_is_cut_keeps_the_dearest_in_order_and_the_sum(block: tuple[nn.Module, Path]) -> None:
    _, path = block
    whole, cut = layer_costs(path), layer_costs(path, most=2)
    assert [layer.name for layer in cut] == ["conv", "mlp.0", ""]
    for kind in ("macs", "parameters"):
        assert sum(getattr(x, kind) for x in cut) == sum(getattr(x, kind) for x in whole)


def test_a_file_without_names_has_one_row(tmp_path: Path) -> None:
    path = mlp_file(tmp_path / "m.onnx")
    assert layer_costs(path) == (LayerCost(name="", macs=64 + 24, parameters=64 + 24),)
