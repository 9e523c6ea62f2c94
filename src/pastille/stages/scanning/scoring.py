"""What one answer is worth, case by case: everything that a scan reports is a mean over cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F

from pastille.errors import PreconditionError
from pastille.stats.decisions import decide, predict
from pastille.stats.metrics import headline_value
from pastille.stats.scale import Scale, to_logits
from pastille.values import Cases, Kind

if TYPE_CHECKING:
    from torch import Tensor

WORST: Final = 100.0  # nats: what an answer that is not finite costs

Scorer = Callable[["Tensor", np.ndarray], np.ndarray]

_METRICS: Mapping[Kind, str] = MappingProxyType(
    {
        "binary": "balanced_accuracy",
        "multiclass": "accuracy",
        "multilabel": "balanced_accuracy",
        "regression": "r2",
        "segmentation": "dice",
    }
)


def metric_of(cases: Cases) -> str:
    """The metric of a scan: one of its kind that is a mean over cases.

    Raises:
        PreconditionError: The task has no loss.

    Example:
        >>> metric_of(Cases(kind="binary", split="validation", targets=np.array([0, 1]), labels=("a", "b")))
        'balanced_accuracy'
    """
    if cases.kind == "custom":
        raise PreconditionError("scan: a custom task has no loss whose rise could be measured")
    return _METRICS[cases.kind]


def scorer(cases: Cases, scale: Scale = "logits") -> Scorer:
    """A function of answers ``(n, ...)`` and their rows ``(n,)`` to losses and scores, ``(2, n)`` float64.

    The mean of the losses is in nats, or in variances of the targets; that of the scores is `metric_of`.

    Args:
        cases: All of them.
        scale: Of the answers: ``"logits"`` or ``"probabilities"``.
    """
    metric_of(cases)
    shares = _class_weights(cases)
    unit = float(np.var(cases.targets)) or 1.0 if cases.kind == "regression" else 1.0

    def score(answers: Tensor, rows: np.ndarray) -> np.ndarray:
        some = _rows(cases, rows)
        outputs, sound = _finite(answers.detach().cpu().float().numpy())
        if scale == "probabilities":
            outputs = to_logits(cases.kind, outputs, "probabilities")
        losses = np.minimum(_losses(outputs, some) / unit, WORST)
        scores = 1 - losses if cases.kind == "regression" else _scores(outputs, some, shares)
        return np.stack([np.where(sound, losses, WORST), np.where(sound, scores, 0.0)])

    return score


def _finite(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sound = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
    return np.where(sound.reshape(-1, *[1] * (outputs.ndim - 1)), outputs, 0.5), sound


def _rows(cases: Cases, rows: np.ndarray) -> Cases:
    """Some cases, without what is known of them beside the right answers."""
    return replace(cases, targets=cases.targets[rows], groups={}, subjects=None, strata=None, ids=None)


def _losses(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    """Of each case, ``(n,)``: cross-entropy, averaged over labels or pixels, or squared error."""
    if cases.kind == "regression":
        return np.asarray((predict(outputs, cases) - cases.targets) ** 2)
    out, truth = torch.from_numpy(outputs).double(), torch.from_numpy(cases.targets)
    if cases.kind != "multilabel" and out.ndim > truth.ndim and out.shape[1] > 1:
        each = F.cross_entropy(out, truth, reduction="none")
    else:
        each = F.binary_cross_entropy_with_logits(out.reshape(truth.shape), truth.double(), reduction="none")
    return np.asarray(each.reshape(len(truth), -1).mean(dim=1).numpy())


def _scores(outputs: np.ndarray, cases: Cases, shares: np.ndarray) -> np.ndarray:
    """What each case adds to the metric, ``(n,)``; NaN where a mask has nothing to find."""
    if cases.kind == "segmentation":
        return np.array([_dice(outputs[[i]], _rows(cases, np.array([i]))) for i in range(len(outputs))])
    right = (decide(outputs, cases) == cases.targets).astype(np.float64)
    if cases.kind == "multilabel":
        return np.asarray((right * shares[cases.targets, np.arange(right.shape[1])]).mean(axis=1))
    return np.asarray(right * shares[cases.targets])


def _dice(outputs: np.ndarray, case: Cases) -> float:
    try:
        return headline_value(outputs, case)
    except ValueError:
        return float("nan")


def _class_weights(cases: Cases) -> np.ndarray:
    """What a right answer counts, ``(K,)`` or ``(2, L)``: 1, or more of a rare class in balanced accuracy."""
    if cases.kind in ("binary", "multilabel"):
        positive = np.mean(cases.targets == 1, axis=0)
        share = np.stack([1 - positive, positive])
        present = (share > 0).sum(axis=0)
        return np.asarray(1 / (present * np.where(share > 0, share, np.inf)))
    return np.ones(max(1, len(cases.labels)))
