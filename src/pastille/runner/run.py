"""Carry out a plan on a task: profile, each stage with its gate, the final gate, bundle, report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from pastille import policy
from pastille.devices import usable_cores
from pastille.elsewhere import check_isas
from pastille.processes import here
from pastille.progress import SILENT, Progress
from pastille.recipe import Recipe
from pastille.record import (
    BaselineProfiled,
    BundleWritten,
    FinalJudged,
    Record,
    StageDetails,
    TaskLoaded,
    ThresholdChosen,
)
from pastille.report import write_report
from pastille.runner.candidate import (
    Candidate,
    chosen_threshold,
    export,
    measure,
    reopened,
)
from pastille.runner.caution import guessing, unprovable
from pastille.runner.final import judge_on_test, seal
from pastille.runner.journal import Journal
from pastille.runner.reachable import check_reachable
from pastille.runner.staged import build_after, carry_out_stage
from pastille.runner.together import joined, require_same, told, written
from pastille.stages import Artifact, stage_for
from pastille.stages.contract import state_digest, with_factory
from pastille.task import Task, load_task
from pastille.validation import split_summary
from pastille.values import Status, Verdict

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        directory: ``runs/NAME/STAMP-HASH``.
        record: What happened; the same as ``run.json``.
        verdict: Of the final gate, on the test split.
        bundle: The sealed product.
        report: The report for people.
    """

    directory: Path
    record: Record
    verdict: Verdict
    bundle: Path
    report: Path


def run(
    recipe: Recipe,
    base: str | Path,
    *,
    resume: bool = False,
    allow_leakage: bool = False,
    progress: Progress = SILENT,
) -> RunResult:
    """Carry out a recipe.

    Everything is written under ``runs/NAME/STAMP-HASH`` beside the recipe, each file whole or not
    at all. A run that was killed is taken up at the stage it was in, and ends with the same models,
    golden cases and content digest as one that was not; but for ``mixed`` and ``auto``, which choose by times
    that are measured anew.

    Args:
        recipe: What is asked.
        base: The recipe's folder, which its paths are relative to.
        resume: Take up the newest unfinished run of this recipe.
        allow_leakage: Record a leak between splits instead of refusing the data.
        progress: Shown while it works.

    Returns:
        Where everything lies, and the verdict, whatever it is.

    Raises:
        UsageError: The recipe, the data or the model cannot be used; in one line.
        OutputError: Something cannot be written; what was written stays.
    """
    base = Path(base)
    policy.check_run(recipe)
    policy.check(recipe)
    check_isas(recipe)
    progress = progress if here().is_main else SILENT
    with reproducible(recipe.seed):
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        _check_plan(recipe, base, task)
        journal = joined(recipe, base, resume=resume)
        try:
            if not journal.complete:
                _carry_out(recipe, base, task, journal, progress)
            return _result(journal)
        finally:
            journal.close()


def _check_plan(recipe: Recipe, base: Path, task: Task) -> None:
    """What a later stage would refuse is refused before the first one is begun."""
    given = Artifact(module=task.model, file=Path())
    for step in recipe.plan:
        stage_for(step, base).requires(given, with_factory(task, given.build))
        build = build_after(step, given, task, base)
        if build is not None and build is not given.build:  # later stages find another model
            given = replace(given, module=build().eval(), build=build)


def _carry_out(recipe: Recipe, base: Path, task: Task, journal: Journal, progress: Progress) -> None:
    loaded = task_loaded(task)
    written(journal, lambda: journal.note_task(loaded))
    require_same(loaded, journal)
    for note in unprovable(task):
        progress.note(note)
    given = task
    baseline, task = told(journal, lambda: measured_baseline(given, journal, progress))
    check_reachable(recipe, baseline)
    kept = current = baseline
    for index, step in enumerate(recipe.plan, start=1):
        candidate, status, stays = carry_out_stage(
            index, step, current, baseline, task, base, journal, progress
        )
        current, kept = outcome_of(candidate, status, stays=stays, kept=kept)
    written(journal, lambda: _end(kept, baseline, task, base, journal, progress))


def _end(
    kept: Candidate, baseline: Candidate, task: Task, base: Path, journal: Journal, progress: Progress
) -> None:
    final = judge_on_test(kept, baseline, task, base, journal, progress)
    seal(kept, baseline, final, task, journal, progress)
    write_report(journal.record, journal.directory / "report.html")


def outcome_of(candidate: T, status: Status, *, stays: bool, kept: T) -> tuple[T, T]:
    """What the next stage starts from, and what is shipped if no further stage is kept.

    Args:
        candidate: The stage's result.
        status: Of its gate.
        stays: Whether the run goes on from it; a rejected prune does, if a finetune follows.
        kept: The last model that was not rejected.
    """
    if not stays:
        return kept, kept
    return candidate, kept if status is Status.REJECTED else candidate


def measured_baseline(task: Task, journal: Journal, progress: Progress) -> tuple[Candidate, Task]:
    """Export and measure the model as it was brought; the task comes back with its threshold."""
    done, chosen = journal.record.last(BaselineProfiled), journal.record.last(ThresholdChosen)
    if done is not None:
        task = at_threshold(task, chosen.threshold) if chosen else task
        return reopened(done.profile, task, journal, module=task.model), task
    folder = journal.fresh_folder("stages/00-baseline")
    file, error = export(task.model, task, folder, progress)
    task = _with_threshold(file, task, journal, progress)
    candidate = measure(
        "baseline",
        Artifact(module=task.model, file=file),
        task,
        journal,
        baseline=None,
        progress=progress,
    )
    section = task.recipe.task
    guesses = tuple(guessing(candidate.profile.metrics, len(section.labels), section.kind))
    for note in guesses:
        progress.note(note)
    notes = (*unprovable(task), *guesses)
    details = StageDetails(parity_max_abs_error=error, notes=notes)
    journal.append(BaselineProfiled(profile=candidate.profile, details=details))
    return candidate, task


def _with_threshold(file: Path, task: Task, journal: Journal, progress: Progress) -> Task:
    """Choose the operating threshold on validation, from the baseline's answers, if it is not given."""
    goal, chosen = task.recipe.task.threshold, journal.record.last(ThresholdChosen)
    if isinstance(goal, float):
        return task
    if chosen is None:
        found = chosen_threshold(file, goal, task, progress)
        chosen = ThresholdChosen(threshold=found.threshold, reason=found.sentence)
        journal.append(chosen)
        progress.note(found.sentence)
    return at_threshold(task, chosen.threshold)


def at_threshold(task: Task, threshold: float) -> Task:
    """The task, every split of it decided at one threshold."""
    cases = {name: replace(held, threshold=threshold) for name, held in task.cases.items()}
    return replace(task, cases=cases)


def task_loaded(task: Task) -> TaskLoaded:
    """What the record says of a task, so that another one is noticed."""
    labels = task.recipe.task.labels
    return TaskLoaded(
        splits={name: split_summary(split, labels) for name, split in task.splits},
        inputs=task.inputs,
        preprocessing=task.splits.preprocessing,
        data_digest=task.data_digest,
        model_digest=state_digest(task.model),
        leakage=task.leakage,
    )


def _result(journal: Journal) -> RunResult:
    final, bundle = journal.record.last(FinalJudged), journal.record.last(BundleWritten)
    assert final is not None
    assert bundle is not None
    report = journal.directory / "report.html"
    if not report.is_file():  # killed between the bundle and its report
        write_report(journal.record, report)
    return RunResult(
        directory=journal.directory,
        record=journal.record,
        verdict=final.verdict,
        bundle=journal.directory / bundle.path,
        report=report,
    )


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """The same numbers each time: seeds, deterministic kernels, and threads that do not vary."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    share = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # of this machine
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "") or share))
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
