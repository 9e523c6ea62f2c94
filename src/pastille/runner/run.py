"""Carry out a plan on a task: profile, each stage with its gate, the final gate, bundle, report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pastille import policy
from pastille.devices import usable_cores
from pastille.elsewhere import check_isas
from pastille.errors import RecipeError
from pastille.gates import verdict
from pastille.gates.judge import judge_answers
from pastille.progress import SILENT, Progress
from pastille.pruning.architecture import PLAN
from pastille.recipe import PlanStep, PruneStep, Pruning, QuantizeStep, Recipe, SparsePrune, step_name
from pastille.recipe.pruning import MOST
from pastille.record import (
    BaselineProfiled,
    BundleWritten,
    FinalJudged,
    Record,
    StageDetails,
    StageFinished,
    TaskLoaded,
    ThresholdChosen,
)
from pastille.report import write_report
from pastille.runner.candidate import (
    Candidate,
    chosen_threshold,
    export,
    invariance_of,
    listed,
    measure,
    reopened,
)
from pastille.runner.caution import guessing, unprovable
from pastille.runner.final import judge_on_test, seal
from pastille.runner.journal import Journal, open_run
from pastille.stages import Artifact, run_stage, stage_for
from pastille.stages.contract import state_digest
from pastille.stages.looking import stage_bar
from pastille.task import Task, load_task
from pastille.validation import split_summary
from pastille.values import Status, Verdict

_STORED = {"int4": 0.5, "fp16": 2.0, "bf16": 2.0}  # bytes of a weight; all other methods take one


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
    base: Path,
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
    policy.check_run(recipe)
    policy.check(recipe)
    check_isas(recipe)
    with reproducible(recipe.seed):
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        _check_plan(recipe, base, task)
        journal = open_run(recipe, base, resume=resume)
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
        stage_for(step, base).requires(given, task)


def _carry_out(recipe: Recipe, base: Path, task: Task, journal: Journal, progress: Progress) -> None:
    journal.note_task(_task_loaded(task))
    for note in unprovable(task):
        progress.note(note)
    baseline, task = _baseline(task, journal, progress)
    check_reachable(recipe, baseline)
    kept = current = baseline
    for index, step in enumerate(recipe.plan, start=1):
        candidate, status, stays = _stage(index, step, current, baseline, task, base, journal, progress)
        current, kept = outcome_of(candidate, status, stays=stays, kept=kept)
    final = judge_on_test(kept, baseline, task, base, journal, progress)
    seal(kept, baseline, final, task, journal, progress)
    write_report(journal.record, journal.directory / "report.html")


def is_provisional(plan: list[PlanStep], index: int) -> bool:
    """A prune that a finetune follows is one move with it: the gate after the finetune decides.

    Args:
        plan: The recipe's plan.
        index: Of the stage, from 1.
    """
    following = plan[index] if index < len(plan) else None
    return (
        isinstance(plan[index - 1], PruneStep)
        and following is not None
        and step_name(following) == "finetune"
    )


def outcome_of(
    candidate: Candidate, status: Status, *, stays: bool, kept: Candidate
) -> tuple[Candidate, Candidate]:
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


def _baseline(task: Task, journal: Journal, progress: Progress) -> tuple[Candidate, Task]:
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


def _stage(
    index: int,
    step: PlanStep,
    before: Candidate,
    baseline: Candidate,
    task: Task,
    base: Path,
    journal: Journal,
    progress: Progress,
) -> tuple[Candidate, Status, bool]:
    """Apply, export, check parity, profile, judge; or take up what an earlier process finished."""
    done = next((e for e in journal.record.all(StageFinished) if e.index == index), None)
    if done is not None:
        if not done.kept:
            return before, done.verdict.status, False
        saved = (journal.directory / done.profile.file).with_name(PLAN).is_file()
        module = None if saved else before.artifact.module  # the stage worked on the file alone
        candidate = reopened(done.profile, task, journal, details=done.details, module=module)
        return candidate, done.verdict.status, True
    started = time.monotonic()
    stage = stage_for(step, base)
    folder = journal.fresh_folder(f"stages/{index:02d}-{stage.name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.recipe.seed)
        sparse = any(_is_sparse(earlier) for earlier in task.recipe.plan[: index - 1])
        given = replace(before.artifact, baseline=baseline.artifact.file, sparse=sparse)
        result = run_stage(stage, given, task, folder, progress)
    file, details = result.quantized, result.details
    if file is None:
        file, error = export(result.module, task, folder, progress)
        details = replace(details, parity_max_abs_error=error)
    candidate = measure(
        stage.name,
        Artifact(module=result.module, file=file, precision=result.precision),
        task,
        journal,
        baseline=baseline,
        details=details,
        progress=progress,
    )
    said = judge(candidate, baseline, task, journal)
    kept, consequence = decide(said, provisional=is_provisional(task.recipe.plan, index))
    journal.append(
        StageFinished(
            index=index,
            name=stage.name,
            options=stage.options,
            profile=candidate.profile,
            verdict=said,
            kept=kept,
            consequence=consequence,
            details=details,
            seconds=round(time.monotonic() - started, 1),
        )
    )
    progress.note(f"{stage.name}: {said.reason}")
    progress.note(f"{stage.name}: {consequence}")
    return candidate, said.status, kept


def _is_sparse(step: PlanStep) -> bool:
    return isinstance(step, PruneStep) and isinstance(step.prune, SparsePrune)


def judge(candidate: Candidate, baseline: Candidate, task: Task, journal: Journal) -> Verdict:
    """Hold a stage's file against the baseline on validation, and list the cases that changed."""
    last = candidate.profile.name == "calibrate"
    bar = policy.bar(task.recipe) if last else stage_bar(task.recipe)
    found = judge_answers(
        baseline.outputs,
        candidate.outputs,
        cases=task.cases["validation"],
        bar=bar,
        thorough=False,
        stated=candidate.stated,
    )
    found += invariance_of(candidate, task)
    folder = candidate.artifact.file.parent
    found = listed(found, baseline.outputs, candidate.outputs, task.cases["validation"], folder, journal)
    return verdict(found.checks, split="validation", notes=found.notes, evidence=found.evidence)


def decide(said: Verdict, *, provisional: bool) -> tuple[bool, str]:
    """Whether a stage's result stays, and why, in one sentence.

    Validation is often too small to prove a limit; it can refute one. So what is inconclusive goes
    on to the final gate, which decides on the test split.
    """
    if said.status is Status.APPROVED:
        return True, "kept: it passes on validation"
    if said.status is Status.INCONCLUSIVE:
        return True, "kept: validation holds too few cases to decide; the final gate will"
    if provisional:
        return True, "kept for now: the fine-tuning that follows is judged in its place"
    return False, "dropped: the run went on from the last model that was not rejected"


def check_reachable(recipe: Recipe, baseline: Candidate) -> None:
    """Refuse a size that the plan cannot reach, before any work is spent on it.

    Pruning keeps at least ``(1 − sparsity)²`` of the weights, since no layer loses more than that
    share of its inputs and outputs, and single weights at least ``1 − sparsity``; quantization stores a
    weight in one byte, or two or a half, instead of four.

    Raises:
        RecipeError: ``max_size`` lies below that bound.
    """
    limit = recipe.requirements.max_size
    share, stored = 1.0, 4.0
    for step in recipe.plan:
        if isinstance(step, PruneStep):
            share *= _least_left(step.prune)
        if isinstance(step, QuantizeStep):
            stored = _STORED.get(step.quantize.method, 1)
    least = baseline.profile.parameters * share * stored
    if limit is not None and limit < least:
        raise RecipeError(
            f"requirements.max_size: {limit / 1e6:.3g} MB cannot be reached: this plan leaves at least "
            f"{least / 1e6:.3g} MB of {baseline.profile.parameters} parameters; "
            "raise max_size or the sparsity, or quantize",
            key="requirements.max_size",
        )


def _least_left(step: Pruning) -> float:
    """Share of the weights that a prune leaves at least."""
    if isinstance(step, SparsePrune):
        return 1 - step.share
    even = step.budget is None and step.allocation == "uniform"  # else one layer may lose almost all
    most = max([step.sparsity or 0.0, step.heads or 0.0, *step.layers.values()]) if even else MOST
    # Blocks differ in size: a quarter of them may hold most of the weights.
    return float((1 - most) ** 2) * (1.0 if step.blocks is None else 1 - MOST)


def _task_loaded(task: Task) -> TaskLoaded:
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
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "") or usable_cores()))
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
