"""Small attention networks as people bring them, each with what a careful reader knows of its heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

D, H = 16, 4  # width and heads of the user's own implementations


@dataclass(frozen=True, kw_only=True)
class AttentionNet:
    """A network of two or more attention layers.

    Attributes:
        build: Makes it.
        batch: Four inputs.
        layers: Names of the attention layers, all of them.
        heads: Units of each layer: its heads, or groups of heads that share keys.
        reader: The parameter that reads the heads of each layer, from the layer's name.
        sizes: Attributes of a layer that count heads or their width together -> value before.
        replaced: Kind of what takes the place of a layer that loses heads; empty if it stays itself.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]
    layers: tuple[str, ...]
    heads: tuple[int, ...]
    reader: Callable[[str], str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    replaced: str = ""


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def images() -> dict[str, Tensor]:
    return {"input": random(4, 3, 32, 32)}


def tokens() -> dict[str, Tensor]:
    return {"input": random(4, 5, D)}


def text() -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(7))
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Viewed(nn.Module):
    """The implementation that runs on with wrong heads if nobody tells it that there are fewer."""

    def __init__(self, width: int = D, heads: int = H) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        answer: Tensor = x + self.o(out.transpose(1, 2).reshape(b, n, -1))
        return answer


class Interleaved(nn.Module):
    """Query, key and value of a head lie together in one projection; a gate follows; weights are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.inner_dim = H, D
        self.qkv, self.gate = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D)
        self.out = nn.Sequential(nn.Linear(D, D), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.n_heads, -1).transpose(1, 2).chunk(3, dim=-1)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(b, n, self.inner_dim)
        return x + self.out(out * torch.sigmoid(self.gate(x))), weights


class Tagger(nn.Module):
    """Two attention layers and a classifier of the mean token."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.head = layer(), layer(), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            out = layer(x)
            x = out[0] if isinstance(out, tuple) else out
        answer: Tensor = self.head(x.mean(dim=1))
        return answer


class Encoded(nn.Module):
    """PyTorch's encoder, which has a fast path of its own."""

    def __init__(self, *, padded: bool = False, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, H, 2 * D, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=padded)
        self.head = nn.Linear(D, 3)
        self.padded = padded

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([[5], [3], [4], [5]])
        mask = torch.arange(5) >= lengths if self.padded else None
        x = self.encoder(x, src_key_padding_mask=mask)
        answer: Tensor = self.head(x[:, 0])
        return answer


def vision_transformer() -> nn.Module:
    from pastille.task.torchvision import import_torchvision

    kind = import_torchvision().models.VisionTransformer
    built: nn.Module = kind(
        image_size=32, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    return built


def swin(version: int) -> nn.Module:
    from pastille.task.torchvision import import_torchvision

    module = import_torchvision().models.swin_transformer
    second = {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
    built: nn.Module = module.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=5,
        **(second if version == 2 else {}),
    )
    return built


def timm_model(name: str, **given: Any) -> nn.Module:
    import timm

    built: nn.Module = timm.create_model(name, num_classes=5, img_size=32, **given)
    return built


def transformers_model(family: str, kind: str, **given: Any) -> nn.Module:
    import transformers

    from pastille.task.huggingface import Logits

    config = getattr(transformers, f"{family}Config")(**given)
    return Logits(getattr(transformers, f"{family}For{kind}")(config))


def speech() -> dict[str, Tensor]:
    return {"input_values": random(4, 800)}


VIT = {"depth": 2, "embed_dim": 64, "num_heads": 4, "patch_size": 16}
BERT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 3,
}

ATTENTION_NETS: dict[str, AttentionNet] = {
    "viewed": AttentionNet(
        build=partial(Tagger, Viewed),
        batch=tokens,
        layers=("first", "second"),
        heads=(4, 4),
        reader=lambda name: f"{name}.o.weight",
        sizes={"heads": 4},
    ),
    "interleaved": AttentionNet(
        build=partial(Tagger, Interleaved),
        batch=tokens,
        layers=("first", "second"),
        heads=(4, 4),
        reader=lambda name: f"{name}.out.0.weight",
        sizes={"n_heads": 4, "inner_dim": 16},
    ),
    "encoder": AttentionNet(
        build=Encoded,
        batch=tokens,
        layers=tuple(f"encoder.layers.{i}.self_attn" for i in range(3)),
        heads=(4, 4, 4),
        reader=lambda name: f"{name}.out_proj.weight",
        sizes={"num_heads": 4},
        replaced="attention",
    ),
    "torchvision vit": AttentionNet(
        build=vision_transformer,
        batch=images,
        layers=tuple(f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)),
        heads=(4, 4),
        reader=lambda name: f"{name}.out_proj.weight",
        sizes={"num_heads": 4},
        replaced="attention",
    ),
    **{
        f"torchvision swin {version}": AttentionNet(
            build=partial(swin, version),
            batch=images,
            layers=("features.1.0.attn", "features.1.1.attn", "features.3.0.attn"),
            heads=(2, 2, 4),
            reader=lambda name: f"{name}.proj.weight",
            replaced="window_attention",
        )
        for version in (1, 2)
    },
    **{
        f"timm {family}": AttentionNet(
            build=partial(timm_model, f"{family}_tiny_patch16_224", **VIT),
            batch=images,
            layers=("blocks.0.attn", "blocks.1.attn"),
            heads=(4, 4),
            reader=lambda name: f"{name}.proj.weight",
            sizes={"num_heads": 4, "attn_dim": 64},
        )
        for family in ("vit", "deit")
    },
    "timm swin": AttentionNet(
        build=partial(
            timm_model,
            "swin_tiny_patch4_window7_224",
            embed_dim=16,
            depths=(2, 1),
            num_heads=(2, 4),
            window_size=4,
        ),
        batch=images,
        layers=("layers.0.blocks.0.attn", "layers.0.blocks.1.attn", "layers.1.blocks.0.attn"),
        heads=(2, 2, 4),
        reader=lambda name: f"{name}.proj.weight",
    ),
    "bert": AttentionNet(
        build=partial(transformers_model, "Bert", "SequenceClassification", **BERT),
        batch=text,
        layers=tuple(f"model.bert.encoder.layer.{i}.attention.self" for i in range(2)),
        heads=(4, 4),
        reader=lambda name: f"{name.removesuffix('.self')}.output.dense.weight",
        sizes={"num_attention_heads": 4, "all_head_size": 32},
    ),
    "distilbert": AttentionNet(
        build=partial(
            transformers_model,
            "DistilBert",
            "SequenceClassification",
            vocab_size=50,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            num_labels=3,
        ),
        batch=text,
        layers=tuple(f"model.distilbert.transformer.layer.{i}.attention" for i in range(2)),
        heads=(4, 4),
        reader=lambda name: f"{name}.out_lin.weight",
        sizes={"n_heads": 4},
    ),
    "hubert": AttentionNet(
        build=partial(
            transformers_model,
            "Hubert",
            "SequenceClassification",
            **{k: v for k, v in BERT.items() if k != "vocab_size"},
            conv_dim=(16, 16),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
        batch=speech,
        layers=tuple(f"model.hubert.encoder.layers.{i}.attention" for i in range(2)),
        heads=(4, 4),
        reader=lambda name: f"{name}.out_proj.weight",
        sizes={"num_heads": 4},
    ),
    "llama, keys shared by two heads": AttentionNet(
        build=partial(
            transformers_model,
            "Llama",
            "SequenceClassification",
            **{**BERT, "num_attention_heads": 8},
            num_key_value_heads=4,
            pad_token_id=0,
            use_cache=False,
        ),
        batch=text,
        layers=tuple(f"model.model.layers.{i}.self_attn" for i in range(2)),
        heads=(4, 4),
        reader=lambda name: f"{name}.o_proj.weight",
    ),
}


def lively(build: Callable[[], nn.Module]) -> nn.Module:
    """The network with weights of which each one shows in the answer."""
    model, generator = build().eval(), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        elif "norm" not in name.lower():
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def half(heads: int, layer: int) -> Tensor:
    """Half of the heads, others in each layer."""
    return torch.randperm(heads, generator=torch.Generator().manual_seed(layer))[: heads // 2]


def removals_of(net: AttentionNet) -> dict[str, Tensor]:
    return {name: half(heads, i) for i, (name, heads) in enumerate(zip(net.layers, net.heads, strict=True))}


def masked(net: AttentionNet, model: nn.Module) -> nn.Module:
    """The oracle: the same model, whose heads are all computed, but some are read with weights of zero."""
    for (name, gone), heads in zip(removals_of(net).items(), net.heads, strict=True):
        weight = model.get_parameter(net.reader(name))
        with torch.no_grad():
            weight.view(len(weight), heads, -1)[:, gone] = 0.0
    return model
