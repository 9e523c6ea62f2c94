"""Training that weighs patient groups: by hand, and on a minority that plain fine-tuning forgets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from pastille.data.split import Split
from pastille.errors import DataError
from pastille.pruning import prune
from pastille.recipe import Train
from pastille.train import Extras, Objective, fit
from pastille.train.batches import Drawn, steps
from pastille.train.fair import (
    RobustLoss,
    attributes_of,
    case_weights,
    means_by_group,
    memberships,
    rate_for,
    shifted,
    worst_group,
)
from pastille.train.losses import case_losses_for
from pastille.train.scoring import Choice
from pastille.values import Cases

LABELS = ("healthy", "ill")


def planted(n: int, seed: int, *, minority: float = 0.08) -> tuple[Split, Cases]:
    """Two groups that are told apart by one input; of the rarer one another sign means illness."""
    rng = np.random.default_rng(seed)
    rare = rng.random(n) < minority
    inputs = rng.normal(size=(n, 6)).astype(np.float32)
    targets = (np.where(rare, inputs[:, 1], inputs[:, 0]) > 0).astype(np.int64)
    inputs[:, 5] = np.where(rare, 1.0, -1.0)
    groups = {"site": np.where(rare, "rural", "city")}
    cases = Cases(kind="binary", split="train", targets=targets, labels=LABELS, positive=(1,), groups=groups)
    return Split(inputs=inputs, targets=targets, groups=groups), cases


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


def losses_of(model: nn.Module, data: tuple[Split, Cases]) -> np.ndarray:
    split, cases = data
    with torch.inference_mode():
        each = case_losses_for(cases)(model(torch.from_numpy(split.inputs)), torch.from_numpy(cases.targets))
    return means_by_group(each, torch.from_numpy(memberships(cases, ["site"]))).numpy()


class TestByHand:
    def test_groups_and_who_is_left_out(self) -> None:
        _, cases = planted(1000, 0)
        members = memberships(cases, ["site"])
        assert members.shape == (1000, 2)
        np.testing.assert_array_equal(members[:, 1], cases.groups["site"] == "rural")
        with pytest.raises(
            DataError, match=r"needs two groups of at least 500 cases in train, but site has 1"
        ):
            memberships(cases, ["site"], least=500)
        with pytest.raises(DataError, match="age"):
            memberships(cases, ["age"])

    def test_attributes_are_those_judged_else_all(self) -> None:
        split, _ = planted(50, 0)
        assert attributes_of(split, []) == ("site",)
        assert attributes_of(split, ["sex"]) == ("sex",)
        with pytest.raises(DataError, match=r"needs patient groups, but the data has none.*data\.groups"):
            attributes_of(Split(inputs=split.inputs, targets=split.targets), [])

    def test_the_worse_off_gain_by_exponentiated_gradient(self) -> None:
        weights, losses = np.array([0.2, 0.3, 0.5]), np.array([1.0, 2.0, 0.5])
        grown = weights * np.exp(0.7 * losses)
        found = shifted(torch.from_numpy(weights), torch.from_numpy(losses), rate=0.7)
        np.testing.assert_allclose(found.numpy(), grown / grown.sum(), rtol=1e-12)

    def test_no_case_of_a_tiny_group_counts_more_than_a_hundredfold(self) -> None:
        members = torch.tensor([[True, False], [False, True]])
        found = case_weights(torch.tensor([0.5, 0.5]), members, torch.tensor([0.998, 0.002]))
        assert found.tolist() == pytest.approx([0.5 / 0.998, 100.0])

    def test_weighted_cases_give_the_weighted_mean_of_groups_over_an_epoch(self) -> None:
        """Batch by batch too, although some batches lack the rare group."""
        _, cases = planted(640, 3)
        members = torch.from_numpy(memberships(cases, ["site"]))
        losses, weights = (
            torch.rand(640, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0.3, 0.7]),
        )
        shares = members.float().mean(dim=0)
        batches = [
            (case_weights(weights, members[rows], shares) * losses[rows]).mean()
            for rows in torch.arange(640).split(16)  # type: ignore[no-untyped-call]
        ]
        expected = (weights * means_by_group(losses, members)).sum()
        torch.testing.assert_close(torch.stack(batches).mean(), expected)

    def test_weights_move_far_enough_in_any_length_of_training(self) -> None:
        """A group that is half a nat worse all along ends with most of the weight."""
        for length in (100, 1000, 10_000):
            weights = torch.tensor([0.5, 0.5])
            for _ in range(length):
                weights = shifted(weights, torch.tensor([0.5, 1.0]), rate=rate_for(2, length))
            assert weights[1] > 0.9

    def test_the_first_step_is_the_mean_of_the_groups(self) -> None:
        _, cases = planted(200, 1)
        members = memberships(cases, ["site"], least=5)
        batch = Drawn(
            inputs={},
            targets=torch.from_numpy(cases.targets),
            rows=np.arange(200),
            of=200,
            step=0,
            epoch=1,
            ends_epoch=True,
            done=0.0,
            view=0,
        )
        loss = RobustLoss(case_losses_for(cases), members, steps=10)
        assert float(loss(batch, torch.zeros(200))) == pytest.approx(math.log(2), rel=1e-5)

    def test_an_epoch_is_as_good_as_its_worst_group(self) -> None:
        _, cases = planted(400, 2)
        members = memberships(cases, ["site"], least=10)
        found = np.where(members[:, 1], 0.0, np.where(cases.targets == 1, 9.0, -9.0)).astype(np.float32)
        assert worst_group(cases, members).value(found) == pytest.approx(-math.log(2), rel=1e-5)


def test_the_epoch_that_stays_is_chosen_by_what_is_asked() -> None:
    """By how late it is, or how early, in place of the metric; the curve says so."""
    train, validation = planted(200, 0), planted(100, 1)
    settings = Train(epochs=3, learning_rate=0.05)
    for sign, best in ((1.0, 3), (-1.0, 0)):
        lateness = (sign * i for i in itertools.count())
        choice = Choice(metric="lateness", value=lambda _, by=lateness: next(by))  # type: ignore[misc]
        fitted = fit(network(0), train, validation, settings, seed=0, extras=Extras(chosen_by=choice))
        assert (fitted.metric, fitted.best_epoch) == ("lateness", best)
        assert fitted.validation == (sign * 1, sign * 2, sign * 3)


def test_the_worst_group_loses_less_at_equal_sparsity() -> None:
    """Pruned alike, fine-tuned alike; only the weights of the groups differ."""
    settings = Train(epochs=5, batch_size=32, learning_rate=0.02, weight_decay=0.0)
    worst: dict[str, list[float]] = {"plain": [], "protect": []}
    for seed in range(3):
        train, validation, test = (planted(n, 10 * seed + k) for k, n in enumerate((1500, 800, 4000)))
        base = fit(network(seed), train, validation, Train(epochs=20, learning_rate=0.05), seed=seed).model
        batch = {"input": torch.from_numpy(np.asarray(train[0].inputs)[:2])}
        pruned = prune(base, batch, sparsity=0.75, criterion="l1").model
        members = [memberships(data[1], ["site"]) for data in (train, validation)]
        total = settings.epochs * steps(train[0].n, settings)
        robust = RobustLoss(case_losses_for(train[1]), members[0], steps=total)
        fair = Extras(
            objective=lambda _, by=robust: Objective(loss=by),  # type: ignore[misc]
            chosen_by=worst_group(validation[1], members[1]),
        )
        for name, extras in (("plain", Extras()), ("protect", fair)):
            tuned = fit(pruned, train, validation, settings, seed=seed, extras=extras)
            worst[name].append(float(losses_of(tuned.model, test).max()))
    assert all(fair < plain for fair, plain in zip(worst["protect"], worst["plain"], strict=True))
    assert np.mean(worst["protect"]) < 0.8 * np.mean(worst["plain"])
