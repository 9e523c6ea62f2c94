"""Training on several labels and on pixels: the losses against torch's own, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_data import settings

from pastille.data.split import Split
from pastille.errors import PreconditionError
from pastille.recipe import TaskSection
from pastille.train import fit
from pastille.train.losses import (
    MAX_WEIGHT,
    class_weights,
    classification_loss,
    loss_for,
    loss_problem,
    positive_weights,
)
from pastille.values import Cases, Kind

GENERATOR = torch.Generator().manual_seed(0)
LABELS: dict[str, tuple[str, ...]] = {
    "multilabel": ("effusion", "nodule", "mass"),
    "segmentation": ("background", "liver", "spleen"),
    "custom": (),
}


def cases(targets: np.ndarray, kind: Kind, labels: tuple[str, ...] | None = None) -> Cases:
    return Cases(kind=kind, split="train", targets=targets, labels=labels or LABELS[kind])


class TestSeveralLabels:
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]])

    def test_mean_cross_entropy_over_cases_and_labels(self) -> None:
        outputs = torch.randn(4, 3, generator=GENERATOR)
        truth = torch.from_numpy(self.targets)
        p = outputs.double().sigmoid()
        expected = -torch.where(truth == 1, p, 1 - p).log().mean()
        loss = loss_for(cases(self.targets, "multilabel"))(outputs, truth)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)

    def test_balanced_labels_weigh_their_positive_cases_as_much_as_their_negative_ones(self) -> None:
        outputs, truth = torch.randn(4, 3, generator=GENERATOR), torch.from_numpy(self.targets)
        loss = loss_for(cases(self.targets, "multilabel"), balanced=True)(outputs, truth)
        weight = torch.tensor([1 / 3, 3.0, 3.0])
        expected = F.binary_cross_entropy_with_logits(outputs, truth.float(), pos_weight=weight)
        torch.testing.assert_close(loss, expected)

    def test_the_rarest_label_is_capped(self) -> None:
        rare = np.zeros((1000, 3), int)
        rare[0, 0] = rare[:500, 1] = 1
        torch.testing.assert_close(positive_weights(rare), torch.tensor([MAX_WEIGHT, 1.0, MAX_WEIGHT]))

    def test_training_finds_every_label(self) -> None:
        rng = np.random.default_rng(0)
        targets = (rng.random((120, 3)) < [0.5, 0.3, 0.2]).astype(np.int64)
        inputs = (targets * 2 - 1 + rng.normal(0, 0.4, targets.shape)).astype(np.float32)
        data = Split(inputs=inputs, targets=targets), cases(targets, "multilabel")
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        fitted = fit(
            model, data, data, settings(epochs=12, learning_rate=0.3, class_weights="balanced"), seed=0
        )
        with torch.inference_mode():
            decided = (fitted.model(torch.from_numpy(inputs)) >= 0).numpy()
        assert (decided == targets).mean(axis=0).min() > 0.95
        assert fitted.validation[-1] > fitted.validation[0]


class TestPixels:
    masks = np.array([[[0, 0], [1, 2]], [[0, 0], [0, 1]], [[0, 2], [0, 0]]])

    def test_mean_cross_entropy_over_pixels(self) -> None:
        outputs = torch.randn(3, 3, 2, 2, generator=GENERATOR)
        loss = loss_for(cases(self.masks, "segmentation"))(outputs, torch.from_numpy(self.masks))
        by_pixel = outputs.permute(0, 2, 3, 1).reshape(-1, 3)
        torch.testing.assert_close(loss, F.cross_entropy(by_pixel, torch.from_numpy(self.masks.reshape(-1))))

    def test_balanced_by_how_many_pixels_a_class_has(self) -> None:
        outputs = torch.randn(3, 3, 2, 2, generator=GENERATOR)
        truth = torch.from_numpy(self.masks)
        loss = loss_for(cases(self.masks, "segmentation"), balanced=True)(outputs, truth)
        weight = torch.tensor([12 / (3 * 8), 12 / (3 * 2), 12 / (3 * 2)])
        torch.testing.assert_close(loss, F.cross_entropy(outputs, truth, weight=weight))

    @pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 5.0])], ids=["plain", "weighed"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_the_mean_of_pixels_is_taken_after_their_losses(
        self, weights: torch.Tensor | None, smoothing: float
    ) -> None:
        """As torch does it, but not within its operator: a GPU refuses that where runs are repeatable."""
        outputs = torch.randn(3, 3, 2, 2, generator=GENERATOR, requires_grad=True)
        truth = torch.from_numpy(self.masks)
        loss = classification_loss(outputs, truth, weights, smoothing=smoothing)
        torch.testing.assert_close(loss, F.cross_entropy(outputs, truth, weights, label_smoothing=smoothing))
        assert type(loss.grad_fn).__name__ in ("MeanBackward0", "DivBackward0")

    @pytest.mark.parametrize("balanced", [False, True])
    @pytest.mark.parametrize("shape", [(3, 2, 2), (3, 1, 2, 2)], ids=str)
    def test_one_logit_means_the_same_as_two(self, shape: tuple[int, ...], balanced: bool) -> None:
        one, masks = torch.randn(shape, generator=GENERATOR), (self.masks > 0).astype(int)
        two = torch.stack([torch.zeros(3, 2, 2), one.reshape(3, 2, 2)], dim=1)
        loss = loss_for(cases(masks, "segmentation", ("background", "lesion")), balanced=balanced)
        truth = torch.from_numpy(masks)
        torch.testing.assert_close(loss(one, truth), loss(two, truth))

    def test_a_few_pixels_do_not_outweigh_all_others(self) -> None:
        masks = np.zeros((10, 100, 100), int)
        masks[0, 0, 0] = 1
        weights = class_weights(masks, 2)
        assert float(weights[1] / weights[0]) == pytest.approx(MAX_WEIGHT)

    @pytest.mark.parametrize("channels", [1, 2])
    def test_training_finds_the_object(self, channels: int) -> None:
        rng = np.random.default_rng(0)
        masks = np.zeros((40, 8, 8), np.int64)
        for mask, (top, left) in zip(masks, rng.integers(0, 5, (40, 2)), strict=True):
            mask[top : top + 3, left : left + 3] = 1
        inputs = (masks[:, None] + rng.normal(0, 0.2, (40, 1, 8, 8))).astype(np.float32)
        labels = ("background", "lesion")
        data = Split(inputs=inputs, targets=masks), cases(masks, "segmentation", labels)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        asked = settings(epochs=15, learning_rate=0.1, class_weights="balanced")
        fitted = fit(model, data, data, asked, seed=0)
        with torch.inference_mode():
            out = fitted.model(torch.from_numpy(inputs)).numpy()
        found = out.argmax(axis=1) if channels == 2 else out[:, 0] >= 0
        dice = 2 * (found * masks).sum() / (found.sum() + masks.sum())
        assert dice > 0.9
        assert fitted.best_epoch > 0


def test_a_custom_task_cannot_be_trained() -> None:
    with pytest.raises(PreconditionError, match="a custom task has no loss; leave finetune out of the plan"):
        loss_for(cases(np.zeros(4), "custom"))


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({"kind": "custom", "metric": "m.py:wer"}, "a custom task has no loss to minimise"),
        (
            {"kind": "multilabel", "labels": ["a"], "outputs": "probabilities"},
            "losses need logits, but task.outputs is probabilities (to train, let the model return logits)",
        ),
        ({"kind": "segmentation", "labels": ["a", "b"]}, None),
        ({"kind": "regression"}, None),
    ],
)
def test_what_cannot_be_trained(task: dict[str, object], problem: str | None) -> None:
    assert loss_problem(TaskSection.model_validate(task)) == problem
