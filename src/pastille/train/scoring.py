"""What the best epoch is chosen by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from pastille.data.split import Split
from pastille.stats.metrics import selection_metric, selection_value
from pastille.task.forward import forward
from pastille.train.batches import reader
from pastille.train.places import Place
from pastille.values import Cases

if TYPE_CHECKING:
    from torch import nn

_EVAL_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the best epoch is chosen by.

    Attributes:
        metric: Its name.
        value: Of the answers to validation, ``(N, ...)`` float32; the larger the better.
    """

    metric: str
    value: Callable[[np.ndarray], float]


def choice_for(cases: Cases, *, balanced: bool) -> Choice:
    """The metric of a task that its best epoch is chosen by.

    Args:
        cases: Of validation.
        balanced: Whether the training weighs classes by their rarity.
    """
    metric = selection_metric(cases, balanced=balanced)
    return Choice(metric=metric, value=lambda found: selection_value(found, cases, metric=metric))


def scorer(split: Split, choice: Choice, place: Place) -> Callable[[nn.Module], float]:
    """A function that gives a model's value on a split; minus infinity for NaN answers.

    The model is left in eval mode. It answers in full precision, whatever it is trained in: so it is
    exported, measured and judged.
    """
    read = reader(split)

    def score(model: nn.Module) -> float:
        model.eval()
        mine = place.share(np.arange(split.n))
        parts = np.array_split(mine, math.ceil(len(mine) / _EVAL_BATCH))
        with torch.inference_mode():
            outputs = [
                forward(model, {name: x.to(place.device) for name, x in read(rows).items()}).float().cpu()
                for rows in parts
            ]
        found = place.gathered(torch.cat(outputs), split.n).numpy()
        return choice.value(found) if np.isfinite(found).all() else -math.inf

    return score
