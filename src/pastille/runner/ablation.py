"""What each stage of a finished run contributed: its plan, carried out without one stage after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pastille import policy
from pastille.errors import PreconditionError, UsageError
from pastille.gates.judge import judge_answers
from pastille.processes import here
from pastille.progress import SILENT, Progress
from pastille.recipe import PlanStep, Recipe, step_name
from pastille.record import Ablated, Record, StageFinished
from pastille.report import write_report
from pastille.runner.candidate import Candidate
from pastille.runner.journal import Journal, finished_run, nested
from pastille.runner.run import measured_baseline, outcome_of, reproducible, task_loaded
from pastille.runner.staged import carry_out_stage, is_provisional
from pastille.stages.looking import stage_bar
from pastille.task import Task, load_task
from pastille.values import Comparison, LeftOut, Status

FOLDER = "ablation"


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A finished run, taken apart.

    Attributes:
        directory: Of the run.
        rows: The whole plan first, then without each stage, in the plan's order.
        impossible: Why a row is missing, in a sentence: the rest of the plan cannot do without that stage.
        report: Of the run, written anew.
    """

    directory: Path
    rows: tuple[LeftOut, ...]
    impossible: tuple[str, ...] = ()
    report: Path


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The finished run, taken up."""

    task: Task
    base: Path
    journal: Journal
    baseline: Candidate
    kept: tuple[int, ...]  # stages of the plan that the run's result went through, from 1


def ablate(
    recipe: Recipe, base: Path, *, allow_leakage: bool = False, progress: Progress = SILENT
) -> Ablation:
    """Measure what each stage of a recipe's newest finished run contributed.

    The plan is carried out again without one stage after the other; what came before that stage is taken
    from the run. A fine-tuning that follows a prune is left out with it, and once by itself. What a gate
    says is noted, and the rest of the plan carried out all the same; a stage that the run itself dropped
    is no part of any row. Where a later stage refuses to work without the one that is left out, the row is
    missing, and said to be. All of it is on validation: the test split stays closed, and the bundle and its
    evidence are not touched. Killed and started again, it goes on.

    Args:
        recipe: As it was run.
        base: The recipe's folder.
        allow_leakage: As the run was told.
        progress: Shown while it works.

    Returns:
        The rows, which the run's record keeps and its report shows.

    Raises:
        UsageError: No run of this recipe came to its end, the data or the model changed since, or several
            processes were started.
        OutputError: Something cannot be written; what was written stays.
    """
    if here().world > 1:
        raise UsageError("ablate works in one process: start it without accelerate launch or torchrun")
    policy.check_run(recipe)
    with reproducible(recipe.seed):
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        journal = finished_run(recipe, base)
        try:
            journal.note_task(task_loaded(task))
            baseline, task = measured_baseline(task, journal, progress)
            kept = stages_kept(journal.record)
            run = _Run(task=task, base=base, journal=journal, baseline=baseline, kept=kept)
            impossible = _carry_out(run, progress)
            report = journal.directory / "report.html"
            write_report(journal.record, report)
            rows = rows_of(journal.record)
            return Ablation(directory=journal.directory, rows=rows, impossible=impossible, report=report)
        finally:
            journal.close()


def rows_of(record: Record) -> tuple[LeftOut, ...]:
    """What was left out so far, in the plan's order; the whole plan first."""
    return tuple(sorted((e.left_out for e in record.all(Ablated)), key=lambda row: row.index))


def stages_kept(record: Record) -> tuple[int, ...]:
    """The stages that the result of a run went through, from 1.

    Args:
        record: Of a run whose stages are all finished.
    """
    current: tuple[int, ...] = ()
    kept = current
    for done in record.all(StageFinished):
        after = (*current, done.index)
        current, kept = outcome_of(after, done.verdict.status, stays=done.kept, kept=kept)
    return kept


def moves(plan: Sequence[PlanStep], kept: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """What is left out, one row after the other.

    Args:
        plan: Of the recipe.
        kept: The stages of it that count, from 1.

    Yields:
        The stages of a row: one, or a prune with the fine-tuning that belongs to it.
    """
    for index in kept:
        together = is_provisional(list(plan), index) and index + 1 in kept
        yield (index, index + 1) if together else (index,)


def _carry_out(run: _Run, progress: Progress) -> tuple[str, ...]:
    """Write down a row after the other; gives why some are missing."""
    missing: list[str] = []
    done = {row.index for row in rows_of(run.journal.record)}
    whole, status = _replayed(run, run.kept, progress)
    if 0 not in done:
        run.journal.append(Ablated(left_out=_row(run, whole, whole, status, ()), seconds=0.0))
    for left in moves(run.task.recipe.plan, run.kept):
        if left[0] in done:
            continue
        started = time.monotonic()
        name = _name(run, left)
        progress.note(f"without {name}")
        try:
            candidate, status = _without(run, left, progress)
        except PreconditionError as error:  # other rows may be possible
            missing.append(f"without {name}: the rest of the plan cannot be carried out ({error})")
            progress.note(missing[-1])
            continue
        row = _row(run, candidate, whole, status, left)
        run.journal.append(Ablated(left_out=row, seconds=round(time.monotonic() - started, 1)))
    return tuple(missing)


def _name(run: _Run, left: Sequence[int]) -> str:
    return " and ".join(step_name(run.task.recipe.plan[i - 1]) for i in left)


def _replayed(run: _Run, indices: Sequence[int], progress: Progress) -> tuple[Candidate, Status]:
    """The run's own result after some of its first stages; nothing is computed."""
    candidate, status = run.baseline, Status.APPROVED
    for index in indices:
        step = run.task.recipe.plan[index - 1]
        candidate, status, _ = carry_out_stage(
            index, step, candidate, run.baseline, run.task, run.base, run.journal, progress
        )
    return candidate, status


def _without(run: _Run, left: tuple[int, ...], progress: Progress) -> tuple[Candidate, Status]:
    """The plan's result without some of its stages."""
    recipe = run.task.recipe
    candidate, status = _replayed(run, [i for i in run.kept if i < left[0]], progress)
    plan = [recipe.plan[i - 1] for i in run.kept if i not in left]
    task = replace(run.task, recipe=recipe.model_copy(update={"plan": plan}))
    journal = nested(run.journal, f"{FOLDER}/without-{left[0]:02d}-{_name(run, left).replace(' ', '-')}")
    try:
        for number in range(len([i for i in run.kept if i < left[0]]) + 1, len(plan) + 1):
            candidate, status, _ = carry_out_stage(
                number,
                plan[number - 1],
                candidate,
                run.baseline,
                task,
                run.base,
                journal,
                progress,
                regardless=True,
            )
    finally:
        journal.close()
    return candidate, status


def _row(run: _Run, found: Candidate, whole: Candidate, status: Status, left: tuple[int, ...]) -> LeftOut:
    profile = found.profile
    metric = next(name for name in policy.limits(run.task.recipe) if name in profile.metrics.overall)
    lost = _compared(run, whole, found, metric) if left else None
    return LeftOut(
        stage=_name(run, left),
        index=left[0] if left else 0,
        metric=metric,
        estimate=profile.metrics.overall[metric],
        worse=lost.drop if lost else None,
        interval=lost.interval if lost else None,
        size_bytes=profile.bytes_on_disk,
        latency_ms=profile.latency[0].ms(0.5),
        speedup=profile.speedup,
        status=status.value,
    )


def _compared(run: _Run, whole: Candidate, found: Candidate, metric: str) -> Comparison | None:
    """How much worse one file's answers to validation are than the other's, pair by pair."""
    cases, bar = run.task.cases["validation"], stage_bar(run.task.recipe)
    said = judge_answers(whole.outputs, found.outputs, cases=cases, bar=bar, thorough=False).evidence
    return next((c for c in said.comparisons if c.metric == metric and not c.where), None)
