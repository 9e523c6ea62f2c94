"""A model on its way through the plan, with what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pastille.errors import IntegrityError, RecipeError
from pastille.export import check_parity, export_onnx
from pastille.files import sha256_file, write_atomic
from pastille.gates.findings import Findings
from pastille.measure.adapted import open_adapted
from pastille.measure.changed import FILE, list_changed
from pastille.measure.profile import profile_file
from pastille.progress import Progress
from pastille.pruning import read_model, write_model
from pastille.recipe import ThresholdGoal
from pastille.record import StageDetails
from pastille.runner.journal import Journal, load_array, relative, save_array
from pastille.runtime import Session, load
from pastille.stages import Artifact
from pastille.stats.threshold import ChosenThreshold, choose_threshold
from pastille.task import Task, example_batch
from pastille.validation import invariance_findings, read_answers, stress_findings
from pastille.values import Cases, Profile, to_json

if TYPE_CHECKING:
    from torch import nn

    from pastille.task.factory import Factory

MODEL, PROFILE, ANSWERS = "model.onnx", "profile.json", "validation.npy"
_PARITY_CASES = 8
_PLAIN = StageDetails()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model, exported and measured.

    Attributes:
        artifact: The module and its file.
        profile: What was measured of the file.
        outputs: What the file answers on validation, ``(N, ...)``, times ``factor``.
        factor: The temperature of a calibrated file with a threshold of its own, else 1: answers times it
            are decided by the task's threshold as the file's are by its own.
        threshold: That threshold of its own.
    """

    artifact: Artifact
    profile: Profile
    outputs: np.ndarray
    factor: float = 1.0
    threshold: float | None = None

    @property
    def stated(self) -> np.ndarray:
        """What the file itself answers: the probabilities that it states."""
        return self.outputs / self.factor


def opened(file: Path, task: Task, *, factor: float = 1.0) -> Session:
    """A file as the judges see it: answering with logits."""
    threads = task.recipe.measure.threads
    return open_adapted(file, task.inputs, task.recipe.task, threads=threads, factor=factor)


def factor_of(details: StageDetails) -> float:
    """What a stage's answers are multiplied by, so that the task's threshold decides them."""
    return 1.0 if details.threshold is None else details.temperature or 1.0


def export(module: nn.Module, task: Task, folder: Path, progress: Progress) -> tuple[Path, float]:
    """Export a module, check that the file answers like it, and save its safe form.

    Returns:
        The file, and the largest difference between module and file.
    """
    for _ in progress.track(range(1), what="exporting"):
        batch = example_batch(task.splits.validation.inputs, _PARITY_CASES)
        export_onnx(module, batch, folder / MODEL)
        parity = check_parity(module, folder / MODEL, batch)
        write_model(module, task.build(), folder)
    return folder / MODEL, parity.max_abs_error


def measure(
    name: str,
    artifact: Artifact,
    task: Task,
    journal: Journal,
    *,
    baseline: Candidate | None,
    details: StageDetails = _PLAIN,
    progress: Progress,
) -> Candidate:
    """Measure an exported file on validation, and write the profile beside it."""
    split, cases = task.splits.validation, task.cases["validation"]
    session = opened(artifact.file, task, factor=factor_of(details))
    outputs = read_answers(session, split, task.recipe.task, name=name, progress=progress)
    profile = profile_file(
        artifact.file,
        name=name,
        file=relative(artifact.file, journal),
        precision=artifact.precision,
        split=split,
        outputs=outputs,
        cases=cases,
        parameters=sum(p.numel() for p in artifact.module.parameters()),
        confidence=task.recipe.requirements.confidence,
        threads=task.recipe.measure.threads,
        baseline=load(baseline.artifact.file, threads=task.recipe.measure.threads) if baseline else None,
        batch_sizes=task.recipe.measure.batch_sizes,
        with_footprint=task.recipe.measure.memory,
        budget_s=task.recipe.measure.seconds,
        preprocessing=baseline.profile.preprocessing if baseline else None,
        progress=progress,
    )
    save_array(artifact.file.with_name(ANSWERS), outputs)
    write_atomic(artifact.file.with_name(PROFILE), to_json(profile))
    return Candidate(
        artifact=artifact,
        profile=profile,
        outputs=outputs,
        factor=factor_of(details),
        threshold=details.threshold,
    )


def reopened(
    profile: Profile,
    task: Task,
    journal: Journal,
    *,
    details: StageDetails = _PLAIN,
    module: nn.Module | None = None,
    build: Factory | None = None,
) -> Candidate:
    """A candidate that an earlier, interrupted process finished.

    Args:
        profile: From the record.
        task: The user's task.
        journal: The run.
        details: Of the stage that made it.
        module: What the file was made from, if no module was saved beside it: the baseline is the
            task's own, and quantization works on the file alone.
        build: What the module is rebuilt from; None: the task's own factory.

    Raises:
        IntegrityError: A file is missing, or is not the one that was measured.
    """
    file = journal.directory / profile.file
    if not file.is_file() or sha256_file(file) != profile.sha256:
        raise IntegrityError(f"{file} is not the file that was measured; start a new run without --resume")
    module = module or read_model(build or task.build, file.parent)
    outputs = load_array(file.with_name(ANSWERS))
    return Candidate(
        artifact=Artifact(module=module, file=file, precision=profile.precision, build=build),
        profile=profile,
        outputs=outputs,
        factor=factor_of(details),
        threshold=details.threshold,
    )


def invariance_of(candidate: Candidate, task: Task) -> Findings:
    """Whether a candidate's file decides the same however it is asked."""
    split, cases = task.splits.validation, task.cases["validation"]
    file, factor = candidate.artifact.file, candidate.factor
    return invariance_findings(file, task.inputs, split, cases, task.recipe, factor=factor)


def stress_of(kept: Candidate, baseline: Candidate, task: Task, base: Path, progress: Progress) -> Findings:
    """Both files under perturbed inputs of validation, if the recipe asks for it."""
    before, after = (opened(c.artifact.file, task, factor=c.factor) for c in (baseline, kept))
    cases = task.cases["validation"]
    return stress_findings(before, after, task.splits, cases, task.recipe, base, progress)


def listed(
    found: Findings, before: np.ndarray, after: np.ndarray, cases: Cases, folder: Path, journal: Journal
) -> Findings:
    """Write the list of changed cases into ``folder``, and name it in the evidence."""
    counted = found.evidence.disagreement
    if counted is None or not list_changed(folder / FILE, before, after, cases):
        return found
    counted = replace(counted, file=relative(folder / FILE, journal))
    return replace(found, evidence=replace(found.evidence, disagreement=counted))


def chosen_threshold(
    file: Path, goal: Literal["youden"] | ThresholdGoal, task: Task, progress: Progress
) -> ChosenThreshold:
    """The operating threshold that a goal asks for, from what the baseline answers to validation."""
    cases, section = task.cases["validation"], task.recipe.task
    session = opened(file, task)
    found = read_answers(session, task.splits.validation, section, name="baseline", progress=progress)
    try:
        return choose_threshold(found, cases, goal)
    except ValueError as error:
        raise RecipeError(f"task.threshold: {error}", key="task.threshold") from None
