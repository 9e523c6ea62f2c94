"""Learning rates against torch's own schedulers, optimizers and what they remember."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from train_data import settings

from pastille.errors import PreconditionError
from pastille.train.optimizing import Momenta, optimizer_for, rate

TOTAL = 40
Scheduler = Callable[[torch.optim.Optimizer], Any]


def by_torch(make: Scheduler, total: int) -> list[float]:
    """The rates that a scheduler of torch gives, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on its own way to step
        scheduler, rates = make(optimizer), []
        for _ in range(total):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
    return rates


SCHEDULES: dict[str, Callable[[int], Scheduler]] = {
    "cosine": lambda n: lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=n),
    "linear": lambda n: lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n),
    "constant": lambda n: lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
}


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_torch(schedule: str, warmup: float) -> None:
    rising = round(warmup * TOTAL)

    def expected(optimizer: torch.optim.Optimizer) -> Any:
        later = SCHEDULES[schedule](TOTAL - rising)(optimizer)
        if not rising:
            return later
        first = lr_scheduler.LinearLR(optimizer, 1 / (rising + 1), 1.0, total_iters=rising)
        return lr_scheduler.SequentialLR(optimizer, [first, later], milestones=[rising])

    asked = settings(schedule=schedule, warmup=warmup)
    found = [rate(step, TOTAL, asked) for step in range(TOTAL)]
    assert found == pytest.approx(by_torch(expected, TOTAL), abs=1e-9)


@pytest.mark.parametrize("total", [2, 3, 4, 7, 20, 30, 37])
def test_one_cycle_is_that_of_torch(total: int) -> None:
    expected = by_torch(lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=total), total - 1)
    found = [rate(step, total, settings(schedule="one_cycle")) for step in range(total)]
    assert found == pytest.approx([*expected, 1 / 25e4], abs=1e-9)


@pytest.mark.parametrize("at", [[0.5], [0.25, 0.5, 0.9], [0.33]])
def test_steps_are_a_tenth_each(at: list[float]) -> None:
    milestones = [math.ceil(share * TOTAL) for share in at]
    expected = by_torch(lambda o: lr_scheduler.MultiStepLR(o, milestones, gamma=0.1), TOTAL)
    asked = settings(schedule="step", steps_at=at)
    assert [rate(step, TOTAL, asked) for step in range(TOTAL)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "step", "one_cycle"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate(schedule: str, total: int) -> None:
    rates = [rate(step, total, settings(schedule=schedule)) for step in range(total)]
    assert all(0 <= x <= 1 for x in rates)
    assert max(rates) > 0


@pytest.mark.parametrize(
    ("given", "kind"),
    [({"momentum": 0.9}, torch.optim.SGD), ({"optimizer": "adamw"}, torch.optim.AdamW)],
    ids=["sgd", "adamw"],
)
def test_what_an_optimizer_remembers_can_be_put_into_another(given: dict[str, Any], kind: type) -> None:
    torch.manual_seed(0)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = (optimizer_for([model], settings(**given)) for model in models)
    assert isinstance(one, kind)
    stepped(one, models[0], 3)
    models[1].load_state_dict(models[0].state_dict())
    Momenta(optimizer=other).load_state_dict(copy.deepcopy(Momenta(optimizer=one).state_dict()))
    stepped(one, models[0], 2)
    stepped(other, models[1], 2)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def stepped(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((4, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()


def test_a_frozen_model_is_refused_and_what_is_beside_it_is_trained() -> None:
    frozen, beside = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1)
    with pytest.raises(PreconditionError, match="none of its parameters requires a gradient"):
        optimizer_for([frozen], settings())
    assert len(optimizer_for([frozen, beside], settings()).param_groups[0]["params"]) == 2
