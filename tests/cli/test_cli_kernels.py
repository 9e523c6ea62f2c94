"""What runs in int8, in the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from onnx import parser
from rich.console import Console
from typer.testing import CliRunner

from pastille.bench import BenchResult
from pastille.cli.app import app
from pastille.cli.benching import show_bench
from pastille.cli.console import out
from pastille.cli.kernels import kernel_summary, kernel_table
from pastille.values import Conditions, FloatKernel, KernelProof, KernelUse, from_json

HERE = Conditions(device="", isa="", cores=1, threads=1, runtime="", runtime_version="", os="")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 4] x) => (float[n, 4] y)
        <float s = {0.1}, uint8 z = {128}, float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> {
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          t = Tanh(d)
          y = MatMul(t, w)
        }"""
    path = tmp_path / "m.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def test_bench_shows_and_writes_the_proof(file: Path) -> None:
    asked = CliRunner().invoke(app, ["bench", str(file), "-q", "--batch", "1", "--json"])
    assert asked.exit_code == 0
    result = from_json(BenchResult, json.dumps(json.loads(asked.stdout)["m.onnx"]))
    assert result.kernels is not None
    assert {kernel.operator for kernel in result.kernels.floats} == {"Tanh", "MatMul"}
    with out.capture() as captured:
        show_bench("m.onnx", result)
    text = " ".join(captured.get().split())
    assert "in int8: 0.0 % of the multiply-accumulates, 0.0 % of the operators" in text
    assert "Tanh float 1" in text


def shown(proof: KernelProof) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(kernel_table(proof))
    return captured.get()


def proof(uses: tuple[KernelUse, ...], floats: tuple[FloatKernel, ...] = (), calls: int = 20) -> KernelProof:
    return KernelProof(
        uses=uses, floats=floats, more_floats=0, batch=1, calls=calls, conditions=HERE, note="not timed"
    )


def test_the_table_is_bounded_and_names_are_no_markup() -> None:
    uses = tuple(
        KernelUse(operator=f"[red]Op{i}", precision="float", count=1, macs=0, share=None) for i in range(60)
    )
    reasons = tuple(
        FloatKernel(operator="[red]Op0", name="", reason=f"reason {i}", macs=0, share=0.0, conversions=0.01)
        for i in range(5)
    )
    text = shown(proof(uses, reasons, calls=0))
    assert "[red]Op0" in text
    assert "and 36 more" in text
    assert "reason 0 (1×); reason 1 (1×); 3 other reasons; conversions 5.0 %" in text
    assert kernel_summary(proof(uses, calls=0)) == "in int8: 0.0 % of the operators (not timed)"
