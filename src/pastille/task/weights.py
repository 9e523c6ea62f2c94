"""Reading trained weights without running anything that came with them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pastille.errors import WeightsError
from pastille.references import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel / DDP, torch.compile
_SHOWN = 5


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a checkpoint with ``weights_only=True``.

    Checkpoints are unwrapped: a ``state_dict``, ``model_state_dict`` or ``model`` entry, and the
    prefixes that DataParallel and ``torch.compile`` add.

    Raises:
        WeightsError: The file is missing or unreadable, holds more than tensors, or holds none.
    """
    if not path.is_file():
        raise WeightsError(f"task.weights: there is no file {path}")
    try:
        loaded = _read(path)
    except (pickle.UnpicklingError, AttributeError, EOFError, KeyError, IndexError, RuntimeError) as error:
        raise WeightsError(
            f"task.weights: {path.name} is not a file of tensors alone, and nothing else is loaded "
            f"(it could run code): save model.state_dict(), best as .safetensors ({one_line(error, 120)})"
        ) from None
    except Exception as error:
        raise WeightsError(f"task.weights: cannot read {path.name}: {one_line(error)}") from None
    tensors = {str(k): v for k, v in _unwrap(loaded).items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"task.weights: {path.name} holds no tensors")
    return _without_prefix(tensors)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(loaded: Any) -> Mapping[Any, Any]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in _WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            return loaded
        loaded = inner
    return {}


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _without_prefix({k.removeprefix(prefix): v for k, v in tensors.items()})
    return tensors


def load_weights_(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Put weights into a module, in place; every tensor must fit.

    Raises:
        WeightsError: Keys are missing, unexpected, or of another shape; all are listed in its fields.
    """
    tensors = _for_wrapper(model, tensors)
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    mismatched = [
        f"{name}: file {tuple(tensors[name].shape)}, model {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if missing or unexpected or mismatched:
        found = [
            _some(kind, names)
            for kind, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", mismatched),
            )
            if names
        ]
        raise WeightsError(
            f"task.weights: {source} does not fit the model: {'; '.join(found)}",
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )
    model.load_state_dict(dict(tensors))


def _for_wrapper(model: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names for a transformers model, which Pastille wraps as ``model.`` to take its logits."""
    from pastille.task.factory import Logits

    if not isinstance(model, Logits) or all(name.startswith("model.") for name in tensors):
        return tensors
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _some(kind: str, names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{rest})"
