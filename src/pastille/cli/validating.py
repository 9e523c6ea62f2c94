"""``pastille validate``: two files from anywhere, and what is left of their judgement on disk."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pastille.cli.console import strangers_aside
from pastille.errors import UsageError
from pastille.validation import VERDICT, JudgedSplit, validate, write_validation

if TYPE_CHECKING:
    from pastille.progress import Progress
    from pastille.recipe import Recipe
    from pastille.values import Verdict


def validated(
    candidate: Path,
    against: Path | None,
    recipe: Recipe,
    base: Path,
    *,
    split: JudgedSplit,
    output: Path | None,
    allow_leakage: bool,
    progress: Progress,
) -> Verdict:
    """Judge, and write what was asked for.

    Raises:
        UsageError: There is no such file, or nothing to hold the candidate against.
    """
    for file in (candidate, against):
        if file is not None and not file.exists():
            raise UsageError(f"there is no file {file}; validate takes ONNX files and bundles")
    if output is not None and (output / VERDICT).exists():  # said before the work, not after it
        raise UsageError(f"{output} holds a verdict already; name another folder, or move it away")
    with strangers_aside(), TemporaryDirectory(prefix="pastille-") as folder:
        baseline = against or _own_baseline(candidate, recipe, base, Path(folder), allow_leakage, progress)
        found = validate(
            candidate,
            baseline,
            recipe,
            base,
            split=split,
            allow_leakage=allow_leakage,
            progress=progress,
        )
        if output is not None:
            found = write_validation(found, output)
    return found.verdict


def _own_baseline(
    candidate: Path, recipe: Recipe, base: Path, folder: Path, allow_leakage: bool, progress: Progress
) -> Path:
    """What a candidate is held against where nothing was named."""
    if candidate.is_dir():
        return candidate
    if not recipe.task.model:
        raise UsageError(
            "there is nothing to judge against: give --against FILE, or name task.model in the recipe"
        )
    from pastille.runner.standalone import export_baseline

    return export_baseline(recipe, base, folder, allow_leakage=allow_leakage, progress=progress)
