"""What came of a training so far: its losses, its scores and the weights that were best."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from pastille.train.batches import Drawn
from pastille.train.places import Place

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERS: Final = (
    *("step", "summed", "cases", "loss", "validation"),
    *("best", "best_epoch", "waited", "stopped"),
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look at the losses of the latest steps showed.

    Attributes:
        finite: Whether all of them are, in all processes.
        rows: Of the first batch whose loss is not: what this process has of it, if its own loss is not.
        due: Whether it is time to write a checkpoint.
    """

    finite: bool
    rows: np.ndarray
    due: bool


@dataclass(kw_only=True)
class Course:
    """What came of a training so far.

    Attributes:
        step: How many steps are done.
        pending: Of each step since the last look: its loss, on the device; how many cases of its batch were
            this process's; and the rows.
        summed: Of this epoch's losses, over all its cases that were looked at, in all processes.
        cases: How many these are.
        loss: Mean of each epoch that is done.
        validation: The metric after each.
        best: The metric of the best epoch.
        best_epoch: From 1; 0 is the model before training.
        best_state: Its tensors.
        waited: How many epochs ago the best one was, of those that count.
        stopped: Why it ended early.
    """

    step: int = 0
    pending: list[tuple[Tensor, int, np.ndarray]] = field(default_factory=list)
    summed: float = 0.0
    cases: float = 0
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: float
    best_epoch: int = 0
    best_state: Mapping[str, Tensor]
    waited: int = 0
    stopped: str = ""

    def stepped(self, loss: Tensor, batch: Drawn, *, own: int) -> None:
        """One more step is done."""
        self.step = batch.step + 1
        self.pending.append((loss, own, batch.rows))

    def look(self, place: Place, *, due: bool) -> Look:
        """Fetch the losses of the steps since the last look; all processes do so after the same step.

        Args:
            place: Where the training runs.
            due: Whether this process wants a checkpoint to be written.
        """
        losses, counts, rows = zip(*self.pending, strict=True)
        values = torch.stack(losses).tolist()
        odd = [not math.isfinite(value) for value in values]
        told = [math.fsum(map(operator.mul, values, counts)), sum(counts), due, *odd]
        if place.processes > 1:
            told = place.total(torch.tensor(told, dtype=torch.float64, device=place.device)).tolist()
        self.summed, self.cases, self.pending = self.summed + told[0], self.cases + told[1], []
        first = next((i for i, found in enumerate(told[3:]) if found), None)
        seen = rows[first] if first is not None and odd[first] else np.empty(0, np.int64)
        return Look(finite=first is None, rows=seen, due=bool(told[2]))

    def mean_loss(self) -> float:
        """Of the epoch, over all its cases; the next one begins."""
        mean = self.summed / self.cases
        self.summed, self.cases = 0.0, 0
        return mean

    def scored(self, loss: float, value: float, *, counts: bool) -> bool:
        """An epoch is done; whether it is the best one: on a tie the later, which saw the lower rate."""
        self.loss.append(loss)
        self.validation.append(value)
        better = counts and value >= self.best
        self.waited = 0 if better else self.waited + counts
        if better:
            self.best, self.best_epoch = value, len(self.loss)
        return better

    def numbers(self) -> dict[str, Any]:
        """All of it but the tensors, for a checkpoint."""
        return {name: getattr(self, name) for name in _NUMBERS}
