"""The metrics of one model's answers, before any of them is estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pastille.stats.forms import Form
from pastille.values import Confusion


@dataclass(frozen=True, kw_only=True)
class MetricForms:
    """Every metric of a task, as the form that it takes."""

    overall: Mapping[str, Form]  # metric -> form
    classes: Mapping[str, Mapping[str, Form]] = field(default_factory=dict)  # class label -> metric -> form
    confusion: Confusion | None = None  # of cases, or of the pixels of a segmentation


@dataclass(frozen=True, kw_only=True)
class ByClass(Mapping[str, Mapping[str, Form]]):
    """The metrics of each class, made when they are asked for: those of 1,000 classes would fill memory."""

    labels: tuple[str, ...]
    forms: Callable[[int], Mapping[str, Form]]  # class index -> metric -> form

    def __getitem__(self, label: str) -> Mapping[str, Form]:
        if label not in self.labels:
            raise KeyError(label)
        return self.forms(self.labels.index(label))

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)


def confusion_of(counts: np.ndarray, labels: tuple[str, ...]) -> Confusion:
    """Name a table of counts ``(K, K)``, true class by decided class."""
    return Confusion(labels=labels, counts=tuple(tuple(map(int, row)) for row in counts))


def count_pairs(decided: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Count the cases of each true and decided class.

    Args:
        decided: ``(N,)`` class indices.
        targets: ``(N,)`` class indices.
        size: How many classes there are.

    Returns:
        ``(size, size)`` int64, true class by decided class.

    Example:
        >>> count_pairs(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
        array([[1, 1],
               [0, 1]])
    """
    return np.bincount(targets * size + decided, minlength=size**2).reshape(size, size)
