"""What a search may know of a file before its gate: its loss on validation, against the file before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from pastille import policy
from pastille.data.split import batches
from pastille.devices import this_machine
from pastille.gates.judge import judge_answers
from pastille.measure.adapted import open_adapted
from pastille.measure.evaluate import answer
from pastille.measure.latency import compare
from pastille.policy import Bar
from pastille.progress import SILENT, Progress
from pastille.runtime import ONNXRUNTIME, load
from pastille.task import Task
from pastille.values import Check, Conditions, Speedup, Status

MARGIN: Final = 0.5  # share of a limit that a search may spend: the test split will show more
NEXT_TO_NOTHING: Final = 0.1  # share of a limit below which nothing needs to be won back


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One file, held against the file before it.

    Attributes:
        outputs: What it answers to validation, ``(N, ...)``.
        spent: The largest share of any limit that is lost; at least 0.
        rejected: Whether a limit is shown to be broken.
    """

    outputs: np.ndarray = field(repr=False)
    spent: float
    rejected: bool

    @property
    def passes(self) -> bool:
        """Whether what is lost leaves room for what the test split will show."""
        return not self.rejected and self.spent <= MARGIN


@dataclass(frozen=True, kw_only=True, eq=False)
class Looking:
    """A file to compare others with, on validation alone.

    Attributes:
        task: The user's.
        file: That others are compared with.
        before: Its answers to validation, ``(N, ...)``.
        bar: The limits of the recipe.
    """

    task: Task
    file: Path
    before: np.ndarray = field(repr=False)
    bar: Bar

    def at(self, file: Path) -> Look:
        """Ask a file the validation split."""
        found = answers_of(file, self.task)
        cases = self.task.cases["validation"]
        checks = judge_answers(self.before, found, cases=cases, bar=self.bar, thorough=False).checks
        return Look(outputs=found, spent=_spent(checks), rejected=_is_rejected(checks))

    def speed(self, file: Path, *, share: float = 1.0) -> Speedup:
        """How many times faster a file is than the one before it, at batch 1.

        Args:
            file: The other file.
            share: Of the time that the recipe gives one measurement.
        """
        asked = self.task.recipe.measure
        (batch,) = batches(self.task.splits.validation.inputs, [0], 1)
        one, other = (load(path, threads=asked.threads) for path in (self.file, file))
        return compare(one, other, batch, conditions=conditions_of(self.task), budget_s=asked.seconds * share)


def looking(file: Path, task: Task, progress: Progress) -> Looking:
    """Begin to compare files with one.

    Args:
        file: As the stage was given it.
        task: Its test split is sealed.
        progress: Shown while it answers.
    """
    bar = replace(policy.bar(task.recipe), calibration=None)  # a later stage mends that
    return Looking(task=task, file=file, before=answers_of(file, task, progress), bar=bar)


def answers_of(file: Path, task: Task, progress: Progress = SILENT) -> np.ndarray:
    """What a file answers to validation, as logits where the task has classes; ``(N, ...)``."""
    recipe, split = task.recipe, task.splits.validation
    session = open_adapted(file, task.inputs, recipe.task, threads=recipe.measure.threads)
    return answer(session, split, progress=progress, what="evaluating on validation")


def conditions_of(task: Task) -> Conditions:
    """What this machine is, for a measurement."""
    threads = task.recipe.measure.threads
    return this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)


def _spent(checks: Iterable[Check]) -> float:
    """Of all cases together: in a small group a single case would spend many times its limit."""
    shares = [c.drop / c.limit for c in checks if c.drop is not None and c.limit > 0 and not c.where]
    return max([0.0, *(share for share in shares if np.isfinite(share))])


def _is_rejected(checks: Iterable[Check]) -> bool:
    return any(check.status is Status.REJECTED for check in checks)
