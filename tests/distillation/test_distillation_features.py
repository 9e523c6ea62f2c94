"""Learning from another model's features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from pastille.distillation import features
from pastille.distillation.objective import HINT_LOSSES

Loss = Callable[..., torch.Tensor]
LOSSES = [HINT_LOSSES[name] for name in ("fitnets", "attention", "relational", "similarity", "hidden")]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(a: np.ndarray, b: np.ndarray) -> float:
    away = np.abs(a - b)
    return float(np.mean(np.where(away < 1, away**2 / 2, away - 0.5)))


def test_fitnets_is_the_squared_error_over_the_spread() -> None:
    a, b = noise(3, 4, 5), noise(3, 4, 5, seed=1)
    expected = np.mean((a.numpy() - b.numpy()) ** 2) / np.var(b.numpy())
    assert float(features.fitnets(a, b)) == pytest.approx(expected, rel=1e-6)


def test_attention_is_the_distance_of_maps_of_length_one() -> None:
    a, b = noise(3, 4, 9), noise(3, 6, 9, seed=1)
    maps = [(x.numpy() ** 2).mean(axis=1) for x in (a, b)]
    ours, told = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps)
    expected = np.mean(((ours - told) ** 2).sum(axis=1))
    assert float(features.attention_transfer(a, b)) == pytest.approx(expected, rel=1e-4)


def test_relations_are_distances_and_angles() -> None:
    a, b = noise(5, 4, 1), noise(5, 6, 1, seed=1)
    rows = [x[:, :, 0].numpy() for x in (a, b)]
    distances = [pdist(x) / pdist(x).mean() for x in rows]
    angles = []
    for x in rows:
        to = x[None] - x[:, None]
        lengths = np.where(squareform(pdist(x)) > 0, squareform(pdist(x)), 1)
        to = to / lengths[:, :, None]
        angles.append(np.einsum("ijc,ikc->ijk", to, to))
    expected = huber(*distances) / 3 + 2 * huber(*angles) / 3
    assert float(features.relational(a, b)) == pytest.approx(expected, rel=1e-4)


def test_similarity_is_the_distance_of_gram_matrices() -> None:
    a, b = noise(5, 4, 3), noise(5, 6, 2, seed=1)
    grams = [x.flatten(1).numpy() @ x.flatten(1).numpy().T for x in (a, b)]
    ours, told = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
    expected = ((ours - told) ** 2).sum() / 5
    assert float(features.similarity(a, b)) == pytest.approx(expected, rel=1e-4)


def test_hidden_is_the_cosine_of_each_token() -> None:
    a, b = noise(3, 4, 5).numpy(), noise(3, 4, 5, seed=1).numpy()
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = features.hidden(torch.tensor(a), torch.tensor(b))
    assert float(found) == pytest.approx(1 - cosines.mean(), rel=1e-4)


def test_relations_of_cases_stay_when_all_are_turned_and_scaled() -> None:
    a, b = noise(6, 4, 1), noise(6, 4, 1, seed=1)
    turn = torch.linalg.qr(noise(4, 4, seed=2))[0]
    turned = 7 * torch.einsum("dc,ncp->ndp", turn, a) + 3
    assert float(features.relational(turned, b)) == pytest.approx(float(features.relational(a, b)), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_cases_does_not_matter(loss: Loss) -> None:
    a, b = noise(6, 4, 3), noise(6, 4, 3, seed=1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(a[order], b[order], None), loss(a, b, None))
    if loss is not features.fitnets:  # a mean over values is blind to how both are shuffled alike only
        assert float(loss(a[order], b, None)) != pytest.approx(float(loss(a, b, None)), rel=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_units_do_not_matter(loss: Loss) -> None:
    """Of weight 1 everywhere: features of thousands must not drown the answers."""
    a, b = noise(6, 4, 3), noise(6, 4, 3, seed=1)
    torch.testing.assert_close(loss(1000 * a, 1000 * b, None), loss(a, b, None), rtol=1e-3, atol=0)
    assert 0 < float(loss(a, b, None)) < 4
    assert float(loss(b, b, None)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cases", [1, 2, 4])
@pytest.mark.parametrize("student", ["zero", "constant", "twins", "noise"])
@pytest.mark.parametrize("teacher", ["zero", "constant", "noise"])
def test_features_that_say_nothing_do_no_harm(loss: Loss, cases: int, student: str, teacher: str) -> None:
    def made(what: str, seed: int) -> torch.Tensor:
        x = noise(cases, 4, 3, seed=seed).float()
        return {"zero": 0 * x, "constant": 0 * x + 2, "twins": x[:1].repeat(cases, 1, 1), "noise": x}[what]

    ours, told = made(student, 0).requires_grad_(), made(teacher, 1).requires_grad_()
    found = loss(ours, told.detach(), None)
    found.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert torch.isfinite(found)
    assert bool(torch.isfinite(ours.grad).all())
    # A zero has no direction, and 1e-6 of the mean is nothing: but no step may run away.
    assert float(ours.grad.abs().max()) < (2e6 if student == "zero" else 1e3)


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_that_pad_do_not_count(loss: Loss) -> None:
    a, b = noise(4, 5, 6), noise(4, 5, 6, seed=1)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 3:], mask[2, 5:] = False, False
    found = loss(a, b, mask)
    padding = ~mask[:, None].expand_as(a)
    others = [torch.where(padding, noise(4, 5, 6, seed=s), x) for s, x in ((2, a), (3, b))]
    torch.testing.assert_close(loss(others[0], others[1], mask), found)
    assert float(loss(others[0], others[1], None)) != pytest.approx(float(loss(a, b, None)), rel=1e-3)
    torch.testing.assert_close(loss(a, b, torch.ones_like(mask)), loss(a, b, None))


def test_a_projection_begins_the_same_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = features.projection(3, 4)
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(2)
    torch.testing.assert_close(features.projection(3, 4).state_dict(), first.state_dict())
