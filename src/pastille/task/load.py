"""From a recipe to a checked `Task`: model, weights, data, and that they fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pastille.data.attributes import check_attributes
from pastille.data.cases import cases, own_metrics
from pastille.data.checks import check_targets
from pastille.data.leakage import check_leaks, inspect
from pastille.data.load import load_splits
from pastille.data.split import Splits, named
from pastille.errors import DataError, PastilleError, TaskError
from pastille.progress import SILENT, Progress
from pastille.recipe import Recipe, TaskSection
from pastille.references import one_line
from pastille.stats.decisions import output_problem
from pastille.stats.scale import looks_like_probabilities, to_logits
from pastille.task.factory import Factory, model_factory
from pastille.task.forward import example_batch, forward
from pastille.task.weights import load_weights_, read_weights
from pastille.values import Cases, TensorSpec

if TYPE_CHECKING:
    from torch import nn

_SCALE_CASES = 32  # that show whether a model answers with probabilities
_SCALE_NUMBERS = 8  # fewer that lie between 0 and 1 may do so by chance


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the user brought, loaded.

    Attributes:
        recipe: What was asked.
        build: Builds the untrained module afresh; what a pruned architecture is rebuilt from.
        model: The trained module in eval mode; nobody changes it.
        splits: The data.
        cases: Split name -> the right answers.
        inputs: Name, shape and dtype of each input, without the batch axis.
        data_digest: SHA-256 over every input and target.
        leakage: What `--allow-leakage` let pass, one sentence each.
    """

    recipe: Recipe
    build: Factory
    model: nn.Module
    splits: Splits
    cases: Mapping[str, Cases]
    inputs: tuple[TensorSpec, ...]
    data_digest: str
    leakage: tuple[str, ...] = ()


def load_task(
    recipe: Recipe, base: Path, *, allow_leakage: bool = False, progress: Progress = SILENT
) -> Task:
    """Load the model and the data that a recipe names, and check them.

    Every input is read once, to find NaN, shapes that differ and inputs that are in two splits.

    Args:
        recipe: What was asked.
        base: The recipe's folder, which its paths are relative to.
        allow_leakage: Record a leak instead of refusing the data.
        progress: Shown while the inputs are read.

    Raises:
        UsageError: Or one of its subclasses, naming what is wrong, in one line.
    """
    # The model first: it is quick to load, and most often what is wrong.
    build = model_factory(recipe.task, base, seed=recipe.seed)
    model = load_model(recipe, base, build)
    metrics = own_metrics(recipe.task, base)
    splits = load_splits(recipe.data, recipe.task, base=base, seed=recipe.seed, progress=progress)
    check_targets(splits, recipe.task)
    check_attributes(splits, recipe.requirements.fairness)
    check_stable(splits)
    inspection = inspect(splits, progress=progress)
    leakage = check_leaks(inspection.leaks, allow=allow_leakage)
    check_output(model, splits, recipe)
    return Task(
        recipe=recipe,
        build=build,
        model=model,
        splits=splits,
        cases={name: cases(split, name, recipe.task, metrics=metrics) for name, split in splits},
        inputs=inspection.inputs,
        data_digest=inspection.digest,
        leakage=leakage,
    )


def load_model(recipe: Recipe, base: Path, build: Factory) -> nn.Module:
    """Build the module and load its weights; the result is in eval mode.

    Raises:
        TaskError: The factory failed, or the weights do not fit.
    """
    model = build()
    weights = _weights_file(recipe, base)
    if weights is not None:
        load_weights_(model, read_weights(weights), source=weights.name)
    return model.eval()


def _weights_file(recipe: Recipe, base: Path) -> Path | None:
    if recipe.task.weights is not None:
        return base / recipe.task.weights
    if recipe.task.model.startswith("hf:"):  # a folder of transformers brings its own
        return base / recipe.task.model.removeprefix("hf:") / "model.safetensors"
    return None


def check_output(model: nn.Module, splits: Splits, recipe: Recipe) -> None:
    """Call the model a few times, and see that its answers fit the task.

    Raises:
        TaskError: The model does not accept the inputs, or its output does not fit the task: its shape,
            the size of its masks, or whether it answers with logits or probabilities.
    """
    batch = example_batch(splits.train.inputs)
    shapes = ", ".join(f"{name} {tuple(x.shape[1:])} {x.dtype}" for name, x in batch.items())
    try:
        with torch.inference_mode():
            out = forward(model, batch)
    except PastilleError:
        raise
    except Exception as error:
        raise TaskError(
            f"the model does not accept inputs of shape {shapes}: {one_line(error, 200)}; "
            "change what data gives, or the model"
        ) from error
    if not isinstance(out, torch.Tensor):
        raise TaskError(
            f"the model must return a tensor of logits or numbers, or a tuple that begins with it, "
            f"got {type(out).__name__}"
        )
    if not out.is_floating_point():
        raise TaskError(
            f"the model must answer with logits or numbers, got {out.dtype}; leave argmax out of it"
        )
    problem = output_problem(recipe.task.kind, len(recipe.task.labels), tuple(out.shape))
    if not problem and out.shape[0] != len(next(iter(batch.values()))):
        problem = f"the batch axis must come first, but a batch of 2 gives shape {tuple(out.shape)}"
    problem = problem or _size_problem(recipe.task, splits, tuple(out.shape))
    if problem:
        raise TaskError(f"the model's output does not fit the task: {problem}")
    if not torch.isfinite(out).all():
        raise TaskError("the model answers NaN or infinity to the first training inputs; check its weights")
    _check_cases_are_apart(model, splits)
    _check_scale(model, splits, recipe.task)


def _size_problem(task: TaskSection, splits: Splits, shape: tuple[int, ...]) -> str | None:
    """Why a segmentation's answer does not cover the masks, or None if it does."""
    if task.kind != "segmentation":
        return None
    sizes = {name: split.targets.shape[1:] for name, split in splits}
    odd = next((name for name, size in sizes.items() if size != shape[-2:]), None)
    if odd is None:
        return None
    return (
        f"its answers are {_pixels(shape[-2:])} (height x width), but the masks of {odd} are "
        f"{_pixels(sizes[odd])}; scale one of them to the other"
    )


def _pixels(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size)) + " pixels"


def _check_scale(model: nn.Module, splits: Splits, task: TaskSection) -> None:
    """Logits and probabilities must not be mistaken: a sigmoid of a probability never decides below 0.5.

    A recipe that says which of the two they are is believed, unless they cannot be.
    """
    if not task.labels:
        if task.outputs == "probabilities":
            raise TaskError(f"task.outputs must be left out of a {task.kind} task: it has no probabilities")
        return
    batch = example_batch(splits.train.inputs, min(_SCALE_CASES, splits.train.n))
    with torch.inference_mode():
        outputs = forward(model, batch).float().numpy()
    telling = outputs.size >= _SCALE_NUMBERS and float(np.ptp(outputs)) > 0
    unsaid = "outputs" not in task.model_fields_set
    if unsaid and telling and looks_like_probabilities(task.kind, outputs):
        raise TaskError(
            f"the model seems to give probabilities: its answers to the first {len(outputs)} training inputs "
            "all lie between 0 and 1, which as logits would be decided wrongly; set task.outputs: "
            "probabilities (or logits, if they are)"
        )
    try:
        to_logits(task.kind, outputs, task.outputs)
    except ValueError as error:
        raise TaskError(f"task.outputs is {task.outputs}, which the model does not give: {error}") from None


def _check_cases_are_apart(model: nn.Module, splits: Splits) -> None:
    """An answer must not depend on which other inputs are in the batch."""
    batch = example_batch(splits.train.inputs, min(4, splits.train.n))
    with torch.inference_mode():
        together = forward(model, batch)
        alone = torch.cat(
            [forward(model, {k: x[i : i + 1] for k, x in batch.items()}) for i in range(len(together))]
        )
    scale = float(together.abs().max()) + 1e-12
    if alone.shape != together.shape or float((alone - together).abs().max()) > 1e-3 * scale:
        raise TaskError(
            "the model answers an input differently when others are in the batch (it mixes the batch axis, "
            "or draws random numbers); its answers must depend on their own input alone"
        )


def check_stable(splits: Splits) -> None:
    """See that an input is the same each time it is read: every paired test rests on it.

    Raises:
        DataError: The first input of a split differs when it is read twice.
    """
    for name, split in splits:
        one, two = named(split.inputs[0]), named(split.inputs[0])
        if any(not np.array_equal(one[key], two[key], equal_nan=True) for key in one):
            raise DataError(
                f"{name}[0] differs when it is read twice; inputs must not be random: put augmentation into "
                "the training's augment"
            )
