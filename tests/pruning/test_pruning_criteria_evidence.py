"""What is gathered is what a careful reader of the network would compute by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from pruning_nets import IMAGE, NETS, conv_bn, trained_looking
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.pruning import survey
from pastille.pruning.criteria import Observed
from pastille.pruning.evidence import Evidence, _sum_by_slice, case_weights, gather
from pastille.pruning.units import ChannelGroup, Entries, Member

N = 6


def evidence(name: str, *, weights: Tensor | None = None, chunk: int = N) -> Evidence:
    net = NETS[name]
    model, batch = trained_looking(net), net.batch(N)
    return gathered(model, batch, weights=weights, chunk=chunk)


def of_layer(model: nn.Module, batch: dict[str, Tensor], layer: str, **options: Tensor) -> Observed:
    """What was seen of the group that a layer makes."""
    seen = gathered(model, batch, **options)  # type: ignore[arg-type]
    name = next(group.name for group in survey(model, batch) if layer in group.outputs)
    return seen.groups[name]


def gathered(
    model: nn.Module, batch: dict[str, Tensor], *, weights: Tensor | None = None, chunk: int = N
) -> Evidence:
    rows = torch.split(torch.arange(N), chunk)
    batches = [
        ({k: x[at] for k, x in batch.items()}, TARGETS[at], None if weights is None else weights[at])
        for at in rows
    ]
    return gather(model, survey(model, batch), batches, F.cross_entropy)


TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
SHARES = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.0, 3.0], dtype=torch.float64)


class Gated(nn.Module):
    """The residual network with a factor before every layer that reads the stream of its stem."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        net, g = self.net, gate[:, None, None]
        x = net.stem(x)  # type: ignore[operator]
        x = F.relu(x + net.bn2(net.conv2(F.relu(net.bn1(net.conv1(x * g))))))  # type: ignore[operator]
        x = F.relu(net.short(x * g) + net.bn4(net.conv4(F.relu(net.bn3(net.conv3(x * g))))))  # type: ignore[operator]
        out: Tensor = net.head(x.mean(dim=(2, 3)))  # type: ignore[operator]
        return out


def test_slopes_are_those_of_a_factor_before_all_readers_case_by_case() -> None:
    """A residual stream with three readers: the factor is differentiated by torch.func, in float64."""
    net = NETS["residual"]
    model = trained_looking(net).double()
    x = net.batch(N)["input"].double()
    gated = Gated(model)
    ones = torch.ones(32, dtype=torch.float64)
    slopes = torch.stack(
        [
            torch.func.grad(lambda g, i=i: F.cross_entropy(gated(x[i : i + 1], g), TARGETS[i : i + 1]))(ones)
            for i in range(N)
        ]
    )
    seen = of_layer(model, {"input": x}, "stem.0")
    assert seen.first_order is not None
    assert seen.second_order is not None
    torch.testing.assert_close(seen.first_order, slopes.abs().mean(dim=0))
    torch.testing.assert_close(seen.second_order, slopes.square().mean(dim=0))
    weighed = of_layer(model, {"input": x}, "stem.0", weights=SHARES)
    assert weighed.first_order is not None
    torch.testing.assert_close(weighed.first_order, (SHARES @ slopes.abs()) / SHARES.sum())


def test_the_slope_is_the_change_itself_where_the_loss_is_linear() -> None:
    """Removing a unit of the last hidden layer changes a sum of answers by exactly that."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 4)
    data = [({"input": x}, torch.zeros(5), None)]
    seen = gather(model, survey(model, {"input": x}), data, lambda out, _: out.sum(dim=1)).groups["0"]
    expected = []
    for unit in range(8):
        without = nn.Sequential(*model)
        kept = model.get_parameter("2.weight").detach().clone()
        kept[:, unit] = 0
        changed = torch.func.functional_call(without, {"2.weight": kept}, (x,)).sum(dim=1)
        expected.append((model(x).sum(dim=1) - changed).abs().mean())
    assert seen.first_order is not None
    torch.testing.assert_close(seen.first_order.float(), torch.stack(expected).detach())


def test_one_case_and_one_reader_agree_with_torch_pruning() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(1, 4), torch.tensor([1])
    found = gather(model, survey(model, {"input": x}), [({"input": x}, y, None)], F.cross_entropy)
    graph = tp.DependencyGraph().build_dependency(model, x)
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    group = graph.get_pruning_group(model[0], tp.prune_linear_out_channels, list(range(8)))
    oracle = tp.importance.TaylorImportance(group_reduction=None, normalizer=None, multivariable=True)
    first_order = found.groups["0"].first_order
    assert first_order is not None
    torch.testing.assert_close(first_order.float(), oracle(group)[1])


@pytest.mark.parametrize("name", ["residual", "dense", "flatten", "transposed", "reused"])
def test_how_cases_are_batched_does_not_matter(name: str) -> None:
    one, all_, some = evidence(name, chunk=1), evidence(name), evidence(name, chunk=4)
    for group, seen in all_.groups.items():
        for field in ("first_order", "second_order", "size", "active"):
            for other in (one, some):
                torch.testing.assert_close(getattr(other.groups[group], field), getattr(seen, field))
    assert all_.cases == N
    torch.testing.assert_close(one.losses, all_.losses)


def test_a_case_of_weight_two_counts_as_two_and_one_of_weight_zero_not_at_all() -> None:
    weighed = evidence("flatten", weights=torch.tensor([2.0, 1, 0, 0, 0, 0]))
    net = NETS["flatten"]
    model, x = trained_looking(net), net.batch(N)["input"]
    twice = [({"input": x[[0, 0, 1]]}, TARGETS[[0, 0, 1]], None)]
    plain = gather(model, survey(model, {"input": x}), twice, F.cross_entropy)
    for group, seen in plain.groups.items():
        for field in ("first_order", "second_order", "size", "active"):
            torch.testing.assert_close(getattr(weighed.groups[group], field), getattr(seen, field))


def test_losses_are_those_of_the_model() -> None:
    net = NETS["flatten"]
    model, batch = trained_looking(net), net.batch(N)
    expected = F.cross_entropy(model(batch["input"]), TARGETS, reduction="none").detach().double()
    torch.testing.assert_close(gathered(model, batch).losses, expected, rtol=1e-5, atol=1e-5)


def test_activations_are_what_readers_are_fed() -> None:
    """By hand: a convolution, and a linear layer that reads 16 pixels of each channel."""
    net = NETS["flatten"]
    model, x = trained_looking(net), net.batch(N)["input"]
    with torch.no_grad():
        first = F.relu(model.conv1(x))  # type: ignore[operator]
        second = F.relu(model.conv2(first))  # type: ignore[operator]
    groups = gathered(model, {"input": x}).groups
    for name, fed in (("conv1", first), ("conv2", second)):
        size, active = groups[name].size, groups[name].active
        assert size is not None
        assert active is not None
        torch.testing.assert_close(size.float(), fed.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(active.float(), (fed > 0).float().mean(dim=(0, 2, 3)))


def test_activations_of_a_unit_with_several_readers_are_their_mean() -> None:
    net = NETS["residual"]
    model, x = trained_looking(net), net.batch(N)["input"]
    fed: list[Tensor] = []
    watched = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].detach()))
        for name in ("conv1", "conv3", "short")
    ]
    model(x)
    for hook in watched:
        hook.remove()
    size = of_layer(model, {"input": x}, "stem.0").size
    assert size is not None
    expected = torch.stack([layer.abs().mean(dim=(0, 2, 3)) for layer in fed]).mean(dim=0)
    torch.testing.assert_close(size.float(), expected)


def test_only_what_is_asked_for_is_looked_at() -> None:
    net = NETS["mlp"]
    model, batch = trained_looking(net), net.batch(N)
    groups = survey(model, batch)
    data = [(batch, None, None)]
    activity = gather(model, groups, data, what=frozenset({"activations"}))
    assert activity.groups["0"].first_order is None
    assert activity.groups["0"].size is not None
    assert len(activity.losses) == 0
    slopes = gather(model, groups, [(batch, TARGETS, None)], F.cross_entropy, what=frozenset({"gradients"}))
    assert slopes.groups["0"].first_order is not None
    assert slopes.groups["0"].size is None


def test_layers_of_another_kind_are_followed_by_their_weights_alone() -> None:
    """An LSTM reads channels by a weight that no hook sees the input of."""
    lstm = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), Last())
    group = ChannelGroup(
        name="0",
        num_channels=8,
        outputs=("0",),
        members=(member("0.weight", 0, "makes"), member("2.lstm.weight_ih_l0", 1, "reads")),
        whole="",
        cut=lambda _: pytest.fail("nothing is cut"),
    )
    x = torch.randn(4, 5, 3)
    seen = gather(lstm, [group], [({"input": x}, TARGETS[:4], None)], F.cross_entropy).groups["0"]
    assert seen.first_order is not None
    assert (seen.first_order > 0).any()
    assert seen.size is None


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0][:, -1]
        return out


def member(parameter: str, axis: int, role: str) -> Member:
    entries = Entries(parameter=parameter, axis=axis, indices=torch.arange(8))
    return Member(entries=entries, channels=torch.arange(8), role=role)  # type: ignore[arg-type]


def test_a_unit_of_many_columns_is_one_change() -> None:
    """Heads: their columns are summed before the absolute value is taken."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3))
    heads = ChannelGroup(
        name="0",
        kind="heads",
        num_channels=2,
        outputs=("0",),
        members=(
            Member(
                entries=Entries(parameter="1.weight", axis=1, indices=torch.arange(8)),
                channels=torch.arange(8) // 4,
                role="reads",
            ),
        ),
        whole="",
        cut=lambda _: pytest.fail("nothing is cut"),
    )
    x = torch.randn(1, 3)
    seen = gather(model, [heads], [({"input": x}, torch.zeros(1), None)], lambda out, _: out.sum())
    parts = (model[0](x) * model.get_parameter("1.weight").sum(dim=0)).reshape(2, 4).sum(dim=1)
    first_order = seen.groups["0"].first_order
    assert first_order is not None
    torch.testing.assert_close(first_order.float(), parts.abs().detach())


def test_the_model_is_left_alone_and_batch_statistics_are_not_moved() -> None:
    net = NETS["residual"]
    model = trained_looking(net).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    seen = gathered(model, net.batch(N))
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    evaluated = gathered(model.eval(), net.batch(N))
    for name, group in evaluated.groups.items():
        assert torch.equal(group.first_order, seen.groups[name].first_order)  # type: ignore[arg-type]


def test_frozen_weights_are_judged_like_all_others() -> None:
    net = NETS["mlp"]
    model = trained_looking(net)
    free = gathered(model, net.batch(N)).groups["0"].first_order
    frozen = gathered(model.requires_grad_(False), net.batch(N)).groups["0"].first_order
    assert torch.equal(free, frozen)  # type: ignore[arg-type]


def test_in_place_activations_and_whole_groups_are_no_trouble() -> None:
    model = nn.Sequential(
        conv_bn(3, 16), nn.Conv2d(16, 8, 3), nn.ReLU(inplace=True), Pooled(), nn.Linear(8, 5)
    )
    x = torch.randn(N, *IMAGE)
    model[0][2].inplace = True  # type: ignore[index]
    groups = survey(model, {"input": x}, protect=["1"])
    seen = gather(model, groups, [({"input": x}, TARGETS, None)], F.cross_entropy)
    assert set(seen.groups) == {"0.0"}


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("data", "loss", "problem"),
    [
        (lambda x: [], F.cross_entropy, "no case to look at"),
        (lambda x: [(x, TARGETS, torch.zeros(N))], F.cross_entropy, "or none counts"),
        (lambda x: [(x, TARGETS, torch.full((N,), torch.nan))], F.cross_entropy, "or none counts"),
        (lambda x: [(x, TARGETS, None)], lambda out, y: out.sum() * torch.nan, "loss of a case is nan"),
    ],
)
def test_data_that_says_nothing_is_refused_in_one_line(
    data: Callable[..., object], loss: Callable[[Tensor, Tensor], Tensor], problem: str
) -> None:
    net = NETS["mlp"]
    model, batch = trained_looking(net), net.batch(N)
    with pytest.raises(PreconditionError, match=f"prune.criterion: .*{problem}") as caught:
        gather(model, survey(model, batch), data(batch), loss)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("targets", "loss"), [(None, F.cross_entropy), (TARGETS, None)])
def test_gradients_need_targets_and_a_loss(
    targets: Tensor | None, loss: Callable[..., Tensor] | None
) -> None:
    net = NETS["mlp"]
    model, batch = trained_looking(net), net.batch(N)
    with pytest.raises(ValueError, match="must be given to look at gradients"):
        gather(model, survey(model, batch), [(batch, targets, None)], loss)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["residual", "flatten"])
def test_a_gpu_sees_the_same(name: str) -> None:
    net = NETS[name]
    model, batch = trained_looking(net), net.batch(N)
    here, there = gathered(model, batch), gathered(model.cuda(), {k: x.cuda() for k, x in batch.items()})
    for group, seen in here.groups.items():
        for field in ("first_order", "second_order", "size", "active"):
            torch.testing.assert_close(
                getattr(there.groups[group], field), getattr(seen, field), rtol=1e-2, atol=1e-4
            )


def test_groups_count_by_their_loss_and_not_by_their_size() -> None:
    members = np.repeat([[True, False], [False, True]], [9, 1], axis=0)
    weights = case_weights(members, np.repeat([0.2, 0.8], [9, 1]))
    np.testing.assert_allclose(members.T @ weights / 10, [0.2, 0.8])
    assert weights.mean() == pytest.approx(1)


def test_overlapping_groups_add_up_and_cases_of_none_count_one() -> None:
    members = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)
    np.testing.assert_allclose(case_weights(members, np.ones(4)), [2, 1, 1, 1])


def test_groups_without_loss_or_cases_count_alike() -> None:
    members = np.array([[1, 0, 0], [0, 1, 0]], dtype=bool)
    weights = case_weights(members, np.zeros(2))
    assert np.isfinite(weights).all()
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("shape", "axis", "blocks"),
    [((6,), 0, 1), ((6, 4), 0, 1), ((6, 4), 1, 1), ((6, 4, 3, 3), 1, 1), ((6, 4, 3), 1, 2)],
)
def test_sums_by_slice_are_those_of_the_rows(shape: tuple[int, ...], axis: int, blocks: int) -> None:
    tensor = torch.randn(shape, dtype=torch.float64)
    size = shape[axis] * blocks
    indices = torch.randperm(size)[: size - 1]
    entries = Entries(parameter="w", axis=axis, indices=indices, blocks=blocks)
    torch.testing.assert_close(_sum_by_slice(tensor, entries), entries.rows(tensor).sum(dim=1))
