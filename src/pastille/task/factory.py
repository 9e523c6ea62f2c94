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

from pastille.errors import PastilleError, TaskError, UsageError
from pastille.references import load_callable, one_line

if TYPE_CHECKING:
    from torch import Tensor

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
    built_in = {"torchvision": _torchvision, "timm": _timm, "hf": _huggingface}.get(source)
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
        raise _missing("timm", "vision") from None
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


def _huggingface(name: str, section: TaskSection, base: Path) -> Callable[..., Any]:
    folder = base / name
    if not (folder / "config.json").is_file():
        raise TaskError(f"{_KEY}: hf:DIR must be a folder that holds config.json, got {folder}")
    if section.arguments:
        raise TaskError(f"task.arguments must be left out with {section.model}: its config.json has them")
    config = _transformers_config(folder)
    build = _transformers_class(config, folder)
    return lambda: Logits(build(config))


def _transformers_config(folder: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise _missing("transformers", "text") from None
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise TaskError(f"{_KEY}: cannot read {folder}/config.json: {one_line(error, 160)}") from error


def _transformers_class(config: Any, folder: Path) -> Callable[..., Any]:
    import transformers

    names = config.architectures or []
    found = getattr(transformers, names[0], None) if len(names) == 1 else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TaskError(
            f"{_KEY}: {folder}/config.json must name one model of transformers under architectures, "
            f"got {names}"
        )
    return found


class Logits(nn.Module):
    """A transformers model whose answer is its logits alone, so that it exports like any other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The ``logits`` of the wrapped model's output, ``(N, K)``."""
        out = self.model(*args, **kwargs)
        if not hasattr(out, "logits"):
            raise TaskError(
                f"{_KEY}: a {type(self.model).__name__} answers without logits; bring a model with a head, "
                "such as ...ForSequenceClassification"
            )
        logits: Tensor = out.logits
        return logits


def import_torchvision() -> Any:
    """Import torchvision, also where its compiled operators do not fit this build of torch.

    A torchvision built for CUDA fails to import beside a CPU build of torch, because it describes
    operators that its library then did not register. Declaring the two that are described at
    import is enough for every classification model; detection operators stay out of reach.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return _torchvision_module()
    except ImportError:
        raise _missing("torchvision", "vision") from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)  # the declarations live as long as this object
    return _torchvision_module()


_DECLARED: list[Any] = []


def _torchvision_module() -> Any:
    import torchvision
    import torchvision.models

    return torchvision


def _missing(package: str, extra: str) -> UsageError:
    return UsageError(f"{_KEY}: {package} is not installed; run: pip install 'pastille[{extra}]'")


def _unknown(name: str, known: list[str], package: str) -> TaskError:
    import difflib

    close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "see its documentation"
    return TaskError(f"{_KEY}: {package} has no model {name!r}; closest: {close}")
