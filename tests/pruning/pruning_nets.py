"""Small networks of every shape that pruning must follow, each with what its channels are coupled to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

W = 32  # channels of the narrower layers


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network with what a careful reader of its code knows about it.

    Attributes:
        build: Makes it, with weights that depend on the global seed.
        shape: Of one input.
        coupled: Layers whose output channels must go together; every layer that may be narrowed is in one.
        parts: Layer -> equal parts of its channels that must lose equally many.
        halves: Layers whose two halves must lose the same channels.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    coupled: tuple[tuple[str, ...], ...]
    parts: Mapping[str, int] = field(default_factory=dict)
    halves: tuple[str, ...] = ()

    def batch(self, n: int = 2) -> dict[str, Tensor]:
        return {"input": torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(1))}


def conv_bn(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Stem, an identity block and a block with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, W)
        self.conv1, self.bn1 = nn.Conv2d(W, W, 3, 1, 1, bias=False), nn.BatchNorm2d(W)
        self.conv2, self.bn2 = nn.Conv2d(W, W, 3, 1, 1, bias=False), nn.BatchNorm2d(W)
        self.conv3, self.bn3 = nn.Conv2d(W, 2 * W, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * W)
        self.conv4, self.bn4 = nn.Conv2d(2 * W, 2 * W, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * W)
        self.short = nn.Conv2d(W, 2 * W, 1, 2)
        self.head = nn.Linear(2 * W, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = F.relu(self.short(x) + self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x))))))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Dense(nn.Module):
    """Every layer reads all earlier ones: removing channels of one shifts the indices of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, W, 3, 1, 1)
        self.norm1 = nn.BatchNorm2d(W)
        self.b = nn.Conv2d(W, 2 * W, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(3 * W)
        self.c = nn.Conv2d(3 * W, W, 3, 1, 1)
        self.norm3 = nn.BatchNorm2d(4 * W)
        self.head = nn.Linear(4 * W, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.relu(self.norm1(a)))
        ab = torch.cat([a, b], dim=1)
        c = self.c(F.relu(self.norm2(ab)))
        # c first: the order of the concatenation is not the order of the layers.
        x = F.relu(self.norm3(torch.cat([c, ab], dim=1)))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Depthwise(nn.Module):
    """MobileNet's inverted residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, W)
        self.expand, self.spatial = conv_bn(W, 2 * W, 1), conv_bn(2 * W, 2 * W, 3, groups=2 * W)
        self.project, self.norm = nn.Conv2d(2 * W, W, 1, bias=False), nn.BatchNorm2d(W)
        self.head = nn.Linear(W, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm(self.project(self.spatial(self.expand(x))))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Grouped(nn.Module):
    """A grouped convolution in the middle: it and what feeds it lose equally many channels of each group."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, W, 3, 1, 1)
        self.grouped = nn.Conv2d(W, 2 * W, 3, 1, 1, groups=4)
        self.last = nn.Conv2d(2 * W, W, 3, 1, 1)
        self.head = nn.Linear(W, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.last(F.relu(self.grouped(F.relu(self.first(x))))))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class SqueezeExcite(nn.Module):
    """A gate per channel, made from all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 2 * W)
        self.squeeze, self.excite = nn.Conv2d(2 * W, W, 1), nn.Conv2d(W, 2 * W, 1)
        self.conv = nn.Conv2d(2 * W, W, 3)
        self.head = nn.Linear(W, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = F.relu(self.conv(x * gate))
        out: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class Flat(nn.Module):
    """Every channel becomes 16 columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, W, 3, 2, 1), nn.Conv2d(W, 2 * W, 3, 1, 1)
        self.fc1, self.fc2 = nn.Linear(2 * W * 16, W), nn.Linear(W, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.relu(self.conv2(F.relu(self.conv1(x)))), 1)
        out: Tensor = self.fc2(F.relu(self.fc1(x)))
        return out


class Transposed(nn.Module):
    """A U: down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, W, 3, 1, 1), nn.Conv2d(W, 2 * W, 3, 2, 1)
        self.up = nn.ConvTranspose2d(2 * W, 2 * W, 2, 2)
        self.norm = nn.BatchNorm2d(2 * W)
        self.merge = nn.Conv2d(3 * W, W, 3, 1, 1)
        self.head = nn.Linear(W, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down1(x))
        x = F.relu(self.norm(self.up(F.relu(self.down2(skip)))))
        x = F.relu(self.merge(torch.cat([skip, x], dim=1)))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class LateNorm(nn.Module):
    """BatchNorm after ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, W, 3), nn.BatchNorm2d(W)
        self.conv2, self.norm2 = nn.Conv2d(W, 2 * W, 3), nn.BatchNorm2d(2 * W)
        self.head = nn.Linear(2 * W, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(F.relu(self.conv2(self.norm1(F.relu(self.conv1(x))))))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Signal(nn.Module):
    """One dimension, residual, max over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(2, W, 5, 2, 2), nn.BatchNorm1d(W)
        self.conv2, self.norm2 = nn.Conv1d(W, W, 5, 1, 2), nn.BatchNorm1d(W)
        self.conv3 = nn.Conv1d(W, 2 * W, 3)
        self.head = nn.Linear(2 * W, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.conv3(x + F.relu(self.norm2(self.conv2(x)))))
        out: Tensor = self.head(F.adaptive_max_pool1d(x, 1).flatten(1))
        return out.squeeze(1)


def mlp() -> nn.Module:
    hidden = nn.Linear(2 * W, 2 * W, bias=False)
    layers = [nn.Linear(7, 2 * W), nn.ReLU(), hidden, nn.BatchNorm1d(2 * W), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2 * W, 3))


class Reused(nn.Module):
    """One layer called twice: its input and output channels are the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(7, 2 * W), nn.Linear(2 * W, 2 * W)
        self.head = nn.Linear(2 * W, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.again(x))
        out: Tensor = self.head(F.relu(self.again(x)))
        return out


class Scaled(nn.Module):
    """A parameter of its own per channel, as in ConvNeXt's layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 2 * W, 3, 1, 1), nn.Conv2d(2 * W, 2 * W, 3, 1, 1)
        self.scale = nn.Parameter(torch.rand(2 * W, 1, 1) + 0.5)
        self.head = nn.Linear(2 * W, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.scale * F.relu(self.conv(x))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Chunked(nn.Module):
    """One layer makes two halves that are multiplied, as in gated linear units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, W, 3, 1, 1)
        self.both = nn.Conv2d(W, 4 * W, 1)
        self.last = nn.Conv2d(2 * W, W, 1)
        self.head = nn.Linear(W, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(F.relu(self.stem(x))).chunk(2, dim=1)
        x = F.relu(self.last(value * torch.sigmoid(gate)))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class TwoAnswers(nn.Module):
    """Logits, and what an auxiliary layer makes of the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2 * W, 3)
        self.head, self.auxiliary = nn.Linear(2 * W, 3), nn.Linear(2 * W, W)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv(x)).mean(dim=(2, 3))
        return self.head(x), self.auxiliary(x)


IMAGE = (3, 8, 8)

NETS: dict[str, Net] = {
    "residual": Net(
        build=Residual,
        shape=IMAGE,
        coupled=(("stem.0", "conv2"), ("conv1",), ("conv3",), ("conv4", "short")),
    ),
    "dense": Net(build=Dense, shape=IMAGE, coupled=(("a",), ("b",), ("c",))),
    "depthwise": Net(
        build=Depthwise, shape=IMAGE, coupled=(("stem.0", "project"), ("expand.0", "spatial.0"))
    ),
    "grouped": Net(
        build=Grouped,
        shape=IMAGE,
        coupled=(("first",), ("grouped",), ("last",)),
        parts={"first": 4, "grouped": 4},
    ),
    "squeeze-excite": Net(
        build=SqueezeExcite, shape=IMAGE, coupled=(("stem.0", "excite"), ("squeeze",), ("conv",))
    ),
    "flatten": Net(build=Flat, shape=IMAGE, coupled=(("conv1",), ("conv2",), ("fc1",))),
    "transposed": Net(build=Transposed, shape=IMAGE, coupled=(("down1",), ("down2",), ("up",), ("merge",))),
    "late-norm": Net(build=LateNorm, shape=IMAGE, coupled=(("conv1",), ("conv2",))),
    "signal": Net(build=Signal, shape=(2, 32), coupled=(("conv1", "conv2"), ("conv3",))),
    "mlp": Net(build=mlp, shape=(7,), coupled=(("0",), ("2",))),
    "reused": Net(build=Reused, shape=(7,), coupled=(("first", "again"),)),
    "scaled": Net(build=Scaled, shape=IMAGE, coupled=(("stem", "conv"),)),
    "chunked": Net(build=Chunked, shape=IMAGE, coupled=(("stem",), ("both",), ("last",)), halves=("both",)),
    "two answers": Net(build=TwoAnswers, shape=IMAGE, coupled=(("conv",),)),
}


def trained_looking(net: Net, seed: int = 0) -> nn.Module:
    """The network with weights and statistics as training leaves them: none of them 0 or 1."""
    torch.manual_seed(seed)
    model = net.build().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.3)  # type: ignore[arg-type]
    return model


def half_of(net: Net, name: str, width: int, generator: torch.Generator) -> Tensor:
    """A random half of a layer's channels, as it must be chosen there."""
    if name in net.halves:
        chosen = torch.randperm(width // 2, generator=generator)[: width // 4]
        return torch.cat([chosen, chosen + width // 2])
    size = width // net.parts.get(name, 1)
    halves = [torch.randperm(size, generator=generator)[: size // 2] + i for i in range(0, width, size)]
    return torch.cat(halves)


def kill_(model: nn.Module, names: tuple[str, ...], channels: Tensor) -> None:
    """Make the channels that some layers put out zero, whatever they are fed."""
    with torch.no_grad():
        for name in names:
            layer = model.get_submodule(name)
            weight, bias = layer.weight, layer.bias
            assert isinstance(weight, Tensor)
            weight.transpose(0, int(isinstance(layer, nn.ConvTranspose2d)))[channels] = 0
            if isinstance(bias, Tensor):
                bias[channels] = 0


def without_shift_(model: nn.Module) -> None:
    """Let every batch norm give zero for zero, so that a dead channel stays dead behind it."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)  # type: ignore[arg-type]


def even_(model: nn.Module) -> None:
    """Let no weight matter much more than another, so that dead channels score lowest for certain."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    parameter.sign() * parameter.abs().mean() * (0.9 + 0.2 * torch.rand_like(parameter))
                )
