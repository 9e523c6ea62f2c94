"""Tiny networks that export, and others that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

ROW, IMAGE = (8,), (3, 8, 8)


class Function(nn.Module):
    """Named layers and a function that calls them: ``calls(net, x)``."""

    def __init__(self, calls: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.calls = calls
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Tensor, **named: Tensor) -> Any:
        return self.calls(self, *args, **named)


class TwoInputs(nn.Module):
    """Which input is which matters: ``a - 2 b``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.head(a - 2 * b)
        return out


class NamedLikeTheInterface(nn.Module):
    """Its parameters are called as the file's input and output are."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(8))
        self.output = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * self.input) + self.output


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Folding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Conditional(nn.Module):
    """What the error for a branch recommends."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))
        return out


@torch.library.custom_op("pastille_tests::strange", mutates_args=())
def strange(x: Tensor) -> Tensor:
    return x * 2


@strange.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = strange(x)
        return out


class Inside(nn.Module):
    """A layer, some levels down, under the name ``body.1``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )


def rows(*shape: int, n: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, *(shape or ROW), generator=torch.Generator().manual_seed(seed))


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def arrays(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: x.numpy() for name, x in batch.items()}
