"""Models of transformers: a folder with ``config.json`` and weights, as ``save_pretrained`` writes it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pastille.errors import TaskError, UsageError
from pastille.references import one_line
from pastille.task.torchvision import import_torchvision, missing

if TYPE_CHECKING:
    from torch import Tensor

    from pastille.recipe import TaskSection

_KEY = "task.model"
_PREFIX = "model."  # of every name, as `Logits` wraps the model


def huggingface(name: str, section: TaskSection, base: Path) -> Callable[..., Any]:
    """A function that builds the untrained model of ``hf:DIR``.

    Args:
        name: The folder, relative to ``base``.
        section: The recipe's task.
        base: The recipe's folder.

    Raises:
        TaskError: The folder does not describe one model of transformers.
        UsageError: transformers is not installed.
    """
    folder = base / name
    if not (folder / "config.json").is_file():
        raise TaskError(f"{_KEY}: hf:DIR must be a folder that holds config.json, got {folder}")
    if section.arguments:
        raise TaskError(f"task.arguments must be left out with {section.model}: its config.json has them")
    config = _transformers_config(folder)
    build = _transformers_class(config, folder)
    return lambda: Logits(build(config))


def _transformers_config(folder: Path) -> Any:
    with contextlib.suppress(UsageError):
        import_torchvision()  # transformers imports it where it is installed
    try:
        import transformers
    except ImportError:
        raise missing("transformers", "text") from None
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


def as_loaded(model: Logits, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that this version of transformers uses.

    Files keep the names of the version that a model was made with; transformers renames, splits and
    joins tensors as it loads them.

    Args:
        model: Wraps a model of the class and the configuration that the weights are for.
        tensors: As the file names them.

    Returns:
        Tensors by the names in ``model``; what does not fit stays as it is in the file.
    """
    inner: Any = model.model
    given = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    with _silence():
        loaded, info = type(inner).from_pretrained(
            None,
            config=inner.config,
            state_dict=dict(given),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    named = {n: x for n, x in loaded.state_dict().items() if n not in info["missing_keys"]}
    named |= {name: torch.empty(shape) for name, shape, _ in info["mismatched_keys"]}
    named |= {name: given.get(name, torch.empty(0)) for name in info["unexpected_keys"]}
    return {_PREFIX + name: tensor for name, tensor in named.items()}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress bars, tables and advice of transformers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
