"""Metrics of a segmentation: overlap of what is marked with what should be, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pastille.stats.average_precision import defined_mean
from pastille.stats.catalogue import MetricForms, confusion_of
from pastille.stats.decisions import decide
from pastille.stats.forms import Form, OfSums
from pastille.values import Cases

_PIXELS_AT_ONCE = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Pixels of each image and class."""

    both: np.ndarray  # (N, K) int64, marked rightly
    marked: np.ndarray  # (N, K)
    truly: np.ndarray  # (N, K)
    confusion: np.ndarray  # (K, K), of all images

    @property
    def occurs(self) -> np.ndarray:
        """Whether a class occurs in an image's target, ``(N, K)`` bool."""
        occurs: np.ndarray = self.truly > 0
        return occurs

    def dice(self) -> np.ndarray:
        """Twice what is shared, of what both hold, ``(N, K)``; 0 where a class does not occur."""
        return np.where(self.occurs, 2 * self.both / np.maximum(self.marked + self.truly, 1), 0.0)

    def iou(self) -> np.ndarray:
        """What is shared, of what either holds, ``(N, K)``; 0 where a class does not occur."""
        union = self.marked + self.truly - self.both
        return np.where(self.occurs, self.both / np.maximum(union, 1), 0.0)

    def right(self) -> np.ndarray:
        """Share of each image's pixels that are marked rightly, ``(N,)``."""
        share: np.ndarray = self.both.sum(axis=1) / self.truly.sum(axis=1)
        return share


def overlap(outputs: np.ndarray, cases: Cases) -> Overlap:
    """Count pixels, a few images at a time.

    Args:
        outputs: Logits, ``(N, K, H, W)``; of two labels also ``(N, 1, H, W)`` or ``(N, H, W)``.
        cases: The right answers, ``(N, H, W)``.

    Raises:
        ValueError: If the outputs do not fit or are not finite.
    """
    decided, size = decide(outputs, cases), len(cases.labels)
    tables = [_tables(decided[rows], cases.targets[rows], size) for rows in _chunks(cases.targets.shape)]
    return Overlap(
        both=np.concatenate([np.diagonal(table, axis1=1, axis2=2) for table in tables]),
        marked=np.concatenate([table.sum(axis=1) for table in tables]),
        truly=np.concatenate([table.sum(axis=2) for table in tables]),
        confusion=np.sum([table.sum(axis=0) for table in tables], axis=0),
    )


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _PIXELS_AT_ONCE // max(1, shape[1] * shape[2]))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _tables(decided: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Pixels by image, true class and decided class, ``(M, K, K)``."""
    image = np.arange(len(targets))[:, None, None]
    cell = (image * size + targets) * size + decided
    return np.bincount(cell.ravel(), minlength=len(targets) * size**2).reshape(-1, size, size)


def segmentation_forms(outputs: np.ndarray, cases: Cases) -> MetricForms:
    """Dice and IoU of each class and their plain means, and the share of pixels that are right.

    Of a class it is the mean over the images in whose target the class occurs: the same images for every
    model, and an image without the class cannot count as a perfect one. What a model marks in images
    where nothing is to be marked shows in ``pixel_accuracy`` alone. The overall figures are means over
    the positive classes where the task names some, else over every class but the first, the background.

    Args:
        outputs: Logits, as in `overlap`.
        cases: The right answers.

    Raises:
        ValueError: If the outputs do not fit or are not finite.

    References:
        Maier-Hein, Reinke et al., "Metrics reloaded: recommendations for image analysis validation",
        Nature Methods 21, 2024.
    """
    found = overlap(outputs, cases)
    metrics = {"dice": found.dice(), "iou": found.iou()}
    chosen = list(cases.positive or range(1, len(cases.labels)))
    pixels = np.column_stack([found.right(), np.ones(len(cases.targets))])
    overall: dict[str, Form] = {name: _mean(values, found.occurs, chosen) for name, values in metrics.items()}
    overall["pixel_accuracy"] = OfSums(
        columns=pixels, among=np.ones(len(pixels), bool), statistic=_mean_of_means
    )
    return MetricForms(
        overall=overall,
        classes={
            label: {name: _mean(values, found.occurs, [index]) for name, values in metrics.items()}
            for index, label in enumerate(cases.labels)
        },
        confusion=confusion_of(found.confusion, cases.labels),
    )


def _mean(values: np.ndarray, occurs: np.ndarray, classes: list[int]) -> OfSums:
    columns = np.stack([values[:, classes], occurs[:, classes]], axis=-1).reshape(len(values), -1)
    among = np.asarray(occurs[:, classes].any(axis=1), bool)
    return OfSums(columns=columns, among=among, statistic=_mean_of_means)


def _mean_of_means(sums: np.ndarray) -> np.ndarray:
    """Mean over classes of total over count, from sums ``(..., 2 C)``; classes without any are left out."""
    pairs = sums.reshape(*sums.shape[:-1], sums.shape[-1] // 2, 2)
    total, count = pairs[..., 0], pairs[..., 1]
    return defined_mean(np.where(count > 0, total / np.where(count > 0, count, 1), np.nan))
