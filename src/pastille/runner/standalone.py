"""Parts of a run on their own: profile a model, validate a file against another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pastille import policy
from pastille.devices import this_machine
from pastille.errors import UsageError
from pastille.export import check_parity, export_onnx
from pastille.gates import judge_latency, judge_metrics, judge_size, verdict
from pastille.measure.evaluate import answer
from pastille.measure.latency import time_calls
from pastille.measure.profile import profile_file
from pastille.progress import SILENT, Progress
from pastille.recipe import Recipe
from pastille.runner.run import reproducible
from pastille.runtime import ONNXRUNTIME, Session, load
from pastille.stats.decisions import output_problem
from pastille.task import Task, example_batch, load_task
from pastille.values import Check, Profile, Verdict

_CASES = 8


def profile_baseline(
    recipe: Recipe, base: Path, *, allow_leakage: bool = False, progress: Progress = SILENT
) -> Profile:
    """Export the recipe's model as it is, and measure the file on validation.

    Raises:
        UsageError: The recipe, the data or the model cannot be used.
    """
    with reproducible(recipe.seed), TemporaryDirectory(prefix="pastille-") as folder:
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        file = _export(task, Path(folder), progress)
        session = load(file, threads=recipe.measure.threads)
        split = task.splits.validation
        return profile_file(
            file,
            name="baseline",
            file=file.name,
            precision="fp32",
            split=split,
            outputs=answer(session, split, progress=progress),
            cases=task.cases["validation"],
            parameters=sum(p.numel() for p in task.model.parameters()),
            confidence=recipe.requirements.confidence,
            threads=recipe.measure.threads,
            batch_sizes=recipe.measure.batch_sizes,
            with_footprint=recipe.measure.memory,
            budget_s=recipe.measure.seconds,
            progress=progress,
        )


def _export(task: Task, folder: Path, progress: Progress) -> Path:
    file = folder / "model.onnx"
    for _ in progress.track(range(1), what="exporting"):
        batch = example_batch(task.splits.validation.inputs, _CASES)
        export_onnx(task.model, batch, file)
        check_parity(task.model, file, batch)
    return file


def validate_file(
    candidate: Path,
    recipe: Recipe,
    base: Path,
    *,
    baseline: Path | None = None,
    split: Literal["validation", "test"] = "validation",
    allow_leakage: bool = False,
    progress: Progress = SILENT,
) -> Verdict:
    """Hold any model file against a baseline, on the recipe's data and by its limits.

    Args:
        candidate: An ONNX file with the recipe's inputs.
        recipe: Data, task and limits.
        base: The recipe's folder.
        baseline: An ONNX file; the recipe's own model, exported now, if None.
        split: Which split to judge on.
        allow_leakage: Judge although a case is in two splits.
        progress: Shown while it works.

    Raises:
        UsageError: The recipe, the data or a file cannot be used.
    """
    policy.check(recipe)
    with reproducible(recipe.seed), TemporaryDirectory(prefix="pastille-") as folder:
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        files = (baseline or _export(task, Path(folder), progress), candidate)
        part, cases = getattr(task.splits, split), task.cases[split]
        outputs = []
        for name, file in zip(("baseline", "candidate"), files, strict=True):
            session = load(file, threads=recipe.measure.threads)
            _check_inputs(session, task, file)
            found = answer(session, part, progress=progress, what=f"evaluating {name}")
            problem = output_problem(cases.kind, len(cases.labels), found.shape)
            if problem:
                raise UsageError(f"{file.name}: its output does not fit the task: {problem}")
            outputs.append(found)
        checks = judge_metrics(
            *outputs,
            cases=cases,
            limits=policy.limits(recipe),
            confidence=recipe.requirements.confidence,
        )
        return verdict((*checks, *_size_and_speed(files, recipe, task, progress)), split=split)


def _size_and_speed(
    files: tuple[Path, Path], recipe: Recipe, task: Task, progress: Progress
) -> Iterator[Check]:
    asked = recipe.requirements
    if asked.max_size is not None:
        sizes = [file.stat().st_size for file in files]
        yield judge_size(sizes[1], asked.max_size, baseline_bytes=sizes[0])
    limits = list(asked.max_latency.limits())
    if not limits:
        return
    threads = recipe.measure.threads
    here = this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    batch = {name: x.numpy() for name, x in example_batch(task.splits.validation.inputs, 1).items()}
    before, after = (
        time_calls(load(file, threads=threads), batch, conditions=here, budget_s=recipe.measure.seconds)
        for file in progress.track(files, what="timing")
    )
    for q, limit in limits:
        yield judge_latency(after, q, limit, baseline=before)


def _check_inputs(session: Session, task: Task, file: Path) -> None:
    asked = {spec.name for spec in session.inputs}
    given = {spec.name for spec in task.inputs}
    if asked != given:
        raise UsageError(
            f"{file.name}: its inputs are {sorted(asked)}, but the data has {sorted(given)}; "
            "rename them in one of the two"
        )
