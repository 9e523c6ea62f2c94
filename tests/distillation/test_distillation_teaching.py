"""What teachers say: alone, together, of inner layers, and that teaching leaves them alone."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pastille.distillation import Live
from pastille.train.batches import Drawn


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def drawn_of(x: torch.Tensor, view: int = 0) -> Drawn:
    return Drawn(
        inputs={"input": x},
        targets=torch.zeros(len(x), dtype=torch.int64),
        rows=np.arange(len(x)),
        of=len(x),
        step=0,
        epoch=1,
        ends_epoch=False,
        done=0.0,
        view=view,
    )


def test_one_teacher_answers_in_eval_mode_and_without_gradients() -> None:
    teacher, x = net(0).train(), torch.randn(5, 4)
    told = Live([teacher])(drawn_of(x))
    assert torch.equal(told.answers, copy.deepcopy(teacher).eval()(x))
    assert not told.answers.requires_grad
    assert told.features == {}
    assert teacher.training


def test_several_teachers_answer_with_the_geometric_mean_of_their_probabilities() -> None:
    one, other, x = net(0).eval(), net(1).eval(), torch.randn(7, 4)
    told = Live([one, other], [3, 1])(drawn_of(x))
    with torch.no_grad():
        logs = 0.75 * F.log_softmax(one(x), 1) + 0.25 * F.log_softmax(other(x), 1)
    expected = logs.exp() / logs.exp().sum(1, keepdim=True)
    torch.testing.assert_close(F.softmax(told.answers, 1), expected)


def test_features_are_those_of_the_first_teacher() -> None:
    one, other, x = net(0).eval(), net(1).eval(), torch.randn(7, 4)
    told = Live([one, other], layers=["0", "2", "0"])(drawn_of(x))
    with torch.no_grad():
        torch.testing.assert_close(told.features["0"], one[0](x))
        torch.testing.assert_close(told.features["2"], one[:3](x))
    assert list(told.features) == ["0", "2"]
    assert not told.features["0"].requires_grad


def test_teaching_does_not_change_the_teacher() -> None:
    """Neither its weights nor the statistics of its norms, however often it is asked."""
    teacher = net(0).train()
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    live = Live([teacher])
    for _ in range(3):
        live(drawn_of(torch.randn(8, 4)))
    for held in (teacher, *live.teachers):
        assert all(torch.equal(x, before[name]) for name, x in held.state_dict().items())
    assert not any(p.requires_grad for p in live.teachers[0].parameters())
