"""The three tasks of `distillation.py`: their data, their teachers, and how their students are taught."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from pastille import Recipe, read_recipe, read_splits
from pastille.data.cases import cases
from pastille.files import produce_atomic
from pastille.recipe import DistillTraining, Train
from pastille.references import load_callable
from pastille.task import Task, load_task
from pastille.task.factory import model_factory
from pastille.train import fit

EXAMPLES: Final = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A teacher, and the students that it is to have.

    Attributes:
        name: In the table; of the folder in ``examples`` too.
        archive: File in the data folder.
        metric: What is compared.
        recipe: Overrides of the example's recipe, with ``{data}`` for where the archive is unpacked.
        begins: What builds the teacher before its training; "" for ``task.model`` with random weights.
        teacher: Its training.
        student: As in a recipe, ``DistillTraining``; its students on labels alone have the same training.
        quick: Replaces numbers of epochs and the like for a run that only shows that everything works.
        int8: How the students are quantized.
        seeds: Of the split, the teacher and the students.
    """

    name: str
    archive: str
    metric: str
    recipe: tuple[str, ...]
    begins: str = ""
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    quick: tuple[str, ...] = ()
    int8: Literal["static", "dynamic"] = "static"
    seeds: Sequence[int] = (0, 1, 2)
    task: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """Folder that the recipe's paths are relative to."""
        return EXAMPLES / self.name

    def training(self, *, quick: bool) -> Train:
        """Of the teacher."""
        return Train.model_validate({**self.teacher, **({"epochs": 1} if quick else {})})

    def distilling(self, *, quick: bool) -> DistillTraining:
        """Of the students."""
        # A benchmark goes on with whatever teacher it has, and shows how good it was.
        asked = {"accept_poor_teacher": True, **self.student, **({"epochs": 1} if quick else {})}
        return DistillTraining.model_validate(asked)


_SHARED: Final = {"optimizer": "adamw", "precision": "auto"}
_SKIN: Final = {
    **_SHARED,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "class_weights": "balanced",
    "augment": "augment.py:turned",
}
_ECG: Final = {
    **_SHARED,
    "precision": "fp32",  # so small a network gains nothing from less
    "weight_decay": 0.05,
    "class_weights": "balanced",
    "augment": "data.py:jittered",
}
_ABSTRACTS: Final = {
    **_SHARED,
    "learning_rate": 1e-4,
    "batch_size": 32,
    "weight_decay": 0.01,
    "schedule": "linear",
    "warmup": 0.1,
    "clip_norm": 1.0,
}

SKIN: Final = Problem(
    name="skin",
    archive="ham10000_128.zip",
    metric="auroc",
    recipe=("data.path={data}/metadata.csv", "data.images=[{data}/images]"),
    task={"model": "torchvision:resnet18", "arguments": {"num_classes": 2}},
    teacher={**_SKIN, "epochs": 12},
    student={
        **_SKIN,
        "student": {"model": "model.py:build"},  # ResNet-10 of 1.2 million weights
        "alpha": 0.9,
        "temperature": 4,
        "epochs": 12,
    },
)
ECG: Final = Problem(
    name="ecg",
    archive="ptbxl_100hz.zip",
    metric="auroc",
    recipe=("data.arguments.folder={data}", "data.arguments.seed={seed}"),
    teacher={**_ECG, "learning_rate": 2e-3, "epochs": 16},
    student={
        **_ECG,
        "student": {"model": "model.py:build", "arguments": {"width": 16}},
        "alpha": 0.9,
        "temperature": 4,
        "learning_rate": 3e-3,
        "epochs": 24,
    },
    seeds=range(10),  # a test split of 500 records says little by itself
)
ABSTRACTS: Final = Problem(
    name="abstracts",
    archive="med_abstracts.zip",
    metric="accuracy",
    recipe=("data.arguments.folder={data}", "data.arguments.seed={seed}", "data.arguments.tokens=64"),
    begins="model.py:pretrained",
    teacher={**_ABSTRACTS, "epochs": 2, "label_smoothing": 0.1},
    student={
        **_ABSTRACTS,
        "student": [{"depth": 0.5}, {"depth": 0.67}],  # of six layers three, of three two
        "alpha": 0.9,
        "temperature": 2,
        "epochs": 3,
    },
    quick=("data.arguments.tokens=16",),
    int8="dynamic",
)
PROBLEMS: Final = {problem.name: problem for problem in (SKIN, ECG, ABSTRACTS)}


def unpacked(problem: Problem, data: Path, work: Path) -> Path:
    """A problem's archive, unpacked once."""
    place = work / "data" / problem.name
    if not place.is_dir():
        draft = place.with_suffix(".part")
        with zipfile.ZipFile(data / problem.archive) as archive:
            archive.extractall(draft)
        draft.rename(place)
    return place


def recipe_of(problem: Problem, data: Path, *, seed: int, quick: bool) -> Recipe:
    """The example's recipe; the seed decides the split too."""
    overrides = [text.format(data=data, seed=seed) for text in problem.recipe]
    overrides += problem.quick if quick else ()
    recipe = read_recipe(
        problem.base / "recipe.yaml", [*overrides, f"seed={seed}", "requirements.risk=medium"]
    )
    task = recipe.task.model_copy(update={**problem.task, "weights": None})
    return recipe.model_copy(update={"task": task})


def task_of(problem: Problem, data: Path, work: Path, *, seed: int, quick: bool) -> Task:
    """The task with its trained teacher; trained here if ``work`` has no weights of it."""
    recipe = recipe_of(problem, data, seed=seed, quick=quick)
    weights = work / f"{problem.name}-{seed}" / "teacher.safetensors"
    if not weights.is_file():
        weights.parent.mkdir(parents=True, exist_ok=True)
        _teach_teacher(problem, recipe, problem.training(quick=quick), weights)
    trained = recipe.task.model_copy(update={"weights": weights})
    return load_task(recipe.model_copy(update={"task": trained}), problem.base)


def _teach_teacher(problem: Problem, recipe: Recipe, settings: Train, weights: Path) -> None:
    splits = read_splits(recipe, problem.base)
    fitted = fit(
        _untrained(problem, recipe),
        (splits.train, cases(splits.train, "train", recipe.task)),
        (splits.validation, cases(splits.validation, "validation", recipe.task)),
        settings,
        seed=recipe.seed,
        augment=load_callable(settings.augment, problem.base, key="augment") if settings.augment else None,
    )
    print(f"{weights.parent.name}: teacher, {fitted.metric} {fitted.score:.3f} on validation", flush=True)
    state = {name: value.contiguous() for name, value in fitted.model.state_dict().items()}
    produce_atomic(weights, lambda draft: save_file(state, draft))


def _untrained(problem: Problem, recipe: Recipe) -> nn.Module:
    if not problem.begins:
        return model_factory(recipe.task, problem.base, seed=recipe.seed)()
    torch.manual_seed(recipe.seed)  # of the layer that is new
    model: nn.Module = load_callable(problem.begins, problem.base, key="begins")()
    return model
