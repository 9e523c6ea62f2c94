"""Masks of single weights against torch's own pruning, brute force and the matrix of sparse tensor cores."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from pastille.errors import PreconditionError
from pastille.pruning.sparse import (
    FLOOR,
    Thinned,
    cubic_sparsity,
    highest,
    highest_of_all,
    highest_of_each,
    in_fours,
    masked,
    moved,
    share_gone,
    two_of_four,
    weights_to_thin,
    zero_masks,
)
from pastille.pruning.thinning import UNTIL, Thinning, masks_of, some_of_fours

FLOATS = st.floats(-10, 10, width=32)
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(arrays(np.float32, SHAPES, elements=FLOATS), st.floats(0, 1))
def test_as_many_go_as_asked_and_none_that_scores_more_than_one_that_stays(
    x: np.ndarray, share: float
) -> None:
    scores = torch.from_numpy(x)
    mask = highest(scores, share)
    assert int((~mask).sum()) == round(share * scores.numel())
    if mask.any() and not mask.all():
        assert scores[~mask].max() <= scores[mask].min()


@given(arrays(np.float32, SHAPES, elements=FLOATS), st.floats(0, 1), st.floats(0, 1))
def test_what_goes_at_a_low_sparsity_goes_at_a_higher_one(x: np.ndarray, one: float, other: float) -> None:
    few, many = (highest(torch.from_numpy(x), share) for share in sorted((one, other)))
    assert not (many & ~few).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.95])
def test_magnitude_is_as_torch_prunes(share: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3)
    ours = highest(layer.weight.detach().abs(), share)
    prune.l1_unstructured(layer, "weight", amount=share)  # type: ignore[no-untyped-call]
    assert torch.equal(ours, layer.get_buffer("weight_mask").bool())


def test_global_magnitude_is_as_torch_prunes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 50), nn.Linear(50, 20))
    scores = {name: p.detach().abs() for name, p in net.named_parameters() if p.ndim > 1}
    ours = highest_of_all(scores, 0.8)
    where = [(layer, "weight") for layer in net]
    prune.global_unstructured(where, prune.L1Unstructured, amount=0.8)
    for layer, mask in zip(net, ours.values(), strict=True):
        assert torch.equal(mask, layer.get_buffer("weight_mask").bool())


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 0.95))
def test_no_layer_is_emptied(small: int, large: int, share: float) -> None:
    scores = {"small": torch.rand(small) / 1e6, "large": 1 + torch.rand(large)}
    masks = highest_of_all(scores, share)
    for mask in masks.values():
        assert int(mask.sum()) >= max(1, int(FLOOR * mask.numel()))
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert round(share * (small + large)) - 2 <= gone <= round(share * (small + large))


def test_out_of_range() -> None:
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\]"):
            highest(torch.ones(3), share)
    with pytest.raises(ValueError, match="must be a multiple of 4, got 6"):
        two_of_four(torch.ones(2, 6))


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([4, 8])), elements=FLOATS))
def test_two_of_four_keeps_the_best_pair_of_all_six(x: np.ndarray) -> None:
    scores = torch.from_numpy(x).abs()
    mask = two_of_four(scores)
    assert (in_fours(mask).sum(dim=-1) == 2).all()
    fours = in_fours(scores)
    best = torch.stack([fours[..., list(pair)].sum(dim=-1) for pair in combinations(range(4), 2)]).amax(dim=0)
    assert torch.allclose((fours * in_fours(mask)).sum(dim=-1), best)


def test_two_of_four_is_what_torch_compresses() -> None:
    """Its conversion keeps two of every four along a row, so that only such a matrix comes back whole."""
    from torch.sparse import _semi_structured_conversions as torch_conversion

    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    thin = weight * two_of_four(weight.abs())
    for dense, comes_back in ((thin, True), (weight, False)):
        half = dense.half()
        parts = torch_conversion.sparse_semi_structured_from_dense_cutlass(half)  # type: ignore[no-untyped-call]
        back = torch_conversion.sparse_semi_structured_to_dense_cutlass(*parts)  # type: ignore[no-untyped-call]
        assert torch.equal(back, half) == comes_back


def test_a_convolution_is_grouped_as_the_matrix_with_channels_innermost() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 12, 3, 3)
    as_matrix = weight.permute(0, 2, 3, 1).reshape(8, -1)  # (out, h·w·in)
    expected = two_of_four(as_matrix.abs()).view(8, 3, 3, 12).permute(0, 3, 1, 2)
    assert torch.equal(two_of_four(weight.abs()), expected)


def test_fours_of_a_transposed_convolution_run_over_what_comes_in() -> None:
    net = nn.ConvTranspose2d(8, 6, 2)
    assert dict(weights_to_thin(net, by_four=True).axes) == {"weight": 0}
    mask = two_of_four(net.weight.detach().abs(), 0)
    assert (mask.view(2, 4, 6, 2, 2).sum(dim=1) == 2).all()


@given(arrays(np.float32, (3, 8), elements=FLOATS), st.floats(0, 0.5))
def test_on_the_way_to_two_of_four_only_what_goes_in_the_end_goes(x: np.ndarray, share: float) -> None:
    scores = torch.from_numpy(x).abs()
    part = some_of_fours(scores, share, 1)
    assert int((~part).sum()) == round(share * scores.numel())
    assert not (two_of_four(scores) & ~part).any()
    assert torch.equal(some_of_fours(scores, 0.5, 1), two_of_four(scores))


@given(st.floats(0, 1), st.floats(0.01, 0.95), st.floats(0.1, 1))
def test_the_schedule_is_the_papers(done: float, target: float, until: float) -> None:
    found = cubic_sparsity(done, target=target, until=until)
    paper = target + (0 - target) * (1 - min(done, until) / until) ** 3  # s_f + (s_i − s_f)(1 − t/nΔt)³
    assert found == pytest.approx(paper, abs=1e-9)
    assert 0 <= found <= target
    assert cubic_sparsity(min(1.0, done + 0.01), target=target, until=until) >= found


def test_movement_is_summed_over_steps() -> None:
    steps = [(1.0, 2.0), (-3.0, 0.5), (0.5, -4.0)]  # weight, gradient
    total = torch.zeros(1)
    for weight, gradient in steps:
        total = moved(total, torch.tensor([weight]), torch.tensor([gradient]))
    assert total.item() == pytest.approx(-2.0 + 1.5 + 2.0)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.attend = nn.MultiheadAttention(8, 2)
        self.gru = nn.GRU(8, 8)
        self.head = nn.Linear(8, 20)
        self.other = nn.Linear(8, 20)
        self.other.weight = self.head.weight


def test_what_may_go() -> None:
    found = weights_to_thin(Tied())
    assert set(found.axes) == {
        "attend.in_proj_weight",
        "attend.out_proj.weight",
        "gru.weight_ih_l0",
        "gru.weight_hh_l0",
        "head.weight",
    }
    assert not found.left_whole


def test_a_shared_weight_stays_if_one_of_its_owners_is_protected() -> None:
    for protected in ("head", "other"):
        found = weights_to_thin(Tied(), protect=[protected])
        assert "head.weight" not in found.axes
        assert found.left_whole[protected] == "protected by the recipe"


def test_what_stays_whole_and_why() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Linear(8, 2))
    net.append(parametrizations.weight_norm(nn.Linear(2, 2)))
    found = weights_to_thin(net, by_four=True, protect=["3"])
    assert set(found.axes) == {"2.weight"}
    assert dict(found.left_whole) == {
        "0": "its input width of 3 is no multiple of 4",
        "1": "its input width of 1 is no multiple of 4",
        "3": "protected by the recipe",
        "4": "its weight is computed from others",
    }


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(PreconditionError, match=r"no module of the model is called 'haed'; closest: head"):
        weights_to_thin(Tied(), protect=["haed"])


def test_an_embedding_that_the_decoder_shares_stays() -> None:
    model = Tied()
    model.head.weight = model.words.weight
    found = weights_to_thin(model)
    assert "embedding" in found.left_whole["head"]
    assert model.get_parameter("words.weight") is not None
    assert "words.weight" not in found.axes
    assert "head.weight" not in found.axes


def test_every_matrix_with_zeros_is_found() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    masked(
        net,
        {"0.weight": torch.arange(100).view(10, 10) >= 40, "1.weight": torch.arange(100).view(10, 10) >= 5},
    )
    found = zero_masks(net)
    assert set(found) == {"0.weight", "1.weight"}
    assert not torch.signbit(net[0].weight[net[0].weight == 0]).any()  # type: ignore[index]
    assert share_gone(found) == pytest.approx(45 / 200)
    assert share_gone({}) == 0


def trained(
    pattern: str, score: str, *, sparsity: float = 0.8, steps: int = 100
) -> tuple[nn.Module, list[float], list[dict[str, Tensor]]]:
    """Least squares with the hooks called as the training loop does; zeros and masks after every step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    thinning = Thinning(
        thinned=weights_to_thin(net, by_four=pattern == "2:4"),
        sparsity=sparsity,
        pattern=pattern,  # type: ignore[arg-type]
        score=score,  # type: ignore[arg-type]
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    x, y = torch.randn(64, 16), torch.randn(64, 4)
    zeros, masks = [], []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        thinning.before_step(net)
        optimizer.step()
        thinning.after_step(net, step / steps)
        weights = {name: net.get_parameter(name) != 0 for name in thinning.thinned.axes}
        zeros.append(share_gone(weights))
        masks.append({name: mask.clone() for name, mask in thinning.masks.items()})
    return net, zeros, masks


@pytest.mark.parametrize("score", ["magnitude", "movement"])
@pytest.mark.parametrize(("pattern", "target"), [("layer", 0.8), ("global", 0.8), ("2:4", 0.5)])
def test_weights_go_by_the_schedule_and_then_no_more(pattern: str, target: float, score: str) -> None:
    net, zeros, masks = trained(pattern, score, sparsity=target)
    at = round(UNTIL * 100)
    assert all(later >= earlier for earlier, later in pairwise(zeros))
    for step in (20, 40, 60):  # after each of which some steps of the schedule were made
        asked = cubic_sparsity(step / 100, target=target, until=UNTIL)
        assert zeros[step - 1] == pytest.approx(asked, abs=0.06)
    assert zeros[at - 1] == pytest.approx(target, abs=0.002)
    assert zeros[-1] == zeros[at - 1]
    assert all(torch.equal(masks[-1][name], masks[at - 1][name]) for name in masks[-1])
    if pattern == "2:4":
        assert all((in_fours(net.get_parameter(name) != 0).sum(dim=-1) == 2).all() for name in masks[-1])


def test_a_weight_may_come_back_before_the_masks_are_fixed() -> None:
    _, _, masks = trained("layer", "movement")
    back = [(later["0.weight"] & ~earlier["0.weight"]).any() for earlier, later in pairwise(masks)]
    assert any(back[: round(UNTIL * 100) - 1])
    assert not any(back[round(UNTIL * 100) :])


def test_movement_lets_the_large_weight_go_that_training_shrinks() -> None:
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[2.0, 0.1]])
    thinning = Thinning(
        thinned=Thinned(axes={"weight": 1}, left_whole={}), sparsity=0.5, pattern="layer", score="movement"
    )
    for step in range(1, 11):
        net.weight.grad = torch.tensor([[1.0, -1.0]])  # towards zero, away from it
        thinning.before_step(net)
        net.weight.data -= 0.01 * net.weight.grad
        thinning.after_step(net, step / 10)
    assert net.weight[0, 0] == 0
    assert net.weight[0, 1] > 0.1
    assert masks_of({"weight": torch.tensor([[2.0, 0.1]])}, thinning.thinned, 0.5, "layer")["weight"][0, 0]


def test_layers_are_thinned_alike() -> None:
    scores = {"a": torch.rand(100), "b": 1 + torch.rand(50)}
    gone = {name: share_gone({name: mask}) for name, mask in highest_of_each(scores, 0.7).items()}
    assert gone == pytest.approx({"a": 0.7, "b": 0.7})
