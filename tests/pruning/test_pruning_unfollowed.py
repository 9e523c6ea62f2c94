"""What cannot be followed stays and says so, and the rest of the model is pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import NETS, trained_looking
from torch import Tensor, nn

import pastille.pruning.surgery
from pastille.errors import PreconditionError
from pastille.pruning import prune, read_model, remove, survey, write_model
from pastille.pruning.rewrites import option_a_convolutions
from pastille.pruning.whole import UNPROVEN, UNSAVED
from pastille.task import forward

BATCH = {"input": torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))}
CLASSES = torch.randint(0, 8, (2, 1, 9, 9), generator=torch.Generator().manual_seed(0))


class Odd(nn.Module):
    """Three convolutions, and code between the first two."""

    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.code = code
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(self.code(F.relu(self.first(x)))))
        out: Tensor = self.head(F.relu(self.third(x)).mean(dim=(2, 3)))
        return out


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: x * x.max(1, keepdim=True)[0].sigmoid(),
    "min": lambda x: x * torch.min(x, dim=1, keepdim=True).values.sigmoid(),
    "median": lambda x: x * x.median(1, keepdim=True)[0].sigmoid(),
    "var_mean": lambda x: x * torch.var_mean(x, dim=1, keepdim=True)[0].sigmoid(),
    "whole maximum": lambda x: x / x.max(),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=list(GATES))
def test_a_gate_over_channels_is_no_reason_to_refuse(gate: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Odd(gate).eval()
    pruned = prune(model, BATCH, sparsity=0.5)
    assert pruned.widths == dict.fromkeys(("first", "second", "third"), (16, 8))
    x, new = BATCH["input"], pruned.model
    taken = prune(model, BATCH, sparsity=0.5, protect=["second", "third"]).model
    with torch.no_grad():
        expected = F.relu(taken.first(x))  # type: ignore[operator]
        assert torch.equal(F.relu(new.first(x)), expected)  # type: ignore[operator]
        assert torch.equal(
            taken(x), model.head(F.relu(model.third(_read(taken, gate(expected)))).mean((2, 3)))
        )


def _read(model: nn.Module, x: Tensor) -> Tensor:
    return F.relu(model.second(x))  # type: ignore[operator]


def test_a_place_of_the_largest_channel_is_another_one_when_channels_go() -> None:
    """The values are given back to the proof; positions are not, and a model that uses them stays."""
    torch.manual_seed(0)
    model = Odd(lambda x: x * (1 + x.max(1, keepdim=True)[1])).eval()
    assert prune(model, BATCH, sparsity=0.5).left_whole["first"] == UNPROVEN


@pytest.mark.parametrize(
    "code",
    [lambda x: x / x.shape[1], lambda x: x + 0.01 * sum(x.shape)],
    ids=["divided by the width", "the width is added"],
)
def test_only_the_layer_that_cannot_be_followed_stays(code: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Odd(code).eval()
    pruned = prune(model, BATCH, sparsity=0.5)
    assert pruned.widths == {"second": (16, 8), "third": (16, 8)}
    assert pruned.left_whole["first"] == UNPROVEN
    same = prune(model, BATCH, sparsity=0.5, protect=["first"])
    assert torch.equal(forward(pruned.model, BATCH), forward(same.model, BATCH))
    asked = {group.name: torch.arange(4) for group in survey(model, BATCH) if not group.whole}
    assert remove(model, BATCH, asked).left_whole["first"] == UNPROVEN


def test_where_no_layer_is_wrong_by_itself_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = pastille.pruning.surgery.selected

    def cut_elsewhere(x: Tensor, axis: int, left: Tensor, blocks: int = 1) -> Tensor:
        again = x.shape == (16, 32, 3, 3)  # a convolution whose other axis was cut before
        return cut(x, axis, left.roll(1) if again else left, blocks)

    monkeypatch.setattr(pastille.pruning.surgery, "selected", cut_elsewhere)
    net = NETS["residual"]
    with pytest.raises(PreconditionError, match=r"read other channels .* shuffles.* \(prune.protect\)"):
        prune(trained_looking(net), net.batch(), sparsity=0.5)


def test_a_model_that_answers_by_chance_is_refused() -> None:
    model = Odd(torch.rand_like).eval()
    with pytest.raises(PreconditionError, match="prune: pruned layers would read other channels"):
        remove(model, BATCH, {"second": torch.arange(8), "third": torch.arange(8)})
    with pytest.raises(PreconditionError, match="prune: pruned layers would read other channels"):
        remove(model, BATCH, {})


def test_the_largest_few_channels_are_not_followed() -> None:
    model = Odd(lambda x: x * (x >= x.topk(4, dim=1)[0][:, -1:]).float())
    pruned = prune(model.eval(), BATCH, sparsity=0.5)
    assert pruned.left_whole["first"] == "its channels are taken together by topk"
    assert pruned.widths.keys() == {"second", "third"}


def test_a_product_of_activations_is_not_called_attention() -> None:
    def mixed(x: Tensor) -> Tensor:
        lines = x.flatten(2)
        return (torch.einsum("ncl,ndl->ncd", lines, lines) @ lines).view_as(x)

    why = prune(Odd(mixed).eval(), BATCH, sparsity=0.5).left_whole["first"]
    assert why == "its channels are taken together by einsum"


def test_removals_of_unknown_groups_are_refused_with_the_closest() -> None:
    model = Odd(F.relu).eval()
    with pytest.raises(ValueError, match=r"no group is called 'secnod'; closest: second.*\(see survey\)"):
        remove(model, BATCH, {"first": torch.tensor([0]), "secnod": torch.tensor([1])})


class Scale(nn.Module):
    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("scale", torch.arange(1.0, 17).view(16, 1, 1), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale")


def scaled(*, persistent: bool) -> nn.Module:
    return Odd(Scale(persistent=persistent)).eval()


@pytest.mark.parametrize("persistent", [False, True])
def test_channels_along_a_buffer_that_is_not_saved_stay(persistent: bool, tmp_path: Path) -> None:
    pruned = prune(scaled(persistent=persistent), BATCH, sparsity=0.5)
    assert ("first" in pruned.widths) == persistent
    assert (pruned.left_whole.get("first") == UNSAVED) != persistent
    write_model(pruned.model, scaled(persistent=persistent), tmp_path)
    back = read_model(lambda: scaled(persistent=persistent), tmp_path)
    assert torch.equal(forward(back, BATCH), forward(pruned.model, BATCH))


class Padding(nn.Module):
    def __init__(self, code: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.code(self, x), (0, 0, 0, 0, 0, 4))


SHORTCUTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "clips": lambda _, x: x.clamp(-6, 6),
    "clips far out": lambda _, x: x.clamp(-1e5, 1e5),
    "cuts off small numbers": lambda _, x: F.hardshrink(x, 1e-4),
    "rounds": lambda _, x: (x * 1024).round() / 1024,
    "drops in training": lambda m, x: F.dropout(x, 0.5, training=m.training),
    "takes whole numbers": lambda _, x: F.one_hot(x.long().squeeze(), 8).movedim(-1, 1).float()[:, :16],
    "halves precision": lambda _, x: x.half().float(),
}


def padded(code: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), Padding(code), nn.Conv2d(20, 8, 1)).eval()


@pytest.mark.parametrize("code", SHORTCUTS.values(), ids=list(SHORTCUTS))
def test_a_module_that_does_more_than_pad_is_not_replaced(
    code: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    model = padded(code)
    if code is SHORTCUTS["takes whole numbers"]:
        model = nn.Sequential(Padding(code), nn.Conv2d(12, 8, 1))
        batch = {
            "input": torch.randint(0, 8, (2, 1, 9, 9), generator=torch.Generator().manual_seed(0)).float()
        }
        assert option_a_convolutions(model, batch) == {}
    else:
        assert option_a_convolutions(model, BATCH) == {}
        assert option_a_convolutions(model, {"input": BATCH["input"] * 1e3}) == {}


def test_a_one_hot_stem_of_integers_is_no_traceback() -> None:
    model = nn.Sequential(
        Padding(SHORTCUTS["takes whole numbers"]), nn.Conv2d(12, 16, 3), nn.Conv2d(16, 8, 1)
    )
    batch = {"input": torch.randint(0, 8, (2, 1, 9, 9), generator=torch.Generator().manual_seed(0))}
    assert prune(model.eval(), batch, sparsity=0.5).widths == {"1": (16, 8)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_that_only_pads_is_replaced(dtype: torch.dtype) -> None:
    model, x = padded(lambda _, x: x[:, :, ::2, ::2]).to(dtype), BATCH["input"].to(dtype)
    (conv,) = option_a_convolutions(model, {"input": x}).values()
    given = model.get_submodule("0")(x)
    assert torch.equal(conv(given), model.get_submodule("1")(given))
    assert prune(model, {"input": x}, sparsity=0.5).widths["0"] == (16, 8)
