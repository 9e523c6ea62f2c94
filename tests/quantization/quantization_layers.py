"""Small graphs of linear and recurrent layers, and what is done with them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from pastille.export import export_onnx
from pastille.runtime import load

Batch = dict[str, np.ndarray]

FLOAT = onnx.TensorProto.FLOAT


def saved(path: Path, nodes: list[Any], constants: Batch, inputs: int, outputs: int, **options: Any) -> Path:
    """A file whose graph reads ``x`` ``(n, inputs)`` and makes ``y`` ``(n, outputs)``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", outputs])],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", options.get("opset", 20))]
    opsets += [helper.make_opsetid(domain, 1) for domain in options.get("domains", ())]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def one_layer(path: Path, weight: np.ndarray, bias: np.ndarray | None = None, *, gemm: bool = False) -> Path:
    """``y = x @ weight + bias``, as MatMul and Add or as a Gemm with its weight transposed."""
    k, n = weight.shape
    if gemm:
        constants = {"w": np.ascontiguousarray(weight.T)} | ({} if bias is None else {"b": bias})
        nodes = [helper.make_node("Gemm", ["x", *constants], ["y"], name="layer", transB=1)]
    elif bias is None:
        constants, nodes = {"w": weight}, [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    else:
        constants = {"w": weight, "b": bias}
        product = helper.make_node("MatMul", ["x", "w"], ["m"], name="layer")
        nodes = [product, helper.make_node("Add", ["b", "m"], ["y"], name="add")]
    return saved(path, nodes, constants, k, n)


def two_layers(path: Path, width: int = 32) -> Path:
    """``y = relu(x @ first) @ second``."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "second"], ["y"], name="two"),
    ]
    constants = {name: normal(rng, width, width) for name in ("first", "second")}
    return saved(path, nodes, constants, width, width)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


class Encoder(nn.Module):
    """A transformer of two layers over embedded tokens, pooled and classified."""

    def __init__(self, words: int = 200, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.head(self.body(self.embed(tokens)).mean(dim=1))
        return pooled


class Recurrent(nn.Module):
    """An LSTM or GRU, and a head on its last step."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.body = make(12, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(x)[0][:, -1])
        return answer


def encoder(folder: Path) -> tuple[Path, Batch]:
    """An exported encoder, and 32 inputs of 16 tokens."""
    tokens = np.random.default_rng(0).integers(0, 200, (32, 16))
    path = folder / "encoder.onnx"
    path.write_bytes(_encoder_file())
    return path, {"tokens": tokens}


def recurrent(folder: Path, make: Callable[..., nn.Module]) -> tuple[Path, Batch]:
    """An exported recurrent network, and 32 sequences of 10 steps."""
    path = folder / "recurrent.onnx"
    path.write_bytes(_recurrent_file(make))
    return path, {"x": normal(np.random.default_rng(0), 32, 10, 12)}


@functools.cache
def _encoder_file() -> bytes:
    torch.manual_seed(0)
    return _exported(Encoder(), {"tokens": torch.zeros(4, 16, dtype=torch.int64)})


@functools.cache
def _recurrent_file(make: Callable[..., nn.Module]) -> bytes:
    torch.manual_seed(0)
    return _exported(Recurrent(make), {"x": torch.randn(4, 10, 12)})


def _exported(model: nn.Module, batch: dict[str, Tensor]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model.eval(), batch, path := Path(folder) / "float.onnx")
        return path.read_bytes()


def answer(path: Path, data: Batch) -> np.ndarray:
    return next(iter(load(path)(data).values()))


def error(path: Path, data: Batch, reference: Path) -> float:
    """Root mean square difference of the answers, relative to the answers' own."""
    expected = answer(reference, data)
    return float(np.sqrt(np.square(answer(path, data) - expected).mean() / np.square(expected).mean()))


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def in_batches(data: Batch, size: int = 8) -> Callable[[], Iterable[Batch]]:
    n = len(next(iter(data.values())))
    return lambda: ({k: x[i : i + size] for k, x in data.items()} for i in range(0, n, size))
