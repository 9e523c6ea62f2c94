"""Which layers learn from which, and looking at them."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn

from pastille.distillation.layers import Pair, proposed_pairs, watched
from pastille.distillation.probing import matched, probed
from pastille.errors import PreconditionError
from pastille.recipe import Hints
from pastille.task.torchvision import import_torchvision

IMAGES = {"input": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
SIGNALS = {"input": torch.randn(2, 12, 100, generator=torch.Generator().manual_seed(0))}


class Squeezed(nn.Module):
    """A block for signals, whose last layer is a linear one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv1d(width, width, 3, 2, 1), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        out: torch.Tensor = x * self.gate(x.mean(dim=-1)).sigmoid()[..., None]
        return out


class Forks(nn.Module):
    """A U-shaped net: it comes back to a resolution, and answers at that of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 2, 2)
        self.up, self.merge = nn.ConvTranspose2d(2 * width, width, 2, 2), nn.Conv2d(width, width, 3, 1, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        out: torch.Tensor = self.head(self.merge(self.up(self.deep(x)) + x))
        return out


def signals(width: int) -> nn.Module:
    blocks = nn.Sequential(Squeezed(width), Squeezed(width))
    layers = {"stem": nn.Conv1d(12, width, 7, 2, 3), "blocks": blocks, "pool": nn.AdaptiveAvgPool1d(1)}
    return nn.Sequential(OrderedDict(layers | {"flat": nn.Flatten(), "head": nn.Linear(width, 5)}))


def tabular(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )


def names(pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
    return [(p.student, p.teacher) for p in pairs]


def test_the_stages_of_residual_nets_are_paired() -> None:
    """Not what the next stage begins with, which still has the resolution of the one before."""
    models = import_torchvision().models
    pairs = proposed_pairs(models.resnet18(), models.resnet50(), IMAGES, Hints())
    assert names(pairs) == [(f"layer{i}", f"layer{i}") for i in (1, 2, 3, 4)]
    assert [p.told.channels for p in pairs] == [256, 512, 1024, 2048]
    pairs = proposed_pairs(models.mobilenet_v3_small(), models.resnet18(), IMAGES, Hints())
    assert names(pairs) == [
        ("features.1", "layer1"),
        ("features.3", "layer2"),
        ("features.8", "layer3"),
        ("features", "layer4"),
    ]
    (last,) = proposed_pairs(models.resnet18(), models.resnet50(), IMAGES, Hints(loss="relational"))
    assert (last.student, last.teacher) == ("layer4", "layer4")


def test_resolutions_that_differ_are_paired_with_the_nearest() -> None:
    coarse = nn.Sequential(nn.Conv2d(3, 4, 5, 5), nn.ReLU(), nn.Conv2d(4, 4, 4, 4), nn.ReLU())
    fine = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, 2)
    )
    pairs = proposed_pairs(
        nn.Sequential(coarse, nn.Flatten(), nn.Linear(36, 2)),
        nn.Sequential(fine, nn.Flatten(), nn.Linear(64, 2)),
        IMAGES,
        Hints(),
    )
    assert [(p.ours.places, p.told.places) for p in pairs] == [((12, 12), (16, 16)), ((3, 3), (4, 4))]


def test_signals_have_their_channels_first_whatever_their_last_layer_is() -> None:
    pairs = proposed_pairs(signals(8), signals(16), SIGNALS, Hints())
    assert names(pairs) == [("stem", "stem"), ("blocks.0", "blocks.0"), ("blocks", "blocks")]
    assert [(p.ours.channels, *p.ours.places) for p in pairs] == [(8, 50), (8, 25), (8, 13)]


def test_a_mask_is_no_feature_and_the_way_back_up_counts() -> None:
    pairs = proposed_pairs(Forks(2), Forks(4), IMAGES, Hints())
    assert names(pairs) == [("deep", "deep"), ("merge", "merge")]


def test_tables_are_paired_before_the_answer() -> None:
    batch = {"input": torch.randn(2, 10)}
    assert names(proposed_pairs(tabular(4), tabular(16), batch, Hints())) == [("3", "3")]
    with pytest.raises(PreconditionError, match=r"distill.hints.layers: .*loss: attention; name modules"):
        proposed_pairs(tabular(4), tabular(16), batch, Hints(loss="attention"))


def test_models_that_are_looked_at_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    before = copy.deepcopy(net.state_dict())
    proposed_pairs(net, net, IMAGES, Hints())
    assert net.training
    torch.testing.assert_close(net.state_dict(), before)
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("hints", "said"),
    [
        (Hints(layers={"blocks.9": "blocks"}), r"the student has no module 'blocks.9'; closest: blocks"),
        (Hints(layers={"blocks": "block"}), r"the teacher has no module 'block'; closest: blocks"),
        (
            Hints(layers={"blocks": "blocks.1.gate"}),
            r"gives \(8, 13\) and teacher module 'blocks.1.gate' \(16,\)",
        ),
        (
            Hints(loss="minilm", layers={"blocks": "blocks"}),
            "holds 0 self-attention layers, loss: minilm takes one",
        ),
        (Hints(loss="minilm"), "no features in common for loss: minilm"),
    ],
)
def test_layers_that_do_not_fit_are_told(hints: Hints, said: str) -> None:
    with pytest.raises(PreconditionError, match=rf"^distill\.hints\.layers: .*{said}"):
        proposed_pairs(signals(8), signals(16), SIGNALS, hints)


def test_tokens_of_other_lengths_are_not_matched() -> None:
    """There is nothing between two words."""

    def net(length: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(100, 6), nn.LayerNorm(6), nn.AdaptiveAvgPool2d((length, 6)), nn.Flatten()
        )

    hints = Hints(loss="hidden", layers={"2": "2"})
    with pytest.raises(
        PreconditionError, match=r"\(5, 6\) and teacher module '2' \(7, 6\).*cannot be matched"
    ):
        proposed_pairs(net(5), net(7), SIGNALS, hints)
    assert proposed_pairs(net(5), net(7), SIGNALS, hints.model_copy(update={"loss": "similarity"}))


def test_a_module_that_is_not_reached_is_told() -> None:
    net = signals(8)
    net.register_module("unused", nn.Linear(8, 8))
    net.forward = lambda x: nn.Sequential(*list(net.children())[:5])(x)
    with pytest.raises(PreconditionError, match="module 'unused' of the student gives no features"):
        proposed_pairs(net, signals(8), SIGNALS, Hints(layers={"unused": "stem"}))


def test_maps_are_pooled_to_the_smaller_one() -> None:
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 6)
    ours, told = matched(a, b)
    assert ours.shape == (2, 3, 24)
    torch.testing.assert_close(told, b.flatten(2))
    a, b = torch.randn(2, 3, 8), torch.randn(2, 5, 4)
    torch.testing.assert_close(matched(a, b)[0], a.reshape(2, 3, 4, 2).mean(dim=-1))
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 16)  # as many places, but others
    assert matched(a, b)[0].shape == (2, 3, 32)


def test_the_latest_forward_pass_counts() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    seen = watched(net, ["0", "1"])
    assert dict(seen.latest) == {}
    for n in (4, 5):
        x = torch.randn(n, 2)
        net(x)
    torch.testing.assert_close(seen.latest["0"], net[0](x))
    assert seen.latest["1"].requires_grad
    with torch.inference_mode():
        net(torch.zeros(9, 2))
    assert len(seen.taken()["0"]) == 5
    assert dict(seen.latest) == {}


def test_hooks_go_with_whoever_looks() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    seen = watched(net, ["0"])
    alive = weakref.ref(seen)
    assert len(net[0]._forward_hooks) == 1
    copied = copy.deepcopy(net)
    del seen
    gc.collect()
    assert alive() is None
    assert not net[0]._forward_hooks
    copied(torch.zeros(1, 2))  # what a copy took along does nothing
    seen = watched(net, ["0"])
    seen.remove()
    net(torch.zeros(1, 2))
    assert dict(seen.latest) == {}


def test_a_wrapped_model_is_seen_within() -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.module(x)
            return out

    net = nn.Sequential(nn.Linear(2, 3))
    seen = watched(net, ["0"])
    Wrapped(net)(torch.zeros(4, 2))
    assert seen.latest["0"].shape == (4, 3)


def test_modules_are_seen_in_the_order_in_which_they_finish() -> None:
    found = [s.name for s in probed(signals(8), SIGNALS)]
    assert found[0] == "stem"
    assert found.index("blocks.1") < found.index("blocks") < found.index("pool")
    assert [s.name for s in probed(signals(8), SIGNALS) if s.is_answer] == ["head"]
