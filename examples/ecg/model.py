"""A 1-D residual network for twelve leads of ECG: wide it is the teacher, narrow the wearable's student."""

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution along time and its batch normalization."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm1d(outputs)
    )


class Block(nn.Module):
    """Two convolutions beside a shortcut; a stride of 2 halves the time axis."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 5, stride)
        self.second = convolution(outputs, outputs, 5)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(N, inputs, T)`` to ``(N, outputs, T/stride)``."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class SignalResNet(nn.Module):
    """A stem, two blocks at each of three widths, and a linear layer on the average over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, width, 2 * width, 2 * width, 4 * width, 4 * width)
        inputs = (width, *widths)
        self.stem = convolution(12, width, 15, 2)
        self.blocks = nn.Sequential(
            *(Block(inputs[i], outputs, 1 + (inputs[i] != outputs)) for i, outputs in enumerate(widths))
        )
        self.head = nn.Linear(4 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """From millivolts ``(N, 12, T)`` to the logits of normal and abnormal, ``(N, 2)``."""
        x = F.max_pool1d(F.relu(self.stem(x)), 3, 2, 1)  # (N, width, T/4)
        x = self.blocks(x)  # (N, 4 width, T/16)
        logits: Tensor = self.head(x.mean(dim=-1))
        return logits


def build(width: int = 64) -> nn.Module:
    """What the recipe names: the teacher of width 64, or a student of another; untrained."""
    return SignalResNet(width)
