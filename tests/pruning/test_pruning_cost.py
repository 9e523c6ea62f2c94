"""What a network costs by its widths, against networks that were really pruned and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pruning_nets import NETS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pastille.export import export_onnx
from pastille.measure import counts
from pastille.pruning import remove, survey
from pastille.pruning.allocation import removals
from pastille.pruning.cost import Costs, costs
from pastille.pruning.units import ChannelGroup
from pastille.task.forward import forward


def kept_of(groups: tuple[ChannelGroup, ...], share: float) -> dict[str, int]:
    whole_parts = {
        g: max(1, round(share * g.num_channels / g.parts)) * g.parts for g in groups if not g.whole
    }
    return {group.name: width for group, width in whole_parts.items()}


def removed(model: nn.Module, batch: dict[str, torch.Tensor], kept: dict[str, int]) -> nn.Module:
    groups = survey(model, batch)
    pruned = remove(
        model, batch, removals(groups, {g.name: torch.ones(g.num_channels) for g in groups}, kept)
    )
    left = [g.name for g in survey(model, batch) if not g.whole and set(g.outputs) & pruned.left_whole.keys()]
    assert not left, "the oracle itself must be narrowed as asked"
    return pruned.model


def counted_macs(model: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """By torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        forward(model, batch)
    return float(counter.get_total_flops()) / 2 / len(next(iter(batch.values())))


# "scaled" has a parameter that is no layer's: its 64 numbers are counted whole.
@pytest.mark.parametrize("name", sorted(NETS.keys() - {"scaled"}))
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_macs_and_parameters_are_those_of_the_pruned_network(name: str, share: float) -> None:
    torch.manual_seed(0)
    model, batch = NETS[name].build().eval(), NETS[name].batch()
    groups = survey(model, batch)
    found, kept = costs(model, batch, groups), kept_of(groups, share)
    pruned = removed(model, batch, kept)
    widths = found.vector(kept)[None]
    assert found.macs(widths)[0] == pytest.approx(counted_macs(pruned, batch), rel=1e-9)
    assert found.numbers(widths)[0] == pytest.approx(sum(p.numel() for p in pruned.parameters()), rel=1e-9)


@pytest.mark.parametrize("name", ["depthwise", "transposed"])
def test_macs_are_those_of_the_exported_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = NETS[name].build().eval(), NETS[name].batch()
    groups = survey(model, batch)
    kept = kept_of(groups, 0.6)
    export_onnx(removed(model, batch, kept), batch, tmp_path / "model.onnx")
    found = costs(model, batch, groups)
    assert found.macs(found.vector(kept)[None])[0] == pytest.approx(counts.macs(tmp_path / "model.onnx"))


@pytest.mark.parametrize("name", ["mlp", "signal", "residual"])
def test_one_group_at_a_time(name: str) -> None:
    torch.manual_seed(0)
    model, batch = NETS[name].build().eval(), NETS[name].batch()
    groups = survey(model, batch)
    found = costs(model, batch, groups)
    for group in (g for g in groups if not g.whole):
        kept = kept_of(groups, 1.0) | {group.name: group.num_channels - 3}
        pruned = removed(model, batch, kept)
        numbers = sum(p.numel() for p in pruned.parameters())
        assert found.numbers(found.vector(kept)[None])[0] == pytest.approx(numbers, rel=1e-9)


class Attention(nn.Module):
    """Tokens that attend to one another, then an MLP over each."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(x, x, x, need_weights=False)[0]
        x = x + self.narrow(torch.relu(self.wide(x)))
        out: torch.Tensor = self.head(x.mean(dim=1))
        return out


def test_attention_multiplies_activations_and_mlps_run_over_tokens() -> None:
    torch.manual_seed(0)
    model, batch = Attention().eval(), {"x": torch.randn(2, 10, 16)}
    found = costs(model, batch, [g for g in survey(model, batch) if g.name == "wide"])
    # By hand: queries meet keys, then values; four projections and two layers for each token; the head.
    products = 2 * 10 * 10 * 16
    weights = 10 * (4 * 16 * 16 + 2 * 16 * 40) + 16 * 3
    assert found.products == products
    assert found.macs(np.array([[40]]))[0] == products + weights
    assert found.macs(np.array([[10]]))[0] == products + weights - 10 * 2 * 16 * 30


def test_recurrent_layers_run_once_for_each_step() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
            return out

    found = costs(Recurrent().eval(), {"x": torch.randn(2, 5, 6)}, [])
    assert found.macs(np.zeros((1, 0)))[0] == 5 * 4 * 8 * (6 + 8) + 8 * 3


def test_many_widths_at_once() -> None:
    model, batch = NETS["mlp"].build().eval(), NETS["mlp"].batch()
    found: Costs = costs(model, batch, survey(model, batch))
    some = np.stack([found.widths, found.widths // 2, found.widths - 1])
    alone = [found.macs(each[None])[0] for each in some]
    assert found.macs(some).tolist() == alone
    assert found.named(some[1]) == dict(zip(found.groups, (found.widths // 2).tolist(), strict=True))


def test_nothing_is_changed() -> None:
    model, batch = NETS["residual"].build().train(), NETS["residual"].batch()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    costs(model, batch, survey(model, batch))
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
