"""What can be removed from a model, and its removal: proven to take nothing else."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from pastille.errors import PreconditionError
from pastille.pruning.groups import channel_groups
from pastille.pruning.heads import head_groups, remove_heads_
from pastille.pruning.replacements import is_trained
from pastille.pruning.rewrites import with_convolutions_
from pastille.pruning.units import ChannelGroup
from pastille.pruning.verify import Reads, Unfollowed, check_followed
from pastille.pruning.whole import REARRANGED, UNPROVEN
from pastille.references import one_line
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned model, and what was done to it.

    Attributes:
        model: A new module in eval mode.
        widths: Layer -> output channels (before, after), for the layers that changed.
        left_whole: Layer -> why its channels were all kept; attention layer -> why its heads were.
        heads: Attention layer -> its heads (before, after), for the layers that lost some.
        unrounded: Layer that changed -> why its width is not rounded as asked.
    """

    model: nn.Module
    widths: Mapping[str, tuple[int, int]]
    left_whole: Mapping[str, str]
    heads: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unrounded: Mapping[str, str] = field(default_factory=dict)


class _Broken(PreconditionError):  # noqa: N818, it names a result
    """The pruned model does not run."""

    def __init__(self, problem: str, layers: Collection[str] = ()) -> None:
        where = ", ".join(sorted(layers)[:3]) or "that module"
        super().__init__(
            f"prune: the pruned model no longer runs ({problem}): its code fixes a width by hand; protect "
            f"{where} in the recipe (prune.protect) or leave prune out of the plan"
        )
        self.problem = problem


def survey(
    model: nn.Module, batch: Mapping[str, Tensor], *, protect: Sequence[str] = ()
) -> tuple[ChannelGroup, ...]:
    """Every group of heads and of channels of a model, with its parameters; nothing is changed.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        protect: Module names left whole with all that they hold, ``*`` matches any part.

    Raises:
        PreconditionError: The model cannot be copied or traced.
        TypeError: ``batch`` is no mapping of tensors.
    """
    _check_batch(batch)
    new = with_convolutions_(trainable_copy(model), batch)
    groups = (*head_groups(new, batch, protect=protect), *channel_groups(new, batch, protect=protect))
    known = dict(model.named_parameters())
    return tuple(
        replace(g, members=tuple(m for m in g.members if m.entries.parameter in known)) for g in groups
    )


def remove(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    removals: Mapping[str, Tensor],
    *,
    protect: Sequence[str] = (),
) -> Pruned:
    """A copy of a model without some of its heads and channels.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        removals: Name of a group as `survey` gives it -> the units to remove, ``(n,)`` int64.
        protect: As for `survey`.

    Returns:
        The new model in eval mode; a group that turned out not to be removable exactly is left whole.

    Raises:
        PreconditionError: The model cannot be traced, the pruned model no longer runs (code that fixes a
            width by hand), or its code moves channels in a way that was not followed.
        ValueError: There is no such group, or no such units of it.
    """
    _check_batch(batch)
    original = with_convolutions_(trainable_copy(model), batch)
    before = layer_widths(model)
    heads, whole = remove_heads_(original, batch, removals, protect=protect)  # proven by itself
    asked = {n: units for n, units in removals.items() if len(units) and n not in {*heads, *whole}}
    pruned, kept = _proven(original, batch, asked, protect)
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(is_trained(name, model))
    widths = {n: (before[n], w) for n, w in layer_widths(pruned).items() if w != before.get(n, w)}
    return Pruned(model=pruned, widths=widths, left_whole=whole | kept, heads=heads)


def _proven(
    original: nn.Module, batch: Mapping[str, Tensor], removals: Mapping[str, Tensor], protect: Sequence[str]
) -> tuple[nn.Module, dict[str, str]]:
    """The model without some channels, and which layers were left whole as their removal is not exact."""
    try:
        return _narrowed(original, batch, removals, protect)
    except (Unfollowed, _Broken) as error:
        odd = _unfollowed(original, batch, removals, protect)
        if not odd:  # none by itself
            raise
        if isinstance(error, _Broken):
            raise _Broken(error.problem, odd) from error
        return _narrowed(original, batch, removals, protect, unfollowed=odd)


def _unfollowed(
    original: nn.Module, batch: Mapping[str, Tensor], removals: Mapping[str, Tensor], protect: Sequence[str]
) -> frozenset[str]:
    """Groups whose removal alone does not give what was followed, found by halving."""
    try:
        _narrowed(original, batch, removals, protect)
    except PreconditionError:
        names = list(removals)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        if len(names) < 2:
            return frozenset(names)
        found = (_unfollowed(original, batch, {n: removals[n] for n in half}, protect) for half in halves)
        return frozenset().union(*found)
    return frozenset()


def _narrowed(
    original: nn.Module,
    batch: Mapping[str, Tensor],
    removals: Mapping[str, Tensor],
    protect: Sequence[str],
    *,
    unfollowed: Collection[str] = (),
) -> tuple[nn.Module, dict[str, str]]:
    """The model without some channels, checked, and why layers were left whole."""
    pruned, whole = trainable_copy(original), dict[str, str]()
    reads, groups = Reads(pruned), tuple(channel_groups(pruned, batch, protect=protect))
    _check_known(removals, [group.name for group in groups])
    for group in groups:
        why = group.whole or (UNPROVEN if group.name in unfollowed else "")
        if not why and group.name in removals:
            cut = group.cut(removals[group.name])
            if cut.exact:
                reads.remove_(cut.reads)
                cut.apply()
            why = "" if cut.exact else REARRANGED
        whole.update(dict.fromkeys(group.outputs, why) if why else {})
    _check_runs(original, pruned, batch)
    check_followed(original, pruned, reads.removed(), batch)
    return pruned, whole


def _check_known(removals: Mapping[str, Tensor], names: Sequence[str]) -> None:
    for name in removals:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3) or names[:3]
            raise ValueError(
                f"removals: no group is called {name!r}; closest: {', '.join(close) or 'none'} (see survey)"
            )


def _check_batch(batch: object) -> None:
    tensors = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    if not isinstance(batch, Mapping) or not all(isinstance(x, torch.Tensor) for x in tensors):
        got = ", ".join(type(x).__name__ for x in (tensors or [batch]))
        raise TypeError(f"batch must be {{input name: torch.Tensor (N, ...)}}, got {got}")


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose every weight takes a gradient: what is frozen could not be traced.

    Raises:
        PreconditionError: The model cannot be copied.
    """
    try:
        new = copy.deepcopy(model).eval()
    except Exception as error:
        raise PreconditionError(
            f"prune: the model cannot be copied ({one_line(error, 160)}); leave prune out of the plan"
        ) from error
    for parameter in new.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return new


def layer_widths(model: nn.Module) -> dict[str, int]:
    """How many units every layer puts out, by module name.

    Output channels of convolutions and linear layers, widths of embeddings, and the hidden units of all
    layers and directions of a recurrent module.
    """
    found = {}
    for name, module in model.named_modules():
        width = getattr(module, "out_channels", getattr(module, "out_features", None))
        if isinstance(module, nn.RNNBase):
            width = module.hidden_size * module.num_layers * (1 + module.bidirectional)
        elif isinstance(module, nn.Embedding):
            width = module.embedding_dim
        if isinstance(width, int):
            found[name] = width
    return found


def _check_runs(model: nn.Module, pruned: nn.Module, batch: Mapping[str, Tensor]) -> None:
    with torch.inference_mode():
        expected = tuple(forward(model, batch).shape)
        try:
            shape = tuple(forward(pruned, batch).shape)
        except Exception as error:
            raise _Broken(one_line(error, 160)) from error
    if shape != expected:
        raise PreconditionError(
            f"prune: the pruned model's output has shape {shape} instead of {expected}; "
            "protect the last layer in the recipe (prune.protect)"
        )
