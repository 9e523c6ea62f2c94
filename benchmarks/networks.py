"""Architectures that torchvision has not, and batch norms as of a trained network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def settled(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give batch norms scales of mixed size and the statistics of their real inputs; heads are never zero.

    Args:
        model: Modified.
        shape: Of an input without the batch axis.
    """
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = None
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.02)
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(8, *shape))
    return model.eval()


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Batch norm after the activation, and transposed convolutions: neither folds, nor has an int8 kernel."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_block(a, b) for a, b in [(1, widths[0]), *pairs])
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(_block(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 1, H, W)`` -> logits ``(N, 1, H, W)``."""
        kept = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for up, merge, skip in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(outputs))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(inputs, outputs, 7, stride), _conv(outputs, outputs, 7)
        self.skip = nn.Identity() if inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.second(F.relu(self.first(x))))


class SignalResNet(nn.Module):
    """A 1-D ResNet for twelve leads of ECG."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))
        self.stem = nn.Sequential(_conv(12, 64, 15, 2), nn.ReLU(), nn.MaxPool1d(3, 2, 1))
        self.body = nn.Sequential(*(_Residual(*each) for each in widths))
        self.head = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Any:
        """``(N, 12, T)`` -> logits ``(N, 5)``."""
        return self.head(self.body(self.stem(x)).mean(dim=-1))


class Recurrent(nn.Module):
    """Two LSTM layers over a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(12, 128, 2, batch_first=True), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Any:
        """``(N, T, 12)`` -> logits ``(N, 5)``."""
        return self.head(self.lstm(x)[0][:, -1])


class _Encoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(768, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layers(x)[:, 0])


def encoder() -> nn.Module:
    """Shaped like BERT-base, of embedded tokens."""
    return _Encoder(12)


OURS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "bert-base": (encoder, (128, 768)),
    "ecg": (SignalResNet, (12, 1000)),
    "u-net": (UNet, (1, 128, 128)),
    "lstm": (Recurrent, (250, 12)),
}


def architecture(name: str, torchvision_model: Callable[..., nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    """A network by name, with random weights, and the shape of an input without the batch axis.

    Args:
        name: Of one of `OURS`, or torchvision's.
        torchvision_model: ``torchvision.models.get_model``; not imported here, so that those without it can.
    """
    if name in OURS:
        make, shape = OURS[name]
        return make(), shape
    return torchvision_model(name, weights=None), (3, 224, 224)
