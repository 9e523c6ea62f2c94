from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from measure_models import exported
from onnx import parser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pastille.errors import InferenceError, IntegrityError, UsageError
from pastille.measure.counts import macs, parameters


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, dilation=2, padding=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(self.depthwise(self.conv(x)).relu())
        out: torch.Tensor = self.linear(y.mean((2, 3)))
        return out


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 5, padding=2)
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.norm(self.conv(x)).amax(2))
        return out


class SelfAttention(nn.Module):
    """Two batched products of activations, and a reshape that needs the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)  # (n, heads, t, 4) each
        mixed = (q @ k.transpose(2, 3)).softmax(3) @ v
        out: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, c).mean(1))
        return out


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Grouped(), (4, 9, 9)),
        (Signal(), (2, 40)),
        (SelfAttention(), (6, 8)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 2)), (3, 4)),
    ],
    ids=["grouped", "signal", "attention", "linear"],
)
def test_macs_are_half_of_torchs_flops(model: nn.Module, shape: tuple[int, ...], models: Path) -> None:
    path = exported(model, torch.randn(2, *shape), models / "counted.onnx")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, *shape))
    assert 2 * macs(path) == counter.get_total_flops() > 0
    # The exporter folds a BatchNorm into the convolution before it.
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm1d) for p in m.parameters()]
    assert parameters(path) == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in norms)


def test_recurrent_layers_are_counted(models: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(5, 7, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x)[0]
            return out

    model = Recurrent()
    path = exported(model, torch.randn(2, 6, 5), models / "recurrent.onnx")
    assert macs(path) == 6 * 2 * 4 * 7 * (5 + 7)
    assert parameters(path) == sum(p.numel() for p in model.parameters())


def file_of(body: str, path: Path) -> Path:
    header = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "own" : 1]>'
    path.write_bytes(parser.parse_model(f"{header} {body}").SerializeToString())
    return path


W = ", ".join("1" for _ in range(12))
TEXTS = {
    "Gemm, transposed": (
        f"""g (float[n, 4] x) => (float[n, 3] y) <float[3, 4] w = {{{W}}}, float[3] b = {{1, 2, 3}}>
        {{ y = Gemm<transB = 1>(x, w, b) }}""",
        (12, 15),
    ),
    "QDQ": (
        f"""g (float[n, 4] x) => (float[n, 3] y)
        <int8[4, 3] w = {{{W}}}, float[3] ws = {{1, 2, 3}}, int8[3] wz = {{0, 0, 0}},
         int32[3] b = {{1, 2, 3}}, int32[3] bz = {{0, 0, 0}}, float s = {{0.1}}, uint8 z = {{128}}>
        {{
          xq = QuantizeLinear(x, s, z)
          xf = DequantizeLinear(xq, s, z)
          wf = DequantizeLinear<axis = 1>(w, ws, wz)
          bf = DequantizeLinear<axis = 0>(b, ws, bz)
          p = MatMul(xf, wf)
          y = Add(p, bf)
        }}""",
        (12, 15),
    ),
    "QLinearMatMul": (
        f"""g (uint8[n, 4] x) => (uint8[n, 3] y)
        <int8[4, 3] w = {{{W}}}, float s = {{1}}, uint8 z = {{0}}, int8 wz = {{0}}>
        {{ y = QLinearMatMul(x, s, z, w, s, wz, s, z) }}""",
        (12, 12),
    ),
    "QLinearConv": (
        f"""g (uint8[n, 3, 5] x) => (uint8[n, 4, 5] y)
        <int8[4, 3, 1] w = {{{W}}}, int32[4] b = {{1, 2, 3, 4}},
         float s = {{1}}, uint8 z = {{0}}, int8 wz = {{0}}>
        {{ y = QLinearConv(x, s, z, w, s, wz, s, z, b) }}""",
        (60, 16),
    ),
    "ConvInteger": (
        f"""g (uint8[n, 3, 5] x) => (int32[n, 4, 5] y) <uint8[4, 3, 1] w = {{{W}}}>
        {{ y = ConvInteger(x, w) }}""",
        (60, 12),
    ),
    "MatMulInteger, batched": (
        f"""g (uint8[n, 2, 4] x) => (int32[n, 2, 3] y) <uint8[4, 3] w = {{{W}}}>
        {{ y = MatMulInteger(x, w) }}""",
        (24, 12),
    ),
    "QGemm": (
        f"""g (uint8[n, 4] x) => (float[n, 3] y)
        <int8[4, 3] w = {{{W}}}, float s = {{1}}, uint8 z = {{0}}, int8 wz = {{0}}>
        {{ y = com.microsoft.QGemm(x, s, z, w, s, wz) }}""",
        (12, 12),
    ),
    "Einsum": (
        f"""g (float[n, 4] x) => (float[n, 3] y) <float[4, 3] w = {{{W}}}>
        {{ y = Einsum<equation = "bi, ij -> bj">(x, w) }}""",
        (12, 12),
    ),
    "GRU": (
        """g (float[n, 6, 2] x) => (float[6, 1, n, 1] y)
        <float[1, 3, 2] w = {1, 1, 1, 1, 1, 1}, float[1, 3, 1] r = {1, 1, 1}>
        { t = Transpose<perm = [1, 0, 2]>(x)
           y = GRU<hidden_size = 1>(t, w, r) }""",
        (6 * 3 * (2 + 1), 9),
    ),
    "a fixed batch": (
        f"""g (float[5, 4] x) => (float[5, 3] y) <float[4, 3] w = {{{W}}}> {{ y = MatMul(x, w) }}""",
        (12, 12),
    ),
    "a weight in a node": (
        f"""g (float[n, 4] x) => (float[n, 3] y)
        {{ w = Constant<value = float[4, 3] {{{W}}}>()
           y = MatMul(x, w) }}""",
        (12, 12),
    ),
    "nothing to multiply": ("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }", (0, 0)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_form_of_a_product_is_counted(name: str, tmp_path: Path) -> None:
    body, (expected_macs, expected_parameters) = TEXTS[name]
    path = file_of(body, tmp_path / "m.onnx")
    assert macs(path) == expected_macs
    assert parameters(path) == expected_parameters


def test_functions_of_the_file_are_looked_into(tmp_path: Path) -> None:
    path = file_of(
        f"""g (float[n, 4] x) => (float[n, 3] y) <float[4, 3] w = {{{W}}}> {{ y = own.twice(x, w) }}
        <domain: "own", opset_import: ["" : 18]> twice (a, b) => (c) {{
          c1 = MatMul(a, b)
          c2 = MatMul(a, b)
          c = Add(c1, c2)
        }}""",
        tmp_path / "m.onnx",
    )
    assert macs(path) == 24


def test_an_open_size_is_named(tmp_path: Path) -> None:
    body = f"""g (float[n, t, 4] x) => (float[n, t, 3] y) <float[4, 3] w = {{{W}}}> {{ y = MatMul(x, w) }}"""
    with pytest.raises(UsageError, match="input 'x' has an open size beside the batch"):
        macs(file_of(body, tmp_path / "m.onnx"))


def test_an_einsum_that_is_not_understood_is_named(tmp_path: Path) -> None:
    body = f"""g (float[n, 2, 4] x) => (float[n, 2, 3] y) <float[4, 3] w = {{{W}}}>
        {{ y = Einsum<equation = "...i,ij->...j">(x, w) }}"""
    with pytest.raises(UsageError, match=r"Einsum '\.\.\.i,ij->\.\.\.j'.* cannot be counted"):
        macs(file_of(body, tmp_path / "m.onnx"))


@pytest.mark.parametrize("count", [macs, parameters])
def test_what_cannot_be_read_is_refused(count: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(IntegrityError):
        count(path)
    path.write_bytes(b"\x08\x0a\x3a\x04\x0a\x02\xff\xff")  # a node of broken bytes
    with pytest.raises((IntegrityError, UsageError)):
        count(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pastille\[compress\]"):
        count(path)


def test_a_file_that_does_not_run_is_no_guess(tmp_path: Path) -> None:
    body = f"""g (float[n, 4] x) => (float[n, 3] y) <float[4, 3] w = {{{W}}}>
        {{ z = Unheard(x)
           y = MatMul(z, w) }}"""
    with pytest.raises(InferenceError, match="Unheard"):
        macs(file_of(body, tmp_path / "m.onnx"))
