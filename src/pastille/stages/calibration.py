"""Samples of train that ranges are measured on, as a stage draws them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import numpy as np

from pastille.data.sampler import calibration_indices
from pastille.data.split import batches
from pastille.errors import PreconditionError
from pastille.progress import SILENT, Progress
from pastille.recipe import StaticRanges
from pastille.task import Task

if TYPE_CHECKING:
    from torch import nn

CALIBRATION_BATCH: Final = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Some cases of train.

    Attributes:
        rows: Sorted, ``(n,)``.
    """

    task: Task = field(repr=False)
    rows: np.ndarray
    progress: Progress = SILENT

    def __call__(self) -> Iterable[Mapping[str, np.ndarray]]:
        """The cases afresh, in batches ``{name: (N, ...)}``."""
        steps = range(0, len(self.rows), CALIBRATION_BATCH)
        read = batches(self.task.splits.train.inputs, self.rows.tolist(), CALIBRATION_BATCH)
        for _, batch in zip(self.progress.track(steps, what="calibrating"), read, strict=True):
            yield batch


def sample(task: Task, n: int, *, draw: int = 0, progress: Progress = SILENT) -> Sample:
    """Draw cases of train, balanced over label and stratum.

    Args:
        task: The user's.
        n: How many.
        draw: Another number gives another sample, the same each time.
        progress: Shown each time they are read.

    Raises:
        CalibrationError: There are too few.
    """
    seed, kind = task.recipe.seed + draw, task.recipe.task.kind
    rows = calibration_indices(task.splits.train, n, seed=seed, kind=kind)
    return Sample(task=task, rows=rows, progress=progress)


def require_calibration(module: nn.Module, task: Task, settings: StaticRanges) -> None:
    """What every method with fixed ranges requires: layers that are there, and enough samples.

    Raises:
        PreconditionError: ``keep_float`` names no module; the closest ones are named.
        CalibrationError: There are too few samples.
    """
    require_layers(module, settings.keep_float)
    sample(task, settings.samples)


def require_layers(module: nn.Module, asked: Sequence[str]) -> None:
    """Find typos in ``keep_float`` before anything is trained; products without a module go by ``node_…``.

    Args:
        module: As it was brought or came out of an earlier stage.
        asked: Names of layers, * wildcards, ``first`` and ``last``.

    Raises:
        PreconditionError: A name is no module's; the closest ones are named.
    """
    known = [name for name, _ in module.named_modules() if name]
    for pattern in asked:
        fits = any(fnmatchcase(name, pattern) or fnmatchcase(f"{name}.", pattern) for name in known)
        if not fits and pattern not in ("first", "last") and not pattern.startswith("node"):
            close = difflib.get_close_matches(pattern, known, n=3)
            words = f"closest: {', '.join(close)}" if close else f"it has {', '.join(known[:3])}, …"
            raise PreconditionError(
                f"quantize.keep_float: the model has no layer {pattern!r}; {words}; name a module, use * as "
                "a wildcard, or say first or last"
            )


def others(drawn: Sample, n: int) -> Sample:
    """Up to ``n`` cases of train that are not in a sample, at random."""
    task = drawn.task
    free = np.setdiff1d(np.arange(task.splits.train.n), drawn.rows)
    order = np.random.default_rng(task.recipe.seed).permutation(len(free))[:n]
    return Sample(task=task, rows=np.sort(free[order]))
