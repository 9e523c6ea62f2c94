"""Reading trained weights without running anything that came with them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pastille.errors import WeightsError
from pastille.references import one_line
from pastille.task.huggingface import Logits, as_loaded

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel / DDP, torch.compile
_MAX_WRAPPERS = 4  # a checkpoint may hold itself
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
    loaded = _read(path)
    tensors = {str(k): v for k, v in _unwrap(loaded).items() if isinstance(v, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise WeightsError(
            f"task.weights: {path.name} holds no state dict, itself or under {', '.join(_WRAPPERS)}, "
            f"but {keys[:120] or 'nothing'}; save model.state_dict(), best as .safetensors"
        )
    return _without_prefix(tensors)


def _read(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and not _begins_as_pickle(path):
            raise WeightsError(
                f"task.weights: {path.name} is not a file of weights; .safetensors and what torch.save "
                "writes are read"
            ) from None
        # Not torch's own message: it advises to load the file without protection.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise WeightsError(
            f"task.weights: {path.name} holds more than tensors{what}, and nothing else is loaded, as it "
            "could run code: save model.state_dict(), best as .safetensors"
        ) from None
    except Exception as error:
        raise WeightsError(
            f"task.weights: {path.name} cannot be read, it may be cut off or of another kind "
            f"({one_line(error, 120)}); .safetensors and what torch.save writes are read"
        ) from None


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _unwrap(loaded: Any) -> Mapping[Any, Any]:
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(loaded, Mapping):
            return {}
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
            Or a tensor holds NaN.
    """
    own = model.state_dict()
    tensors = _named_like(own, tensors)
    if isinstance(model, Logits) and tensors.keys() != own.keys():
        tensors = as_loaded(model, tensors)
    tied = {x.data_ptr() for name, x in own.items() if name in tensors and x.numel()}
    missing = [n for n, x in own.items() if n not in tensors and x.data_ptr() not in tied]
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
    broken = [name for name, x in tensors.items() if x.is_floating_point() and x.isnan().any()]
    if broken:
        raise WeightsError(f"task.weights: {source} holds NaN in {_some('tensors', broken)}; train again")
    model.load_state_dict(dict(tensors), strict=False)  # tied weights may be in the file once


def _named_like(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names as the model has them, where a wrapper on either side put a prefix before all of them.

    Pastille itself wraps a transformers model as ``model.``; and a model may have a part that is
    called like what DataParallel adds.
    """
    names = [tensors, *({f"{p}{n}": x for n, x in tensors.items()} for p in ("model.", *_PREFIXES))]
    return max(names, key=lambda named: len(named.keys() & own.keys()))


def _some(kind: str, names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{rest})"
