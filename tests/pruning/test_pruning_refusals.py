"""Code that the tracer cannot follow ends in one clear line, or in fewer cuts; never in a wrong network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import IMAGE, NETS, conv_bn, kill_, trained_looking
from torch import Tensor, nn

import pastille.pruning.groups
import pastille.pruning.surgery
from pastille.errors import PreconditionError
from pastille.pruning import prune
from pastille.pruning.whole import UNPROVEN
from pastille.task import forward

BATCH = {"input": torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))}


class Rearranging(nn.Module):
    """Two convolutions with some rearranging of channels in between."""

    def __init__(self, rearrange: Callable[[Tensor], Tensor], *, first: int = 32, second: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, first, 3, 1, 1), nn.Conv2d(second, 32, 1)
        self.head = nn.Linear(32, 5)
        self.rearrange = rearrange

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(self.rearrange(F.relu(self.first(x)))))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


def shuffled(x: Tensor) -> Tensor:  # as ShuffleNet does
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def maxout(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 2, 2, h, w).amax(dim=2)


def reversed_channels(x: Tensor) -> Tensor:
    return x.flip(1)


def fixed_slice(x: Tensor) -> Tensor:
    return torch.cat([x[:, 16:32], x[:, :16]], dim=1)


CASES = {
    "shuffle": lambda: Rearranging(shuffled),
    "flip": lambda: Rearranging(reversed_channels),
    "roll": lambda: Rearranging(lambda x: x.roll(1, dims=1)),
    "pixel shuffle": lambda: Rearranging(lambda x: F.pixel_shuffle(x, 2), first=64, second=16),
    "maxout": lambda: Rearranging(maxout, second=16),
    "fixed slice": lambda: Rearranging(fixed_slice),
    "padding": lambda: Rearranging(lambda x: F.pad(x, (0, 0, 0, 0, 16, 16)), second=64),
    "repetition": lambda: Rearranging(lambda x: x.repeat(1, 2, 1, 1), second=64),
    "interleaving": lambda: Rearranging(lambda x: x.repeat_interleave(2, dim=1), second=64),
    "doubling": lambda: Rearranging(lambda x: torch.cat([x, x.flip(1)], dim=1), second=64),
}


@pytest.mark.parametrize("build", CASES.values(), ids=list(CASES))
def test_rearranged_channels_are_left_whole_or_refused(build: Callable[[], nn.Module]) -> None:
    """A quarter of the first layer is dead: whatever is cut there must not change the answer."""
    torch.manual_seed(0)
    model = build()
    kill_(model, ("first",), torch.arange(0, 32, 4))
    refusal = ""
    try:
        pruned = prune(model, BATCH, sparsity=0.25, protect=["second"])
    except PreconditionError as error:
        refusal = str(error)
    if refusal:
        assert "leave prune out" in refusal
        assert "\n" not in refusal
    elif "first" in pruned.widths:
        torch.testing.assert_close(forward(pruned.model, BATCH), forward(model, BATCH))


@pytest.mark.parametrize("name", ["shuffle", "roll", "pixel shuffle", "maxout", "fixed slice", "padding"])
def test_channels_that_change_places_stay_and_the_rest_is_pruned(name: str) -> None:
    torch.manual_seed(0)
    pruned = prune(CASES[name](), BATCH, sparsity=0.5)
    assert "second" in pruned.widths
    if name == "pixel shuffle":  # the reader puts the four of a block together again
        assert pruned.widths["first"] == (64, 32)
    else:
        assert "rearranged" in pruned.left_whole["first"]


@pytest.mark.parametrize("name", ["flip", "repetition", "interleaving", "doubling"])
def test_channels_in_a_known_order_are_followed(name: str) -> None:
    torch.manual_seed(0)
    assert prune(CASES[name](), BATCH, sparsity=0.5).widths == {"first": (32, 16), "second": (32, 16)}


def test_protecting_the_layers_around_a_shuffle_lets_the_rest_be_pruned() -> None:
    torch.manual_seed(0)
    pruned = prune(CASES["shuffle"](), BATCH, sparsity=0.5, protect=["first"])
    assert pruned.widths == {"second": (32, 16)}


@pytest.mark.parametrize("tensor", ["conv1.weight", "bn1.running_mean", "conv4.weight"])
def test_surgery_that_takes_other_channels_is_caught(tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is not blind: a reader, a norm or a maker that loses its neighbours' channels is found."""
    cut = pastille.pruning.surgery.selected

    def cut_elsewhere(x: Tensor, axis: int, left: Tensor, blocks: int = 1) -> Tensor:
        mine = x.shape == shape and torch.equal(x, model.state_dict()[tensor])
        return cut(x, axis, left.roll(1) if mine else left, blocks)

    model = trained_looking(NETS["residual"])
    shape = model.state_dict()[tensor].shape
    monkeypatch.setattr(pastille.pruning.surgery, "selected", cut_elsewhere)
    pruned = prune(model, NETS["residual"].batch(), sparsity=0.5)
    layer = tensor.partition(".")[0].replace("bn1", "conv1")
    assert layer not in pruned.widths
    assert pruned.left_whole[layer] == UNPROVEN
    assert pruned.widths  # others are none the worse


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.hidden(x.mean(dim=(2, 3))))
        if x.sum() > 0:
            x = x * 2
        out: Tensor = self.head(x)
        return out


class Sliced(Branching):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.hidden(x.mean(dim=(2, 3))))
        out: Tensor = self.head(x[x.sum(dim=1).nonzero().flatten()])
        return out


@pytest.mark.parametrize(("build", "asks"), [(Branching, "bool"), (Sliced, "nonzero")])
def test_decisions_and_shapes_from_computed_values_are_refused(build: type[nn.Module], asks: str) -> None:
    with pytest.raises(
        PreconditionError, match=f"values that it computes .{asks}.*leave prune out"
    ) as caught:
        prune(build(), BATCH, sparsity=0.5)
    assert "\n" not in str(caught.value)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_what_leaves_pytorch_is_not_guessed() -> None:
    pruned = prune(Rearranging(Doubled.apply), BATCH, sparsity=0.5)
    assert pruned.widths == {"second": (32, 16)}
    assert pruned.left_whole["first"] == "its channels run through numpy, which is not followed"


def test_an_unknown_operation_is_named() -> None:
    pruned = prune(Rearranging(lambda x: torch.fft.fft(x, dim=1).real), BATCH, sparsity=0.5)
    assert pruned.left_whole["first"] == "its channels run through fft_fft, which is not followed"


class OptionA(nn.Module):
    """The first ResNets: the shortcut pads channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = conv_bn(3, 32), nn.Conv2d(32, 64, 3, 2, 1)
        self.conv2, self.norm = nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 16, 16)))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


def test_zero_padding_shortcuts_stay_and_the_inner_layers_are_pruned() -> None:
    torch.manual_seed(0)
    model = OptionA().eval()
    kill_(model, ("conv1",), torch.arange(0, 64, 2))
    pruned = prune(model, BATCH, sparsity=0.5)
    assert pruned.widths == {"conv1": (64, 32)}
    assert pruned.left_whole["stem.0"] == pruned.left_whole["conv2"]
    assert "padded" in pruned.left_whole["conv2"]
    torch.testing.assert_close(forward(pruned.model, BATCH), forward(model, BATCH), rtol=0, atol=1e-5)


class HandmadeAttention(nn.Module):
    """Heads are cut out by a view that would run with any width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))  # (N, T, C)
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, 4, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v  # (N, heads, T, C / heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        x = x + self.down(F.gelu(self.up(x)))
        out: Tensor = self.head(x.mean(dim=1))
        return out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embed(x.flatten(2).transpose(1, 2))).mean(dim=1))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(3, 32), nn.LSTM(32, 32, batch_first=True)
        self.hidden, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(
            F.relu(self.hidden(self.lstm(self.embed(x.flatten(2).transpose(1, 2)))[0][:, -1]))
        )
        return out


@pytest.mark.parametrize(
    ("build", "narrowed"),
    [(HandmadeAttention, {"up"}), (Encoder, {"layer.linear1"}), (Recurrent, {"lstm", "hidden"})],
)
def test_heads_and_states_are_left_whole(build: Callable[[], nn.Module], narrowed: set[str]) -> None:
    torch.manual_seed(0)
    pruned = prune(build(), BATCH, sparsity=0.5, protect=["embed"])
    assert pruned.widths.keys() == narrowed
    assert any("by matmul" in why for why in pruned.left_whole.values()) or build is not HandmadeAttention


def test_a_block_that_counts_heads_for_its_attention_does_not_protect_its_other_layers() -> None:
    class Block(Encoder):
        num_heads = 4

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.block(x)
            return out

    assert prune(Wrapped(), BATCH, sparsity=0.5).widths.keys() == {"block.layer.linear1"}


def test_tied_and_parametrized_weights_are_left_whole() -> None:
    tied = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    tied[4].weight = tied[2].weight
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tied,
        nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )
    pruned = prune(model, BATCH, sparsity=0.5)
    assert pruned.widths == {"5": (32, 16)}
    assert {name for name, why in pruned.left_whole.items() if "shared" in why} == {"2.0", "2.2", "2.4", "3"}


def test_layers_under_no_grad_are_followed_too() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.hidden, self.head = nn.Conv2d(3, 32, 8), nn.Linear(32, 32), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.features(x).flatten(1)
            out: Tensor = self.head(F.relu(self.hidden(x)))
            return out

    assert prune(Half(), BATCH, sparsity=0.5).widths == {"features": (32, 16), "hidden": (32, 16)}


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(3, 32, 3, 2, 1), nn.Linear(512, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.hidden(F.relu(self.conv(x)).view(-1, 512))))
        return out


def test_a_width_written_into_the_code_says_what_to_protect_and_protecting_helps() -> None:
    torch.manual_seed(0)
    with pytest.raises(PreconditionError, match=r"no longer runs .* fixes a width by hand; protect conv in"):
        prune(FixedView(), BATCH, sparsity=0.5)
    assert prune(FixedView(), BATCH, sparsity=0.5, protect=["conv"]).widths == {"hidden": (32, 16)}


class Raises(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(3, 3), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 32)), nn.Linear(32, 5))


@pytest.mark.parametrize(
    "build", [lambda: Raises(ZeroDivisionError("by\nzero")), old_weight_norm], ids=["raises", "no copy"]
)
def test_whatever_the_tracer_stumbles_over_is_one_line_with_advice(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(PreconditionError, match="leave prune out of the plan") as caught:
        prune(build(), BATCH, sparsity=0.5)
    assert "\n" not in str(caught.value)


def test_a_tracer_that_breaks_halfway_is_one_line_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: object, **kwargs: object) -> None:
        raise AssertionError("Invalid indices: [7]")

    monkeypatch.setattr(pastille.pruning.groups, "_channel_group", breaks)
    net = NETS["mlp"]
    with pytest.raises(PreconditionError, match=r"cannot be followed \(AssertionError.*leave prune out"):
        prune(trained_looking(net), net.batch(), sparsity=0.5)


class Normalized(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 32, 3), norm, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))
        return out


class Relative(nn.Module):
    """Every channel against the mean of all at its position."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(4, 32), nn.GroupNorm(1, 32), nn.InstanceNorm2d(32, affine=True), nn.PReLU(32), Relative()],
    ids=lambda m: type(m).__name__,
)
def test_what_computes_over_channels_is_no_reason_to_refuse(norm: nn.Module) -> None:
    torch.manual_seed(0)
    assert prune(Normalized(norm), BATCH, sparsity=0.5).widths["conv"] == (32, 16)
