"""Small networks of every kind that a student is cut out of, with two inputs of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


class Signal(nn.Module):
    """A 1-D network with residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 16, 7, padding=3)
        self.blocks = nn.Sequential(*(Residual1d(16) for _ in range(4)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.blocks(torch.relu(self.stem(x))).mean(dim=-1))
        return answer


class Residual1d(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.conv2(torch.relu(self.norm(self.conv1(x))))
        return answer


class UNet(nn.Module):
    """A small U-shaped network with a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.join = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.down1(x))
        coarse = torch.relu(self.down2(nn.functional.max_pool2d(fine, 2)))
        joined = torch.cat([fine, torch.relu(self.up(coarse))], dim=1)
        answer: Tensor = self.head(torch.relu(self.join(joined)))
        return answer


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.lstm(x)[0][:, -1])
        return answer


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 3))


def resnet() -> nn.Module:
    from pastille.task.torchvision import import_torchvision

    built: nn.Module = import_torchvision().models.resnet18(num_classes=5)
    return built


def vit() -> nn.Module:
    from pastille.task.torchvision import import_torchvision

    import_torchvision()
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built: nn.Module = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=4, num_heads=3, num_classes=5
        )
    return built


def bert(**changed: int) -> nn.Module:
    from pastille.task.torchvision import import_torchvision

    import_torchvision()
    import transformers

    from pastille.task.huggingface import Logits

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = transformers.BertConfig(
        **{**sizes, "intermediate_size": 64, "max_position_embeddings": 16, "num_labels": 3, **changed}
    )
    return Logits(transformers.BertForSequenceClassification(config))


def images(size: int, channels: int = 3) -> Callable[[], Batch]:
    return lambda: {"input": random(2, channels, size, size)}


def text() -> Batch:
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(7))
    return {"input_ids": ids, "attention_mask": torch.ones(2, 9, dtype=torch.int64)}


NETS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "resnet": (resnet, images(32)),
    "unet": (UNet, images(16, channels=1)),
    "signal": (Signal, lambda: {"input": random(2, 2, 40)}),
    "lstm": (Recurrent, lambda: {"input": random(2, 7, 4)}),
    "mlp": (mlp, lambda: {"input": random(2, 8)}),
    "bert": (bert, text),
    "vit": (vit, images(32)),
}


def trained_looking(name: str) -> nn.Module:
    """A network whose norms and heads are none that an untrained one begins with."""
    torch.manual_seed(0)
    return disturbed(NETS[name][0]())


def disturbed(model: nn.Module) -> nn.Module:
    """The model in eval mode with other weights, none of which are alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            size = float(parameter.std()) if parameter.ndim > 1 else 0.5
            parameter.add_(0.2 * size * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(generator=generator)
                module.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
    return model.eval()


def width_of(model: nn.Module, name: str) -> int:
    """How many outputs the linear layer of that name has."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer.out_features


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
