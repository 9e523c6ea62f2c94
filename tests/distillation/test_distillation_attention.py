"""Learning how tokens relate, from transformers of all makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn

from pastille.distillation.attention import attention_layers, relation_heads, relations, sources
from pastille.distillation.layers import proposed_pairs
from pastille.distillation.watching import watched
from pastille.pruning.attention import Attention
from pastille.pruning.hooks import no_fast_path
from pastille.recipe import Hints
from pastille.task.forward import forward
from pastille.task.torchvision import import_torchvision

TEXT = {
    "input_ids": torch.arange(14).reshape(2, 7),
    "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
}
IMAGES = {"input": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
SEQUENCES = {"input": torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))}


class Text(nn.Module):
    """The logits of a model of transformers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(input_ids=input_ids, attention_mask=attention_mask).logits
        return out


class Encoder(nn.Module):
    """PyTorch's own, in either order of its axes."""

    def __init__(self, layers: int, *, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head, self.axis = nn.Linear(16, 3), 0 if batch_first else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.encoder(x.transpose(0, self.axis)).mean(dim=1 - self.axis))
        return out


def of_transformers(family: str, **sizes: int) -> nn.Module:
    import_torchvision()
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=50, **sizes)
    return Text(getattr(transformers, f"{family}ForSequenceClassification")(config))


def bert(layers: int, width: int, heads: int, family: str = "Bert") -> nn.Module:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return of_transformers(family, intermediate_size=32, **sizes)


def distilbert(layers: int, width: int, heads: int) -> nn.Module:
    return of_transformers("DistilBert", dim=width, n_layers=layers, n_heads=heads, hidden_dim=32)


def vit(depth: int, width: int) -> nn.Module:
    import_torchvision()
    import timm

    sizes = {"img_size": 32, "embed_dim": width, "depth": depth, "num_heads": 4, "num_classes": 3}
    built: nn.Module = timm.create_model("vit_tiny_patch16_224", **sizes)
    return built


def vision(depth: int, width: int) -> nn.Module:
    sizes = {"num_layers": depth, "hidden_dim": width, "num_heads": 2, "mlp_dim": 32, "num_classes": 3}
    built: nn.Module = import_torchvision().models.VisionTransformer(32, 16, **sizes)
    return built


Nets = tuple[Callable[[], nn.Module], Callable[[], nn.Module], Mapping[str, torch.Tensor], str, str]

# Student, teacher, their inputs, and how the layers of each are called.
PAIRED: dict[str, Nets] = {
    "bert": (
        lambda: bert(2, 24, 2),
        lambda: bert(4, 48, 4),
        TEXT,
        "net.bert.encoder.layer.{}",
        "net.bert.encoder.layer.{}",
    ),
    "roberta": (
        lambda: bert(2, 24, 2, "Roberta"),
        lambda: bert(4, 24, 2, "Roberta"),
        TEXT,
        "net.roberta.encoder.layer.{}",
        "net.roberta.encoder.layer.{}",
    ),
    "distilbert": (
        lambda: distilbert(2, 24, 2),
        lambda: bert(4, 48, 4),
        TEXT,
        "net.distilbert.transformer.layer.{}",
        "net.bert.encoder.layer.{}",
    ),
    "timm": (lambda: vit(2, 16), lambda: vit(4, 32), IMAGES, "blocks.{}", "blocks.{}"),
    "torchvision": (
        lambda: vision(2, 16),
        lambda: vit(4, 32),
        IMAGES,
        "encoder.layers.encoder_layer_{}",
        "blocks.{}",
    ),
    "torch": (
        lambda: Encoder(2),
        lambda: Encoder(4, batch_first=False),
        SEQUENCES,
        "encoder.layers.{}",
        "encoder.layers.{}",
    ),
}


@pytest.mark.parametrize("name", PAIRED)
def test_layers_are_paired_evenly(name: str) -> None:
    student, teacher, batch, ours, told = PAIRED[name]
    pairs = proposed_pairs(student(), teacher(), batch, Hints(loss="hidden"))
    assert [p.student for p in pairs] == [ours.format(0), ours.format(1)]
    assert [p.teacher for p in pairs] == [told.format(1), told.format(3)]
    (last,) = proposed_pairs(student(), teacher(), batch, Hints(loss="minilm"))
    assert last.student.startswith(ours.format(1))
    assert last.teacher.startswith(told.format(3))
    assert last.ours.places == last.told.places


def attended(parts: torch.Tensor, heads: int) -> torch.Tensor:
    """What heads make of queries, keys and values ``(N, T, 3C)``, computed by PyTorch: ``(N, T, C)``."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in parts.chunk(3, dim=-1))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("build", "batch", "heads", "out"),
    [
        (lambda: bert(2, 24, 2), TEXT | {"attention_mask": torch.ones(2, 7).long()}, 2, None),
        (lambda: vit(2, 16), IMAGES, 4, "proj"),
        (lambda: vision(2, 16), IMAGES, 2, "out_proj"),
        (lambda: Encoder(2), SEQUENCES, 2, "out_proj"),
        (lambda: Encoder(2, batch_first=False), SEQUENCES, 2, "out_proj"),
    ],
)
def test_what_is_seen_of_attention_is_what_it_attends_with(
    build: Callable[[], nn.Module], batch: Mapping[str, torch.Tensor], heads: int, out: str | None
) -> None:
    """Its answer follows from the queries, keys and values that are seen."""
    model = build().eval()
    name = list(attention_layers(model))[-1]
    answers: list[Any] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_hook(lambda _m, _a, answer: answers.append(answer))
    seen = watched(model, [f"{name}#qkv"])
    with torch.no_grad(), no_fast_path():
        forward(model, batch)
        found = attended(seen.latest[f"{name}#qkv"], heads)
        if out is not None:
            found = layer.get_submodule(out)(found)
    hook.remove()
    answer = answers[0][0] if isinstance(answers[0], tuple) else answers[0]
    second = isinstance(layer, nn.MultiheadAttention) and not layer.batch_first
    torch.testing.assert_close(found, answer.transpose(0, 1) if second else answer, rtol=1e-4, atol=1e-5)


def test_a_pruned_layer_is_seen_like_the_one_it_replaces() -> None:
    layer, x = nn.MultiheadAttention(16, 4), torch.randn(5, 2, 16)
    seen = []
    for module in (layer, Attention.of(layer)):
        watch = watched(module, ["#qkv"])
        module(x, x, x)
        seen.append(watch.latest["#qkv"])
    assert seen[0].shape == (2, 5, 48)
    torch.testing.assert_close(seen[0], seen[1])


def test_heads_that_share_keys_are_no_layer_of_this_kind() -> None:
    shared = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "k_proj": nn.Linear(8, 4), "v_proj": nn.Linear(8, 4)})
    assert sources(shared) == []


def expected_relations(a: np.ndarray, b: np.ndarray, heads: int, tokens: list[int]) -> float:
    """Written out token by token; ``(N, T, 3C)``, the first tokens of each case count."""
    found = []
    for case, count in enumerate(tokens):
        for part in range(3):
            for head in range(heads):
                rows = []
                for x in (b, a):
                    width = x.shape[2] // 3 // heads
                    start = part * x.shape[2] // 3 + head * width
                    own = x[case, :count, start : start + width]
                    rows.append(softmax(own @ own.T / math.sqrt(width), axis=1))
                found.append(entropy(rows[0], rows[1], axis=1))
    return float(np.mean(np.concatenate(found)))


def test_relations_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 5, 48, dtype=torch.float64)
    assert relation_heads(8, 16) == 8
    found = relations(a.mT, b.mT)
    assert float(found) == pytest.approx(expected_relations(a.numpy(), b.numpy(), 8, [5, 5]), rel=1e-6)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = relations(a.mT, b.mT, mask)
    assert float(found) == pytest.approx(expected_relations(a.numpy(), b.numpy(), 8, [5, 3]), rel=1e-6)


def test_relations_of_a_case_that_is_all_padding_are_finite() -> None:
    mask = torch.tensor([[True, True, True], [False, False, False]])
    x = torch.randn(2, 12, 3, requires_grad=True)
    relations(x, torch.randn(2, 24, 3), mask).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert float(x.grad[1].abs().max()) == 0


def test_padding_does_not_change_what_is_learned_of_a_transformer() -> None:
    """Whatever stands in the padding: the tokens that count relate in the same way."""
    student, teacher = bert(1, 24, 2).eval(), bert(2, 48, 4).eval()
    (pair,) = proposed_pairs(student, teacher, TEXT, Hints(loss="minilm"))
    values = []
    for filler in (0, 7):
        ids = torch.where(TEXT["attention_mask"].bool(), TEXT["input_ids"], filler)
        watch = watched(student, [pair.student]), watched(teacher, [pair.teacher])
        for model in (student, teacher):
            forward(model, TEXT | {"input_ids": ids})
        ours, told = (w.latest[p].mT for w, p in zip(watch, (pair.student, pair.teacher), strict=True))
        values.append(relations(ours, told, TEXT["attention_mask"].bool()).item())
        assert values[-1] != pytest.approx(relations(ours, told).item(), rel=1e-4)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
