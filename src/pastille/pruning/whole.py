"""Which channels must stay, and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from pastille.task.forward import answers

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
# Code that reshapes by a number of heads would run on with the wrong heads.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
_PRODUCTS = ("Bmm", "Attention")  # of activations, as autograd names them


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What the tracer found of one channel group.

    Attributes:
        outputs: Layers that make its channels.
        through: Every module, parameter and operation that the channels run through.
        one_to_one: Whether each of those layers makes every channel of the group, and no other.
    """

    outputs: tuple[str, ...]
    through: tuple[Any, ...]
    one_to_one: bool


def why_whole(traced: Traced, model: nn.Module, *, protect: Sequence[str], last: frozenset[str]) -> str:
    """Say why no channel of a group may be removed.

    Args:
        traced: The group.
        model: What it was traced in.
        protect: As the recipe asks.
        last: From `final_layers`.

    Returns:
        A few words; empty if the group may be pruned.
    """
    modules = [m for m in traced.through if isinstance(m, nn.Module)]
    if any(name in last for name in traced.outputs):
        return "makes the model's output"
    if any(is_within(name, pattern) for name in traced.outputs for pattern in protect):
        return "protected by the recipe"
    # Its input side too: what feeds a grouped convolution would have to be cut evenly over its groups.
    if any(map(_is_grouped, modules)):
        return "grouped convolution"
    if any(isinstance(m, nn.MultiheadAttention | nn.RNNBase) for m in modules):
        return "attention or recurrent layer"
    if any(map(_is_product, modules)) or any(_has_heads(model, name) for name in traced.outputs):
        return "part of an attention layer"
    if any(parametrize.is_parametrized(m) or _shares_weights(m, model) for m in modules):
        return "its weights are shared with another layer, or computed"
    return "" if traced.one_to_one else REARRANGED


REARRANGED = "its channels are split, joined, padded or rearranged on their way"


def is_within(name: str, pattern: str) -> bool:
    """Whether a pattern names a module, or one that holds it.

    Example:
        >>> is_within("stages.2.conv", "stages.*"), is_within("stages.2.conv", "stage")
        (True, False)
    """
    return any(fnmatch.fnmatchcase(owner, pattern) for owner in _owners(name))


def _owners(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _is_grouped(module: nn.Module) -> bool:
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    return module.groups > 1 and not module.groups == module.in_channels == module.out_channels


def _is_product(module: nn.Module) -> bool:
    operation = str(getattr(module, "_grad_fn", ""))  # torch-pruning's stand-in for an operation
    return any(part in operation for part in _PRODUCTS)


def _shares_weights(module: nn.Module, model: nn.Module) -> bool:
    weight = vars(module).get("_parameters", {}).get("weight")
    owners = (m for m in model.modules() for p in m.parameters(recurse=False) if p is weight)
    return weight is not None and any(m is not module for m in owners)


def _has_heads(model: nn.Module, name: str) -> bool:
    layer = model.get_submodule(name)
    return any(_attends_with(model.get_submodule(owner), layer) for owner in _owners(name))


def _attends_with(owner: nn.Module, layer: nn.Module) -> bool:
    """Whether the owner is an attention layer, and does not only hold one beside this layer."""
    if not _counts_heads(owner):
        return False
    inner = (m for m in owner.modules() if m is not owner and _counts_heads(m))
    return all(any(part is layer for part in m.modules()) for m in inner)


def _counts_heads(module: nn.Module) -> bool:
    # A number: torchvision's vision transformer has its classifier under `heads`.
    return any(isinstance(getattr(module, key, None), int) for key in _HEADS)


def final_layers(model: nn.Module, batch: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the weighted layers whose channels are the model's output.

    Found by walking back from the output through the autograd graph to the first weights, so a
    softmax, a flatten or an addition in between does not hide them.
    """
    owner = {
        parameter: name
        for name, module in model.named_modules()
        if isinstance(module, WEIGHTED)
        for parameter in module.parameters(recurse=False)
    }
    with torch.enable_grad():
        pending = [output.grad_fn for output in answers(model, batch)]
    found: set[str] = set()
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names = {owner[v] for v in _leaves(node) if v in owner}
        if names:
            found |= names
        else:
            pending.extend(f for f, _ in node.next_functions)
    return frozenset(found)


def _leaves(node: Any) -> Iterator[Any]:
    """Parameters that an autograd node uses directly, a transposition in between allowed."""
    for function, _ in node.next_functions:
        if function is None:
            continue
        if hasattr(function, "variable"):
            yield function.variable
        elif type(function).__name__ in {"TBackward0", "TransposeBackward0"}:
            yield from (f.variable for f, _ in function.next_functions if hasattr(f, "variable"))
