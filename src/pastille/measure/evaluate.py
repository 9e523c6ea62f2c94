"""What a loaded file answers to data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pastille.data.split import Inputs, Split, batches
from pastille.errors import InferenceError
from pastille.progress import SILENT, Progress
from pastille.runtime import Session


def answer(
    session: Session,
    split: Split,
    *,
    batch_size: int = 32,
    progress: Progress = SILENT,
    what: str = "evaluating",
) -> np.ndarray:
    """Run every input of a split through a file, in order.

    Args:
        session: The loaded file.
        split: What it is asked; inputs are read lazily.
        batch_size: Inputs per call; a file with a fixed batch is given that many instead.
        progress: Shown one step per batch.
        what: What is going on, in the ``-ing`` form.

    Returns:
        The first output for each input, shape ``(N, ...)``, float32.

    Raises:
        InferenceError: A call failed, an answer is NaN or infinite, or an input got no answer.
    """
    return _answers(session, split.inputs, batch_size, progress, what)


def _answers(session: Session, inputs: Inputs, batch_size: int, progress: Progress, what: str) -> np.ndarray:
    size = session.fixed_batch or batch_size
    parts: list[np.ndarray] = []
    total = -(-len(inputs) // size)
    for batch in progress.track(batches(inputs, range(len(inputs)), size), what=what, total=total):
        parts.append(_one_batch(session, batch, start=len(parts) * size))
    if not parts:
        raise InferenceError("there are no inputs to answer")
    return np.concatenate(parts)


def _one_batch(session: Session, batch: Mapping[str, np.ndarray], *, start: int) -> np.ndarray:
    rows = len(next(iter(batch.values())))
    name = session.outputs[0].name
    output = np.asarray(session(_padded(batch, session.fixed_batch or rows))[name])  # (N, ...)
    if output.ndim == 0 or len(output) < rows:
        raise InferenceError(
            f"output {name!r} must have one row per input, got shape {output.shape} for {rows} inputs"
        )
    output = output[:rows].astype(np.float32, copy=False)
    finite = np.isfinite(output).reshape(rows, -1).all(axis=1)
    if not finite.all():
        raise InferenceError(f"the answer to input {start + int(finite.argmin())} is not a finite number")
    return output


def _padded(batch: Mapping[str, np.ndarray], size: int) -> Mapping[str, np.ndarray]:
    """A short last batch, its last row repeated until a file with a fixed batch takes it."""
    short = size - len(next(iter(batch.values())))
    if not short:
        return batch
    return {name: np.concatenate([x, np.repeat(x[-1:], short, axis=0)]) for name, x in batch.items()}


@dataclass(frozen=True, kw_only=True)
class BatchAnswers:
    """The answers to the same inputs, asked in batches of different sizes."""

    outputs: Mapping[int, np.ndarray]  # batch size -> (N, ...) float32

    @property
    def max_abs_error(self) -> float:
        """Largest difference of any number from what the smallest batch size gave."""
        first = self.outputs[min(self.outputs)]
        return max(float(np.abs(other - first).max(initial=0.0)) for other in self.outputs.values())

    def changed_decisions(self, decide: Callable[[np.ndarray], np.ndarray]) -> int:
        """How many inputs are decided differently for some batch size.

        Args:
            decide: Outputs ``(N, ...)`` to decisions ``(N,)``, e.g. ``lambda x: x.argmax(axis=1)``.
        """
        decisions = np.stack([decide(output) for output in self.outputs.values()])  # (sizes, N)
        return int((decisions != decisions[0]).any(axis=0).sum())


def same_for_batches(
    session: Session, inputs: Inputs, *, sizes: Sequence[int] = (1, 2, 4, 8)
) -> BatchAnswers:
    """Ask a file the same in batches of several sizes: the answers should not depend on it.

    Args:
        session: The loaded file.
        inputs: As `Split.inputs` gives them.
        sizes: Batch sizes; a file with a fixed batch is asked with that one alone.

    Raises:
        InferenceError: A call failed, or an answer is not finite.
    """
    asked = (session.fixed_batch,) if session.fixed_batch else tuple(sizes)
    return BatchAnswers(
        outputs={size: _answers(session, inputs, size, SILENT, "comparing batches") for size in asked}
    )
