"""Structured pruning as one function: a copy of the model with fewer channels."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pastille.errors import PreconditionError
from pastille.pruning.criteria import CRITERIA, channel_scores, channels_kept, lowest
from pastille.pruning.groups import ChannelGroup, channel_groups
from pastille.pruning.verify import Columns, check_followed
from pastille.pruning.whole import REARRANGED, is_within
from pastille.references import one_line
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor, nn


class NothingToRemove(PreconditionError):  # noqa: N818, it names a result
    """No layer can be narrowed at this sparsity and rounding."""


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


def prune(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    sparsity: float,
    criterion: str = "l1",
    round_to: int = 8,
    protect: Sequence[str] = (),
    original_widths: Mapping[str, int] | None = None,
) -> Pruned:
    """Remove the least important channels of every layer, physically and residual-safe.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        sparsity: Fraction of each layer's channels to remove, in ``[0, 1)``.
        criterion: ``"l1"`` or ``"l2"``.
        round_to: Widths kept are multiples of this; kernels are fast at 8 and 16.
        protect: Module names left whole; ``*`` matches any part.
        original_widths: What ``sparsity`` is a fraction of, by layer, when an earlier step has
            already removed some; the present widths otherwise.

    Returns:
        The new model with its widths.

    Raises:
        PreconditionError: The model cannot be traced, nothing can be removed (`NothingToRemove`),
            ``protect`` names no module, the pruned model no longer runs (code that fixes a width by
            hand), or its code moves channels in a way that was not followed.
        TypeError: ``batch`` is no mapping of tensors.
        ValueError: ``sparsity``, ``round_to`` or ``criterion`` is out of range.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
        >>> dict(prune(net, {"input": torch.zeros(1, 1, 8, 8)}, sparsity=0.5).widths)
        {'0': (16, 8)}

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
    """
    _check_batch(batch)
    _check_arguments(model, sparsity, round_to, criterion, protect)
    original, pruned = trainable_copy(model), trainable_copy(model)
    before = layer_widths(original)
    columns = Columns(pruned)
    whole: dict[str, str] = {}
    for group in channel_groups(pruned, batch, protect=protect):
        count = _count_to_remove(group, sparsity, round_to, original_widths or {}, whole)
        if not count:
            continue
        scores = channel_scores(group.members, group.num_channels, CRITERIA[criterion])
        cut = group.cut(lowest(scores, count))
        if cut.exact:
            columns.remove_(cut.columns)
            cut.apply_()
        else:
            whole.update(dict.fromkeys(group.outputs, REARRANGED))
    after = layer_widths(pruned)
    widths = {name: (before[name], width) for name, width in after.items() if width != before[name]}
    if sparsity > 0 and not widths:
        raise NothingToRemove(_nothing_removed(whole, sparsity, round_to))
    _check_runs(original, pruned, batch)
    check_followed(original, pruned, columns.removed(), batch)
    for name, parameter in model.named_parameters():
        pruned.get_parameter(name).requires_grad_(parameter.requires_grad)
    return Pruned(model=pruned, widths=widths, left_whole=whole)


def _check_batch(batch: object) -> None:
    tensors = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    if not isinstance(batch, Mapping) or not all(isinstance(x, torch.Tensor) for x in tensors):
        got = ", ".join(type(x).__name__ for x in (tensors or [batch]))
        raise TypeError(f"batch must be {{input name: torch.Tensor (N, ...)}}, got {got}")


def _check_arguments(
    model: nn.Module, sparsity: float, round_to: int, criterion: str, protect: Sequence[str]
) -> None:
    channels_kept(1, sparsity=sparsity, round_to=round_to)
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    names = [name for name, _ in model.named_modules() if name]
    for pattern in protect:
        if not any(is_within(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3) or names[:3]
            raise PreconditionError(
                f"prune.protect: no module of the model is called {pattern!r}; closest: {', '.join(close)}"
            )


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


def _count_to_remove(
    group: ChannelGroup,
    sparsity: float,
    round_to: int,
    original: Mapping[str, int],
    whole: dict[str, str],
) -> int:
    kept = channels_kept(original.get(group.name, group.num_channels), sparsity=sparsity, round_to=round_to)
    count = max(0, group.num_channels - kept)
    reason = group.whole or (f"no narrower multiple of {round_to}" if not count and sparsity > 0 else "")
    if reason:
        whole.update(dict.fromkeys(group.outputs, reason))
        return 0
    return count


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


def _nothing_removed(whole: Mapping[str, str], sparsity: float, round_to: int) -> str:
    reasons = sorted(set(whole.values())) or ["it has no convolution or linear layer but the last"]
    return (
        f"prune: no channel can be removed at sparsity {sparsity:g} and round_to {round_to} "
        f"({'; '.join(reasons)}); lower round_to, raise sparsity or leave prune out"
    )
