"""Networks that people really bring: pruned, proven and rebuilt."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from pruning_nets import Net, trained_looking

from pastille.pruning import prune, read_model, write_model
from pastille.pruning.removal import layer_widths
from pastille.recipe import TaskSection
from pastille.stages.contract import state_digest
from pastille.task import forward
from pastille.task.factory import model_factory


def torchvision_net(name: str, size: int) -> Net:
    section = TaskSection(kind="multiclass", model=f"torchvision:{name}", labels=list("abcde"))
    return Net(build=model_factory(section, Path()), shape=(3, size, size), coupled=())


# Name -> pixels, layers that are narrowed at half width (all but the last, and what is too narrow).
MODELS = {
    "resnet18": (32, 20),
    "mobilenet_v3_small": (32, 52),
    "efficientnet_b0": (32, 77),
    "densenet121": (32, 120),
    "googlenet": (32, 57),
    "squeezenet1_1": (32, 25),
    "resnext50_32x4d": (32, 53),
    "regnet_y_400mf": (32, 84),
    "shufflenet_v2_x0_5": (32, 35),
}


@pytest.mark.parametrize("name", MODELS)
def test_torchvision_models_are_pruned_and_rebuilt(name: str, tmp_path: Path) -> None:
    size, narrowed = MODELS[name]
    net = torchvision_net(name, size)
    model, batch = trained_looking(net), net.batch()
    pruned = prune(model, batch, sparsity=0.5)  # checks by itself that each reader lost what its maker lost
    assert len(pruned.widths) == narrowed
    odd = {name for name, (_, after) in pruned.widths.items() if after % 8}
    assert odd <= pruned.unrounded.keys()
    assert not odd or name == "regnet_y_400mf"  # groups of 8 channels, 55 of them: 440 is no lesser multiple
    assert forward(pruned.model, batch).shape == (2, 5)
    write_model(pruned.model, net.build(), tmp_path)
    back = read_model(net.build, tmp_path)
    assert state_digest(back) == state_digest(pruned.model)
    assert layer_widths(back) == layer_widths(pruned.model)
    assert torch.equal(forward(back, batch), forward(pruned.model, batch))


def test_a_vision_transformer_keeps_its_heads_and_loses_hidden_units() -> None:
    import timm

    build = partial(
        timm.create_model,
        "vit_tiny_patch16_224",
        num_classes=5,
        img_size=32,
        embed_dim=64,
        depth=2,
        num_heads=4,
    )
    net = Net(build=build, shape=(3, 32, 32), coupled=())
    model = trained_looking(net)
    pruned = prune(model, net.batch(), sparsity=0.5)
    hidden = {f"blocks.{i}.mlp.fc1" for i in range(2)}
    assert hidden <= pruned.widths.keys()
    for i in range(2):
        assert layer_widths(pruned.model)[f"blocks.{i}.attn.qkv"] == 3 * 64


def test_a_text_classifier_keeps_its_heads_and_loses_hidden_units(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    from pastille.task.huggingface import Logits

    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
    )

    def build() -> torch.nn.Module:
        return Logits(BertForSequenceClassification(config))

    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(0, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    pruned = prune(build().eval(), batch, sparsity=0.5)
    layer = "model.bert.encoder.layer.0"
    assert pruned.widths[f"{layer}.intermediate.dense"] == (64, 32)
    for part in ("query", "key", "value"):
        assert pruned.left_whole[f"{layer}.attention.self.{part}"] == "part of an attention layer"
    assert forward(pruned.model, batch).shape == (2, 3)
    write_model(pruned.model, build(), tmp_path)
    assert torch.equal(forward(read_model(build, tmp_path), batch), forward(pruned.model, batch))
