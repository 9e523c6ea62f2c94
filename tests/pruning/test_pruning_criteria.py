"""One family, one contract: whatever scores the units of a group."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
import torch_pruning as tp
from hypothesis import given
from hypothesis import strategies as st
from pruning_nets import NETS, trained_looking
from torch import Tensor, nn

from pastille.pruning import survey
from pastille.pruning.criteria import (
    COMPARABLE,
    CRITERIA,
    NEEDS,
    Layer,
    Observed,
    View,
    channels_kept,
    layer_of,
    lowest,
)
from pastille.pruning.evidence import gather
from pastille.pruning.scores import group_scores
from pastille.pruning.units import Entries, Member, Role
from pastille.recipe.pruning import Criterion as Named

C = 12


def hidden(seed: int = 0) -> nn.Sequential:
    """One hidden layer of 12 units with a norm."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, C), nn.BatchNorm1d(C), nn.ReLU(), nn.Linear(C, 5)).eval()
    nn.init.uniform_(net.get_parameter("1.weight"), 0.5, 2.0)
    nn.init.uniform_(net.get_parameter("1.bias"), 0.1, 0.5)
    return net


X = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(20) % 5


def permuted(net: nn.Sequential, order: Tensor) -> nn.Sequential:
    new = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in (*new[0].parameters(), *new[1].parameters()):
            parameter.copy_(parameter[order])
        read = new.get_parameter("3.weight")
        read.copy_(read[:, order])
    return new


class CriterionContract:
    """What every criterion promises."""

    name: str
    informed = True  # whether what is measured decides, and not chance

    def scores(self, net: nn.Module) -> Tensor:
        groups = survey(net, {"input": X[:2]})
        evidence = gather(net, groups, [({"input": X}, Y, None)], nn.functional.cross_entropy)
        return group_scores(net, groups, self.name, evidence)["0"]

    def test_one_finite_score_per_unit_not_below_zero(self) -> None:
        scores = self.scores(hidden())
        assert (scores.shape, scores.dtype) == ((C,), torch.float64)
        assert scores.isfinite().all()
        assert (scores >= 0).all()

    def test_leaves_the_model_alone(self) -> None:
        net = hidden().train()
        before = {name: x.clone() for name, x in net.state_dict().items()}
        self.scores(net)
        assert net.training
        assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in net.parameters())

    def test_the_same_scores_each_time(self) -> None:
        assert torch.equal(self.scores(hidden()), self.scores(hidden()))

    def test_a_dead_unit_scores_lowest(self) -> None:
        net = hidden()
        with torch.no_grad():
            for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
                net.get_parameter(name)[7] = 0
            net.get_parameter("3.weight")[:, 7] = 0
        scores = self.scores(net)
        assert not self.informed or (scores[torch.arange(C) != 7] > scores[7]).all()

    def test_follows_a_permutation_of_the_units(self) -> None:
        order = torch.randperm(C, generator=torch.Generator().manual_seed(5))
        expected = self.scores(hidden())[order] if self.informed else self.scores(hidden())
        torch.testing.assert_close(self.scores(permuted(hidden(), order)), expected)

    def test_groups_can_be_compared(self) -> None:
        scores = self.scores(hidden())
        assert self.name in COMPARABLE or abs(scores.mean() - 1) < 1e-12

    def test_is_what_its_name_stands_for(self) -> None:
        assert CRITERIA[self.name].__name__ == self.name


class TestL1(CriterionContract):
    name = "l1"


class TestL2(CriterionContract):
    name = "l2"


class TestBatchNormScale(CriterionContract):
    name = "bn_scale"


class TestTaylor(CriterionContract):
    name = "taylor"


class TestFisher(CriterionContract):
    name = "fisher"


class TestGeometricMedian(CriterionContract):
    name = "fpgm"


class TestActivation(CriterionContract):
    name = "activation"


class TestApoz(CriterionContract):
    name = "apoz"


class TestLamp(CriterionContract):
    name = "lamp"


class TestRandom(CriterionContract):
    name = "random"
    informed = False


def test_every_criterion_of_the_recipe_is_under_contract() -> None:
    named = {contract.name for contract in CriterionContract.__subclasses__()}
    assert named == set(CRITERIA) == set(get_args(Named))
    assert NEEDS.keys() | COMPARABLE <= named


def weights(units: int = C, columns: int = 27, seed: int = 0) -> Tensor:
    return torch.randn(units, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


every = torch.arange(C)


def layer(rows: Tensor, units: Tensor = every, role: Role = "makes") -> Layer:
    return Layer(weights=rows, units=units, role=role)


def view(*layers: Layer, units: int = C) -> View:
    return View(name="conv", num_units=units, layers=layers)


OF_WEIGHTS = ("l1", "l2", "fpgm", "lamp")


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_a_scaled_up_unit_never_loses(name: str) -> None:
    larger = weights()
    larger[3] *= 2
    assert CRITERIA[name](view(layer(larger)))[3] > CRITERIA[name](view(layer(weights())))[3]


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_a_layer_of_large_weights_does_not_outvote_the_others(name: str) -> None:
    one, other = weights(seed=1), weights(seed=2)
    equal = CRITERIA[name](view(layer(one), layer(other)))
    louder = CRITERIA[name](view(layer(one), layer(1000 * other)))
    torch.testing.assert_close(equal, louder)


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_layers_of_zeros_give_zeros_and_not_nan(name: str) -> None:
    assert CRITERIA[name](view(layer(torch.zeros(C, 3, dtype=torch.float64)))).tolist() == [0.0] * C


def test_norms_differ_where_weights_are_spread_differently() -> None:
    rows = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    spread = view(layer(rows, torch.arange(2)), units=2)
    assert CRITERIA["l1"](spread).tolist() == [8 / 7, 6 / 7]  # 4 and 3, over their mean
    assert CRITERIA["l2"](spread).tolist() == [4 / 5, 6 / 5]  # 2 and 3


def test_lamp_by_hand() -> None:
    rows = torch.tensor([[2.0], [1.0], [3.0], [1.0]], dtype=torch.float64)
    # Squares 4, 1, 9, 1; of equal ones the first counts as the smaller.
    expected = torch.tensor([4 / 13, 1 / 15, 1.0, 1 / 14], dtype=torch.float64)
    torch.testing.assert_close(CRITERIA["lamp"](view(layer(rows, torch.arange(4)), units=4)), expected)


def test_geometric_median_takes_the_unit_in_the_middle() -> None:
    """The largest of three in a row is replaced by its neighbours sooner than the smallest."""
    rows = torch.tensor([[1.0, 5.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    scores = CRITERIA["fpgm"](view(layer(rows, torch.arange(3)), units=3))
    torch.testing.assert_close(scores * 20 / 3, torch.tensor([8.0, 7.0, 5.0], dtype=torch.float64))


def test_where_there_is_no_norm_its_scale_is_the_length_of_the_weights() -> None:
    plain = view(layer(weights()))
    assert torch.equal(CRITERIA["bn_scale"](plain), CRITERIA["l2"](plain))


@pytest.mark.parametrize("name", ["activation", "apoz"])
def test_where_activations_are_not_seen_weights_decide(name: str) -> None:
    plain = view(layer(weights()))
    assert torch.equal(CRITERIA[name](plain), CRITERIA["l2"](plain))


def test_fisher_is_half_of_what_was_squared() -> None:
    seen = Observed(second_order=torch.tensor([4.0, 0.0]))
    assert CRITERIA["fisher"](View(name="fc", num_units=2, observed=seen)).tolist() == [2.0, 0.0]


def test_chance_depends_on_the_seed_and_the_group() -> None:
    draws = {
        tuple(CRITERIA["random"](View(name=name, num_units=4, seed=seed)).tolist())
        for name in "ab"
        for seed in range(3)
    }
    assert len(draws) == 6


def test_a_unit_of_many_slices_is_one_row() -> None:
    """Two heads of two channels, interleaved: each head's weights lie side by side."""
    entries = Entries(parameter="w", axis=0, indices=torch.arange(4))
    member = Member(entries=entries, channels=torch.tensor([1, 0, 1, 0]), role="makes")
    held = layer_of(member, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
    assert held.units.tolist() == [0, 1]
    assert held.weights.tolist() == [[3.0, 4.0, 7.0, 8.0], [1.0, 2.0, 5.0, 6.0]]


def test_units_of_unequally_many_slices_are_padded_with_zeros() -> None:
    entries = Entries(parameter="w", axis=0, indices=torch.arange(3))
    member = Member(entries=entries, channels=torch.tensor([2, 0, 2]), role="makes")
    held = layer_of(member, torch.tensor([[1.0], [2.0], [3.0]]))
    assert held.units.tolist() == [0, 2]
    assert held.weights.tolist() == [[2.0, 0.0], [1.0, 3.0]]


def test_a_layer_with_many_rows_per_unit_does_not_outvote_the_others() -> None:
    """A linear layer behind a flattened 4×4 map reads each channel through 16 columns."""
    makes = weights(seed=1)
    makes[4] = 0
    flat = Entries(parameter="fc", axis=1, indices=torch.arange(C * 16))
    reads = Member(entries=flat, channels=every.repeat_interleave(16), role="reads")
    held = layer_of(reads, weights(10, C * 16, seed=2))
    assert held.weights.shape == (C, 160)
    for name in OF_WEIGHTS:
        assert CRITERIA[name](view(layer(makes), held)).argmin() == 4


def test_a_layer_that_makes_some_of_the_units_speaks_for_those_alone() -> None:
    """Two layers are joined; either counts 1 on average for the units that it makes."""
    ones = torch.ones(8, 3, dtype=torch.float64)
    joined = view(layer(ones, torch.arange(8)), layer(ones[:4], torch.arange(8, 12)))
    torch.testing.assert_close(CRITERIA["l1"](joined), torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "oracle", "root"),
    [
        ("l1", tp.importance.MagnitudeImportance(p=1, group_reduction=None, normalizer=None), 1),
        ("l2", tp.importance.MagnitudeImportance(p=2, group_reduction=None, normalizer=None), 2),
        ("bn_scale", tp.importance.BNScaleImportance(group_reduction=None, normalizer=None), 1),
        ("fpgm", tp.importance.FPGMImportance(p=1, group_reduction=None, normalizer=None), 1),
    ],
)
@pytest.mark.parametrize("root_layer", ["conv1", "conv3", "conv4"])
def test_agrees_with_torch_pruning(
    name: str, oracle: tp.importance.Importance, root: int, root_layer: str
) -> None:
    """Layer by layer, each over its mean."""
    net = NETS["residual"]
    model, batch = trained_looking(net), net.batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # torch-pruning takes the distances of absolute weights
    if name in ("l1", "l2"):
        oracle.target_types = [nn.Conv2d, nn.Linear]
    graph = tp.DependencyGraph().build_dependency(model, batch["input"])
    width = model.get_parameter(f"{root_layer}.weight").shape[0]
    group = graph.get_pruning_group(
        model.get_submodule(root_layer), tp.prune_conv_out_channels, list(range(width))
    )
    layers = oracle(group).double() ** (1 / root)
    expected = (layers / layers.mean(dim=1, keepdim=True)).sum(dim=0)
    scores = group_scores(model, survey(model, batch), name, normalise=False)
    found = next(s for n, s in scores.items() if root_layer in n or (root_layer == "conv4" and n == "short"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_lamp_agrees_with_torch_pruning() -> None:
    model = nn.Sequential(nn.Linear(7, C, bias=False), nn.ReLU(), nn.Linear(C, 3))
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 7))
    group = graph.get_pruning_group(model[0], tp.prune_linear_out_channels, list(range(C)))
    expected = tp.importance.LAMPImportance(group_reduction="first")(group).double()
    found = CRITERIA["lamp"](view(layer(model.get_parameter("0.weight").detach().double())))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


widths = st.integers(1, 512)
shares = st.floats(0, 0.95)
roundings = st.sampled_from([1, 2, 4, 8, 16, 32])


@given(channels=widths, sparsity=shares, round_to=roundings)
def test_widths_kept_are_multiples_and_never_more_is_removed_than_asked(
    channels: int, sparsity: float, round_to: int
) -> None:
    kept = channels_kept(channels, sparsity=sparsity, round_to=round_to)
    assert 1 <= kept <= channels
    assert kept % round_to == 0 or kept == channels
    assert kept >= channels * (1 - sparsity) - 1e-6
    narrower = kept - (kept % round_to or round_to)  # the next multiple would be too narrow
    assert kept == channels or narrower < channels * (1 - sparsity) - 1e-10 or narrower == 0


@given(channels=widths, less=shares, more=shares, round_to=roundings)
def test_a_higher_sparsity_never_keeps_more(channels: int, less: float, more: float, round_to: int) -> None:
    less, more = sorted((less, more))
    wide, narrow = (channels_kept(channels, sparsity=s, round_to=round_to) for s in (less, more))
    assert narrow <= wide


@given(channels=widths, round_to=roundings)
def test_nothing_is_removed_at_sparsity_zero(channels: int, round_to: int) -> None:
    assert channels_kept(channels, sparsity=0.0, round_to=round_to) == channels


@given(eighths=st.integers(1, 64), tenths=st.integers(1, 9))
def test_exact_shares_are_exact(eighths: int, tenths: int) -> None:
    """Whatever 1 − sparsity is in binary: 80 · (1 − 0.7) is 24, not 24.000000000000004 rounded up to 32."""
    kept = channels_kept(80 * eighths, sparsity=tenths / 10, round_to=8)
    assert kept == 8 * eighths * (10 - tenths)


@pytest.mark.parametrize(("sparsity", "round_to"), [(1.0, 8), (-0.1, 8), (float("nan"), 8), (0.5, 0)])
def test_shares_out_of_range_are_refused(sparsity: float, round_to: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        channels_kept(8, sparsity=sparsity, round_to=round_to)


@given(
    scores=st.lists(st.floats(0, 10, width=32), min_size=1, max_size=40),
    count=st.integers(0, 40),
)
def test_lowest_are_the_lowest_in_ascending_order(scores: list[float], count: int) -> None:
    count = min(count, len(scores))
    chosen = lowest(torch.tensor(scores), count).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    left = [s for i, s in enumerate(scores) if i not in chosen]
    assert not chosen or not left or max(scores[i] for i in chosen) <= min(left)


def test_equal_scores_go_by_index() -> None:
    assert lowest(torch.ones(40), 3).tolist() == [0, 1, 2]
