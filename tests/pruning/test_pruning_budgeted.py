"""Widths under a budget, against every allocation there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from pastille.pruning.budgeted import (
    Limit,
    OutOfReach,
    allocate,
    lost_by_harm,
    lost_by_scores,
    widths_of,
    with_narrow,
)

FULL = [32, 24, 16]


def chain(kept: np.ndarray) -> np.ndarray:
    """Three layers in a row, each reads what the one before makes; (B, 3) -> (B,)."""
    a, b, c = kept.T.astype(float)
    total: np.ndarray = 3 * a * 30 + a * b + b * c + c * 5
    return total


def case(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = torch.Generator().manual_seed(seed)
    lost = [lost_by_scores(torch.rand(width, generator=generator).square()) for width in FULL]
    return [widths_of(width, 4) for width in FULL], lost


def least(widths: list[np.ndarray], lost: list[np.ndarray], limit: Limit) -> float:
    """By trying everything."""
    every = np.array(list(product(*widths)))
    inside = every[limit.cost(every) <= limit.value]
    return min(total_lost(each, lost) for each in inside)


def total_lost(kept: np.ndarray, lost: list[np.ndarray]) -> float:
    return float(sum(curve[full - k] for curve, full, k in zip(lost, FULL, kept, strict=True)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.9, 0.6, 0.35])
def test_near_the_best_of_all(seed: int, share: float) -> None:
    widths, lost = case(seed)
    limit = Limit(name="x", value=share * float(chain(np.array([FULL]))[0]), cost=chain)
    kept = allocate(widths, lost, [limit])
    assert chain(kept[None])[0] <= limit.value
    assert all(k in w for k, w in zip(kept, widths, strict=True))
    assert total_lost(kept, lost) <= 1.25 * least(widths, lost, limit) + 1e-9


def test_swaps_are_what_makes_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def gap() -> float:
        found = []
        for seed in range(12):
            widths, lost = case(seed)
            limit = Limit(name="x", value=0.5 * float(chain(np.array([FULL]))[0]), cost=chain)
            kept = allocate(widths, lost, [limit])
            found.append(total_lost(kept, lost) / least(widths, lost, limit))
        return float(np.mean(found))

    swapped = gap()
    assert swapped < 1.08
    monkeypatch.setattr("pastille.pruning.budgeted._SWAPS", 0)
    assert swapped < gap()


def test_every_limit_is_kept() -> None:
    widths, lost = case(0)
    full = np.array([FULL])
    limits = [
        Limit(name="work", value=0.7 * float(chain(full)[0]), cost=chain),
        Limit(name="units", value=40, cost=lambda kept: kept.sum(axis=1).astype(float)),
    ]
    kept = allocate(widths, lost, limits)
    assert chain(kept[None])[0] <= limits[0].value
    assert kept.sum() <= 40


def test_a_wide_budget_removes_nothing() -> None:
    widths, lost = case(0)
    assert allocate(widths, lost, [Limit(name="x", value=1e9, cost=chain)]).tolist() == FULL


def test_out_of_reach_says_the_smallest() -> None:
    widths, lost = case(0)
    with pytest.raises(OutOfReach) as caught:
        allocate(widths, lost, [Limit(name="x", value=10.0, cost=chain)])
    assert caught.value.smallest == float(chain(np.array([[4, 4, 4]]))[0])
    assert caught.value.limit.name == "x"


def test_widths_are_multiples_and_below_them_halves() -> None:
    assert widths_of(48, 16).tolist() == [48, 32, 16]
    assert widths_of(1, 8).tolist() == [1]
    assert with_narrow(widths_of(48, 16), 16).tolist() == [48, 32, 16, 8, 4, 2, 1]
    assert with_narrow(widths_of(6, 8), 8).tolist() == [6, 4, 2, 1]
    assert with_narrow(widths_of(3, 1), 1).tolist() == [3, 2, 1]
    assert with_narrow(widths_of(48, 16), 16, least=4).tolist() == [48, 32, 16, 8, 4]
    assert with_narrow(widths_of(24, 24), 24, least=3).tolist() == [24, 12, 6, 3]


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [-1.0, 2.0, 3.0], [1e-300, 1.0, 5.0]])
def test_lost_rises_whatever_the_scores(scores: list[float]) -> None:
    lost = lost_by_scores(torch.tensor(scores))
    assert np.isfinite(lost).all()
    assert (np.diff(lost) >= 0).all()
    assert lost[0] == 0
    assert lost[-1] > 10


def test_few_units_of_comparable_scores_cost_what_they_score() -> None:
    scores = torch.cat([torch.tensor([1e-3, 2e-3]), torch.ones(50)]).double()
    lost = lost_by_scores(scores, comparable=True)
    np.testing.assert_allclose(lost[:3], [0, 1e-3, 3e-3], rtol=1e-3)


def test_a_stream_of_many_layers_is_dearer() -> None:
    scores = torch.ones(8)
    np.testing.assert_allclose(lost_by_scores(scores, layers=5), 5 * lost_by_scores(scores))


def test_harm_is_followed_and_never_falls() -> None:
    lost = lost_by_harm([(0.25, 0.2), (0.5, 0.1), (0.75, 0.9)], 8)
    assert lost[2] == pytest.approx(0.2, rel=1e-3)
    assert lost[6] == pytest.approx(0.9, rel=1e-3)
    assert (np.diff(lost) > 0).all()
    assert lost[8] > 3 * lost[6], "nothing is known of an empty layer but that it is bad"
