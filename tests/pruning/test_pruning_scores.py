"""Scores of whole networks: every group in, every prunable group out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import NETS, trained_looking
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.pruning import survey
from pastille.pruning.criteria import CRITERIA, NEEDS
from pastille.pruning.evidence import EVERYTHING, gather
from pastille.pruning.scores import group_scores
from pastille.pruning.units import ChannelGroup

TARGETS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("name", ["residual", "dense", "depthwise", "flatten", "transposed", "scaled"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_group_that_may_be_pruned_is_scored(name: str, criterion: str) -> None:
    net = NETS[name]
    model, batch = trained_looking(net), net.batch(4)
    groups = survey(model, batch, protect=["stem", "conv1"])
    evidence = gather(model, groups, [(batch, TARGETS, None)], F.cross_entropy)
    scores = group_scores(model, groups, criterion, evidence)
    assert {n: len(s) for n, s in scores.items()} == {g.name: g.num_channels for g in groups if not g.whole}
    assert all(s.isfinite().all() and s.dtype == torch.float64 for s in scores.values())
    assert all(len(set(s.tolist())) > 1 for s in scores.values())


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_normalising_can_be_chosen(criterion: str) -> None:
    net = NETS["residual"]
    model, batch = trained_looking(net), net.batch(4)
    groups = survey(model, batch)
    evidence = gather(model, groups, [(batch, TARGETS, None)], F.cross_entropy)
    raw = group_scores(model, groups, criterion, evidence, normalise=False)
    even = group_scores(model, groups, criterion, evidence, normalise=True)
    for name, scores in raw.items():
        torch.testing.assert_close(even[name], scores / scores.mean())
    default = group_scores(model, groups, criterion, evidence)
    assert all(torch.equal(default[n], (raw if criterion == "taylor" else even)[n]) for n in raw)


def test_an_unknown_criterion_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"must be one of l1, l2, .*random, got 'l3'"):
        group_scores(nn.Linear(1, 1), [], "l3")


@pytest.mark.parametrize("criterion", NEEDS)
def test_criteria_that_look_at_data_need_it(criterion: str) -> None:
    net = NETS["mlp"]
    model, batch = trained_looking(net), net.batch(4)
    groups = survey(model, batch)
    with pytest.raises(
        ValueError, match=f"'{criterion}' looks at data: needs evidence of {NEEDS[criterion]}"
    ):
        group_scores(model, groups, criterion)
    other = EVERYTHING - {NEEDS[criterion]}
    evidence = gather(model, groups, [(batch, TARGETS, None)], F.cross_entropy, what=other)
    with pytest.raises(ValueError, match="needs evidence of"):
        group_scores(model, groups, criterion, evidence)


def test_weights_that_are_not_finite_are_refused_in_one_line() -> None:
    net = NETS["mlp"]
    model = trained_looking(net)
    groups = survey(model, net.batch())
    model.get_parameter("0.weight").data[3, 2] = torch.nan
    with pytest.raises(PreconditionError, match=r"prune.criterion: l1 of 0 is not finite") as caught:
        group_scores(model, groups, "l1")
    assert "\n" not in str(caught.value)


class Half(nn.Module):
    """What reads the first layer is run without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(7, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.second(F.relu(self.first(x))))
        out: Tensor = self.third(x)
        return out


def test_what_no_gradient_reaches_is_not_taken_for_unimportant() -> None:
    torch.manual_seed(0)
    model, batch = Half(), {"input": torch.randn(4, 7)}
    found = survey(nn.Sequential(model.first, nn.ReLU(), model.second, nn.ReLU(), model.third), batch)
    names = {"0": "first", "2": "second", "4": "third"}
    groups = [_renamed(group, names) for group in found]
    evidence = gather(model, groups, [(batch, TARGETS, None)], F.cross_entropy)
    assert evidence.groups["second"].first_order is not None
    with pytest.raises(PreconditionError, match=r"none reaches what reads first .* protect first") as caught:
        group_scores(model, groups, "taylor", evidence)
    assert "\n" not in str(caught.value)
    assert set(group_scores(model, groups, "activation", evidence)) == {"first", "second"}


def _renamed(group: ChannelGroup, names: dict[str, str]) -> ChannelGroup:
    def parameter(name: str) -> str:
        return f"{names[name[0]]}{name[1:]}"

    members = tuple(
        replace(m, entries=replace(m.entries, parameter=parameter(m.entries.parameter)))
        for m in group.members
    )
    return replace(group, name=names[group.name], members=members)
