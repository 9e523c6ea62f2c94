"""Structured pruning as one function: a copy of the model with fewer channels."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pastille.errors import PreconditionError
from pastille.pruning.criteria import CRITERIA, channel_scores, channels_kept, lowest
from pastille.pruning.removal import Pruned, remove, survey
from pastille.pruning.units import ChannelGroup
from pastille.pruning.whole import is_within

if TYPE_CHECKING:
    from torch import Tensor, nn


class NothingToRemove(PreconditionError):  # noqa: N818, it names a result
    """No layer can be narrowed at this sparsity and rounding."""


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
    _check_arguments(model, sparsity, round_to, criterion, protect)
    groups = survey(model, batch, protect=protect)
    removals: dict[str, Tensor] = {}
    whole: dict[str, str] = {}
    for group in groups:
        count = _count_to_remove(group, sparsity, round_to, original_widths or {}, whole)
        if count:
            scores = channel_scores(_weights(group, model), group.num_channels, CRITERIA[criterion])
            removals[group.name] = lowest(scores, count)
    pruned = remove(model, batch, removals, protect=protect)
    left = {**pruned.left_whole, **whole}
    if sparsity > 0 and not pruned.widths:
        raise NothingToRemove(_nothing_removed(left, sparsity, round_to))
    return Pruned(model=pruned.model, widths=pruned.widths, left_whole=left)


def _weights(group: ChannelGroup, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [
        (member.entries.rows(model.get_parameter(member.entries.parameter)), member.channels)
        for member in group.members
        if member.role != "scales"
    ]


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


def _nothing_removed(whole: Mapping[str, str], sparsity: float, round_to: int) -> str:
    reasons = sorted(set(whole.values())) or ["it has no convolution or linear layer but the last"]
    return (
        f"prune: no channel can be removed at sparsity {sparsity:g} and round_to {round_to} "
        f"({'; '.join(reasons)}); lower round_to, raise sparsity or leave prune out"
    )
