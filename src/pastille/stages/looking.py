"""What a search may know of a file before its gate: its loss on validation, against the baseline."""

from __future__ import annotations

import math
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
from pastille.recipe import Recipe, step_name
from pastille.runtime import ONNXRUNTIME, load
from pastille.stages.contract import Artifact
from pastille.task import Task
from pastille.values import Check, Conditions, Speedup, Status

MARGIN: Final = 0.5  # share of a limit that a search may spend: the test split will show more
NEXT_TO_NOTHING: Final = 0.1  # share of a limit below which nothing needs to be won back


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One file, held against the baseline as a gate would.

    Attributes:
        outputs: What it answers to validation, ``(N, ...)``.
        spent: The largest share of any limit that is lost; at least 0.
        broken: The limit that is shown to be broken, in a sentence; "" where none is.
    """

    outputs: np.ndarray = field(repr=False)
    spent: float
    broken: str

    @property
    def rejected(self) -> bool:
        """Whether a limit is shown to be broken."""
        return bool(self.broken)

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better."""
        return self.rejected, self.spent


@dataclass(frozen=True, kw_only=True, eq=False)
class Looking:
    """What files are compared with, on validation alone.

    Attributes:
        task: The user's.
        file: What the search began with: speed is over it.
        before: The baseline's answers to validation, ``(N, ...)``.
        bar: The limits of the recipe.
        start: The file that the search began with, held against the baseline.
    """

    task: Task
    file: Path
    before: np.ndarray = field(repr=False)
    bar: Bar
    start: Look

    def at(self, file: Path) -> Look:
        """Ask a file the validation split."""
        return _look(answers_of(file, self.task), self.before, self.bar, self.task)

    def passes(self, look: Look) -> bool:
        """Whether what is lost leaves room for what the test split will show.

        Where the stages before have spent that room already, nothing more may be lost.
        """
        return not look.rejected and look.spent <= max(MARGIN, self.start.spent)

    def loses(self, look: Look) -> bool:
        """Whether there is anything to win back of what went in."""
        return look.rejected > self.start.rejected or look.spent - self.start.spent > NEXT_TO_NOTHING

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


def looking(artifact: Artifact, task: Task, progress: Progress) -> Looking:
    """Begin to compare files.

    Args:
        artifact: As the stage was given it.
        task: Its test split is sealed.
        progress: Shown while files answer.
    """
    baseline, bar = artifact.baseline or artifact.file, stage_bar(task.recipe)
    before = answers_of(baseline, task, progress)
    own = before if baseline == artifact.file else answers_of(artifact.file, task, progress)
    start = _look(own, before, bar, task)
    return Looking(task=task, file=artifact.file, before=before, bar=bar, start=start)


def stage_bar(recipe: Recipe) -> Bar:
    """The limits of a stage; calibration is left to the plan's last stage where that mends it."""
    bar = policy.bar(recipe)
    mended = "calibrate" in map(step_name, recipe.plan)
    return replace(bar, calibration=None) if mended else bar


def _look(found: np.ndarray, before: np.ndarray, bar: Bar, task: Task) -> Look:
    cases = task.cases["validation"]
    checks = judge_answers(before, found, cases=cases, bar=bar, thorough=False).checks
    return Look(outputs=found, spent=_spent(checks), broken=_broken(checks))


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
    whole = [(check.drop, check.limit) for check in checks if check.drop is not None and not check.where]
    return max([0.0, *(_share(drop, limit) for drop, limit in whole)])


def _share(drop: float, limit: float) -> float:
    if limit > 0:
        return drop / limit
    return math.inf if drop > 0 else 0.0


def _broken(checks: Iterable[Check]) -> str:
    return next((check.reason for check in checks if check.status is Status.REJECTED), "")
