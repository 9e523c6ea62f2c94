"""Half of the channels of every architecture: proven, exported, and rebuilt by another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pastille.export import check_parity, export_onnx
from pastille.measure.counts import parameters
from pastille.pruning import Pruned, prune, read_model, write_model
from pastille.task import forward
from pastille.task.huggingface import Logits
from pastille.task.torchvision import import_torchvision

Batch = Mapping[str, Tensor]
PARITY = 1e-4
ANSWERS = "answers.safetensors"


def image(size: int) -> Batch:
    return {"input": torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))}


def signal(*shape: int) -> Batch:
    return {"input": torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))}


def tokens() -> Batch:
    ids = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones(4, 7, dtype=torch.int64)}


def torchvision_net(name: str, **settings: object) -> nn.Module:
    """By its class, so that it can be narrower and shallower than the published one."""
    models = import_torchvision().models
    net: nn.Module = getattr(models, name)(num_classes=5, **settings)
    return net


def resnet(block: str, **settings: object) -> nn.Module:
    blocks = import_torchvision().models.resnet
    return torchvision_net("ResNet", block=getattr(blocks, block), layers=[1, 1, 1, 1], **settings)


def convnext() -> nn.Module:
    setting = import_torchvision().models.convnext.CNBlockConfig
    return torchvision_net("ConvNeXt", block_setting=[setting(16, 32, 1), setting(32, None, 1)])


def densenet() -> nn.Module:
    return torchvision_net("DenseNet", growth_rate=8, block_config=(2, 2), num_init_features=16)


def swin() -> nn.Module:
    sizes = {
        "patch_size": [4, 4],
        "embed_dim": 16,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": [2, 2],
    }
    return torchvision_net("SwinTransformer", **sizes)


def mobilenet_v2() -> nn.Module:
    stages = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]
    return torchvision_net("MobileNetV2", width_mult=0.5, inverted_residual_setting=stages)


def mobilenet_v3() -> nn.Module:
    setting = import_torchvision().models.mobilenetv3.InvertedResidualConfig
    rows = [(16, 3, 16, 16, True, "RE", 2), (16, 3, 72, 24, False, "RE", 2), (24, 5, 96, 24, True, "HS", 1)]
    blocks = [setting(*row, dilation=1, width_mult=1.0) for row in rows]
    return torchvision_net("MobileNetV3", inverted_residual_setting=blocks, last_channel=64)


def timm_net(name: str, **settings: object) -> nn.Module:
    import_torchvision()
    import timm

    net: nn.Module = timm.create_model(name, num_classes=5, **settings)
    return net


def text(kind: str, **settings: object) -> nn.Module:
    import_torchvision()
    import transformers

    config = getattr(transformers, f"{kind}Config")(num_labels=5, **settings)
    return Logits(getattr(transformers, f"{kind}ForSequenceClassification")(config))


def bert() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return text("Bert", vocab_size=50, **sizes)


def distilbert() -> nn.Module:
    return text("DistilBert", vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64)


def hubert() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    front = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2)}
    return text("Hubert", **sizes, **front, num_conv_pos_embedding_groups=4, classifier_proj_size=16)


class ZeroPadding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        step = outputs // inputs
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, step, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = ZeroPadding() if step > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        short = self.shortcut(x)
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + short)


def resnet20() -> nn.Module:
    widths = [16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Basic(a, b) for a, b in zip([16, *widths], widths, strict=False)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), *blocks, *head)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.norm, self.up = nn.GroupNorm(4, 32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge, self.head = nn.Conv2d(32, 16, 3, 1, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.first(x))
        x = self.up(F.relu(self.norm(self.second(skip))))
        out: Tensor = self.head(F.relu(self.merge(torch.cat([skip, x], dim=1))))
        return out


def signal_net() -> nn.Module:
    layers: list[nn.Module] = []
    for reads, makes in ((2, 16), (16, 32)):
        layers += [nn.Conv1d(reads, makes, 5, 2), nn.BatchNorm1d(makes), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(32, 5))


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.front = nn.Linear(6, 16)
        self.body = cell(16, 16, 2, batch_first=True, bidirectional=True)  # type: ignore[arg-type]
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(F.relu(self.front(x)))[0][:, -1])
        return out


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)
    )


# Name -> how it is built, what it is fed, whether some layers keep all channels because they attend.
ZOO: Mapping[str, tuple[Callable[[], nn.Module], Batch, bool]] = {
    "resnet": (partial(resnet, "Bottleneck", width_per_group=16), image(32), False),
    "resnext": (partial(resnet, "Bottleneck", groups=8, width_per_group=4), image(32), False),
    "option A": (resnet20, image(16), False),
    "mobilenet v2": (mobilenet_v2, image(32), False),
    "mobilenet v3": (mobilenet_v3, image(32), False),
    "efficientnet": (partial(timm_net, "test_efficientnet"), image(32), False),
    "densenet": (densenet, image(32), False),
    "convnext": (convnext, image(32), False),
    "convnext v2": (
        partial(timm_net, "convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
        image(32),
        False,
    ),
    "u-net": (UNet, image(16), False),
    "vit": (
        partial(timm_net, "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=4),
        image(32),
        True,
    ),
    "deit": (
        partial(timm_net, "deit_tiny_distilled_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=4),
        image(32),
        True,
    ),
    "swin": (swin, image(32), True),
    "bert": (bert, tokens(), True),
    "distilbert": (distilbert, tokens(), True),
    "hubert": (hubert, {"input_values": signal(400)["input"]}, True),
    "signal": (signal_net, signal(2, 40), False),
    "lstm": (partial(Recurrent, nn.LSTM), signal(9, 6), False),
    "gru": (partial(Recurrent, nn.GRU), signal(9, 6), False),
    "mlp": (mlp, signal(6), False),
}


@cache
def halved(name: str) -> tuple[nn.Module, Pruned]:
    """A network, and what half of it came to: this proves by itself that readers lost what makers lost."""
    build, batch, _ = ZOO[name]
    torch.manual_seed(0)
    model = build().eval()
    return model, prune(model, batch, sparsity=0.5, round_to=1)


@pytest.mark.parametrize("name", ZOO)
def test_half_of_the_channels_go_and_the_file_agrees(name: str, tmp_path: Path) -> None:
    _, batch, attends = ZOO[name]
    model, pruned = halved(name)
    assert pruned.widths
    whole = {why for why in pruned.left_whole.values() if why != "makes the model's output"}
    assert attends or not whole, whole
    assert attends or all(after == -(-before // 2) or before % 2 for before, after in pruned.widths.values())
    expected = forward(pruned.model, batch)
    assert expected.shape == forward(model, batch).shape
    export_onnx(pruned.model, batch, tmp_path / "model.onnx")
    largest = float(expected.abs().max().detach())
    assert check_parity(pruned.model, tmp_path / "model.onnx", batch).max_abs_error <= PARITY * max(
        largest, 1.0
    )
    assert parameters(tmp_path / "model.onnx") < 0.95 * sum(p.numel() for p in model.parameters())


def rebuild(folder: Path) -> None:
    """Read every pruned network as a process does that knows nothing of it, and note what it answers."""
    torch.manual_seed(1)
    with torch.inference_mode():
        answers = {
            name: forward(read_model(build, folder / name), batch) for name, (build, batch, _) in ZOO.items()
        }
    save_file(answers, folder / ANSWERS)


def test_a_fresh_process_rebuilds_every_network_bit_for_bit(tmp_path: Path) -> None:
    for name, (build, _, _) in ZOO.items():
        (tmp_path / name).mkdir()
        write_model(halved(name)[1].model, build(), tmp_path / name)
    code = (
        "import pathlib, sys, torch; torch.set_num_threads(int(sys.argv[2])); "
        "import test_pruning_zoo; test_pruning_zoo.rebuild(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(torch.get_num_threads())]
    subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=120)
    answers = load_file(tmp_path / ANSWERS)
    with torch.inference_mode():
        for name, (_, batch, _) in ZOO.items():
            assert torch.equal(answers[name], forward(halved(name)[1].model, batch)), name
