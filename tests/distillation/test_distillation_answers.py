"""Learning from another model's answers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pastille.train.distillation import distillation_loss, likeness


def test_the_loss_of_distillation_is_the_divergence() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]])
    taught = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    p, q = torch.softmax(taught / 2, 1), torch.softmax(logits / 2, 1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    found = distillation_loss(logits, taught, kind="multiclass", temperature=2.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    one = distillation_loss(logits[:, :1], taught[:, :1], kind="binary", temperature=1.0)
    pairs = [torch.cat([x[:, :1], torch.zeros(2, 1)], 1) for x in (logits, taught)]
    assert float(one) == pytest.approx(
        float(distillation_loss(pairs[0], pairs[1], kind="multiclass", temperature=1.0)), rel=1e-4
    )
    assert float(distillation_loss(taught, taught, kind="regression", temperature=1.0)) == 0


def test_a_teacher_is_asked_as_it_was_and_takes_no_gradient() -> None:
    """Its batch norm must neither learn from the batches nor depend on them."""
    teacher = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    before = copy.deepcopy(teacher.state_dict())
    like = likeness(teacher, kind="multiclass", temperature=2.0)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    found = like({"input": x}, outputs := torch.zeros(8, 3, requires_grad=True))
    expected = distillation_loss(
        outputs, copy.deepcopy(teacher).eval()(x), kind="multiclass", temperature=2.0
    )
    torch.testing.assert_close(found, expected)
    found.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.training
    torch.testing.assert_close(teacher.state_dict(), before)
