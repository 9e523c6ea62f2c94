"""The skin networks of `pruning_skin.py`: ResNet-18, trained from random weights on splits by lesion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from accuracy_models import PROBLEMS, SKIN_FOLDER, Problem, trained_task, unpacked

from pastille import Recipe
from pastille.recipe import Train
from pastille.task import Task

EPOCHS: Final = 12


class SkinResNet18(Problem):
    """Skin lesions, malignant or not, by a ResNet-18."""

    def recipe(self, data: Path, *, seed: int, fold: int, weights: Path | None = None) -> Recipe:
        """As the example's recipe asks, but for the network."""
        recipe = super().recipe(data, seed=seed, fold=fold, weights=weights)
        model = {"model": "torchvision:resnet18", "arguments": {"num_classes": 2}}
        return recipe.model_copy(update={"task": recipe.task.model_copy(update=model)})


def skin() -> Problem:
    """The problem, its training included."""
    known = replace(PROBLEMS[0], train=PROBLEMS[0].train.model_copy(update={"epochs": EPOCHS}))
    return SkinResNet18(**{name: getattr(known, name) for name in known.__dataclass_fields__})


def skin_task(data: Path, cache: Path, *, seed: int) -> Task:
    """The task with its trained network; trained here, in some ten minutes, if the cache has no weights.

    Args:
        data: Folder of ``ham10000_128.zip``.
        cache: Where data are unpacked and weights are kept.
        seed: Of the split and of the training.
    """
    problem = skin()
    unpacked(problem, data, cache)
    return trained_task(problem, cache, seed=seed, fold=0)


def tuning(epochs: int) -> Train:
    """Fine-tuning after pruning, and the control's."""
    return Train(
        epochs=epochs,
        learning_rate=0.01,
        class_weights="balanced",
        augment=f"{SKIN_FOLDER / 'augment.py'}:turned",
    )
