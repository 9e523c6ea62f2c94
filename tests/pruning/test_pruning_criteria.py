"""One family, one contract: whatever scores channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pastille.pruning.criteria import CRITERIA, Criterion, channel_scores, channels_kept, l1, l2, lowest


def weights(channels: int = 12, columns: int = 27, seed: int = 0) -> Tensor:
    return torch.randn(channels, columns, generator=torch.Generator().manual_seed(seed))


class CriterionContract:
    """What every criterion promises."""

    @pytest.fixture
    def criterion(self) -> Criterion:
        raise NotImplementedError

    def test_one_finite_score_per_channel(self, criterion: Criterion) -> None:
        scores = criterion(weights())
        assert scores.shape == (12,)
        assert scores.isfinite().all()

    def test_leaves_the_weights_alone(self, criterion: Criterion) -> None:
        given = weights()
        criterion(given)
        assert torch.equal(given, weights())

    def test_a_dead_channel_scores_lowest(self, criterion: Criterion) -> None:
        given = weights()
        given[7] = 0
        scores = criterion(given)
        assert scores.argmin() == 7
        assert (scores[torch.arange(12) != 7] > scores[7]).all()

    def test_follows_a_permutation_of_the_channels(self, criterion: Criterion) -> None:
        order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(criterion(weights()[order]), criterion(weights())[order])

    def test_a_scaled_up_channel_never_loses(self, criterion: Criterion) -> None:
        given = weights()
        larger = given.clone()
        larger[3] *= 2
        assert criterion(larger)[3] > criterion(given)[3]

    def test_can_be_asked_for_by_name(self, criterion: Criterion) -> None:
        assert criterion in CRITERIA.values()


class TestL1(CriterionContract):
    @pytest.fixture
    def criterion(self) -> Criterion:
        return l1


class TestL2(CriterionContract):
    @pytest.fixture
    def criterion(self) -> Criterion:
        return l2


def test_every_criterion_of_the_recipe_is_under_contract() -> None:
    assert set(CRITERIA) == {"l1", "l2"}


def test_l1_and_l2_differ_where_weights_are_spread_differently() -> None:
    given = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    assert l1(given).argmin() == 1  # 4 against 3
    assert l2(given).argmin() == 0  # 2 against 3


every = torch.arange(12)


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=list(CRITERIA))
def test_a_layer_of_large_weights_does_not_outvote_the_others(criterion: Criterion) -> None:
    one, other = weights(seed=1), weights(seed=2)
    equal = channel_scores([(one, every), (other, every)], 12, criterion)
    louder = channel_scores([(one, every), (1000 * other, every)], 12, criterion)
    torch.testing.assert_close(equal, louder)


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=list(CRITERIA))
def test_a_layer_with_many_rows_per_channel_does_not_outvote_the_others(criterion: Criterion) -> None:
    """A linear layer behind a flattened 4×4 map reads each channel through 16 columns."""
    makes, reads = weights(columns=27, seed=1), weights(channels=12 * 16, columns=10, seed=2)
    makes[4] = 0
    scores = channel_scores([(makes, every), (reads, every.repeat_interleave(16))], 12, criterion)
    assert scores.argmin() == 4


def test_a_layer_that_makes_some_of_the_channels_speaks_for_those_alone() -> None:
    """Two layers are joined; either counts 1 on average for the channels that it makes."""
    ones = torch.ones(8, 3)
    members = [(ones, torch.arange(8)), (ones[:4], torch.arange(8, 12))]
    torch.testing.assert_close(channel_scores(members, 12, l1), torch.ones(12, dtype=torch.float64))


def test_layers_of_zeros_give_zeros_and_not_nan() -> None:
    assert channel_scores([(torch.zeros(12, 3), every)], 12, l1).tolist() == [0.0] * 12


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
