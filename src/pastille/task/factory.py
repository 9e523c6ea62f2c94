"""Where a model comes from: the recipe's ``task.model``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pastille.errors import PastilleError, TaskError
from pastille.references import load_callable, one_line
from pastille.task.huggingface import huggingface
from pastille.task.torchvision import import_torchvision, missing

if TYPE_CHECKING:
    from pastille.recipe import TaskSection

Factory = Callable[[], nn.Module]

_KEY = "task.model"


def model_factory(section: TaskSection, base: Path, *, seed: int = 0) -> Factory:
    """Turn ``task.model`` into a function that builds the untrained module.

    Args:
        section: The recipe's task.
        base: The recipe's folder.
        seed: Set before each build, so that an untrained layer is the same each time.

    Returns:
        A factory; it raises `TaskError` if the user's callable raises or returns no module.

    Raises:
        UsageError: The reference cannot be resolved, or a package that it needs is not installed.
    """
    source, _, name = section.model.partition(":")
    built_in = {"torchvision": _torchvision, "timm": _timm, "hf": huggingface}.get(source)
    call = built_in(name, section, base) if built_in else load_callable(section.model, base, key=_KEY)
    return partial(_build, call, section.model, dict(section.arguments), seed)


def _build(call: Callable[..., Any], reference: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
            torch.manual_seed(seed)
            model = call(**arguments)
        # A copy: a callable that returns the same module each time must not hand out the trained one.
        return copy.deepcopy(model) if isinstance(model, nn.Module) else _refuse(model, reference)
    except PastilleError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{_KEY}: {reference} raised {one_line(error)}") from error


def _refuse(model: object, reference: str) -> nn.Module:
    raise TaskError(f"{_KEY}: {reference} must return a torch.nn.Module, got {type(model).__name__}")


def _num_outputs(section: TaskSection) -> int:
    return len(section.labels) or 1


def _torchvision(name: str, section: TaskSection, _base: Path) -> Callable[..., Any]:
    models = import_torchvision().models
    known = models.list_models(module=models)  # classifiers; detectors and the like fetch a backbone
    if name not in known:
        raise _unknown(name, known, "torchvision")
    return _quietly(partial(models.get_model, name, weights=None, num_classes=_num_outputs(section)))


def _timm(name: str, section: TaskSection, _base: Path) -> Callable[..., Any]:
    import_torchvision()  # timm imports it
    try:
        import timm
    except ImportError:
        raise missing("timm", "vision") from None
    known = timm.list_models()
    if name not in known:
        raise _unknown(name, known, "timm")
    return _quietly(partial(timm.create_model, name, pretrained=False, num_classes=_num_outputs(section)))


def _quietly(build: Callable[..., Any]) -> Callable[..., Any]:
    """Without what a library tells its own developers: deprecations, changes of initialization."""

    def quiet(**arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build(**arguments)

    return quiet


def _unknown(name: str, known: list[str], package: str) -> TaskError:
    import difflib

    close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "see its documentation"
    return TaskError(f"{_KEY}: {package} has no model {name!r}; closest: {close}")
