"""The proof that channels were cut where they are read: nothing but the removed channels is missing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from pastille.errors import PreconditionError
from pastille.pruning.units import Entries
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

RELATIVE_TOLERANCE = 1e-4  # rounding gives up to 1e-6

# What computes over all channels, so that it changes with their number although nothing is wrong.
_ACROSS_CHANNELS = {"NativeLayerNorm", "NativeGroupNorm", "Softmax", "LogSoftmax", "Bmm"}
_REDUCTIONS = {"Mean", "Sum", "Var", "Std", "Norm", "LinalgVectorNorm", "Max", "Min", "Amax", "Amin"}


Place = tuple[str, int]  # a parameter and one of its axes


@final
class Reads:
    """Keeps count of which entries of the original parameters are gone, while layers shrink."""

    def __init__(self, model: nn.Module) -> None:
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._kept: dict[Place, Tensor] = {}

    def remove_(self, reads: Iterable[Entries]) -> None:
        """Note that parameters lose entries, by their present index."""
        for entries in reads:
            place = entries.parameter, entries.axis
            kept = self._kept.get(place, torch.arange(self._shapes[entries.parameter][entries.axis]))
            self._kept[place] = kept[~torch.isin(torch.arange(len(kept)), entries.indices)]

    def removed(self) -> dict[Place, Tensor]:
        """Parameter and axis -> its entries that are gone, by their original index."""
        gone = {}
        for (name, axis), kept in self._kept.items():
            before = torch.arange(self._shapes[name][axis])
            gone[name, axis] = before[~torch.isin(before, kept)]
        return {place: indices for place, indices in gone.items() if len(indices)}


def check_followed(
    original: nn.Module, pruned: nn.Module, removed: Mapping[Place, Tensor], batch: Mapping[str, Tensor]
) -> None:
    """Compare the pruned model with the original that does not read the removed channels.

    Both answer alike exactly if every layer lost the same channels that its readers lost. Code that
    moves channels (a shuffle, a reshape, padding) can deceive the tracer, and the pruned model then
    runs, but reads the wrong ones.

    Args:
        original: In eval mode, every parameter with a gradient; not modified.
        pruned: The result.
        removed: From `Reads.removed`.
        batch: Example inputs.

    Raises:
        PreconditionError: They answer differently, and no normalization over channels explains it.
    """
    blind = copy.deepcopy(original)
    for (name, axis), entries in removed.items():
        with torch.no_grad():
            blind.get_parameter(name).index_fill_(axis, entries, 0.0)
    with torch.enable_grad():
        expected, answer = forward(blind, batch), forward(pruned, batch)
    scale = float(expected.detach().abs().max())
    error = float((answer - expected).detach().abs().max())
    if error <= RELATIVE_TOLERANCE * scale or any(map(_is_across_channels, _nodes(expected))):
        return
    raise PreconditionError(
        f"prune: pruned layers would read other channels than before (answers differ by {error:.2g}): "
        "the model's code shuffles, pads or reshapes channels; protect the layers around that code "
        "(prune.protect) or leave prune out of the plan"
    )


def _nodes(output: Tensor) -> Iterator[Any]:
    """Every operation that an output was computed by."""
    pending, seen = [output.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending.extend(f for f, _ in node.next_functions)


def _is_across_channels(node: Any) -> bool:
    name = type(node).__name__.partition("Backward")[0]
    if name in _ACROSS_CHANNELS or "Attention" in name:
        return True
    if name not in _REDUCTIONS:
        return False
    # Over positions alone, axes from 2 on of (N, C, positions …), the number of channels is of no matter.
    rank, dims = len(getattr(node, "_saved_self_sym_sizes", ())), getattr(node, "_saved_dim", ())
    axes = [_axis(d, rank) for d in ([dims] if isinstance(dims, int) else dims or [])]
    return not axes or min(axes) < 2


def _axis(dim: int, rank: int) -> int:
    dim = dim - (1 << 64) if dim >= 1 << 63 else dim  # autograd shows a negative axis without its sign
    return dim % rank if rank else dim
