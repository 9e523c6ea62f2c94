"""One stage of a plan with its gate: applied, exported, measured, judged, written down."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pastille import policy
from pastille.distillation.students import factory_after
from pastille.gates import verdict
from pastille.gates.judge import judge_answers
from pastille.gates.verdict import in_brief
from pastille.processes import here
from pastille.progress import Progress
from pastille.pruning.architecture import PLAN
from pastille.recipe import DistillStep, PlanStep, PruneStep, SparsePrune, step_name
from pastille.record import StageDetails, StageFinished
from pastille.runner.candidate import Candidate, export, invariance_of, listed, measure, reopened
from pastille.runner.journal import Journal
from pastille.runner.together import told, trains, work_folder
from pastille.stages import Artifact, run_stage, stage_for
from pastille.stages.contract import Stage, StageResult, with_factory
from pastille.stages.looking import stage_bar
from pastille.task import Task
from pastille.task.factory import Factory
from pastille.values import Status, Verdict

# What a stage gave, what its gate said, and whether the run goes on from it.
Staged = tuple[Candidate, Status, bool]


def carry_out_stage(
    index: int,
    step: PlanStep,
    before: Candidate,
    baseline: Candidate,
    task: Task,
    base: Path,
    journal: Journal,
    progress: Progress,
    *,
    regardless: bool = False,
) -> Staged:
    """Apply, export, check parity, profile, judge; or take up what an earlier process finished.

    Args:
        index: In the plan of ``task.recipe``, from 1.
        step: The entry of the plan.
        before: What the stage starts from.
        baseline: What its gate compares with.
        task: The user's task.
        base: The recipe's folder.
        journal: Where it is written down, and looked up.
        progress: Shown while it works.
        regardless: Keep the result whatever its gate says.

    Returns:
        The result, or ``before`` where an earlier process dropped it; what its gate said; whether it stays.
    """
    turn = _Turn(
        index=index,
        step=step,
        before=before,
        baseline=baseline,
        task=task,
        base=base,
        journal=journal,
        progress=progress,
        stage=stage_for(step, base),
        regardless=regardless,
    )
    return turn.taken_up() or turn.taken()


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """A stage whose turn it is; attributes as the arguments of `carry_out_stage`."""

    index: int
    step: PlanStep
    before: Candidate
    baseline: Candidate
    task: Task
    base: Path
    journal: Journal
    progress: Progress
    stage: Stage
    regardless: bool

    def taken_up(self) -> Staged | None:
        """What the record says of it; None if it is not finished."""
        done = next((e for e in self.journal.record.all(StageFinished) if e.index == self.index), None)
        if done is None:
            return None
        if not done.kept:
            return self.before, done.verdict.status, False
        saved = (self.journal.directory / done.profile.file).with_name(PLAN).is_file()
        module = None if saved else self.before.artifact.module  # the stage worked on the file alone
        build = build_after(self.step, self.before.artifact, self.task, self.base)
        candidate = reopened(
            done.profile, self.task, self.journal, details=done.details, module=module, build=build
        )
        return candidate, done.verdict.status, True

    def taken(self) -> Staged:
        """Carried out: by all processes as far as it trains, by the main one where it measures and judges."""
        started = time.monotonic()
        with work_folder(self.journal, f"stages/{self.index:02d}-{self.stage.name}") as folder:
            together = trains(self.step) or here().world == 1
            result = self._applied(folder) if together else None

            def judged() -> Staged:
                return self._judged(result or self._applied(folder), folder, started)

            return told(self.journal, lambda: self.taken_up() or judged())

    def _applied(self, folder: Path) -> StageResult:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.task.recipe.seed)
            sparse = any(_is_sparse(earlier) for earlier in self.task.recipe.plan[: self.index - 1])
            given = replace(self.before.artifact, baseline=self.baseline.artifact.file, sparse=sparse)
            return run_stage(self.stage, given, self.task, folder, self.progress)

    def _judged(self, result: StageResult, folder: Path, started: float) -> Staged:
        made, details = self._measured(result, folder)
        said = judge(made, self.baseline, self.task, self.journal)
        provisional = is_provisional(self.task.recipe.plan, self.index)
        kept, consequence = decide(said, provisional=provisional)
        if self.regardless and not kept:
            kept, consequence = True, "kept: what follows is wanted whatever its gate said"
        self.journal.append(
            StageFinished(
                index=self.index,
                name=self.stage.name,
                options=self.stage.options,
                profile=made.profile,
                verdict=said,
                kept=kept,
                consequence=consequence,
                details=details,
                seconds=round(time.monotonic() - started, 1),
            )
        )
        self.progress.note(f"{self.stage.name}: {in_brief(said)}")
        self.progress.note(f"{self.stage.name}: {consequence}")
        return made, said.status, kept

    def _measured(self, result: StageResult, folder: Path) -> tuple[Candidate, StageDetails]:
        """Export what the stage gave back, where it did not make a file itself, and measure the file."""
        file, details = result.quantized, result.details
        build = result.build or self.before.artifact.build
        if file is None:
            file, error = export(result.module, with_factory(self.task, build), folder, self.progress)
            details = replace(details, parity_max_abs_error=error)
        made = measure(
            self.stage.name,
            Artifact(module=result.module, file=file, precision=result.precision, build=build),
            self.task,
            self.journal,
            baseline=self.baseline,
            details=details,
            progress=self.progress,
        )
        return made, details


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


def build_after(step: PlanStep, given: Artifact, task: Task, base: Path) -> Factory | None:
    """What a stage's result is rebuilt from, by the recipe alone: files of a run name no code."""
    students = step.distill.students if isinstance(step, DistillStep) else None
    return factory_after(students, given.build, task, base)


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
