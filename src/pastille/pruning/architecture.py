"""The safe form of a changed model: ``architecture.json`` and ``model.safetensors``, no pickle.

The user's own factory builds the original module in the fresh process; the plan then says which of its
modules are replaced (`pastille.pruning.replacements`), which integer attributes (``out_channels``,
``num_heads`` …) and which tensor shapes differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pastille.errors import IntegrityError, StageError
from pastille.files import produce_atomic, read_bounded, write_atomic
from pastille.pruning.groups import in_width, out_width
from pastille.pruning.layouts import HEAD_SIZES, HEADS
from pastille.pruning.replacements import Replacement, blank, is_trained, replacements_in
from pastille.pruning.whole import WEIGHTED
from pastille.references import one_line
from pastille.values import from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 2
READABLE = (1, 2)  # 1 had no replacements
PLAN, WEIGHTS = "architecture.json", "model.safetensors"
MAX_PLAN_BYTES = 64 << 20
MAX_SIZE = 1 << 31  # of one axis

# What layers call their widths and numbers of heads: all that a plan may set.
SIZES = frozenset(
    {
        *HEAD_SIZES,
        *("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features"),
        *("num_channels", "num_parameters", "normalized_shape", "embedding_dim"),
        *("hidden_size", "input_size"),
    }
)

Size = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a model differs from what its factory builds.

    Attributes:
        schema: Version of this form.
        attributes: Module -> attribute -> its value, integers and tuples of integers alone.
        shapes: Tensor of the state dict -> its shape, where it differs.
        replacements: Module -> what takes its place, before sizes are compared or set.
    """

    schema: int = SCHEMA
    attributes: Mapping[str, Mapping[str, Size]]
    shapes: Mapping[str, tuple[int, ...]]
    replacements: Mapping[str, Replacement] = field(default_factory=dict)


def architecture_of(model: nn.Module, original: nn.Module) -> Architecture:
    """Compare a changed model with what its factory builds.

    Raises:
        StageError: It has other layers, which a plan of sizes cannot say.

    Example:
        >>> from torch import nn
        >>> architecture_of(nn.Linear(2, 3), nn.Linear(2, 4)).attributes
        {'': {'out_features': 3}}
    """
    replacements = replacements_in(model, original)
    known, own = _replaced(original, replacements)
    attributes = {
        name: changed
        for name, module in model.named_modules()
        if name in known and (changed := dict(_changed_sizes(module, known[name])))
    }
    new = model.state_dict()
    if own.keys() != new.keys():
        odd = sorted(own.keys() ^ new.keys())[:5]
        raise StageError(f"a stage may resize layers, not add or drop any: {', '.join(odd)}")
    shapes = {name: tuple(x.shape) for name, x in new.items() if x.shape != own[name].shape}
    return Architecture(attributes=attributes, shapes=shapes, replacements=replacements)


def _replaced(
    original: nn.Module, replacements: Mapping[str, Replacement]
) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """The modules and the tensors that the factory's model has once some are replaced; it is not changed."""
    modules, tensors = dict(original.named_modules()), dict(original.state_dict())
    for name, replacement in replacements.items():
        new = blank(replacement, original.get_submodule(name), _dtype(original))
        for inside in (modules, tensors):
            for key in [k for k in inside if f"{k}.".startswith(f"{name}.")]:
                del inside[key]
        modules |= {f"{name}.{n}".rstrip("."): m for n, m in new.named_modules()}
        tensors |= {f"{name}.{n}": x for n, x in new.state_dict().items()}
    return modules, tensors


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _changed_sizes(module: nn.Module, original: nn.Module) -> Iterator[tuple[str, Size]]:
    for name in sorted(SIZES & vars(module).keys() & vars(original).keys()):
        value, old = vars(module)[name], vars(original)[name]
        if _is_size(value) and _is_size(old) and value != old:
            yield name, value


def _is_size(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(type(x) is int and 1 <= x <= MAX_SIZE for x in values)


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
        _replace_(original, architecture.replacements)
        _check_tensors(original, architecture, tensors)
        _check_heads(original, architecture)
        for name, sizes in architecture.attributes.items():
            _resize_(original.get_submodule(name), sizes)
        for name, tensor in tensors.items():
            _reshape_(original, name, tuple(tensor.shape))
        original.load_state_dict(dict(tensors))
        _check_widths(original)
    except (AttributeError, RuntimeError, KeyError, ValueError) as error:
        raise _misfit(" ".join(str(error).split())[:200]) from error
    return original.eval()


def _misfit(problem: str) -> IntegrityError:
    return IntegrityError(
        f"{PLAN} does not fit what the model's factory builds: {problem}; "
        "is it the factory that the model came from?"
    )


def _replace_(original: nn.Module, replacements: Mapping[str, Replacement]) -> None:
    """Nothing takes memory yet: the new modules' tensors are made once they are known to be in the file."""
    for name in sorted(replacements):
        new = blank(replacements[name], original.get_submodule(name), _dtype(original))
        for key, parameter in new.named_parameters():
            parameter.requires_grad_(is_trained(f"{name}.{key}", original))
        original.set_submodule(name, new, strict=True)


def _check_tensors(original: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Before anything is made: the plan asks for nothing that the weights do not hold."""
    own = original.state_dict()
    strange = sorted(own.keys() ^ tensors.keys()) + sorted(architecture.shapes.keys() - own.keys())
    if strange:
        raise _misfit(f"{len(strange)} tensors are in one only ({', '.join(strange[:3])})"[:200])
    for name, tensor in tensors.items():
        shape = architecture.shapes.get(name, tuple(own[name].shape))
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != own[name].dtype:
            raise _misfit(
                f"tensor {name} must be {own[name].dtype} {tuple(shape)}, got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )


def _check_heads(original: nn.Module, architecture: Architecture) -> None:
    """Code that reshapes by a number of heads runs on with a wrong one: weights must have changed alike."""
    for name, sizes in architecture.attributes.items():
        old_sizes = vars(original.get_submodule(name))
        changes = set(_changes(original, architecture, name))
        for key in sizes.keys() & set(HEADS):
            old, new = old_sizes.get(key), sizes[key]
            if type(old) is type(new) is int and not any(n * old == o * new for o, n in changes):
                raise AttributeError(f"{name[:80]} does not have {new} heads in its weights")


def _changes(original: nn.Module, architecture: Architecture, name: str) -> Iterator[tuple[int, int]]:
    """Sizes, before and after, of the axes that change of tensors within a module."""
    tensors = original.state_dict()
    for tensor, shape in architecture.shapes.items():
        if tensor.startswith(f"{name}." if name else ""):
            yield from ((o, n) for o, n in zip(tensors[tensor].shape, shape, strict=True) if o != n)


def _resize_(module: nn.Module, sizes: Mapping[str, Size]) -> None:
    for name, value in sizes.items():
        old = vars(module).get(name)
        if name not in SIZES or not _is_size(old) or type(value) is not type(old) or not _is_size(value):
            raise AttributeError(f"{name[:40]!r} of a {type(module).__name__} cannot be set to this value")
        setattr(module, name, value)


def _reshape_(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    if tuple(old.shape) == shape and not old.is_meta:
        return
    new = torch.empty(shape, dtype=old.dtype)
    if isinstance(old, torch.nn.Parameter):
        setattr(owner, leaf, torch.nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, new)


def _check_widths(model: nn.Module) -> None:
    for name, m in model.named_modules():
        if not isinstance(m, WEIGHTED):
            continue
        makes, reads = out_width(m), in_width(m)
        transposed, groups = getattr(m, "transposed", False), getattr(m, "groups", 1)
        if m.weight.shape[:2] != ((reads, makes // groups) if transposed else (makes, reads // groups)):
            raise AttributeError(f"the sizes of {name} differ from its weights")


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
    if architecture.schema not in READABLE:
        raise IntegrityError(
            f"{folder / PLAN} has schema {architecture.schema}; this Pastille reads "
            f"{' and '.join(map(str, READABLE))}"
        )
    if architecture.schema == 1 and architecture.replacements:
        raise IntegrityError(f"{folder / PLAN} has schema 1, which has no replacements")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"cannot read {folder / WEIGHTS}: {one_line(error)}") from None
    return rebuild(build(), architecture, tensors)
