"""The safe form of models some of whose modules were replaced, and what no plan may replace them by."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_nets import ATTENTION_NETS, AttentionNet, Encoded, lively, removals_of, swin, tokens
from torch import Tensor, nn

from pastille.errors import ExitCode, IntegrityError
from pastille.pruning import prune, read_model, remove, write_model
from pastille.pruning.architecture import PLAN, architecture_of
from pastille.pruning.attention import Attention, WindowAttention
from pastille.pruning.blocks import residual_blocks, without_blocks
from pastille.pruning.replacements import Replacement, Skip, replacements_in
from pastille.task import forward

# One process for all: what it costs is importing their libraries.
FRESH = """
import sys
from pathlib import Path

import torch
from attention_nets import ATTENTION_NETS

from pastille.pruning import read_model
from pastille.task import forward

for i, net in enumerate(ATTENTION_NETS.values()):
    torch.manual_seed(i + 100)
    model = read_model(net.build, Path(sys.argv[1]) / str(i))
    with torch.no_grad():
        print(forward(model, net.batch()).flatten().tolist())
"""


def test_models_with_fewer_heads_answer_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    expected = []
    for i, net in enumerate(ATTENTION_NETS.values()):
        pruned = remove(lively(net.build), net.batch(), removals_of(net)).model
        write_model(pruned, net.build(), tmp_path / str(i))
        plan = json.loads((tmp_path / str(i) / PLAN).read_bytes())
        kinds = {name: replacement["kind"] for name, replacement in plan["replacements"].items()}
        assert kinds == (dict.fromkeys(net.layers, net.replaced) if net.replaced else {})
        with torch.no_grad():
            expected.append(str(forward(pruned, net.batch()).flatten().tolist()))
    command = [sys.executable, "-c", FRESH, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("name", ["torchvision vit", "bert", "timm swin"])
def test_fewer_blocks_heads_and_channels_come_back_together(name: str, tmp_path: Path) -> None:
    net = ATTENTION_NETS[name]
    model, batch = lively(net.build), net.batch()
    free = [block.name for block in residual_blocks(model, batch) if not block.whole]
    shallow = without_blocks(model, batch, free)
    layer = next(layer for layer in net.layers if not any(layer.startswith(f"{block}.") for block in free))
    pruned = prune(shallow, batch, sparsity=0.5, heads=0.5)
    assert pruned.heads[layer][1] == pruned.heads[layer][0] // 2
    assert pruned.widths
    write_model(pruned.model, net.build(), tmp_path)
    back = read_model(net.build, tmp_path)
    assert {n for n, m in back.named_modules() if isinstance(m, Skip)} == set(free)
    assert torch.equal(forward(back, batch), forward(pruned.model, batch))


def attend(
    layer: nn.Module, given: tuple[Tensor, ...], **how: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    new = Attention.of(layer)  # type: ignore[arg-type]
    with torch.no_grad():
        return tuple(tuple(x for x in module(*given, **how) if x is not None) for module in (layer, new))  # type: ignore[return-value]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("own_widths", [False, True])
@pytest.mark.parametrize("masks", ["none", "padding", "float", "bool", "by head", "both", "causal"])
@pytest.mark.parametrize("weights", ["none", "mean", "all"])
def test_attention_answers_like_pytorchs(
    batch_first: bool, own_widths: bool, masks: str, weights: str
) -> None:
    n, t, s, width, heads = 3, 5, 7, 8, 4
    generator = torch.Generator().manual_seed(0)
    inner = 6 if own_widths else width
    layer = nn.MultiheadAttention(width, heads, kdim=inner, vdim=inner, batch_first=batch_first).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    q, k, v = (torch.randn(n, x, w, generator=generator) for x, w in ((t, width), (s, inner), (s, inner)))
    given = (q, k, v) if batch_first else tuple(x.transpose(0, 1) for x in (q, k, v))
    padding = torch.zeros(n, s, dtype=torch.bool)
    padding[1, -2:] = True
    mask = {
        "float": torch.randn(t, s, generator=generator),
        "bool": torch.randn(t, s, generator=generator) > 1,
        "by head": torch.randn(n * heads, t, s, generator=generator),
        "both": torch.eye(t, s, dtype=torch.bool),
        "causal": torch.full((t, s), float("-inf")).triu(1),
    }.get(masks)
    expected, found = attend(
        layer,
        given,
        attn_mask=mask,
        key_padding_mask=padding if masks in {"padding", "both"} else None,
        need_weights=weights != "none",
        average_attn_weights=weights != "all",
    )
    assert len(found) == len(expected) == 1 + (weights != "none")
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        # PyTorch multiplies with the three projections at once: other blocks, other rounding.
        assert float((x - y).abs().max()) <= (0.0 if own_widths and weights == "none" else 1e-6)


def test_attention_answers_like_pytorchs_without_a_batch_and_without_bias() -> None:
    layer = nn.MultiheadAttention(8, 2, bias=False).eval()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    expected, found = attend(layer, (x, x, x), key_padding_mask=torch.tensor([False] * 4 + [True]))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("window", "shift", "size"),
    [
        ((4, 4), (0, 0), (8, 8)),
        ((4, 4), (2, 2), (8, 12)),
        ((4, 4), (2, 2), (7, 10)),
        ((4, 3), (2, 1), (4, 6)),
        ((8, 8), (4, 4), (8, 4)),
    ],
)
def test_window_attention_answers_the_same_bits_as_torchvisions(
    version: int, window: tuple[int, int], shift: tuple[int, int], size: tuple[int, int]
) -> None:
    kind = type(swin(version).get_submodule("features.1.0.attn"))
    layer = kind(12, list(window), list(shift), 3).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(2, *size, 12, generator=generator)
    with torch.no_grad():
        assert torch.equal(WindowAttention.of(layer)(x), layer(x))


def test_dropout_and_mode_are_taken_over() -> None:
    layer = nn.MultiheadAttention(8, 2, dropout=0.25, batch_first=True)
    new = Attention.of(layer)
    assert (new.dropout, new.training, new.batch_first) == (0.25, True, True)
    x = torch.randn(2, 5, 8)
    torch.manual_seed(0)
    expected = layer(x, x, x)[1]
    torch.manual_seed(0)
    assert torch.allclose(new(x, x, x)[1], expected, atol=1e-6)  # the same weights were dropped
    kept = Attention.of(layer.eval())(x, x, x)[1]
    assert kept is not None
    assert not torch.allclose(kept, expected, atol=1e-2)


@pytest.mark.parametrize(("returns", "expected"), [(0, "x"), (1, ("x",)), (3, ("x", None, None))])
def test_a_skipped_block_returns_its_first_argument(returns: int, expected: object) -> None:
    assert Skip(returns)("x", 1, mask=2) == expected
    assert Skip(returns)(hidden_states="x", mask=2) == expected


class Padded(nn.Module):
    """The shortcut of a CIFAR ResNet without weights: every second pixel, and zeros for new channels."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


def test_a_shortcut_becomes_a_convolution_and_comes_back(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), Padded(), nn.Conv2d(8, 2, 1))

    model, x = build().eval(), torch.randn(2, 3, 9, 9)
    conv = nn.Conv2d(4, 8, 1, stride=2, bias=False)
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[2:6, :, 0, 0] = torch.eye(4)
        expected = model(x)
    model.set_submodule("1", conv)
    assert torch.equal(model(x), expected)
    write_model(model, build(), tmp_path)
    sizes = {"in_channels": 4, "out_channels": 8, "stride": 2, "groups": 1, "bias": 0}
    assert json.loads((tmp_path / PLAN).read_bytes())["replacements"] == {
        "1": {"kind": "conv", "sizes": sizes}
    }
    assert torch.equal(read_model(build, tmp_path)(x), expected)


@pytest.mark.parametrize("name", ["encoder", "torchvision swin 1"])
def test_frozen_attention_comes_back_frozen(name: str, tmp_path: Path) -> None:
    net = ATTENTION_NETS[name]

    def build() -> nn.Module:
        model = net.build()
        model.get_submodule(net.layers[0]).requires_grad_(requires_grad=False)
        return model

    pruned = remove(lively(build), net.batch(), removals_of(net)).model
    write_model(pruned, build(), tmp_path)
    back = read_model(build, tmp_path)
    trained = {name: p.requires_grad for name, p in back.named_parameters()}
    assert trained == {name: p.requires_grad for name, p in pruned.named_parameters()}
    assert set(trained.values()) == {False, True}


def test_a_model_in_double_precision_comes_back_as_such(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return Encoded().double()

    batch = {"input": tokens()["input"].double()}
    pruned = remove(build(), batch, {"encoder.layers.0.self_attn": torch.tensor([1])}).model
    write_model(pruned, build(), tmp_path)
    assert torch.equal(forward(read_model(build, tmp_path), batch), forward(pruned, batch))


def test_equal_modules_are_no_replacements() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), Skip())
    assert replacements_in(model, nn.Sequential(nn.Conv2d(2, 3, 1), Skip())) == {}


def change(name: str, kind: Any = None, **sizes: Any) -> Callable[[dict[str, Any]], None]:
    def apply(plan: dict[str, Any]) -> None:
        plan["replacements"][name] = {"kind": kind, "sizes": sizes} if kind is not None else sizes

    return apply


LAYER = "encoder.layers.0.self_attn"
CONV = {"in_channels": 4, "out_channels": 4, "stride": 1, "groups": 1, "bias": 0}
HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "unknown kind": change(LAYER, "lambda", num_heads=2),
    "kind by path": change(LAYER, "os.system", num_heads=2),
    "kind that is code": change(LAYER, "__import__('os')", num_heads=2),
    "kind that is null": change(LAYER, sizes=None),
    "kind that is a list": change(LAYER, ["attention"], num_heads=2),
    "no sizes": change(LAYER, "attention"),
    "more sizes": change(LAYER, "attention", num_heads=2, head_dim=1 << 40),
    "sizes of another kind": change(LAYER, "attention", returns=0),
    "other heads than the weights": change(LAYER, "attention", num_heads=2),
    "no heads": change(LAYER, "attention", num_heads=0),
    "negative heads": change(LAYER, "attention", num_heads=-2),
    "huge heads": change(LAYER, "attention", num_heads=1 << 20),
    "heads beyond 64 bits": change(LAYER, "attention", num_heads=10**30),
    "heads that are a fraction": change(LAYER, "attention", num_heads=2.5),
    "heads that are text": change(LAYER, "attention", num_heads="two"),
    "heads that are code": change(LAYER, "attention", num_heads="__import__('os')"),
    "a layer that is no attention": change("head", "attention", num_heads=2),
    "a layer of another library": change(LAYER, "window_attention", num_heads=2),
    "a layer that has weights": change(LAYER, "skip", returns=0),
    "a huge tuple": change(LAYER, "skip", returns=1 << 20),
    "a huge convolution": change("head", "conv", **{**CONV, "out_channels": 1 << 20, "in_channels": 1 << 20}),
    "a convolution of no width": change("head", "conv", **{**CONV, "out_channels": 0}),
    "groups that do not divide": change("head", "conv", **{**CONV, "groups": 3}),
    "groups of zero": change("head", "conv", **{**CONV, "groups": 0}),
    "bias of two": change("head", "conv", **{**CONV, "bias": 2}),
    "the whole model": change("", "skip", returns=0),
    "unknown module": change("tail", "skip", returns=0),
    "module by path": change("../encoder", "skip", returns=0),
    "module by dunder": change("head.__class__", "skip", returns=0),
    "module that is a tensor": change("head.weight", "skip", returns=0),
    "module within a replaced one": change(f"{LAYER}.q_proj", "skip", returns=0),
    "module within and around": change("encoder.layers.0", "skip", returns=0),
    "replacements that are a list": lambda plan: plan.update(replacements=[1]),
    "replacements in the first schema": lambda plan: plan.update(schema=1),
    "later schema": lambda plan: plan.update(schema=3),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_model(remove(lively(Encoded), tokens(), {LAYER: torch.tensor([1])}).model, Encoded(), folder)
    return folder


@pytest.mark.parametrize("change", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_plan_is_refused_in_one_line_and_takes_no_memory(
    change: Callable[[dict[str, Any]], None], written: Path, tmp_path: Path
) -> None:
    plan = json.loads((written / PLAN).read_bytes())
    change(plan)
    (tmp_path / PLAN).write_text(json.dumps(plan))
    (tmp_path / "model.safetensors").hardlink_to(written / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError) as caught:
        read_model(Encoded, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code is ExitCode.INTEGRITY
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize("heads", [1, 4, 2**20, -2, [2], "two"])
def test_a_number_of_heads_that_the_weights_do_not_have_is_refused(heads: object, tmp_path: Path) -> None:
    """The user's code would run on, with other heads."""
    net = ATTENTION_NETS["viewed"]
    write_model(remove(lively(net.build), net.batch(), removals_of(net)).model, net.build(), tmp_path)
    plan = json.loads((tmp_path / PLAN).read_bytes())
    assert plan["attributes"]["first"] == {"heads": 2}
    plan["attributes"]["first"]["heads"] = heads
    (tmp_path / PLAN).write_text(json.dumps(plan))
    with pytest.raises(IntegrityError):
        read_model(net.build, tmp_path)


def test_a_plan_of_the_first_schema_is_read(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))

    pruned = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).eval()
    write_model(pruned, build(), tmp_path)
    plan = json.loads((tmp_path / PLAN).read_bytes())
    assert plan["schema"] == 2
    del plan["replacements"]
    (tmp_path / PLAN).write_text(json.dumps({**plan, "schema": 1}))
    x = torch.ones(1, 4)
    assert torch.equal(read_model(build, tmp_path)(x), pruned(x))


def test_a_plan_names_what_differs_and_nothing_else() -> None:
    net: AttentionNet = ATTENTION_NETS["bert"]
    pruned = remove(lively(net.build), net.batch(), {net.layers[0]: torch.tensor([0])}).model
    architecture = architecture_of(pruned, net.build())
    assert architecture.replacements == {}
    assert architecture.attributes[net.layers[0]] == {"all_head_size": 24, "num_attention_heads": 3}
    assert all(name.startswith(net.layers[0].removesuffix(".self")) for name in architecture.shapes)
    first = remove(lively(Encoded), tokens(), {LAYER: torch.tensor([1])}).model
    told = architecture_of(first, Encoded())
    assert told.replacements == {LAYER: Replacement(kind="attention", sizes={"num_heads": 3})}
    assert (told.attributes, told.shapes) == ({}, {})
