"""The model that a scan asks, and from where on it is asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from pastille.data.split import Inputs, batches
from pastille.progress import Progress
from pastille.pruning.rewrites import with_convolutions_
from pastille.stages.scanning.changes import Change
from pastille.stages.scanning.journal import Key
from pastille.stages.scanning.replay import Replay, unfit_points
from pastille.stages.scanning.scoring import scorer
from pastille.stages.scanning.trace import Trace, trace
from pastille.task import Task, example_batch, forward
from pastille.task.forward import to_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

FIRST: Final = 64  # cases that every change is tried on
_HELD_BYTES: Final = 1 << 30  # that kept answers may take


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A model that is asked, and where its answers may be taken up from.

    Attributes:
        model: A copy of the user's, in eval mode.
        starts: Change -> when the first thing that it changes is used; 0: the model is run as a whole.
        seen: Its forward pass.
        chunk: Cases that are asked at once.
        ask: Answers and rows ``(n,)`` -> losses and scores, ``(2, n)``.
        inputs: Of validation.
        device: Where the model is.
    """

    model: nn.Module
    starts: Mapping[Key, int]
    seen: Trace
    chunk: int
    ask: Callable[[Tensor, np.ndarray], np.ndarray]
    inputs: Inputs = field(repr=False)
    device: str

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Inputs of some rows."""
        return to_tensors(next(batches(self.inputs, rows.tolist(), len(rows))), self.device)

    def baseline(self, n: int, progress: Progress) -> np.ndarray:
        """Losses and scores of the model as it is, ``(2, n)``."""
        chunks = [np.arange(i, min(i + self.chunk, n)) for i in range(0, n, self.chunk)]
        return np.concatenate(
            [
                self.ask(forward(self.model, self.batch(rows)), rows)
                for rows in progress.track(chunks, what="evaluating the model as it is")
            ],
            axis=1,
        )

    def answers(self, change: Change, replay: Replay, batch: Mapping[str, Tensor]) -> Tensor:
        """Of the changed model.

        Args:
            change: Which.
            replay: Of the batch, not yet beyond where the change begins.
            batch: From `batch`.
        """
        at = self.starts[change.key]
        if at:
            replay.advance(at)
        with change.applied(self.model):
            return replay.answer() if at else forward(self.model, batch)


def bench_of(module: nn.Module, task: Task, changes: Sequence[Change]) -> Bench:
    """Trace a copy of a model, and find from where on each change can be tried.

    Args:
        module: In eval mode; not modified.
        task: Its validation split will be asked.
        changes: All that will be tried.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _in_the_form_of(changes, module, task).to(device)
    inputs = task.splits.validation.inputs
    few = {name: x.to(device) for name, x in example_batch(inputs).items()}
    seen = trace(model, few)
    starts = {c.key: min((seen.uses[x] for x in c.touched if x in seen.uses), default=0) for c in changes}
    unfit, held_bytes = unfit_points(model, seen, few, starts.values())
    return Bench(
        model=model,
        starts={key: 0 if start in unfit else start for key, start in starts.items()},
        seen=seen,
        chunk=max(1, min(FIRST, _HELD_BYTES // max(1, held_bytes))),
        ask=scorer(task.cases["validation"], task.recipe.task.outputs),
        inputs=inputs,
        device=device,
    )


def _in_the_form_of(changes: Sequence[Change], module: nn.Module, task: Task) -> nn.Module:
    """A copy; with the convolutions in it that channels are removed from, if any are.

    `pastille.pruning.survey` puts them in the place of padded shortcuts, and names what they read.
    """
    model = copy.deepcopy(module).eval()
    if any(change.technique == "pruning" for change in changes):
        with_convolutions_(model, example_batch(task.splits.train.inputs))
    return model
