"""``pastille demo``: lay a demonstration out, train its model, then run it like any user's recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

from pastille.cli.console import out
from pastille.cli.shown import show_result
from pastille.data.cases import cases
from pastille.data.load import load_splits
from pastille.demos import FILES, Demo
from pastille.errors import OutputError, UsageError
from pastille.files import produce_atomic
from pastille.progress import Progress
from pastille.recipe import Recipe, read_recipe
from pastille.runner import RunResult, run
from pastille.runner.run import reproducible
from pastille.task.factory import model_factory
from pastille.train import fit

TRAINED = "trained.safetensors"


def carry_out_demo(demo: Demo, folder: Path, *, progress: Progress) -> RunResult:
    """Train and compress the demonstration's model in a folder that is the user's to keep.

    Args:
        demo: Which one.
        folder: Gets the recipe, the model, the data callable, the trained weights and the runs.
        progress: Shown while it works.

    Raises:
        OutputError: The folder cannot be written.
        UsageError: scikit-learn, which carries the data, is not installed.
    """
    lay_out(demo, folder)
    recipe = read_recipe(folder / "recipe.yaml")
    train(demo, recipe, folder, progress)
    return run(recipe, folder, progress=progress)


def lay_out(demo: Demo, folder: Path) -> None:
    """Copy the demonstration's files; those that are there already stay as the user left them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if not (folder / name).exists():
                shutil.copyfile(demo.folder / name, folder / name)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; choose another with --output") from error


def train(demo: Demo, recipe: Recipe, folder: Path, progress: Progress) -> None:
    """Train the model, and save its weights as the recipe expects them."""
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise UsageError("the demo trains a model; run: pip install 'pastille[compress]'") from None
    progress.note(f"{demo.title}; everything goes to {folder}")
    with reproducible(recipe.seed):
        splits = load_splits(recipe.data, recipe.task, base=folder, seed=recipe.seed, progress=progress)
        fitted = fit(
            model_factory(recipe.task, folder, seed=recipe.seed)(),
            (splits.train, cases(splits.train, "train", recipe.task)),
            (splits.validation, cases(splits.validation, "validation", recipe.task)),
            demo.training,
            seed=recipe.seed,
            progress=progress,
            what="training the model",
        )
    tensors = {name: x.contiguous() for name, x in fitted.model.state_dict().items()}
    produce_atomic(folder / TRAINED, lambda draft: save_file(tensors, draft))


def show_demo(result: RunResult, folder: Path) -> None:
    """The run's result, then what to try next."""
    show_result(result)
    lines = (
        "",
        "Try next:",
        f"  pastille verify {result.bundle}",
        f"  pastille bench {result.bundle}",
        f"  pastille serve {result.bundle}",
        f"  pastille run {folder / 'recipe.yaml'} --set plan.0.prune.sparsity=0.7",
        f"  open {result.report} in a browser",
        "  pastille demo --list",
    )
    out.print("\n".join(lines), markup=False)
