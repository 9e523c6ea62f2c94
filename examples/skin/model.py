"""ResNet-10, a small residual network for dermatoscopic images of 64 or 128 pixels.

It is written for what comes after training: every width is a multiple of 16, so that half of the channels
is still a width that int8 kernels are fast at, and every convolution is followed by a batch normalization
and a ReLU, which the export folds into it.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut; a stride of 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """From ``(N, inputs, H, W)`` to ``(N, outputs, H/stride, W/stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, one block for each width, and a linear layer on the average over all places."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), classes: int = 2) -> None:
        super().__init__()
        stem = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        inputs = (stem, *widths)
        self.blocks = nn.Sequential(
            *(Block(inputs[i], width, stride=1 if i == 0 else 2) for i, width in enumerate(widths))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``(N, 3, H, W)`` to the logits of benign and malignant, ``(N, 2)``."""
        x = self.blocks(self.stem(x))  # (N, 3, H, W) -> (N, 256, H/16, W/16)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 256)
        logits: Tensor = self.head(x)  # (N, 2)
        return logits


def build() -> nn.Module:
    """What the recipe's ``task.model`` names: the network, untrained."""
    return ResNet()
