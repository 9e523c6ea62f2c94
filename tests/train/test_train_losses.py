"""What training minimises, against torch's own losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_data import LABELS, net, paired, settings

from pastille.errors import PreconditionError
from pastille.train import fit
from pastille.train.losses import (
    case_losses_for,
    class_weights,
    classification_loss,
    labels_loss,
    labels_losses,
    loss_for,
    settings_problem,
)
from pastille.values import Cases, Kind

GENERATOR = torch.Generator().manual_seed(0)


def cases(targets: np.ndarray, kind: str = "multiclass") -> Cases:
    labels = {"binary": ("a", "b"), "multiclass": LABELS, "regression": ()}[kind]
    return Cases(kind=kind, split="train", targets=targets, labels=labels)  # type: ignore[arg-type]


def test_classes_by_cross_entropy() -> None:
    outputs, targets = torch.randn(6, 3, generator=GENERATOR), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = loss_for(cases(targets.numpy()))
    torch.testing.assert_close(loss(outputs, targets), F.cross_entropy(outputs, targets))


def test_balanced_classes_by_weighted_cross_entropy() -> None:
    outputs, targets = torch.randn(6, 3, generator=GENERATOR), torch.tensor([0, 0, 0, 0, 1, 2])
    loss = loss_for(cases(targets.numpy()), balanced=True)
    weights = torch.tensor([6 / (3 * 4), 2.0, 2.0])
    torch.testing.assert_close(loss(outputs, targets), F.cross_entropy(outputs, targets, weight=weights))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 3.0])], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)], ids=str)
def test_one_logit_means_the_same_as_two(weights: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """A sigmoid of z is a softmax of (0, z)."""
    one, targets = (
        torch.randn(shape, generator=GENERATOR, requires_grad=True),
        torch.tensor([0, 1, 1, 0, 0, 1]),
    )
    two = torch.stack([torch.zeros(6), one.reshape(-1)], dim=1)
    loss = classification_loss(one, targets, weights)
    torch.testing.assert_close(loss, F.cross_entropy(two, targets, weight=weights))
    slope = torch.autograd.grad(loss, one)[0]
    expected = torch.autograd.grad(F.cross_entropy(two, targets, weight=weights), one)[0]
    torch.testing.assert_close(slope, expected)


def test_extreme_logits_stay_finite() -> None:
    for outputs in (torch.tensor([1000.0, -1000.0]), torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])):
        assert classification_loss(outputs, torch.tensor([0, 1])).isfinite()


def test_balanced_weights_count_every_class_the_same() -> None:
    targets = np.repeat([0, 1, 2], [70, 20, 10])
    weights = class_weights(targets, 3)
    totals = weights * torch.from_numpy(np.bincount(targets))
    torch.testing.assert_close(totals, torch.full((3,), 100 / 3))
    assert class_weights(np.array([0, 0]), 2).isfinite().all()  # a class that is absent


def test_regression_is_the_share_of_the_variance_that_is_left() -> None:
    targets = np.random.default_rng(0).normal(5, 3, size=50)
    loss = loss_for(cases(targets, "regression"))
    mean = torch.full((50, 1), float(targets.mean()))
    torch.testing.assert_close(loss(mean, torch.from_numpy(targets)), torch.tensor(1.0))
    half = mean / 2 + torch.from_numpy(targets).float()[:, None] / 2
    torch.testing.assert_close(loss(half, torch.from_numpy(targets)), torch.tensor(0.25))


@pytest.mark.parametrize("unit", [1e-20, 1e-6, 1e3, 1e6, 1e20])
def test_regression_does_not_depend_on_the_unit(unit: float) -> None:
    targets = np.random.default_rng(0).normal(size=50)
    outputs = torch.randn(50, generator=GENERATOR)
    plain = loss_for(cases(targets, "regression"))(outputs, torch.from_numpy(targets))
    scaled = loss_for(cases(targets * unit, "regression"))(outputs * unit, torch.from_numpy(targets * unit))
    torch.testing.assert_close(scaled, plain)


def test_regression_of_equal_targets_stays_finite() -> None:
    loss = loss_for(cases(np.full(4, 2.0), "regression"))
    assert loss(torch.zeros(4), torch.full((4,), 2.0, dtype=torch.float64)) == 4.0


def test_outputs_of_two_shapes_are_read_alike() -> None:
    """(N, 1) against (N,) would broadcast to (N, N), and train to the mean."""
    targets = np.arange(5.0)
    loss = loss_for(cases(targets, "regression"))
    exact = torch.arange(5.0)
    for outputs in (exact, exact[:, None]):
        assert loss(outputs, torch.from_numpy(targets)) < 1e-10


def test_balanced_training_finds_the_rare_class() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], [190, 10])
    inputs = (rng.normal(size=(200, 3)) + targets[:, None] * 1.2).astype(np.float32)
    data = paired(inputs, targets, "binary", ("a", "b"))
    found = {}
    for weights in ("none", "balanced"):
        asked = settings(epochs=10, class_weights=weights, schedule="constant")
        model = fit(net(1, dropout=0), data, data, asked, seed=0).model
        with torch.inference_mode():
            found[weights] = float((model(torch.from_numpy(inputs[targets == 1])) > 0).float().mean())
    assert found["balanced"] >= 0.7
    assert found["balanced"] > found["none"]


@pytest.mark.parametrize(
    ("kind", "outputs", "targets"),
    [
        ("binary", torch.randn(8, 1, generator=GENERATOR), np.arange(8) % 2),
        ("multiclass", torch.randn(8, 3, generator=GENERATOR), np.arange(8) % 3),
        ("regression", torch.randn(8, 1, generator=GENERATOR), np.linspace(-3, 5, 8)),
        (
            "multilabel",
            torch.randn(8, 2, generator=GENERATOR),
            np.stack([np.arange(8) % 2, np.arange(8) > 5], 1),
        ),
        ("segmentation", torch.randn(8, 3, 4, 5, generator=GENERATOR), np.arange(160).reshape(8, 4, 5) % 3),
    ],
)
def test_the_loss_is_the_mean_of_the_losses_of_cases(
    kind: Kind, outputs: torch.Tensor, targets: np.ndarray
) -> None:
    held = Cases(kind=kind, split="train", targets=targets * 1, labels=LABELS)
    truth = torch.from_numpy(targets * 1)
    each = case_losses_for(held)(outputs, truth)
    assert each.shape == (8,)
    torch.testing.assert_close(each.mean(), loss_for(held)(outputs, truth).to(each.dtype))
    alone = [case_losses_for(held)(outputs[i : i + 1], truth[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(torch.cat(alone), each)


def test_balanced_losses_of_cases_count_every_class_the_same() -> None:
    held = cases(np.array([0, 0, 0, 1]), "binary")
    plain, balanced = (case_losses_for(held, balanced=b) for b in (False, True))
    outputs, truth = torch.zeros(4), torch.from_numpy(held.targets)
    ratio = balanced(outputs, truth) / plain(outputs, truth)
    torch.testing.assert_close(ratio, torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0]))


def focal_by_hand(x: torch.Tensor, y: torch.Tensor, gamma: float, alpha: float | None) -> torch.Tensor:
    """The formula of arXiv:1708.02002, equations 4 and 5, of yes-or-no questions."""
    p = x.double().sigmoid()
    truth = y.double()
    p_t = p * truth + (1 - p) * (1 - truth)
    each = -(1 - p_t).pow(gamma) * p_t.log()
    return each if alpha is None else (alpha * truth + (1 - alpha) * (1 - truth)) * each


class TestFocal:
    """Against its formula; and against cross-entropy where it is the same."""

    truth = torch.tensor([0, 1, 1, 0, 2, 2, 0, 0])
    logits = 2 * torch.randn(8, 3, generator=GENERATOR)

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
    def test_of_two_classes(self, gamma: float) -> None:
        one, truth = self.logits[:, 0], self.truth.clamp(max=1)
        expected = focal_by_hand(one, truth, gamma, None)
        loss = loss_for(cases(truth.numpy(), "binary"), focal=gamma)(one, truth)
        torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=1e-6)
        two = torch.stack([torch.zeros(8), one], dim=1)
        torch.testing.assert_close(loss_for(cases(truth.numpy(), "binary"), focal=gamma)(two, truth), loss)
        each = case_losses_for(cases(truth.numpy(), "binary"), focal=gamma)(one, truth)
        torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("gamma", [0.0, 2.0])
    def test_of_several_classes_and_their_weights(self, gamma: float) -> None:
        p = self.logits.double().softmax(dim=1)[torch.arange(8), self.truth]
        each = -(1 - p).pow(gamma) * p.log()
        loss = loss_for(cases(self.truth.numpy()), focal=gamma)(self.logits, self.truth)
        torch.testing.assert_close(loss.double(), each.mean(), rtol=1e-5, atol=1e-6)
        weights = class_weights(self.truth.numpy(), 3).double()[self.truth]
        loss = loss_for(cases(self.truth.numpy()), focal=gamma, balanced=True)(self.logits, self.truth)
        torch.testing.assert_close(
            loss.double(), (weights * each).sum() / weights.sum(), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("balanced", [False, True])
    def test_of_several_labels(self, balanced: bool) -> None:
        truth = torch.from_numpy(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]]))
        x = self.logits[:4]
        held = Cases(kind="multilabel", split="train", targets=truth.numpy(), labels=LABELS)
        weight = torch.where(truth == 1, torch.tensor([1 / 3, 3.0, 3.0]), 1.0) if balanced else 1.0
        expected = (weight * focal_by_hand(x, truth, 2.0, None)).mean()
        loss = loss_for(held, focal=2.0, balanced=balanced)(x, truth)
        torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-6)

    def test_of_pixels(self) -> None:
        x, truth = (
            torch.randn(2, 3, 4, 4, generator=GENERATOR),
            torch.randint(3, (2, 4, 4), generator=GENERATOR),
        )
        held = Cases(kind="segmentation", split="train", targets=truth.numpy(), labels=LABELS)
        p = x.double().softmax(dim=1).gather(1, truth[:, None])
        expected = (-(1 - p).square() * p.log()).mean()
        loss = loss_for(held, focal=2.0)(x, truth)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)

    def test_alpha_is_what_weights_of_classes_are(self) -> None:
        """The paper's alpha: of two classes, balanced, that of torchvision's `sigmoid_focal_loss`."""
        truth = torch.tensor([0, 0, 0, 1])
        x = torch.tensor([0.3, -2.0, 1.0, 0.7])
        expected = focal_by_hand(x, truth, 2.0, 0.75).sum() / torch.tensor([0.25, 0.25, 0.25, 0.75]).sum()
        loss = loss_for(cases(truth.numpy(), "binary"), focal=2.0, balanced=True)(x, truth)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_slopes_stay_finite_where_the_model_is_sure(self, gamma: float) -> None:
        for x in (torch.tensor([200.0, -200.0]), torch.tensor([-200.0, 200.0])):
            x = x.requires_grad_()
            loss = loss_for(cases(np.array([1, 0]), "binary"), focal=gamma)(x, torch.tensor([1, 0]))
            (slope,) = torch.autograd.grad(loss, x)
            assert loss.isfinite()
            assert slope.isfinite().all()


class TestSmoothing:
    truth = torch.tensor([0, 1, 1, 0, 2, 2])
    logits = torch.randn(6, 3, generator=GENERATOR)

    @pytest.mark.parametrize("balanced", [False, True])
    def test_of_several_classes(self, balanced: bool) -> None:
        weight = class_weights(self.truth.numpy(), 3) if balanced else None
        expected = F.cross_entropy(self.logits, self.truth, weight=weight, label_smoothing=0.1)
        loss = loss_for(cases(self.truth.numpy()), smoothing=0.1, balanced=balanced)
        torch.testing.assert_close(loss(self.logits, self.truth), expected)

    @pytest.mark.parametrize("balanced", [False, True])
    def test_one_logit_means_the_same_as_two(self, balanced: bool) -> None:
        one, truth = self.logits[:, 0], self.truth.clamp(max=1)
        two = torch.stack([torch.zeros(6), one], dim=1)
        loss = loss_for(cases(truth.numpy(), "binary"), smoothing=0.2, balanced=balanced)
        torch.testing.assert_close(loss(one, truth), loss(two, truth))

    def test_of_labels_half_goes_to_the_other_answer(self) -> None:
        truth = torch.from_numpy(np.array([[1, 0, 0], [1, 1, 0]]))
        held = Cases(kind="multilabel", split="train", targets=truth.numpy(), labels=LABELS)
        expected = F.binary_cross_entropy_with_logits(self.logits[:2], truth * 0.8 + 0.1)
        torch.testing.assert_close(loss_for(held, smoothing=0.2)(self.logits[:2], truth), expected)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"loss": "focal"}, "loss: focal is for classes, labels and pixels, but the task is a regression"),
        ({"label_smoothing": 0.1}, "label_smoothing is for classes, labels and pixels, but the task is a"),
        ({"class_weights": "balanced"}, "class_weights are for classes, labels and pixels, but the task is"),
    ],
)
def test_what_is_for_classes_is_refused_for_numbers(given: dict[str, object], problem: str) -> None:
    held = cases(np.array([1.0, 2.0]), "regression")
    for make in (labels_loss, labels_losses):
        with pytest.raises(PreconditionError, match=problem):
            make(held, settings(**given))
    assert settings_problem("segmentation", settings(**given)) is None
