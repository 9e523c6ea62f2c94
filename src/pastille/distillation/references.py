"""Students and teachers that a recipe names by reference, checked against the task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from pastille.errors import PastilleError, TaskError, UsageError
from pastille.recipe import Student, Teacher
from pastille.references import one_line
from pastille.stats.scale import looks_like_probabilities
from pastille.task import Task, example_batch, forward
from pastille.task.factory import Factory, model_factory
from pastille.task.load import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from pastille.recipe import TaskSection

_BASELINE, _BEFORE = "baseline", "before"
_UNTRAINED: Final = ("torchvision:", "timm:")  # built without weights
_WEIGHTS: Final = (".safetensors", ".bin", ".h5", ".msgpack")  # as transformers writes and wrote them
_CASES: Final = 32  # that show whether a model answers with probabilities
_NUMBERS: Final = 8  # fewer that lie between 0 and 1 may do so by chance


def teacher_models(
    teachers: Sequence[Teacher], task: Task, before: nn.Module, base: Path
) -> list[tuple[str, float, nn.Module]]:
    """Who teaches.

    Args:
        teachers: As asked.
        task: Its model is ``baseline``.
        before: The model as it comes to the stage; not copied.
        base: The recipe's folder.

    Returns:
        Name, share among all of them (they sum to 1), module in eval mode.

    Raises:
        UsageError: A reference cannot be resolved, or the model does not answer like the task's.
    """
    whole = sum(teacher.weight for teacher in teachers)
    own = {_BASELINE: task.model, _BEFORE: before}
    return [
        (name, t.weight / whole, own[t.model] if t.model in own else _teacher(t, task, base))
        for name, t in zip(_names(teachers), teachers, strict=True)
    ]


def _names(teachers: Sequence[Teacher]) -> list[str]:
    """What each is called: by its weights or its number too, where one callable builds several."""
    models = [t.model for t in teachers]
    files = [f"{t.model} ({t.weights})" if t.weights is not None else t.model for t in teachers]
    names = [file if models.count(model) > 1 else model for file, model in zip(files, models, strict=True)]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]


def _teacher(asked: Teacher, task: Task, base: Path) -> nn.Module:
    key = "distill.teachers"
    untrained = asked.model.startswith(_UNTRAINED) or _is_bare(_section(asked, task), base)
    if asked.weights is None and untrained:
        raise TaskError(
            f"{key}: {asked.model} is built untrained and has nothing to teach; add weights: its trained "
            ".safetensors or .pt file"
        )
    module = brought(asked, task, base, key=key)[0]
    _check_scale(module, task, f"{key}: {asked.model}")
    return module


def brought(asked: Student | Teacher, task: Task, base: Path, *, key: str) -> tuple[nn.Module, Factory]:
    """A model that a recipe names by reference.

    Args:
        asked: Its ``model`` is a reference.
        task: What it must answer like.
        base: The recipe's folder.
        key: The recipe's key, for errors.

    Returns:
        The module in eval mode, with its weights where there are some, and what builds it untrained.

    Raises:
        UsageError: The reference cannot be resolved, the weights do not fit, or it does not answer like the
            task's model.
    """
    section = _section(asked, task)
    recipe = task.recipe.model_copy(update={"task": section})
    with _told(key):
        build = model_factory(section, base, seed=task.recipe.seed)
        module = build().eval() if _is_bare(section, base) else load_model(recipe, base, build)
        check_answers(module, task, f"{key}: {asked.model}")
    return module, build


def brought_factory(asked: Student, task: Task, base: Path) -> Factory:
    """What builds a student of its own, untrained.

    Raises:
        UsageError: The reference cannot be resolved.
    """
    with _told("distill.student"):
        return model_factory(_section(asked, task), base, seed=task.recipe.seed)


def _section(asked: Student | Teacher, task: Task) -> TaskSection:
    given = {"model": asked.model, "arguments": asked.arguments, "weights": asked.weights}
    return task.recipe.task.model_copy(update=given)


def _is_bare(section: TaskSection, base: Path) -> bool:
    """Whether a folder of transformers describes a model that is still to be trained.

    One with weights in a form that is not read is none: its student would begin from nothing unasked.
    """
    folder = section.model.removeprefix("hf:")
    if folder == section.model or section.weights is not None or not (base / folder).is_dir():
        return False
    return not any("model" in file.stem and file.suffix in _WEIGHTS for file in (base / folder).iterdir())


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Errors name the key that was written, not the task's, which resolves references alike."""
    try:
        yield
    except PastilleError as error:
        if str(error).startswith("task."):
            error.args = (f"{key}.{str(error).removeprefix('task.')}", *error.args[1:])
        raise


def check_answers(module: nn.Module, task: Task, what: str) -> None:
    """See that a model takes the task's inputs, and answers like the task's model.

    Args:
        module: In eval mode.
        task: The user's.
        what: Names it in errors.

    Raises:
        TaskError: It does not.
    """
    order = label_problem(module, task.recipe.task.labels)
    if order:
        raise TaskError(f"{what}: {order}")
    batch = example_batch(task.splits.train.inputs)
    with torch.inference_mode():
        expected = forward(task.model, batch)
        try:
            out: Any = forward(module, batch)
        except UsageError:
            raise
        except Exception as error:
            raise TaskError(
                f"{what} does not accept the inputs of the task: {one_line(error, 200)}"
            ) from error
    if not isinstance(out, torch.Tensor) or not out.is_floating_point():
        raise TaskError(f"{what} must answer with a tensor of logits or numbers, got {_kind(out)}")
    if out.shape != expected.shape:
        raise TaskError(f"{what} {_other_shape(tuple(out.shape), tuple(expected.shape), task)}")
    if not bool(torch.isfinite(out).all()):
        raise TaskError(f"{what} answers NaN or infinity to the first training inputs; check its weights")


def _kind(out: object) -> str:
    return str(out.dtype) if isinstance(out, torch.Tensor) else type(out).__name__


def _other_shape(found: tuple[int, ...], expected: tuple[int, ...], task: Task) -> str:
    labels = task.recipe.task.labels
    if len(found) == len(expected) > 1 and found[1] != expected[1]:
        names = f" ({', '.join(labels[:6])}{' …' if len(labels) > 6 else ''})" if labels else ""
        return (
            f"answers with {found[1]} numbers a case, the model of the task with {expected[1]}{names}; both "
            "must have the same classes"
        )
    return f"answers with shape {found}, the model of the task with {expected}; both must answer alike"


def label_problem(module: nn.Module, labels: Sequence[str]) -> str | None:
    """Why a model's own names of its outputs contradict the task's labels, or None if they do not.

    Args:
        module: May carry names as ``config.id2label`` (transformers) or as a list ``labels``.
        labels: Of the task, in the order of its outputs.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(1, 2)
        >>> net.labels = ["sick", "well"]
        >>> label_problem(net, ["well", "sick"])
        'its labels are in the order sick, well, those of the task well, sick; bring them into one order'
    """
    own = _own_labels(module)
    plain = [name.casefold() for name in own], [name.casefold() for name in labels]
    misplaced = [n for i, n in enumerate(plain[0]) if n in plain[1] and plain[1].index(n) != i]
    if not misplaced:
        return None
    return (
        f"its labels are in the order {', '.join(own)}, those of the task {', '.join(labels)}; bring them "
        "into one order"
    )


def _own_labels(module: nn.Module) -> list[str]:
    inner = getattr(module, "model", module)
    named = getattr(getattr(inner, "config", None), "id2label", None)
    if isinstance(named, dict):
        return [str(named[i]) for i in sorted(named)]
    own = getattr(module, "labels", None)
    return [str(name) for name in own] if isinstance(own, list | tuple) else []


def _check_scale(module: nn.Module, task: Task, what: str) -> None:
    """A trained model that answers with probabilities where the task has logits, or the other way round."""
    section = task.recipe.task
    batch = example_batch(task.splits.train.inputs, min(_CASES, task.splits.train.n))
    with torch.inference_mode():
        out = forward(module, batch).float().numpy()
    if not section.labels or out.size < _NUMBERS or float(out.max()) == float(out.min()):
        return
    found = "probabilities" if looks_like_probabilities(section.kind, out) else "logits"
    if found != section.outputs:
        raise TaskError(
            f"{what} seems to answer with {found}, the model of the task with {section.outputs}; both must "
            "answer alike"
        )
