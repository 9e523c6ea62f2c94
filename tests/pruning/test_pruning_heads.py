"""Attention heads: what is cut out is exactly what was not read, whoever wrote the attention layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning as tp
from attention_nets import (
    ATTENTION_NETS,
    AttentionNet,
    D,
    Encoded,
    H,
    Tagger,
    Viewed,
    lively,
    masked,
    removals_of,
    text,
    tokens,
    transformers_model,
)
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.pruning.heads import ONE_HEAD, SHOWN, UNPROVEN, head_groups, remove_heads_
from pastille.pruning.layouts import counts_heads
from pastille.pruning.removal import remove, survey, trainable_copy
from pastille.pruning.whole import PROTECTED, SHARED
from pastille.task import forward


def answers_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return forward(model, batch)


@pytest.mark.parametrize("net", ATTENTION_NETS.values(), ids=list(ATTENTION_NETS))
def test_half_the_heads_leave_and_nothing_else_does(net: AttentionNet) -> None:
    model = lively(net.build)
    before = copy.deepcopy(model.state_dict())
    groups = {g.name: g for g in head_groups(trainable_copy(model), net.batch())}
    assert {name: (g.kind, g.num_channels, g.whole) for name, g in groups.items()} == {
        name: ("heads", heads, "") for name, heads in zip(net.layers, net.heads, strict=True)
    }
    pruned = trainable_copy(model)
    counts, whole = remove_heads_(pruned, net.batch(), removals_of(net))
    assert counts == {name: (h, h // 2) for name, h in zip(net.layers, net.heads, strict=True)}
    assert not whole
    expected = answers_of(masked(net, copy.deepcopy(model)), net.batch())
    found = answers_of(pruned, net.batch())
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    # The heads that left did matter, and the user's model is as it was.
    assert float((answers_of(model, net.batch()) - expected).abs().max()) > 1e-2
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    for name in net.layers:
        layer = pruned.get_submodule(name)
        assert {key: getattr(layer, key) for key in net.sizes} == {k: v // 2 for k, v in net.sizes.items()}
        size, now = model.get_parameter(net.reader(name)).shape[1], pruned.get_parameter(net.reader(name))
        assert now.shape[1] == size // 2
        for part in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            assert (part.out_features, part.in_features) == part.weight.shape


@pytest.mark.parametrize("net", ATTENTION_NETS.values(), ids=list(ATTENTION_NETS))
def test_members_hold_every_weight_of_a_head_once(net: AttentionNet) -> None:
    """The entries of all heads together are those projections, whole, and nothing is counted twice."""
    model = trainable_copy(lively(net.build))
    for group in head_groups(model, net.batch()):
        assert {m.role for m in group.members} == {"makes", "reads"}
        seen: dict[tuple[str, int], list[int]] = {}
        for member in group.members:
            place = member.entries.parameter, member.entries.axis
            seen.setdefault(place, []).extend(member.entries.indices.tolist())
            counts = torch.bincount(member.channels, minlength=group.num_channels)
            assert len(set(counts.tolist())) == 1  # each head has as many
        for (name, axis), indices in seen.items():
            assert sorted(indices) == list(range(model.get_parameter(name).shape[axis]))


def test_a_view_by_heads_goes_wrong_with_torch_pruning_alone_and_right_here() -> None:
    """``view(B, N, h, -1)`` runs on with h heads of half the width, and answers something else."""
    net = ATTENTION_NETS["viewed"]
    model = lively(lambda: nn.Sequential(Viewed(), nn.Linear(D, 3)))
    naive, batch = trainable_copy(model), tokens()
    graph = tp.DependencyGraph().build_dependency(naive, batch["input"])
    rows = [4, 5, 6, 7, 12, 13, 14, 15]  # heads 1 and 3, four rows each
    graph.get_pruning_group(naive.get_submodule("0.v"), tp.prune_linear_out_channels, rows).prune()
    for name in ("0.q", "0.k"):
        layer = naive.get_submodule(name)
        if isinstance(layer, nn.Linear) and layer.out_features == D:
            graph.get_pruning_group(layer, tp.prune_linear_out_channels, rows).prune()
    assert naive.get_submodule("0.o").in_features == D // 2  # it runs, with the number of heads as it was
    assert naive.get_submodule("0").heads == H
    oracle = copy.deepcopy(model)
    with torch.no_grad():
        oracle.get_parameter("0.o.weight")[:, rows] = 0.0
    expected = answers_of(oracle, batch)
    assert float((answers_of(naive, batch) - expected).abs().max()) > 0.1
    pruned = trainable_copy(model)
    remove_heads_(pruned, batch, {"0": torch.tensor([1, 3])})
    assert pruned.get_submodule("0").heads == H // 2
    assert torch.allclose(answers_of(pruned, batch), expected, atol=1e-6)
    assert net.heads == (H, H)


@pytest.mark.parametrize("kept", range(H))
def test_any_head_can_be_the_last_and_none_is_refused(kept: int) -> None:
    model = lively(lambda: Tagger(Viewed))
    others = torch.tensor([i for i in range(H) if i != kept])
    pruned = trainable_copy(model)
    remove_heads_(pruned, tokens(), {"first": others})
    assert pruned.get_submodule("first").heads == 1
    with pytest.raises(PreconditionError, match="must keep one of its 4 heads"):
        remove_heads_(trainable_copy(model), tokens(), {"first": torch.arange(H)})


def test_heads_leave_in_two_steps_as_in_one() -> None:
    net = ATTENTION_NETS["encoder"]
    model = lively(net.build)
    name, batch = net.layers[1], net.batch()
    first = remove(model, batch, {name: torch.tensor([1])})
    second = remove(first.model, batch, {name: torch.tensor([1, 2])})  # 2 and 3 as they were numbered
    once = remove(model, batch, {name: torch.tensor([1, 2, 3])})
    assert (first.heads, second.heads) == ({name: (4, 3)}, {name: (3, 1)})
    assert torch.allclose(answers_of(second.model, batch), answers_of(once.model, batch), atol=1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # PyTorch's own use of them
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fast_path_of_pytorchs_encoder_gives_no_other_answer(norm_first: bool) -> None:
    """Also where a padded batch becomes a nested one, in layers before and after the one that changed."""
    model = lively(lambda: Encoded(padded=not norm_first, norm_first=norm_first))
    oracle, batch = copy.deepcopy(model), tokens()
    pruned = trainable_copy(model)
    remove_heads_(pruned, batch, {"encoder.layers.1.self_attn": torch.tensor([0, 2])})
    with torch.no_grad():
        weight = oracle.get_parameter("encoder.layers.1.self_attn.out_proj.weight")
        weight.view(D, H, -1)[:, [0, 2]] = 0.0
    with torch.enable_grad():
        slow = forward(pruned, batch).detach()
    for found in (answers_of(pruned, batch), slow):
        assert torch.allclose(found, answers_of(oracle, batch), atol=1e-5)


class FromInput(nn.Module):
    """The width of a head from the width of the input: fewer heads would be wider ones."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = H
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        answer: Tensor = self.proj(out.transpose(1, 2).reshape(b, n, c))
        return answer


class Talking(Viewed):
    """Heads that are mixed with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(H, H)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = self.mix((q @ k.transpose(-2, -1)).movedim(1, -1)).movedim(-1, 1)
        out = scores.softmax(-1) @ v
        answer: Tensor = x + self.o(out.transpose(1, 2).reshape(b, n, -1))
        return answer


class Twice(nn.Module):
    """Two layers with one projection between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Viewed(), Viewed()
        self.b.k = self.a.k

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.b(self.a(x)).mean(dim=1)
        return answer


class Repeated(nn.Module):
    """One layer under three names."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer] * 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.mean(dim=1)


class Picky(Viewed):
    """Runs with what it was made for alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.equal(x, tokens()["input"]):
            raise ValueError("out of range")
        return super().forward(x.clamp(-1, 1))


class BiasOfKeys(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, H, add_bias_kv=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.attention(x, x, x)[0]
        return answer


@pytest.mark.parametrize(
    ("build", "reasons"),
    [
        (lambda: nn.Sequential(FromInput(), nn.Linear(D, 3)), {"0": UNPROVEN}),
        (lambda: nn.Sequential(Talking(), nn.Linear(D, 3)), {"0": UNPROVEN}),
        (lambda: nn.Sequential(Picky(), nn.Linear(D, 3)), {"0": UNPROVEN}),
        (BiasOfKeys, {"attention": UNPROVEN}),
        (lambda: nn.MultiheadAttention(D, H), {"": "it is the whole model"}),
        (Twice, {"a": SHARED, "b": SHARED}),
        (
            lambda: Repeated(nn.TransformerEncoderLayer(D, H, 2 * D, batch_first=True)),
            {"layers.0.self_attn": SHARED},
        ),
        (lambda: Tagger(lambda: Viewed(heads=1)), {"first": ONE_HEAD, "second": ONE_HEAD}),
    ],
    ids=[
        "width from input",
        "mixed heads",
        "picky",
        "bias of keys",
        "whole model",
        "shared",
        "repeated",
        "one head",
    ],
)
def test_what_cannot_be_cut_exactly_stays_with_the_reason(build: object, reasons: dict[str, str]) -> None:
    assert callable(build)
    model, batch = lively(build), tokens()
    if isinstance(model, nn.MultiheadAttention):
        batch = dict.fromkeys(("query", "key", "value"), batch["input"])
    groups = head_groups(trainable_copy(model), batch)
    assert {g.name: g.whole for g in groups} == reasons
    with pytest.raises(PreconditionError, match="must stay"):
        groups[0].cut(torch.tensor([0]))
    pruned = trainable_copy(model)
    counts, whole = remove_heads_(pruned, batch, {name: torch.tensor([0]) for name in reasons})
    assert (counts, whole) == ({}, reasons)
    assert torch.equal(answers_of(pruned, batch), answers_of(model, batch))


def test_a_table_of_positions_that_other_layers_use_keeps_all_heads() -> None:
    """T5 computes it in its first layer and hands it on: no layer can lose heads alone."""
    import transformers

    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64)
    model = lively(lambda: transformers.T5EncoderModel(config))
    batch = text()

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Tensor) -> Tensor:
            answer: Tensor = self.model(**inputs)[0]
            return answer

    groups = head_groups(trainable_copy(First()), batch)
    assert [g.whole for g in groups] == [SHOWN, UNPROVEN]


def test_heads_that_share_one_key_leave_one_by_one() -> None:
    def build() -> nn.Module:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 50}
        heads = {"num_attention_heads": 8, "num_key_value_heads": 1, "pad_token_id": 0}
        return transformers_model("Llama", "SequenceClassification", **sizes, **heads)

    model = trainable_copy(lively(build))
    name = "model.model.layers.0.self_attn"
    (group,) = head_groups(model, text())
    assert (group.num_channels, len(group.members)) == (8, 2)
    assert {m.entries.parameter for m in group.members} == {f"{name}.q_proj.weight", f"{name}.o_proj.weight"}
    remove_heads_(model, text(), {name: torch.tensor([0, 3, 5])})
    layer = model.get_submodule(name)
    assert (layer.q_proj.out_features, layer.k_proj.out_features) == (20, 4)  # type: ignore[union-attr]
    assert layer.num_key_value_groups == 5


def test_one_layer_under_several_names_loses_heads_once() -> None:
    model = trainable_copy(lively(lambda: Repeated(Viewed())))
    counts, _ = remove_heads_(model, tokens(), {"layers.0": torch.tensor([2])})
    assert counts == {"layers.0": (4, 3)}
    assert model.get_submodule("layers.2").heads == 3


def test_protected_layers_stay() -> None:
    groups = head_groups(trainable_copy(lively(lambda: Tagger(Viewed))), tokens(), protect=["fir*"])
    assert [(g.name, g.whole) for g in groups] == [("first", PROTECTED), ("second", "")]


def test_models_without_attention_have_no_heads() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 3))
    assert head_groups(model, tokens()) == ()
    assert not counts_heads(model)


def test_a_layer_that_the_batch_does_not_reach_stays() -> None:
    class Idle(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.head(self.first(x).mean(dim=1))
            return answer

    groups = head_groups(trainable_copy(lively(lambda: Idle(Viewed))), tokens())
    assert [g.whole for g in groups] == ["", "the example inputs do not reach it"]


def test_surveys_and_removals_have_heads_and_channels_together() -> None:
    net = ATTENTION_NETS["bert"]
    model, batch = lively(net.build), net.batch()
    groups = survey(model, batch)
    assert [g.name for g in groups if g.kind == "heads"] == list(net.layers)
    hidden = next(g for g in groups if g.kind == "channels" and not g.whole and "intermediate" in g.name)
    model.get_submodule("model.bert.embeddings").requires_grad_(False)
    done = remove(model, batch, {net.layers[0]: torch.tensor([0]), hidden.name: torch.arange(8)})
    assert done.heads == {net.layers[0]: (4, 3)}
    assert done.widths[f"{net.layers[0]}.query"] == (32, 24)
    assert done.widths[hidden.name] == (64, 56)
    frozen = {n for n, p in done.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad}


def test_a_replaced_layer_is_frozen_as_it_was() -> None:
    model = lively(Encoded)
    model.get_submodule("encoder.layers.0").requires_grad_(False)
    heads = {f"encoder.layers.{i}.self_attn": torch.tensor([0]) for i in (0, 1)}
    done = remove(model, tokens(), heads).model
    assert not any(p.requires_grad for p in done.get_submodule("encoder.layers.0").parameters())
    assert all(p.requires_grad for p in done.get_submodule("encoder.layers.1").parameters())
