"""Tiny networks of every kind, and what is done with them: export, quantize, run."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from pastille.export import export_onnx
from pastille.quantization import quantize_static
from pastille.recipe import Quantize
from pastille.runtime import load

Batch = dict[str, np.ndarray]


class Function(nn.Module):
    """Named layers and a function that calls them: ``calls(self, x)``."""

    def __init__(self, calls: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.calls = calls
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Tensor, **named: Tensor) -> Any:
        return self.calls(self, *args, **named)


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _residual() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = F.relu(x + net.norm(net.inner(x)))
        x = net.pool(net.last(x))
        return net.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    return Function(
        calls,
        stem=conv_bn(3, 8),
        inner=nn.Conv2d(8, 8, 3, 1, 1, bias=False),
        norm=nn.BatchNorm2d(8),
        last=conv_bn(8, 16, 2),
        pool=nn.MaxPool2d(2),
        head=nn.Linear(16, 4),
    )


def _depthwise() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _squeeze_excite() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Tensor:
        x = F.hardswish(net.stem(x))
        gate = F.hardsigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(x, 1)))))
        return net.head((x * gate).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    return Function(
        calls,
        stem=nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
        head=nn.Linear(8, 4),
    )


def _concat() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(net.a(x)), F.silu(net.b(x))], dim=1)
        return net.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    return Function(calls, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 3, 1, 1), head=nn.Linear(16, 4))


def _transformer() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Tensor:  # (N, 6, 16)
        q, k, v = net.qkv(net.first(x)).chunk(3, dim=-1)
        x = x + net.out(torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v)
        x = x + net.down(F.gelu(net.up(net.second(x))))
        return net.head(x.mean(dim=1))  # type: ignore[no-any-return]

    return Function(
        calls,
        first=nn.LayerNorm(16),
        qkv=nn.Linear(16, 48),
        out=nn.Linear(16, 16),
        second=nn.LayerNorm(16),
        up=nn.Linear(16, 32),
        down=nn.Linear(32, 16),
        head=nn.Linear(16, 4),
    )


def _masked_attention() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return net.head(x.mean(dim=1))  # type: ignore[no-any-return]

    return Function(calls, qkv=nn.Linear(16, 48), head=nn.Linear(16, 4))


def _embedding() -> nn.Module:
    return Function(
        lambda net, x: net.head(net.table(x).mean(dim=1)), table=nn.Embedding(20, 8), head=nn.Linear(8, 4)
    )


def _tied() -> nn.Module:
    net = Function(
        lambda net, x: net.head(net.inner(net.table(x).mean(dim=1))),
        table=nn.Embedding(20, 8),
        inner=nn.Linear(8, 8),
        head=nn.Linear(8, 20, bias=False),
    )
    net.get_submodule("head").weight = net.get_submodule("table").weight
    return net


def _constant() -> nn.Module:
    """The middle layer is dead: its activations are all zero."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        dead = net[2]
        assert isinstance(dead, nn.Linear)
        dead.weight.zero_()
        dead.bias.fill_(-1)
    return net


def _mlp(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), *after)


def _several_consumers() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Any:
        last = net.head(F.relu(net.a(x)))
        return last, net.other(last), last.sum(dim=1)

    return Function(calls, a=nn.Linear(8, 16), head=nn.Linear(16, 4), other=nn.Linear(4, 4))


def _reused_output() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Tensor:
        last = net.head(F.relu(net.a(x)))
        return last + net.other(last)  # type: ignore[no-any-return]

    return Function(calls, a=nn.Linear(8, 16), head=nn.Linear(16, 4), other=nn.Linear(4, 4))


IMAGE, ROW, SEQUENCE, SIGNAL = (3, 8, 8), (8,), (6, 16), (2, 16)


@dataclass(frozen=True)
class Net:
    """How to build a network, and the shapes that it takes."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = ROW
    tokens: int = 0  # the input holds integers below this


NETS = {
    "residual": Net(_residual, IMAGE),
    "depthwise": Net(_depthwise, IMAGE),
    "mlp": Net(_mlp),
    "squeeze-excite": Net(_squeeze_excite, IMAGE),
    "concat": Net(_concat, IMAGE),
    "transformer": Net(_transformer, SEQUENCE),
    "masked attention": Net(_masked_attention, SEQUENCE),
    "embedding": Net(_embedding, (5,), tokens=20),
    "tied": Net(_tied, (5,), tokens=20),
    "1-D": Net(
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 5),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        SIGNAL,
    ),
    "transposed": Net(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2)), IMAGE
    ),
    "regression": Net(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))),
    "dead": Net(_constant),
    "ends in relu": Net(lambda: _mlp(nn.ReLU())),
    "ends in conv relu": Net(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGE),
    "ends in clip": Net(lambda: _mlp(nn.Hardtanh(-0.1, 0.1))),
    "ends in reshape": Net(lambda: _mlp(nn.Unflatten(1, (2, 2)))),
    "ends in sigmoid": Net(lambda: _mlp(nn.Sigmoid())),
    "ends in softmax": Net(lambda: _mlp(nn.Softmax(dim=1))),
    "ends in batch norm": Net(lambda: _mlp(nn.ReLU(), nn.BatchNorm1d(4))),
    "ends in add": Net(
        lambda: Function(lambda net, x: net.a(x) + net.b(x), a=nn.Linear(8, 4), b=nn.Linear(8, 4))
    ),
    "ends in squeeze": Net(lambda: Function(lambda net, x: net.a(x).squeeze(1), a=nn.Linear(8, 1))),
    "ends in slice": Net(lambda: Function(lambda net, x: net.a(x)[:, :2], a=nn.Linear(8, 4))),
    "ends in scale": Net(lambda: Function(lambda net, x: net.a(x) * 3.0 + 1.0, a=nn.Linear(8, 4))),
    "ends in pooling": Net(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGE
    ),
    "passes its input": Net(lambda: Function(lambda net, x: (x, net.a(x)), a=nn.Linear(8, 4))),
    "one relu": Net(nn.ReLU),
    "identity": Net(nn.Identity),
    "several outputs": Net(_several_consumers),
    "reused output": Net(_reused_output),
}


def built(name: str) -> tuple[nn.Module, Batch]:
    """A network that looks trained, and 64 inputs of mixed brightness."""
    torch.manual_seed(0)
    net = NETS[name]
    model = net.make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    rng = np.random.default_rng(0)
    if net.tokens:
        return model, {"input": rng.integers(0, net.tokens, (64, *net.shape))}
    return model, {"input": rng.normal(size=(64, *net.shape)).astype(np.float32)}


def two_inputs() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    model = Function(
        lambda net, image, age: net.head(torch.cat([net.stem(image).mean(dim=(2, 3)), age], dim=1)),
        stem=conv_bn(3, 8),
        head=nn.Linear(10, 4),
    )
    rng = np.random.default_rng(0)
    shapes = {"image": (64, *IMAGE), "age": (64, 2)}
    return model.eval(), {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def to_tensors(batch: Mapping[str, np.ndarray], n: int = 4) -> dict[str, Tensor]:
    return {name: torch.from_numpy(x[:n]) for name, x in batch.items()}


def in_batches(data: Batch, size: int = 16) -> Callable[[], Iterable[Batch]]:
    n = len(next(iter(data.values())))
    return lambda: ({k: x[i : i + size] for k, x in data.items()} for i in range(0, n, size))


def quantized(model: nn.Module, data: Batch, folder: Path, **settings: Any) -> tuple[Path, Path]:
    """The float file and the int8 file."""
    source, target = folder / "float.onnx", folder / "int8.onnx"
    export_onnx(model, to_tensors(data), source)
    quantize_static(source, target, in_batches(data), Quantize(**settings))
    return source, target


@functools.cache
def _float_file(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        model, data = built(name)
        export_onnx(model, to_tensors(data), Path(folder) / "float.onnx")
        return (Path(folder) / "float.onnx").read_bytes()


def quantized_net(name: str, folder: Path, **settings: Any) -> tuple[Batch, Path, Path]:
    """The inputs, the float file (exported once per process) and the int8 file of a network by name."""
    data, source, target = built(name)[1], folder / "float.onnx", folder / "int8.onnx"
    source.write_bytes(_float_file(name))
    quantize_static(source, target, in_batches(data), Quantize(**settings))
    return data, source, target


def answer(path: Path, data: Batch) -> np.ndarray:
    return next(iter(load(path)(data).values()))


def constants(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
