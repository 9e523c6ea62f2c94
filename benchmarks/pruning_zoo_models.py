"""The networks of `pruning_zoo.py` in the sizes that people use, with random weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pastille.task.huggingface import Logits
from pastille.task.torchvision import import_torchvision

Batch = Mapping[str, Tensor]
CLASSES = 10


class Padded(nn.Module):
    """Option A: every second pixel, and channels of zeros on both sides."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))


class Block(nn.Module):
    """Two convolutions and a shortcut, of one dimension or two."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, conv: type[nn.Module], norm: type[nn.Module]
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            option_a = conv is nn.Conv2d
            self.shortcut = Padded(outputs - inputs) if option_a else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def cifar_resnet(blocks: int = 9) -> nn.Module:
    """ResNet-56 for small images, with zero-padding shortcuts."""
    widths = [16] * blocks + [32] * blocks + [64] * blocks
    pairs = zip([16, *widths], widths, strict=False)
    body = [Block(a, b, 1 + (a != b), nn.Conv2d, nn.BatchNorm2d) for a, b in pairs]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def signal_resnet(width: int = 64) -> nn.Module:
    """A ResNet of one dimension, as for an ECG of twelve leads."""
    widths = [width, 2 * width, 4 * width, 8 * width]
    pairs = itertools.pairwise(widths)
    body = [Block(a, b, 2, nn.Conv1d, nn.BatchNorm1d) for a, b in pairs]
    stem = [nn.Conv1d(12, width, 15, 2, 7), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8 * width, CLASSES))


class UNet(nn.Module):
    """Ronneberger's U: down, up by transposed convolutions, skips that are concatenated."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(map(_double, [3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(_double(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = self.merge[i](torch.cat([skips[i], self.up[i](x)], dim=1))
        out: Tensor = self.head(x)
        return out


def _double(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for reads in (inputs, outputs):
        layers += [nn.Conv2d(reads, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Recurrent(nn.Module):
    """An LSTM or GRU over a signal, both directions, its mean over time classified."""

    def __init__(self, cell: type[nn.RNNBase], size: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.front = nn.Linear(12, size)
        self.body = cell(size, size, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        out: Tensor = self.head(self.body(F.relu(self.front(x)))[0].mean(dim=1))
        return out


def mlp(width: int = 1024) -> nn.Module:
    """Three hidden layers."""
    sizes = [64, width, width, width]
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def image(size: int) -> Batch:
    """Two random images."""
    return {"input": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}


def tokens(length: int = 32) -> Batch:
    """Two random texts."""
    ids = torch.randint(0, 1000, (2, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones(2, length, dtype=torch.int64)}


def _torchvision(name: str) -> nn.Module:
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None, num_classes=CLASSES)
    return model


def _timm(name: str) -> nn.Module:
    import_torchvision()
    import timm

    model: nn.Module = timm.create_model(name, num_classes=CLASSES)
    return model


def _text(kind: str) -> nn.Module:
    import_torchvision()
    import transformers

    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES)
    return Logits(getattr(transformers, f"{kind}ForSequenceClassification")(config))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], Batch]] = {
    "resnet50": (partial(_torchvision, "resnet50"), image(224)),
    "resnet56_option_a": (cifar_resnet, image(32)),
    "mobilenet_v2": (partial(_torchvision, "mobilenet_v2"), image(224)),
    "mobilenet_v3_large": (partial(_torchvision, "mobilenet_v3_large"), image(224)),
    "efficientnet_b0": (partial(_torchvision, "efficientnet_b0"), image(224)),
    "densenet121": (partial(_torchvision, "densenet121"), image(224)),
    "resnext50_32x4d": (partial(_torchvision, "resnext50_32x4d"), image(224)),
    "regnet_y_400mf": (partial(_torchvision, "regnet_y_400mf"), image(224)),
    "shufflenet_v2_x1_0": (partial(_torchvision, "shufflenet_v2_x1_0"), image(224)),
    "convnext_tiny": (partial(_torchvision, "convnext_tiny"), image(224)),
    "unet": (UNet, image(128)),
    "vit_b_16": (partial(_torchvision, "vit_b_16"), image(224)),
    "swin_t": (partial(_torchvision, "swin_t"), image(224)),
    "deit_small": (partial(_timm, "deit_small_patch16_224"), image(224)),
    "bert_base": (partial(_text, "Bert"), tokens()),
    "distilbert": (partial(_text, "DistilBert"), tokens()),
    "hubert_base": (partial(_text, "Hubert"), {"input_values": torch.randn(2, 8000)}),
    "signal_resnet": (signal_resnet, {"input": torch.randn(2, 12, 1000)}),
    "lstm": (partial(Recurrent, nn.LSTM), {"input": torch.randn(2, 100, 12)}),
    "gru": (partial(Recurrent, nn.GRU), {"input": torch.randn(2, 100, 12)}),
    "mlp": (mlp, {"input": torch.randn(2, 64)}),
}
