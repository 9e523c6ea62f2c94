"""Small files and data for the tests of measuring."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import parser

from pastille.data.split import Split
from pastille.values import Cases, Conditions, TensorSpec

HERE = Conditions(
    device="a test", isa="none", cores=1, threads=1, runtime="fake", runtime_version="0", os="none"
)


def mlp_file(path: Path, *, layers: int = 1, width: int = 8, batch: str = "n") -> Path:
    """``layers`` products with a (width, width) matrix, then 3 logits."""
    square = ", ".join(f"{x:.4f}" for x in np.random.default_rng(0).normal(size=width * width) / width)
    last = ", ".join(f"{x:.4f}" for x in np.random.default_rng(1).normal(size=width * 3))
    steps = "\n".join(f"h{i + 1} = MatMul(h{i}, w)" for i in range(layers))
    text = f"""<ir_version: 10, opset_import: ["" : 18]>
        mlp (float[{batch}, {width}] input) => (float[{batch}, 3] output)
        <float[{width}, {width}] w = {{{square}}}, float[{width}, 3] v = {{{last}}}> {{
          h0 = Relu(input)
          {steps}
          output = MatMul(h{layers}, v)
        }}"""
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def exported(model: torch.nn.Module, x: torch.Tensor, path: Path) -> Path:
    """What ``torch.onnx.export`` writes, with an open batch."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            model.eval(),
            (x,),
            path,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: batch},),
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )
    return path


def split_of(n: int, *, width: int = 8) -> Split:
    inputs = np.random.default_rng(2).normal(size=(n, width)).astype(np.float32)
    return Split(inputs=list(inputs), targets=np.arange(n) % 3)


def cases_of(split: Split) -> Cases:
    labels = ("a", "b", "c")
    return Cases(kind="multiclass", split="validation", targets=split.targets, labels=labels)


@dataclass(frozen=True)
class FakeSession:
    """A `Session` that answers with a Python function."""

    function: Callable[[np.ndarray], np.ndarray]
    fixed_batch: int | None = None
    threads: int = 1
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="input", shape=(8,), dtype="float32"),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="output", shape=(1,), dtype="float32"),)
    batches: list[int] = field(default_factory=list)  # sizes that it was called with

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self.batches.append(len(inputs["input"]))
        return {"output": self.function(inputs["input"])}
