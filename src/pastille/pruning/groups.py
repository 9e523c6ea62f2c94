"""Which channels must go together: the coupled groups of a network, found by torch-pruning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pastille.errors import PastilleError, PreconditionError
from pastille.pruning.units import ChannelGroup, Cut, Entries, Member
from pastille.pruning.whole import WEIGHTED, Traced, final_layers, why_whole
from pastille.references import one_line
from pastille.task.forward import answers

if TYPE_CHECKING:
    from torch import Tensor


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
            model, dict(batch), forward_fn=lambda m, x: list(answers(m, x)), verbose=False
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
    num_channels = len(group[0].idxs)
    makers = {m: idxs for m, idxs, makes in _layers(group, graph) if makes}
    outputs = tuple(names[m] for m in makers)
    traced = Traced(
        outputs=outputs,
        through=tuple(item.dep.target.module for item in group.items),
        one_to_one=all(len(idxs) == num_channels == out_width(m) for m, idxs in makers.items()),
    )
    return ChannelGroup(
        name=names[group[0].dep.target.module],
        kind="channels",
        num_channels=num_channels,
        outputs=outputs,
        members=tuple(_members(group, graph, names)),
        whole=why_whole(traced, model, protect=protect, last=last),
        cut=lambda channels: _cut(group, graph, names, channels),
    )


def _cut(group: Any, graph: Any, names: Mapping[nn.Module, str], channels: Tensor) -> Cut:
    root = group[0].dep
    with _explained():
        fresh = graph.get_pruning_group(root.target.module, root.handler, channels.tolist())

    def apply() -> None:
        with _explained():
            fresh.prune(record_history=False)

    layers = list(_layers(fresh, graph))
    return Cut(
        reads=tuple(
            Entries(parameter=f"{names[m]}.weight", axis=_axis(m, makes=False), indices=torch.tensor(idxs))
            for m, idxs, makes in layers
            if not makes
        ),
        exact=all(len(idxs) == len(channels) for _, idxs, makes in layers if makes),
        apply=apply,
    )


def _layers(group: Any, graph: Any) -> Iterator[tuple[nn.Module, list[int], bool]]:
    """Each convolution and linear layer of a group, its channels, and whether it makes or reads them."""
    for item in group.items:
        if isinstance(item.dep.target.module, WEIGHTED):
            makes = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
            yield item.dep.target.module, list(item.idxs), makes


def out_width(layer: nn.Module) -> int:
    """Output channels of a convolution or a linear layer."""
    return int(getattr(layer, "out_channels", None) or layer.out_features)  # type: ignore[arg-type]


def in_width(layer: nn.Module) -> int:
    """Input channels of a convolution or a linear layer."""
    return int(getattr(layer, "in_channels", None) or layer.in_features)  # type: ignore[arg-type]


def _axis(layer: nn.Module, *, makes: bool) -> Literal[0, 1]:
    """Where a layer's weight has its output or its input channels."""
    # Transposed convolutions store (in, out, …), all others (out, in, …).
    return 0 if makes != bool(getattr(layer, "transposed", False)) else 1


def _members(group: Any, graph: Any, names: Mapping[nn.Module, str]) -> Iterator[Member]:
    for item in group.items:
        layer = item.dep.target.module
        weight = getattr(layer, "weight", None) if layer in names else None
        if not isinstance(weight, torch.Tensor) or any(i is None for i in item.root_idxs):
            continue
        makes = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
        weighted = isinstance(layer, WEIGHTED)
        axis = _axis(layer, makes=makes) if weighted else 0
        if max(item.idxs, default=0) < weight.shape[axis]:
            yield Member(
                entries=Entries(
                    parameter=f"{names[layer]}.weight", axis=axis, indices=torch.tensor(item.idxs)
                ),
                channels=torch.tensor(item.root_idxs),
                role=("makes" if makes else "reads") if weighted else "scales",
            )


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
