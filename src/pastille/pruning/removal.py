"""What can be removed from a model, and its removal: proven to take nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pastille.errors import PreconditionError
from pastille.pruning.groups import channel_groups
from pastille.pruning.units import ChannelGroup
from pastille.pruning.verify import Reads, check_followed
from pastille.pruning.whole import REARRANGED
from pastille.references import one_line
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned model, and what was done to it.

    Attributes:
        model: A new module in eval mode.
        widths: Layer -> output channels (before, after), for the layers that changed.
        left_whole: Layer -> why its channels were all kept.
    """

    model: nn.Module
    widths: Mapping[str, tuple[int, int]]
    left_whole: Mapping[str, str]


def survey(
    model: nn.Module, batch: Mapping[str, Tensor], *, protect: Sequence[str] = ()
) -> tuple[ChannelGroup, ...]:
    """Every group of channels of a model, with the parameters that it runs through; nothing is changed.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        protect: Module names left whole with all that they hold, ``*`` matches any part.

    Raises:
        PreconditionError: The model cannot be copied or traced.
        TypeError: ``batch`` is no mapping of tensors.
    """
    _check_batch(batch)
    return tuple(channel_groups(trainable_copy(model), batch, protect=protect))


def remove(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    removals: Mapping[str, Tensor],
    *,
    protect: Sequence[str] = (),
) -> Pruned:
    """A copy of a model without some of its channels.

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
    """
    _check_batch(batch)
    original, pruned = trainable_copy(model), trainable_copy(model)
    before, reads, whole = layer_widths(original), Reads(pruned), dict[str, str]()
    for group in channel_groups(pruned, batch, protect=protect):
        if group.whole:
            whole.update(dict.fromkeys(group.outputs, group.whole))
            continue
        if not len(removals.get(group.name, ())):
            continue
        cut = group.cut(removals[group.name])
        if cut.exact:
            reads.remove_(cut.reads)
            cut.apply()
        else:
            whole.update(dict.fromkeys(group.outputs, REARRANGED))
    after = layer_widths(pruned)
    _check_runs(original, pruned, batch)
    check_followed(original, pruned, reads.removed(), batch)
    for name, parameter in model.named_parameters():
        pruned.get_parameter(name).requires_grad_(parameter.requires_grad)
    widths = {name: (before[name], width) for name, width in after.items() if width != before[name]}
    return Pruned(model=pruned, widths=widths, left_whole=whole)


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
    """Output channels of every convolution and linear layer, by module name."""
    found = {}
    for name, module in model.named_modules():
        width = getattr(module, "out_channels", getattr(module, "out_features", None))
        if isinstance(width, int):
            found[name] = width
    return found


def _check_runs(model: nn.Module, pruned: nn.Module, batch: Mapping[str, Tensor]) -> None:
    with torch.inference_mode():
        expected = tuple(forward(model, batch).shape)
        try:
            shape = tuple(forward(pruned, batch).shape)
        except Exception as error:
            raise PreconditionError(
                f"prune: the pruned model no longer runs ({one_line(error, 160)}): its code fixes a width "
                "by hand; protect that module in the recipe (prune.protect) or leave prune out of the plan"
            ) from error
    if shape != expected:
        raise PreconditionError(
            f"prune: the pruned model's output has shape {shape} instead of {expected}; "
            "protect the last layer in the recipe (prune.protect)"
        )
