"""`pastille.prune`: what it removes is what the scores and the allocation say, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import IMAGE, NETS, conv_bn, trained_looking
from torch import Tensor, nn

import pastille
from pastille.errors import PreconditionError
from pastille.pruning import survey
from pastille.pruning.criteria import CRITERIA, lowest
from pastille.pruning.evidence import gather
from pastille.pruning.removal import layer_widths
from pastille.pruning.scores import group_scores
from pastille.pruning.structured import NothingToRemove, prune
from pastille.task import forward

BATCH = {"input": torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(0))}
TARGETS = torch.tensor([0, 1, 2, 0])
DATA = [(BATCH, TARGETS)]


def residual() -> nn.Module:
    return trained_looking(NETS["residual"])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_lowest_scores_of_every_criterion_go(criterion: str) -> None:
    model = residual()
    groups = survey(model, BATCH)
    evidence = gather(model, groups, [(BATCH, TARGETS, None)], F.cross_entropy)
    scores = group_scores(model, groups, criterion, evidence, seed=3)
    pruned = prune(
        model, BATCH, sparsity=0.5, criterion=criterion, data=DATA, loss=F.cross_entropy, seed=3
    ).model
    group = next(g for g in groups if g.name == "conv1")
    gone = lowest(scores["conv1"], group.num_channels // 2)
    kept = [i for i in range(group.num_channels) if i not in gone]
    # Its readers and makers lose other channels too; the norm behind it shows which of its own stayed.
    assert torch.equal(pruned.get_parameter("bn1.weight"), model.get_parameter("bn1.weight")[kept])


def test_data_may_come_once_and_with_weights() -> None:
    model = residual()
    asked: dict[str, Any] = {"sparsity": 0.5, "criterion": "taylor", "loss": F.cross_entropy}
    pairs = prune(model, BATCH, data=DATA, **asked).model
    once = prune(model, BATCH, data=(item for item in DATA), **asked).model
    weighed = prune(model, BATCH, data=[(BATCH, TARGETS, torch.ones(4))], **asked).model
    assert torch.equal(forward(pairs, BATCH), forward(once, BATCH))
    assert torch.equal(forward(pairs, BATCH), forward(weighed, BATCH))
    first = prune(model, BATCH, data=[(BATCH, TARGETS, torch.tensor([1.0, 0, 0, 0]))], **asked).model
    assert not torch.equal(forward(pairs, BATCH), forward(first, BATCH))


def test_activations_need_no_loss() -> None:
    assert prune(residual(), BATCH, sparsity=0.5, criterion="apoz", data=DATA).widths


def test_global_removes_the_overall_share_unevenly() -> None:
    model = residual()
    for layer in ("conv3", "conv1"):  # of small effect: what is made there is hardly read
        model.get_submodule(layer).weight.data[2:] *= 1e-3  # type: ignore[index, operator]
    pruned = prune(model, BATCH, sparsity=0.5, allocation="global", criterion="lamp", round_to=1)
    groups = survey(model, BATCH)
    after = layer_widths(pruned.model)
    kept = sum(after[g.outputs[0]] for g in groups if not g.whole)
    total = sum(g.num_channels for g in groups if not g.whole)
    assert kept == total / 2
    assert len({after / before for before, after in pruned.widths.values()}) > 1
    assert all(after >= before / 10 for before, after in pruned.widths.values())


def test_layers_that_matter_more_than_others_say_so() -> None:
    groups = {g.outputs[0]: g.name for g in survey(residual(), BATCH) if not g.whole}
    tender = groups["conv3"]
    harm = {name: [(0.5, 9.0 if name == tender else 0.1)] for name in groups.values()}
    pruned = prune(residual(), BATCH, sparsity=0.3, allocation="sensitivity", harm=harm)
    assert "conv3" not in pruned.widths
    assert pruned.left_whole["conv3"] == "its channels matter more than those of other layers"


def test_layers_of_their_own_sparsity_get_it_and_others_the_rest() -> None:
    pruned = prune(residual(), BATCH, sparsity=0.5, layers={"conv1": 0.75, "conv3": 0.0})
    assert pruned.widths["conv1"] == (32, 8)
    assert pruned.widths["conv2"] == (32, 16)
    assert pruned.left_whole["conv3"] == "no sparsity is asked of it"
    alone = prune(residual(), BATCH, layers={"conv1": 0.5})
    assert alone.widths == {"conv1": (32, 16)}


def test_rounding_by_group() -> None:
    pruned = prune(residual(), BATCH, sparsity=0.4, round_to={"conv1": 16, "conv3": 1})
    assert pruned.widths["conv3"] == (64, 39)
    assert pruned.left_whole["conv1"] == "no narrower multiple of 16"


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embed = nn.Linear(3, 32)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(self.embed(x.flatten(2).transpose(1, 2))).mean(dim=1))
        return out


@pytest.mark.parametrize("criterion", CRITERIA)
def test_heads_go_by_every_criterion(criterion: str) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    pruned = prune(model, BATCH, heads=0.5, criterion=criterion, data=DATA, loss=F.cross_entropy)
    assert pruned.heads == {f"layers.layers.{i}.self_attn": (4, 2) for i in range(4)}
    assert forward(pruned.model, BATCH).shape == (4, 5)
    assert pruned.model.get_parameter("layers.layers.0.linear1.weight").shape == (64, 32)


def test_heads_that_matter_least_go() -> None:
    """A head whose answers are hardly read is the one that goes, by weights and by slopes."""
    torch.manual_seed(0)
    model = Encoder().eval()
    for i, head in enumerate((3, 0, 2, 1)):
        read = model.get_parameter(f"layers.layers.{i}.self_attn.out_proj.weight")
        read.data[:, 8 * head : 8 * head + 8] *= 1e-4
        made = model.get_parameter(f"layers.layers.{i}.self_attn.in_proj_weight")
        made.data.reshape(3, 32, 32)[:, 8 * head : 8 * head + 8] *= 1e-2
    expected = forward(model, BATCH)
    for criterion in ("l1", "taylor"):
        pruned = prune(model, BATCH, heads=0.25, criterion=criterion, data=DATA, loss=F.cross_entropy)
        assert {after for _, after in pruned.heads.values()} == {3}
        torch.testing.assert_close(forward(pruned.model, BATCH), expected, rtol=0, atol=1e-4)


def test_heads_are_left_alone_where_only_channels_are_asked_for() -> None:
    pruned = prune(Encoder().eval(), BATCH, sparsity=0.5, protect=["embed"])
    assert not pruned.heads
    assert pruned.widths["layers.layers.0.linear1"] == (64, 32)


@pytest.mark.parametrize("data", [None, DATA])
def test_blocks_are_left_out_first(data: Any) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    third = model.get_submodule("layers.layers.2")
    with torch.no_grad():
        for name in ("self_attn.out_proj", "linear2"):
            third.get_parameter(f"{name}.weight").mul_(1e-3)
            third.get_parameter(f"{name}.bias").zero_()
    pruned = prune(model, BATCH, blocks=0.25, data=data)
    names = {name.split(".")[2] for name, p in pruned.model.named_parameters() if name.startswith("layers")}
    assert names == {"0", "1", "3"}
    both = prune(model, BATCH, blocks=0.25, heads=0.5, data=data)
    assert len(both.heads) == 3


def test_blocks_that_must_all_stay_are_refused() -> None:
    with pytest.raises(NothingToRemove, match=r"no block can be left out at 0.1 of 4 .*raise blocks"):
        prune(Encoder().eval(), BATCH, blocks=0.1)
    with pytest.raises(NothingToRemove, match=r"of 4 .*protected"):
        prune(Encoder().eval(), BATCH, blocks=0.9, protect=["layers"])


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({}, r"sparsity must be given, e.g. sparsity=0.5"),
    *(
        ({"sparsity": s}, r"sparsity must be more than 0 and less than 1, e.g. 0.5")
        for s in (0.0, 1.0, -0.5, float("nan"), float("inf"))
    ),
    ({"heads": 1.0}, r"heads must be more than 0 and less than 1"),
    ({"blocks": 0.0}, r"blocks must be more than 0 and less than 1"),
    ({"layers": {"conv1": 1.0}}, r"layers: sparsity of conv1 must be at least 0 and less than 1, got 1"),
    ({"sparsity": 0.5, "round_to": 0}, r"round_to must be at least 1, got 0"),
    ({"sparsity": 0.5, "round_to": {"conv1": -8}}, r"round_to must be at least 1, got -8"),
    ({"sparsity": 0.5, "criterion": "l3"}, r"criterion must be one of l1, l2, .*, got 'l3'"),
    ({"sparsity": 0.5, "criterion": "taylor"}, r"data must be given for criterion 'taylor'.* l1, l2"),
    ({"sparsity": 0.5, "criterion": "apoz"}, r"data must be given for criterion 'apoz'"),
    ({"sparsity": 0.5, "criterion": "fisher", "data": DATA}, r"loss must be given .*cross_entropy"),
    ({"sparsity": 0.5, "allocation": "fair"}, r"allocation must be one of uniform, global, sensitivity"),
    ({"sparsity": 0.5, "allocation": "sensitivity"}, r"allocation 'sensitivity' needs harm"),
]


@pytest.mark.parametrize(("wrong", "problem"), WRONG, ids=[str(wrong)[:50] for wrong, _ in WRONG])
def test_wrong_arguments_are_answered_with_what_is_possible(wrong: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        prune(residual(), BATCH, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["layers", "protect"])
def test_a_name_that_does_not_exist_is_answered_with_the_closest(key: str) -> None:
    names: Any = {"conv11": 0.5} if key == "layers" else ["conv11"]
    with pytest.raises(PreconditionError, match=rf"prune.{key}: no module .* 'conv11'; closest: conv1\b"):
        prune(residual(), BATCH, sparsity=0.5, **{key: names})


@pytest.mark.parametrize(("sparsity", "round_to"), [(0.5, 64), (0.1, 8), (0.01, 16)])
def test_rounding_that_leaves_nothing_says_what_would(sparsity: float, round_to: int) -> None:
    """What the line says is possible is possible, and nothing less is."""
    model = trained_looking(NETS["mlp"])
    batch = NETS["mlp"].batch()
    if round_to == 64:
        match = r"nothing can be removed at sparsity 0.5 and round_to 64 .*possible: round_to up to 32; lower"
    else:
        match = r"possible: sparsity from 0.(\d+)(, or round_to up to (\d+))?; lower round_to"
    with pytest.raises(NothingToRemove, match=match) as caught:
        prune(model, batch, sparsity=sparsity, round_to=round_to)
    line = str(caught.value)
    assert "\n" not in line
    ways = line.partition("possible: ")[2].partition(";")[0].split(", or ")
    for way in ways:
        if way.startswith("sparsity from"):
            least = float(way.split()[-1])
            assert prune(model, batch, sparsity=least, round_to=round_to).widths
            with pytest.raises(NothingToRemove):
                prune(model, batch, sparsity=least - 0.01, round_to=round_to)
        else:
            finest = int(way.split()[-1])
            assert prune(model, batch, sparsity=sparsity, round_to=finest).widths
            with pytest.raises(NothingToRemove):
                prune(model, batch, sparsity=sparsity, round_to=2 * finest)


def test_weights_that_are_all_shared_leave_nothing_and_say_so() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    model[2].weight = model[0].weight
    with pytest.raises(NothingToRemove, match=r"nothing can be removed .*shared.*leave prune out") as caught:
        prune(model, {"input": torch.zeros(2, 16)}, sparsity=0.5)
    assert "possible" not in str(caught.value)


def test_protecting_everything_leaves_nothing_and_says_so() -> None:
    with pytest.raises(NothingToRemove, match=r"nothing can be removed .*protected by the recipe"):
        prune(residual(), BATCH, sparsity=0.5, protect=["*"])


def test_a_model_of_one_layer_leaves_nothing_and_says_so() -> None:
    with pytest.raises(NothingToRemove, match="nothing can be removed"):
        prune(nn.Linear(4, 4), {"input": torch.zeros(2, 4)}, sparsity=0.5)


def test_it_is_pastille_prune() -> None:
    model = nn.Sequential(conv_bn(3, 16), nn.Conv2d(16, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    pruned = pastille.prune(model, BATCH, sparsity=0.5, round_to=1)
    assert {name: after for name, (_, after) in pruned.widths.items()} == {"0.0": 8, "1": 2}
