"""The safe form of a changed model: ``architecture.json`` and ``model.safetensors``, no pickle.

The user's own factory builds the original module in the fresh process; the plan then says which
integer attributes (``out_channels``, ``num_features`` …) and which tensor shapes differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pastille.errors import IntegrityError
from pastille.files import produce_atomic, read_bounded, write_atomic
from pastille.values import from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
PLAN, WEIGHTS = "architecture.json", "model.safetensors"
MAX_PLAN_BYTES = 64 << 20

Size = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a model differs from what its factory builds.

    Attributes:
        schema: Version of this form.
        attributes: Module -> attribute -> its value, integers and tuples of integers alone.
        shapes: Tensor of the state dict -> its shape, where it differs.
    """

    schema: int = SCHEMA
    attributes: Mapping[str, Mapping[str, Size]]
    shapes: Mapping[str, tuple[int, ...]]


def architecture_of(model: nn.Module, original: nn.Module) -> Architecture:
    """Compare a changed model with what its factory builds.

    Example:
        >>> from torch import nn
        >>> architecture_of(nn.Linear(2, 3), nn.Linear(2, 4)).attributes
        {'': {'out_features': 3}}
    """
    known = dict(original.named_modules())
    attributes = {
        name: changed
        for name, module in model.named_modules()
        if name in known and (changed := dict(_changed_sizes(module, known[name])))
    }
    own = original.state_dict()
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in own or tensor.shape != own[name].shape
    }
    return Architecture(attributes=attributes, shapes=shapes)


def _changed_sizes(module: nn.Module, original: nn.Module) -> Iterator[tuple[str, Size]]:
    for name, value in vars(module).items():
        old = vars(original).get(name)
        if not name.startswith("_") and name != "training" and value != old and _is_size(value):
            yield name, value


def _is_size(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(x, int) for x in value)
    return isinstance(value, int) and not isinstance(value, bool)


def rebuild(original: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Turn what the factory built into the changed model.

    Args:
        original: Fresh from the factory; changed in place and returned in eval mode.
        architecture: From `architecture_of`.
        tensors: The whole state dict.

    Raises:
        IntegrityError: The plan names modules, attributes or tensors that the factory's model does
            not have, or the tensors do not fit: it is not the factory that the model came from.
    """
    try:
        for name, sizes in architecture.attributes.items():
            module = original.get_submodule(name)
            for attribute, value in sizes.items():
                if not _is_size(getattr(module, attribute)):
                    raise AttributeError(f"{name}.{attribute} is no size")
                setattr(module, attribute, value)
        for name, shape in architecture.shapes.items():
            _reshape_(original, name, shape)
        original.load_state_dict(dict(tensors))
    except (AttributeError, RuntimeError, KeyError) as error:
        problem = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{PLAN} does not fit what the model's factory builds: {problem}") from error
    return original.eval()


def _reshape_(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    new = torch.empty(shape, dtype=old.dtype)
    if isinstance(old, torch.nn.Parameter):
        setattr(owner, leaf, torch.nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, new)


def write_model(model: nn.Module, original: nn.Module, folder: Path) -> None:
    """Write a model's safe form.

    Raises:
        OutputError: It cannot be written.
    """
    from safetensors.torch import save_file

    # A copy of each: safetensors refuses tensors that share memory (tied weights, views).
    tensors = {name: x.detach().clone().contiguous() for name, x in model.state_dict().items()}
    write_atomic(folder / PLAN, to_json(architecture_of(model, original)))
    produce_atomic(folder / WEIGHTS, lambda draft: save_file(tensors, draft))


def read_model(build: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """Rebuild a model from its safe form, in a fresh process too.

    Args:
        build: The user's factory.
        folder: Holds ``architecture.json`` and ``model.safetensors``.

    Raises:
        IntegrityError: A file is missing or malformed, or does not fit the factory.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    data = read_bounded(folder / PLAN, MAX_PLAN_BYTES, what="architecture")
    try:
        architecture = from_json(Architecture, data)
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{folder / PLAN} is not an architecture: {problem}") from None
    if architecture.schema != SCHEMA:
        raise IntegrityError(
            f"{folder / PLAN} has schema {architecture.schema}; this Pastille reads {SCHEMA}"
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"cannot read {folder / WEIGHTS}: {error}") from None
    return rebuild(build(), architecture, tensors)
