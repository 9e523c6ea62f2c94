"""A model on its way through the plan, with what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pastille.errors import IntegrityError
from pastille.export import check_parity, export_onnx
from pastille.files import sha256_file, write_atomic
from pastille.measure.evaluate import answer, same_for_batches
from pastille.measure.profile import profile_file
from pastille.progress import Progress
from pastille.pruning import read_model, write_model
from pastille.runner.journal import Journal, load_array, relative, save_array
from pastille.runtime import load
from pastille.stages import Artifact
from pastille.stats.decisions import decide
from pastille.task import Task, example_batch
from pastille.values import Profile, to_json

if TYPE_CHECKING:
    from torch import nn

MODEL, PROFILE, ANSWERS = "model.onnx", "profile.json", "validation.npy"
_PARITY_CASES = 8
_BATCH_CASES = 64


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model, exported and measured.

    Attributes:
        artifact: The module and its file.
        profile: What was measured of the file.
        outputs: What the file answers on validation, ``(N, ...)``.
    """

    artifact: Artifact
    profile: Profile
    outputs: np.ndarray


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
    precision: Literal["fp32", "int8"],
    progress: Progress,
) -> Candidate:
    """Measure an exported file on validation, and write the profile beside it."""
    session = load(artifact.file, threads=task.recipe.measure.threads)
    split = task.splits.validation
    outputs = answer(session, split, progress=progress, what=f"evaluating {name}")
    profile = profile_file(
        artifact.file,
        name=name,
        file=relative(artifact.file, journal),
        precision=precision,
        split=split,
        outputs=outputs,
        cases=task.cases["validation"],
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
    return Candidate(artifact=artifact, profile=profile, outputs=outputs)


def reopened(profile: Profile, task: Task, journal: Journal, *, module: nn.Module | None = None) -> Candidate:
    """A candidate that an earlier, interrupted process finished.

    Args:
        profile: From the record.
        task: The user's task.
        journal: The run.
        module: What the file was made from, if no module was saved beside it: the baseline is the
            task's own, and quantization works on the file alone.

    Raises:
        IntegrityError: A file is missing, or is not the one that was measured.
    """
    file = journal.directory / profile.file
    if not file.is_file() or sha256_file(file) != profile.sha256:
        raise IntegrityError(f"{file} is not the file that was measured; start a new run without --resume")
    module = module or read_model(task.build, file.parent)
    outputs = load_array(file.with_name(ANSWERS))
    return Candidate(artifact=Artifact(module=module, file=file), profile=profile, outputs=outputs)


def batch_note(candidate: Candidate, task: Task) -> tuple[str, ...]:
    """Promise 5: does a file decide the same, whatever the batch size? A sentence if it does not."""
    if task.recipe.task.kind == "regression":
        return ()
    cases = task.cases["validation"]
    n = min(_BATCH_CASES, task.splits.validation.n)
    inputs = [task.splits.validation.inputs[i] for i in range(n)]
    answers = same_for_batches(load(candidate.artifact.file), inputs)
    first = replace(cases, targets=cases.targets[:n])
    changed = answers.changed_decisions(lambda outputs: decide(outputs, first))
    return (f"{changed} of {n} cases are decided differently for another batch size",) if changed else ()
