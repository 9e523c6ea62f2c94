"""Learning from another model's answers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import entropy, pearsonr
from torch import nn

from pastille.distillation import Live, distillation_loss
from pastille.distillation.answers import correlations, decoupled, method_problem, pearson_distance
from pastille.errors import PreconditionError
from pastille.train.batches import Drawn


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(outputs: torch.Tensor, teacher: torch.Tensor, kind: str, t: float, method: str = "kl") -> float:
    return float(distillation_loss(outputs, teacher, kind=kind, temperature=t, method=method))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_are_compared_by_the_divergence_of_softened_probabilities(temperature: float) -> None:
    ours, told = noise(6, 5), noise(6, 5, seed=1)
    p, q = (softmax(x.numpy() / temperature, axis=1) for x in (told, ours))
    expected = temperature**2 * np.mean(entropy(p, q, axis=1))
    assert loss_of(ours, told, "multiclass", temperature) == pytest.approx(expected, rel=1e-5)


def test_each_label_is_a_question_of_its_own() -> None:
    ours, told, t = noise(4, 3), noise(4, 3, seed=1), 2.0
    p, q = expit(told.numpy() / t), expit(ours.numpy() / t)
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert loss_of(ours, told, "multilabel", t) == pytest.approx(t**2 * each.mean(), rel=1e-5)
    column, other = ours[:, :1], told[:, :1]
    one = t**2 * each[:, 0].mean()
    assert loss_of(column, other, "binary", t) == pytest.approx(one, rel=1e-5)
    assert loss_of(column[:, 0], other, "binary", t) == pytest.approx(one, rel=1e-5)
    two = [torch.cat([torch.zeros_like(x), x], dim=1) for x in (column, other)]
    assert loss_of(two[0], two[1], "binary", t) == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("method", ["kl", "dkd"])
def test_pixels_count_like_cases(method: str) -> None:
    """Their mean: a sum would weigh large images more than labels."""
    ours, told = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (ours, told)]
    expected = loss_of(flat[0], flat[1], "multiclass", 2.0, method)
    assert loss_of(ours, told, "segmentation", 2.0, method) == pytest.approx(expected, rel=1e-5)
    masks = [x[:, :1] for x in (ours, told)]
    single = loss_of(masks[0].reshape(-1), masks[1].reshape(-1), "binary", 2.0)
    assert loss_of(masks[0], masks[1], "segmentation", 2.0) == pytest.approx(single, rel=1e-5)


def test_numbers_are_compared_in_units_of_their_spread() -> None:
    ours, told = noise(9), noise(9, seed=1)
    expected = np.mean((ours.numpy() - told.numpy()) ** 2) / np.var(told.numpy())
    assert loss_of(ours, told, "regression", 3.0) == pytest.approx(expected, rel=1e-5)
    assert loss_of(1000 * ours, 1000 * told, "regression", 1.0) == pytest.approx(expected, rel=1e-5)
    one = (float(ours[0] - told[0]) / float(told[0])) ** 2  # which has no spread
    assert loss_of(1000 * ours[:1], 1000 * told[:1], "regression", 1.0) == pytest.approx(one, rel=1e-4)
    assert loss_of(torch.tensor([0.0]), torch.tensor([0.0]), "regression", 1.0) == 0


def test_numbers_count_alike_in_batches_of_any_size() -> None:
    """Two answers may lie as close together as they like: the variance of so few says nothing."""
    ours, told = noise(64), noise(64, seed=1)
    whole, *pairs = (
        float(distillation_loss(a, b, kind="regression", temperature=1.0, unit=2.0))
        for a, b in [(ours, told), *zip(ours.reshape(-1, 2), told.reshape(-1, 2), strict=True)]
    )
    assert whole == pytest.approx(np.mean((ours.numpy() - told.numpy()) ** 2) / 4, rel=1e-5)
    assert np.mean(pairs) == pytest.approx(whole, rel=1e-5)


def test_decoupled_is_the_target_against_the_rest_and_the_rest_among_itself() -> None:
    ours, told, y, t, others = noise(5, 4), noise(5, 4, seed=1), np.array([0, 1, 2, 3, 1]), 3.0, 6.0
    p, q = (softmax(x.numpy() / t, axis=1) for x in (told, ours))
    rows, rest = np.arange(5), np.array([[k for k in range(4) if k != c] for c in y])
    target = [np.stack([x[rows, y], 1 - x[rows, y]], axis=1) for x in (p, q)]
    among = [np.take_along_axis(x, rest, axis=1) for x in (p, q)]
    sure, ranked = (entropy(x[0], x[1], axis=1) for x in (target, among))
    expected = t**2 * np.mean(sure + others * ranked)
    found = decoupled(ours, told, torch.tensor(y), temperature=t, others=others)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_decoupled_sums_up_to_the_divergence_if_weighed_by_doubt() -> None:
    """Equation 5 of the paper: KL = TCKD + (1 - p of the target) · NCKD."""
    ours, told, y = noise(1, 4), noise(1, 4, seed=1), torch.tensor([2])
    doubt = 1 - float(told.softmax(dim=1)[0, 2])
    found = decoupled(ours, told, y, temperature=1.0, others=doubt)
    assert float(found) == pytest.approx(loss_of(ours, told, "multiclass", 1.0), rel=1e-5)


def test_correlations_are_pearsons_over_classes_and_over_cases() -> None:
    ours, told, t = noise(6, 4), noise(6, 4, seed=1), 2.0
    p, q = (softmax(x.numpy() / t, axis=1) for x in (told, ours))
    between = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p, q, strict=True)])
    within = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p.T, q.T, strict=True)])
    expected = t**2 * (between + within)
    assert float(correlations(ours, told, temperature=t)) == pytest.approx(expected, rel=1e-4)


def test_correlation_forgives_what_stretches_and_shifts_a_row() -> None:
    a, b = noise(3, 7), noise(3, 7, seed=1)
    found = float(pearson_distance(a, b))
    scale = torch.tensor([[1.0], [5.0], [30.0]])
    assert float(pearson_distance(a * scale + 10 * scale, b)) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("method", ["kl", "dkd", "dist"])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_student_that_knows_nothing_gets_a_finite_gradient_that_helps(method: str, rows: int) -> None:
    """A last layer that begins at zero answers all classes alike: nothing correlates with that."""
    outputs, told = torch.zeros(rows, 3, requires_grad=True), 3 * torch.eye(3)[[i % 3 for i in range(rows)]]
    told.requires_grad_()
    before = distillation_loss(outputs, told, kind="multiclass", temperature=4.0, method=method)
    before.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert 0 < float(outputs.grad.abs().max()) < 1e4
    assert told.grad is None
    step = outputs.detach() - 1e-3 * outputs.grad / outputs.grad.norm()
    assert loss_of(step, told.detach(), "multiclass", 4.0, method) < before.item()


def test_the_gradient_keeps_its_size_when_the_temperature_rises() -> None:
    """Hinton et al.: for high temperatures it is (z - v) / K, whatever the temperature."""
    told = noise(1, 5).float() / 10
    sizes = []
    for t in (20.0, 80.0):
        outputs = torch.zeros(1, 5, requires_grad=True)
        distillation_loss(outputs, told, kind="multiclass", temperature=t).backward()  # type: ignore[no-untyped-call]
        assert outputs.grad is not None
        sizes.append(outputs.grad)
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(sizes[1], (told.mean() - told) / 5, rtol=0, atol=1e-3)


def test_extreme_answers_stay_finite() -> None:
    ours, told = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])
    for method in ("kl", "dkd", "dist"):
        assert np.isfinite(loss_of(ours, told, "multiclass", 1.0, method))
        assert np.isfinite(loss_of(ours.half(), told.half(), "multiclass", 1.0, method))


@pytest.mark.parametrize(
    ("kind", "labels", "method", "said"),
    [
        ("binary", 2, "dkd", "is binary; use method: kl"),
        ("multilabel", 9, "dist", "is multilabel"),
        ("regression", 1, "dkd", "is regression"),
        ("segmentation", 2, "dist", "has 2; use method: kl"),
        ("multiclass", 2, "dkd", "at least 3 exclusive classes, but this task has 2"),
    ],
)
def test_methods_that_do_not_fit_are_told(kind: str, labels: int, method: str, said: str) -> None:
    assert said in (method_problem(kind, labels, method) or "")


def test_methods_that_fit_are_not_refused() -> None:
    assert all(method_problem(kind, 2, "kl") is None for kind in ("binary", "multilabel", "regression"))
    assert method_problem("multiclass", 3, "dkd") is None
    assert method_problem("segmentation", 3, "dist") is None


def test_answers_of_another_form_are_refused() -> None:
    with pytest.raises(PreconditionError, match=r"shape \(N, 3\) but its teacher with \(N, 4\)"):
        loss_of(noise(2, 3), noise(2, 4), "multiclass", 1.0)


def test_small_changes_of_the_form_do_not_spread_into_each_other() -> None:
    """(N,) beside (N, 1) would otherwise become (N, N)."""
    ours, told = noise(5), noise(5, seed=1)
    assert loss_of(ours, told[:, None], "regression", 1.0) == loss_of(ours, told, "regression", 1.0)


def test_a_teacher_is_asked_as_it_was_and_takes_no_gradient() -> None:
    """Its batch norm must neither learn from the batches nor depend on them."""
    teacher = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    before = copy.deepcopy(teacher.state_dict())
    x, targets = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(8)
    batch = Drawn(
        inputs={"input": x},
        targets=targets,
        rows=np.arange(8),
        of=8,
        step=0,
        epoch=1,
        ends_epoch=True,
        done=0.0,
        view=0,
    )
    outputs = torch.zeros(8, 3, requires_grad=True)
    found = distillation_loss(outputs, Live([teacher])(batch).answers, kind="multiclass", temperature=2.0)
    expected = distillation_loss(
        outputs, copy.deepcopy(teacher).eval()(x), kind="multiclass", temperature=2.0
    )
    torch.testing.assert_close(found, expected)
    found.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.training
    torch.testing.assert_close(teacher.state_dict(), before)
