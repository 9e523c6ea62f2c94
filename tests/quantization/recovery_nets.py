"""Small trained networks that 8 bits do not suit: outlier channels, and layers of wild scales."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import onnx
import torch
from quantization_nets import Batch, Function, in_batches, to_tensors
from torch import Tensor, nn

from pastille.export import export_onnx
from pastille.quantization.ranges import Batches
from pastille.quantization.recovery import prepared


def cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def mixer() -> nn.Module:
    def calls(net: Any, x: Tensor) -> Tensor:  # (N, 8, 8): rows are tokens
        x = net.embed(x) + net.place(torch.eye(8))
        h = net.first(x)
        x = x + net.out(torch.softmax(net.q(h) @ net.k(h).transpose(1, 2) / 5, dim=-1) @ net.v(h))
        x = x + net.down(torch.relu(net.up(net.second(x))))
        return net.head(x.flatten(1))  # type: ignore[no-any-return]

    linear = {name: nn.Linear(24, 24) for name in ("q", "k", "v", "out")}
    return Function(
        calls,
        **linear,
        embed=nn.Linear(8, 24),
        place=nn.Linear(8, 24),
        first=nn.LayerNorm(24),
        second=nn.LayerNorm(24),
        up=nn.Linear(24, 48),
        down=nn.Linear(48, 24),
        head=nn.Linear(192, 10),
    )


def digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    held = load_digits()
    order = np.random.default_rng(seed).permutation(len(held.target))
    return (held.images[order] / 16).astype(np.float32), held.target[order]


def trained(net: nn.Module, x: np.ndarray, y: np.ndarray, *, epochs: int = 10) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


def with_wild_scales(net: nn.Module, rng: np.random.Generator) -> nn.Module:
    """The same function: each channel between convolutions times something from 0.01 to 100."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for a, b in itertools.pairwise(layers):
            scale = torch.from_numpy(10.0 ** rng.uniform(-2, 2, a.out_channels)).float()
            assert a.bias is not None
            a.weight *= scale[:, None, None, None]
            a.bias *= scale
            b.weight /= scale[:, None, None, None] if b.groups > 1 else scale[None, :, None, None]
    return net


def with_outliers(net: nn.Module, rng: np.random.Generator) -> nn.Module:
    """The same function: three channels after each normalization times something from 200 to 800."""
    get: Any = net.get_submodule
    with torch.no_grad():
        for norm, readers in (("first", ("q", "k", "v")), ("second", ("up",))):
            scale = torch.ones(24)
            scale[rng.choice(24, 3, replace=False)] = torch.from_numpy(rng.uniform(200, 800, 3)).float()
            get(norm).weight *= scale
            get(norm).bias *= scale
            for reader in readers:
                get(reader).weight /= scale
    return net


KINDS = {
    "wild scales": (cnn, with_wild_scales, (1, 8, 8)),
    "outliers": (mixer, with_outliers, (8, 8)),
}


@functools.cache
def planted(kind: str, seed: int = 0) -> tuple[Any, Batch, Batch, np.ndarray]:
    """The float graph, prepared; inputs to calibrate on; inputs to test on, and their labels."""
    import tempfile
    from pathlib import Path

    make, plant, shape = KINDS[kind]
    torch.manual_seed(seed)
    x, y = digits(seed)
    x = x.reshape(-1, *shape)
    net = plant(trained(make(), x[:1200], y[:1200]), np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        export_onnx(net, to_tensors({"input": x}), file)
        return prepared(onnx.load(file)), {"input": x[:256]}, {"input": x[1200:]}, y[1200:]


def calibration(data: Batch) -> Batches:
    return in_batches(data, 32)


def of(x: np.ndarray) -> Batches:
    return lambda: [{"input": x}]
