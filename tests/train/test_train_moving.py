"""The moving average of weights: against torch's own, what is kept of it, and with zeros in it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_data import blobs, net, settings

from pastille.pruning.sparse import masked
from pastille.task.digest import state_digest
from pastille.train import Extras, fit
from pastille.train.moving import decay_at, follow

TRAIN, VALIDATION = blobs(60, 0), blobs(30, 1)


def test_it_follows_as_torch_does() -> None:
    torch.manual_seed(0)
    model = net(dropout=0).train()
    ours = copy.deepcopy(model)
    by = get_ema_multi_avg_fn(0.8)  # type: ignore[no-untyped-call]
    theirs = AveragedModel(model, multi_avg_fn=by, use_buffers=True)
    theirs.update_parameters(model)  # its first one copies
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model(torch.randn(8, 3))
        follow(ours, model, 0.8)
        theirs.update_parameters(model)
    for name, expected in theirs.module.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), expected)
    torch.testing.assert_close(ours.get_buffer("1.running_var"), theirs.module.get_buffer("1.running_var"))
    assert (
        int(ours.get_buffer("1.num_batches_tracked")) == int(model.get_buffer("1.num_batches_tracked")) == 5
    )


def test_the_first_steps_are_followed_faster() -> None:
    assert [decay_at(step, 0.9) for step in (0, 10, 10**6)] == pytest.approx([0.1, 0.55, 0.9])


def test_the_average_is_what_is_scored_and_kept() -> None:
    """By hand: an average of the weights after each step is what `after_epoch` sees and `fit` gives."""
    steps: list[nn.Module] = []
    seen: list[str] = []
    extras = Extras(
        after_step=lambda model, _done: steps.append(copy.deepcopy(model)),
        after_epoch=lambda model, _epoch: seen.append(state_digest(model)),
        counts_from=1.0,
    )
    model = net()
    fitted = fit(model, TRAIN, VALIDATION, settings(epochs=2, ema=0.7), seed=0, extras=extras)
    average = copy.deepcopy(model)
    for number, after in enumerate(steps):
        follow(average, after, decay_at(number, 0.7))
    assert len(steps) == 8
    assert state_digest(fitted.model) == state_digest(average) == seen[-1]
    assert state_digest(fitted.model) != state_digest(steps[-1])
    assert all(p.requires_grad for p in fitted.model.parameters())


def test_training_itself_does_not_see_the_average() -> None:
    def weights(**given: float) -> list[str]:
        seen: list[str] = []
        extras = Extras(after_step=lambda model, _done: seen.append(state_digest(model)))
        fit(net(), TRAIN, VALIDATION, settings(epochs=2, **given), seed=0, extras=extras)
        return seen

    assert weights(ema=0.9) == weights()


def test_zeros_stay_zero_in_the_average() -> None:
    model = net()
    mask = {"0.weight": torch.arange(24).reshape(8, 3) % 2 == 0}
    masked(model, mask)
    extras = Extras(after_step=lambda m, _done: masked(m, mask), counts_from=1.0)
    fitted = fit(model, TRAIN, VALIDATION, settings(ema=0.9), seed=0, extras=extras)
    assert bool((fitted.model.get_parameter("0.weight")[~mask["0.weight"]] == 0).all())
