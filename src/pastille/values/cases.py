"""What answers are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["binary", "multiclass", "multilabel", "regression", "segmentation", "custom"]
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class CustomMetric:
    """A metric of the user's own, e.g. detection mAP or word error rate.

    ``function`` takes the outputs ``(M, ...)`` and the targets ``(M, ...)`` of some of the cases, with
    repeats where they are resampled, and gives one number; NaN where it is undefined.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Cases:
    """What a model's outputs are held against: the right answers and whom they belong to."""

    kind: Kind
    split: SplitName
    # (N,) int64 classes | (N, L) int64 0/1 for multilabel | (N,) float64 for regression
    # | (N, H, W) int64 masks | (N, ...) anything for custom
    targets: np.ndarray
    labels: tuple[str, ...]  # index -> name; empty for regression
    positive: tuple[int, ...] = ()  # class indices that must not be missed
    threshold: float = 0.5  # binary and multilabel: probability from which a case is called positive
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)  # attribute -> (N,) str
    subjects: np.ndarray | None = None  # (N,)
    strata: np.ndarray | None = None  # (N,) difficulty or source
    ids: np.ndarray | None = None  # (N,) str, unique: what a case is called in the user's own files
    metrics: tuple[CustomMetric, ...] = ()  # judged beside those of the kind
