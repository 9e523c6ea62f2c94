"""Parts of a run on their own: profile the recipe's model, or export it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pastille import policy
from pastille.export import check_parity, export_onnx
from pastille.measure.profile import profile_file
from pastille.progress import SILENT, Progress
from pastille.recipe import Recipe
from pastille.runner.candidate import opened
from pastille.runner.run import reproducible
from pastille.stats.threshold import choose_threshold
from pastille.task import Task, example_batch, load_task
from pastille.validation import read_answers
from pastille.values import Profile

_CASES = 8


def profile_baseline(
    recipe: Recipe, base: Path, *, allow_leakage: bool = False, progress: Progress = SILENT
) -> Profile:
    """Export the recipe's model as it is, and measure the file on validation.

    Raises:
        UsageError: The recipe, the data or the model cannot be used.
    """
    policy.check_model(recipe)
    with reproducible(recipe.seed), TemporaryDirectory(prefix="pastille-") as folder:
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        file = _export(task, Path(folder), progress)
        split, cases = task.splits.validation, task.cases["validation"]
        outputs = read_answers(opened(file, task), split, recipe.task, name="baseline", progress=progress)
        if not isinstance(recipe.task.threshold, float):
            cases = replace(
                cases, threshold=choose_threshold(outputs, cases, recipe.task.threshold).threshold
            )
        return profile_file(
            file,
            name="baseline",
            file=file.name,
            precision="fp32",
            split=split,
            outputs=outputs,
            cases=cases,
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


def export_baseline(
    recipe: Recipe, base: Path, folder: Path, *, allow_leakage: bool = False, progress: Progress = SILENT
) -> Path:
    """Export the recipe's own model, for a candidate to be held against.

    Raises:
        UsageError: The recipe, the data or the model cannot be used.
    """
    with reproducible(recipe.seed):
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        return _export(task, folder, progress)
