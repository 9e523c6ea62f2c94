"""How a sparsity is shared out: properties of every allocation, and small cases against all possibilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pastille.pruning.allocation import (
    ALLOCATIONS,
    LEAST,
    allocate,
    override,
    removals,
    unrounded,
    widths_of,
)
from pastille.pruning.units import ChannelGroup


def group(name: str, channels: int, **fields: Any) -> ChannelGroup:
    given = {"outputs": (name,), "whole": "", "kind": "channels"} | fields
    return ChannelGroup(
        name=name,
        num_channels=channels,
        members=(),
        cut=lambda _: pytest.fail("nothing is cut"),
        **given,
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network as the allocator sees it."""

    groups: Sequence[ChannelGroup]
    scores: Mapping[str, Tensor]
    round_to: int
    original: Mapping[str, int]
    harm: Mapping[str, Sequence[tuple[float, float]]]
    cost: Mapping[str, float] | None

    def kept(self, sparsity: float, allocation: str, **options: Any) -> dict[str, int]:
        asked: dict[str, Any] = {
            "round_to": self.round_to,
            "original": self.original,
            "harm": self.harm,
            "cost": self.cost,
        }
        return allocate(self.groups, self.scores, sparsity=sparsity, allocation=allocation, **asked | options)

    def weight(self, name: str) -> float:
        return 1.0 if self.cost is None else self.cost[name]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    now = draw(st.lists(st.integers(1, 48), min_size=1, max_size=5))
    groups = [group(f"g{i}", n) for i, n in enumerate(now)]
    more = {g.name: g.num_channels + draw(st.sampled_from([0, 0, 8, 16])) for g in groups}
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    levels = [0.25, 0.5, 0.75]
    scanned = [g.name for g in groups if rng.random() < 0.7] or ["g0"]
    return Case(
        groups=groups,
        scores={g.name: torch.from_numpy(rng.exponential(size=g.num_channels)) for g in groups},
        round_to=draw(st.sampled_from([1, 2, 8])),
        original=more,
        harm={
            name: list(zip(levels, np.cumsum(rng.normal(0.2, 0.3, 3)).tolist(), strict=True))
            for name in scanned
        },
        cost=draw(st.sampled_from([None, {g.name: float(rng.integers(1, 9)) for g in groups}])),
    )


shares = st.floats(0, 0.95)
allocations = st.sampled_from(ALLOCATIONS)


@given(case=cases(), sparsity=shares, allocation=allocations)
def test_widths_are_multiples_or_as_before_and_never_nothing(
    case: Case, sparsity: float, allocation: str
) -> None:
    kept = case.kept(sparsity, allocation)
    assert kept.keys() == {g.name for g in case.groups}
    for g in case.groups:
        assert 1 <= kept[g.name] <= g.num_channels
        assert kept[g.name] == g.num_channels or kept[g.name] % case.round_to == 0


@given(case=cases(), less=shares, more=shares, allocation=allocations)
def test_a_higher_sparsity_keeps_more_of_no_group(
    case: Case, less: float, more: float, allocation: str
) -> None:
    less, more = sorted((less, more))
    wide, narrow = case.kept(less, allocation), case.kept(more, allocation)
    assert all(narrow[name] <= wide[name] for name in wide)


@given(case=cases(), sparsity=shares, allocation=st.sampled_from(["global", "sensitivity"]))
def test_the_overall_share_is_met_within_one_step_and_never_exceeded(
    case: Case, sparsity: float, allocation: str
) -> None:
    kept = case.kept(sparsity, allocation)
    total = sum(case.weight(n) * max(w, case.original[n]) for n, w in _now(case).items())
    before = 1 - sum(case.weight(n) * w for n, w in _now(case).items()) / total
    gone = 1 - sum(case.weight(n) * w for n, w in kept.items()) / total
    assert gone <= max(before, sparsity) + 1e-9
    can = [g for g in case.groups if kept[g.name] > _least(case, g)]
    largest = max((case.round_to * case.weight(g.name) for g in case.groups), default=0.0)
    assert not can or gone > sparsity - largest / total - 1e-9


def _now(case: Case) -> dict[str, int]:
    return {g.name: g.num_channels for g in case.groups}


def _least(case: Case, g: ChannelGroup) -> int:
    """A tenth of the original width, at least one unit of rounding; or what it has, if that is less."""
    tenth = math.ceil(LEAST * max(case.original[g.name], g.num_channels) / case.round_to) * case.round_to
    return min(g.num_channels, max(case.round_to, tenth))


@given(case=cases(), sparsity=shares, allocation=st.sampled_from(["global", "sensitivity"]))
def test_no_group_vanishes_where_groups_are_compared(case: Case, sparsity: float, allocation: str) -> None:
    kept = case.kept(sparsity, allocation)
    assert all(kept[g.name] >= _least(case, g) for g in case.groups)


@given(case=cases(), sparsity=shares, own=shares, allocation=allocations)
def test_overrides_are_obeyed_and_the_others_share_the_rest_alone(
    case: Case, sparsity: float, own: float, allocation: str
) -> None:
    if len(case.groups) < 2:
        return
    alike = {name: [(0.5, 1.0)] for name in _now(case)}
    kept = case.kept(sparsity, allocation, layers={"g0": own}, harm=alike)
    uniform = case.kept(own, "uniform")
    assert kept["g0"] == uniform["g0"]
    others = Case(**{**vars(case), "groups": case.groups[1:]})
    rest = others.kept(sparsity, allocation, harm=alike)
    assert {name: width for name, width in kept.items() if name != "g0"} == rest


@given(case=cases(), allocation=allocations)
def test_nothing_goes_at_sparsity_zero(case: Case, allocation: str) -> None:
    assert case.kept(0.0, allocation) == _now(case)


@given(case=cases(), sparsity=shares, allocation=allocations, first=st.integers(0, 4))
def test_the_order_of_the_groups_does_not_matter(
    case: Case, sparsity: float, allocation: str, first: int
) -> None:
    turned = Case(**{**vars(case), "groups": [*case.groups[first:], *case.groups[:first]]})
    assert turned.kept(sparsity, allocation) == case.kept(sparsity, allocation)


def test_groups_that_must_stay_whole_are_passed_over() -> None:
    groups = [group("a", 8), group("b", 8, whole="protected by the recipe")]
    scores = {"a": torch.arange(8.0)}
    assert allocate(groups, scores, sparsity=0.5, allocation="global", round_to=1) == {"a": 4}


def test_global_takes_the_lowest_scores_wherever_they_are() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": torch.tensor([9.0, 8, 7, 6]), "b": torch.tensor([1.0, 2, 3, 10])}
    kept = allocate(groups, scores, sparsity=3 / 8, allocation="global", round_to=1)
    assert kept == {"a": 4, "b": 1}


def test_global_by_cost_prefers_units_that_save_much() -> None:
    groups = [group("cheap", 4), group("dear", 4)]
    scores = {"cheap": torch.ones(4), "dear": 2 * torch.ones(4)}
    cost = {"cheap": 1.0, "dear": 10.0}
    asked: dict[str, Any] = {"sparsity": 0.5, "allocation": "global", "round_to": 1}
    assert allocate(groups, scores, **asked) == {"cheap": 1, "dear": 3}
    assert allocate(groups, scores, cost=cost, **asked) == {"cheap": 4, "dear": 2}


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(2, 6), min_size=2, max_size=3),
    share=st.floats(0.1, 0.8),
    seed=st.integers(0, 10_000),
)
def test_global_is_the_best_of_all_possibilities(widths: list[int], share: float, seed: int) -> None:
    """No choice of widths that removes as much loses less importance."""
    rng = np.random.default_rng(seed)
    groups = [group(f"g{i}", n) for i, n in enumerate(widths)]
    scores = {g.name: torch.from_numpy(rng.exponential(size=g.num_channels)) for g in groups}
    kept = allocate(groups, scores, sparsity=share, allocation="global", round_to=1)

    def lost(chosen: Sequence[int]) -> float:
        gone = [(g, g.num_channels - n) for g, n in zip(groups, chosen, strict=True)]
        return sum(float(scores[g.name].sort().values[:n].sum()) for g, n in gone)

    assert lost([*kept.values()]) <= _best(widths, sum(kept.values()), lost) + 1e-9


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(2, 6), min_size=2, max_size=3),
    share=st.floats(0.1, 0.8),
    seed=st.integers(0, 10_000),
)
def test_sensitivity_is_the_best_of_all_possibilities(widths: list[int], share: float, seed: int) -> None:
    """Where curves bend upwards, no choice of widths that removes as much does less harm."""
    rng = np.random.default_rng(seed)
    groups = [group(f"g{i}", n) for i, n in enumerate(widths)]
    harm = {
        g.name: [
            (k / g.num_channels, float(y))
            for k, y in enumerate(np.cumsum(np.sort(rng.exponential(size=n - 1))), 1)
        ]
        for g, n in zip(groups, widths, strict=True)
    }
    kept = allocate(groups, {}, sparsity=share, allocation="sensitivity", round_to=1, harm=harm)

    def lost(chosen: Sequence[int]) -> float:
        gone = [(g, g.num_channels - n) for g, n in zip(groups, chosen, strict=True)]
        return math.fsum([harm[g.name][n - 1][1] for g, n in gone if n])

    assert lost([*kept.values()]) <= _best(widths, sum(kept.values()), lost) + 1e-9


def _best(widths: Sequence[int], total: int, lost: Callable[[Sequence[int]], float]) -> float:
    every = itertools.product(*(range(1, n + 1) for n in widths))
    return min(lost(chosen) for chosen in every if sum(chosen) == total)


def test_sensitivity_leaves_alone_what_is_harmed() -> None:
    groups = [group("tough", 16), group("tender", 16)]
    harm = {"tough": [(0.25, 0.0), (0.5, 0.01), (0.75, 0.1)], "tender": [(0.25, 0.5), (0.5, 2.0)]}
    kept = allocate(groups, {}, sparsity=0.25, allocation="sensitivity", round_to=4, harm=harm)
    assert kept == {"tough": 8, "tender": 16}


def test_a_curve_that_dips_is_not_paid_twice() -> None:
    """A rise at a quarter that is gone at a half is noise or a cliff: it stays risen."""
    groups = [group("noisy", 8), group("smooth", 8)]
    harm = {"noisy": [(0.25, 1.0), (0.5, -1.0)], "smooth": [(0.25, 0.1), (0.5, 0.3)]}
    kept = allocate(groups, {}, sparsity=0.25, allocation="sensitivity", round_to=2, harm=harm)
    assert kept == {"noisy": 8, "smooth": 4}


def test_beyond_the_last_level_a_curve_rises_as_steeply_as_it_ever_did() -> None:
    groups = [group("flat", 10), group("steep", 10)]
    harm = {"flat": [(0.1, 0.5), (0.2, 0.5)], "steep": [(0.2, 0.2), (0.9, 2.3)]}
    # Beyond 0.2 a channel of the first costs 0.5 again, of the second 0.3.
    kept = allocate(groups, {}, sparsity=0.5, allocation="sensitivity", round_to=1, harm=harm)
    assert kept["steep"] < kept["flat"]


def test_a_group_that_was_not_scanned_is_given_the_median_curve() -> None:
    groups = [group(name, 8) for name in ("easy", "hard", "harder", "unknown")]
    curves = {"easy": 0.1, "hard": 1.0, "harder": 9.0}
    harm = {name: [(0.5, loss)] for name, loss in curves.items()}
    full = harm | {"unknown": [(0.5, 1.0)]}
    for sparsity in (0.1, 0.3, 0.5, 0.7):
        asked: dict[str, Any] = {"sparsity": sparsity, "allocation": "sensitivity", "round_to": 1}
        assert allocate(groups, {}, harm=harm, **asked) == allocate(groups, {}, harm=full, **asked)


def test_equal_harm_is_spread_over_the_groups() -> None:
    groups = [group("a", 8), group("b", 8)]
    harm = {"a": [(0.9, 0.0)], "b": [(0.9, 0.0)]}
    kept = allocate(groups, {}, sparsity=0.5, allocation="sensitivity", round_to=1, harm=harm)
    assert kept == {"a": 4, "b": 4}


def test_rounding_can_differ_by_group_and_heads_are_not_rounded() -> None:
    groups = [group("a", 32), group("b", 32), group("attn", 12, kind="heads"), group("c", 10)]
    kept = allocate(groups, {}, sparsity=0.45, round_to={"a": 16, "b": 4, "attn": 8})
    assert kept == {"a": 32, "b": 20, "attn": 7, "c": 6}
    assert allocate([groups[2]], {}, sparsity=0.5, round_to=8) == {"attn": 6}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("round_to", [1, 2, 8])
def test_parts_lose_equally_many(allocation: str, round_to: int) -> None:
    groups = [group("a", 48, parts=3), group("b", 48)]
    scores = {"a": torch.arange(48.0), "b": torch.arange(48.0).flip(0)}
    harm = {"a": [(0.5, 1.0)]}
    asked: dict[str, Any] = {"sparsity": 0.5, "allocation": allocation, "round_to": round_to, "harm": harm}
    kept = allocate(groups, scores, **asked)
    assert kept["a"] < 48
    assert kept["a"] % math.lcm(3, round_to) == 0
    gone = removals(groups, scores, kept)["a"]
    each = len(gone) // 3
    assert gone.tolist() == [16 * part + i for part in range(3) for i in range(each)]  # the lowest of each
    odd = removals(groups, scores, {"a": 38})["a"]  # ten to go: nine can
    assert len(odd) == 9


def unit(channels: int, round_to: int, original: int = 0, **fields: Any) -> int:
    found = group("a", channels, **fields)
    return widths_of(found, round_to, {"a": original} if original else {}).unit


def test_rounding_is_given_up_where_parts_leave_no_narrower_multiple() -> None:
    """As in RegNet-Y: 55 groups of 8 channels; 440 is the least that is a multiple of 8 and of 55."""
    assert unit(440, 8, parts=55) == 55
    assert unit(880, 8, parts=55) == unit(440, 8, 880, parts=55) == 440  # not after a step that kept to it
    assert unit(48, 8, parts=6) == 24
    assert unit(440, 512, parts=55) == math.lcm(512, 55)  # it is the rounding alone that leaves none
    assert unit(8, 8) == 8
    kept = allocate([group("a", 440, parts=55), group("b", 64)], {}, sparsity=0.5, round_to=8)
    assert kept == {"a": 220, "b": 32}
    given_up = unrounded(group("a", 440, parts=55), 8, {})
    assert given_up == "not rounded to 8: its channels go in 55 equal parts"
    for others in (group("a", 48, parts=6), group("a", 64), group("a", 12, kind="heads")):
        assert not unrounded(others, 8, {})


def test_every_layer_of_an_lstm_is_rounded_by_itself() -> None:
    """Four parts of 20 hidden units: 8 and 16 are multiples of 8, though 40 and 72 of all 80 would be too."""
    lstm = group("a", 80, parts=4, apart=True)
    for sparsity, kept in ((0.1, 80), (0.2, 64), (0.5, 64), (0.6, 32), (0.9, 32)):
        assert allocate([lstm], {}, sparsity=sparsity, round_to=8) == {"a": kept}
    assert unit(32, 8, parts=4, apart=True) == 32  # 8 hidden units each stay, as 8 channels would
    assert not unrounded(group("a", 32, parts=4, apart=True), 8, {})


def test_removals_are_the_lowest_in_ascending_order() -> None:
    scores = {"a": torch.tensor([3.0, 1, 2, 0]), "b": torch.ones(4), "c": torch.ones(4)}
    groups = [group("a", 4), group("b", 4), group("c", 4), group("d", 4, whole="shared")]
    gone = removals(groups, scores, {"a": 2, "b": 4})
    assert {name: indices.tolist() for name, indices in gone.items()} == {"a": [1, 3]}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({}, None),
        ({"other": 0.5}, None),
        ({"encoder": 0.5}, 0.5),
        ({"encoder": 0.5, "encoder.layers.3": 0.2}, 0.2),  # deeper
        ({"encoder.layers.*": 0.5, "encoder.layers.3": 0.2}, 0.2),  # no wildcard
        ({"*.layers.3.fc1": 0.5, "encoder.layers.3": 0.2}, 0.5),  # deeper, in spite of its wildcard
        ({"enc*": 0.5, "e*": 0.2}, 0.5),  # spells out more
        ({"encoder.layers.3.fc1": 0.0, "encoder": 0.5}, 0.0),
        ({"encoder.layers.3.fc1": 0.5, "encoder.layers.3.fc9": 0.3}, 0.3),  # two partners: the careful one
    ],
)
def test_the_most_specific_override_wins(layers: Mapping[str, float], expected: float | None) -> None:
    partners = ("encoder.layers.3.fc1", "encoder.layers.3.fc9")
    assert override(group("encoder.layers.3.fc1", 8, outputs=partners), layers) == expected


def test_a_sparsity_of_a_layer_is_none_of_its_heads() -> None:
    assert override(group("attn", 8, kind="heads"), {"attn": 0.5}) is None


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"sparsity": 1.0}, "sparsity must be"),
        ({"sparsity": float("nan")}, "sparsity must be"),
        ({"round_to": 0}, "round_to must be"),
        ({"allocation": "fair"}, "allocation must be one of uniform, global, sensitivity"),
        ({"allocation": "sensitivity"}, "needs harm"),
        ({"allocation": "sensitivity", "harm": {"x": [(0.5, 1.0)]}}, "curve for none of the groups"),
        ({"allocation": "sensitivity", "harm": {"a": [(0.5, math.inf)]}}, "harm must be finite"),
        ({"allocation": "global", "cost": {"a": 0.0}}, "cost must say what a unit of a costs"),
        ({"allocation": "global", "cost": {}}, "cost must say what a unit of a costs"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(wrong: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        allocate([group("a", 8)], {"a": torch.ones(8)}, **{"sparsity": 0.5, **wrong})
