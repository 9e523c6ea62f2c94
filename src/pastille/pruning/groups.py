"""Which channels must go together: the coupled groups of a network, found by torch-pruning."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pastille.errors import PastilleError, PreconditionError
from pastille.references import one_line
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
# Code that reshapes by a number of heads would run on with the wrong heads.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that are removed together, across every layer they run through.

    Attributes:
        name: The layer that makes the channels.
        num_channels: How many it makes now.
        outputs: Layers whose output channels are in the group, the residual partners included.
        members: Weights by channel, as `criteria.channel_scores` takes them.
        whole: Why the group must be left whole; empty if it may be pruned.
    """

    name: str
    num_channels: int
    outputs: tuple[str, ...]
    members: list[tuple[Tensor, Tensor]]
    whole: str
    _group: Any

    def columns(self, channels: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Which input channels of which layers some channels of the group are, as the layers are now."""
        root = self._group[0].dep
        graph = self._group._DG
        for item in graph.get_pruning_group(root.target.module, root.handler, channels.tolist()).items:
            layer, is_output = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
            if isinstance(layer, WEIGHTED) and not is_output:
                yield layer, torch.tensor(item.idxs)

    def remove_(self, channels: Tensor) -> None:
        """Remove channels from every layer of the group, in place.

        Raises:
            PreconditionError: A layer cannot be cut.
        """
        with _explained():
            self._group.prune(channels.tolist(), record_history=False)


def channel_groups(
    model: nn.Module, batch: Mapping[str, Tensor], *, protect: Sequence[str] = ()
) -> Iterator[ChannelGroup]:
    """Trace a model and find its coupled channel groups.

    Each group is worked out when it is asked for, so the one before may have been pruned.

    Args:
        model: In eval mode, every parameter with a gradient; pruning a group changes it.
        batch: Example inputs, ``{name: (N, ...)}``.
        protect: Module names left whole with all that they hold, ``*`` matches any part.

    Yields:
        Every group, those that are left whole with the reason.

    Raises:
        PreconditionError: The model cannot be traced.
    """
    import torch_pruning as tp

    names = {module: name for name, module in model.named_modules()}
    with _explained():
        graph = tp.DependencyGraph().build_dependency(
            model, dict(batch), forward_fn=lambda m, x: forward(m, x), verbose=False
        )
        last = final_layers(model, batch)
        # Lazily: removing channels shifts the indices of groups that are concatenated with them.
        for group in graph.get_all_groups():
            yield _channel_group(group, graph, model, names, protect, last)


def _channel_group(
    group: Any,
    graph: Any,
    model: nn.Module,
    names: Mapping[nn.Module, str],
    protect: Sequence[str],
    last: frozenset[str],
) -> ChannelGroup:
    root = group[0].dep.target.module
    through = [item.dep.target.module for item in group.items]
    made = [
        item.dep.target.module for item in group.items if graph.is_out_channel_pruning_fn(item.dep.handler)
    ]
    outputs = tuple(dict.fromkeys(names[m] for m in made if isinstance(m, WEIGHTED) and m in names))
    return ChannelGroup(
        name=names[root],
        num_channels=len(group[0].idxs),
        outputs=outputs,
        members=list(_members(group, graph)),
        whole=_why_whole(through, outputs, model, protect, last),
        _group=group,
    )


def _members(group: Any, graph: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for item in group.items:
        layer = item.dep.target.module
        if not isinstance(layer, WEIGHTED) or any(i is None for i in item.root_idxs):
            continue
        is_output = graph.is_out_channel_pruning_fn(item.dep.handler)
        # Transposed convolutions store (in, out, …), all others (out, in, …).
        axis = int(is_output == bool(getattr(layer, "transposed", False)))
        weights = layer.weight.detach().transpose(0, axis).flatten(1)
        if max(item.idxs, default=0) < len(weights):
            yield weights[list(item.idxs)], torch.tensor(item.root_idxs)


def _why_whole(
    through: Sequence[object],
    outputs: Sequence[str],
    model: nn.Module,
    protect: Sequence[str],
    last: frozenset[str],
) -> str:
    if any(name in last for name in outputs):
        return "makes the model's output"
    if any(is_within(name, pattern) for name in outputs for pattern in protect):
        return "protected by the recipe"
    # Its input side too: what feeds a grouped convolution would have to be cut evenly over its groups.
    if any(isinstance(m, nn.modules.conv._ConvNd) and _is_grouped(m) for m in through):
        return "grouped convolution"
    if any(isinstance(m, nn.MultiheadAttention | nn.RNNBase) for m in through):
        return "attention or recurrent layer"
    if any(_has_heads(model, name) for name in outputs):
        return "part of an attention layer"
    return ""


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


def _is_grouped(conv: nn.modules.conv._ConvNd) -> bool:
    return conv.groups > 1 and not conv.groups == conv.in_channels == conv.out_channels


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
        seeds = [forward(model, batch).grad_fn]
    found: set[str] = set()
    seen: set[Any] = set()
    while seeds:
        node = seeds.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names = {owner[v] for v in _leaves(node) if v in owner}
        if names:
            found |= names
        else:
            seeds.extend(f for f, _ in node.next_functions)
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


@contextmanager
def _explained() -> Iterator[None]:
    """Gradients on, torch-pruning's warnings off, and what it stumbles over as one line with advice."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except PastilleError:
            raise
        except Exception as error:
            raise PreconditionError(
                f"prune: the channels of this model cannot be followed ({one_line(error, 160)}); "
                "leave prune out of the plan"
            ) from error
