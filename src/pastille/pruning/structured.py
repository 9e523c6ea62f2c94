"""Structured pruning as one function: a copy of the model with fewer channels, heads and blocks."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pastille.errors import PreconditionError
from pastille.pruning.allocation import Harm, Widths, allocate, override, removals, widths_of
from pastille.pruning.blocks import (
    block_influences,
    block_magnitudes,
    least_blocks,
    residual_blocks,
    without_blocks,
)
from pastille.pruning.criteria import CRITERIA, NEEDS
from pastille.pruning.evidence import Evidence, Loss, WeighedBatch, gather
from pastille.pruning.removal import Pruned, remove, survey, trainable_copy
from pastille.pruning.scores import group_scores
from pastille.pruning.units import ChannelGroup
from pastille.pruning.whole import is_within

if TYPE_CHECKING:
    from torch import Tensor, nn

# Inputs and targets, and how much each case counts where not all count alike.
Data = Iterable["tuple[Mapping[str, Tensor], Tensor] | WeighedBatch"]


class NothingToRemove(PreconditionError):  # noqa: N818, it names a result
    """No layer can be narrowed at this sparsity and rounding."""


def prune(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    sparsity: float | None = None,
    criterion: str = "l1",
    allocation: str = "uniform",
    layers: Mapping[str, float] | None = None,
    heads: float | None = None,
    blocks: float | None = None,
    round_to: int | Mapping[str, int] = 8,
    protect: Sequence[str] = (),
    data: Data | None = None,
    loss: Loss | None = None,
    harm: Harm | None = None,
    seed: int = 0,
    original_widths: Mapping[str, int] | None = None,
) -> Pruned:
    """Remove the channels, attention heads and blocks that matter least, physically and residual-safe.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        sparsity: Fraction of the channels to remove, between 0 and 1.
        criterion: What matters, a name of `pastille.pruning.criteria.CRITERIA`. ``"taylor"`` is the best
            guess where there is data.
        allocation: ``"uniform"``, ``"global"`` or ``"sensitivity"``, see `allocate`.
        layers: Module (``*`` matches any part) -> a sparsity of its own.
        heads: Fraction of each layer's attention heads to remove, between 0 and 1.
        blocks: Fraction of the residual blocks to leave out first, between 0 and 1: those that change least
            what they are given, as ``data`` shows, or of the smallest weights where there are no data.
        round_to: Widths kept are multiples of this; kernels are fast at 8 and 16.
        protect: Module names left whole; ``*`` matches any part.
        data: Some hundred cases of the training split in batches, ``(inputs, targets)`` each or
            ``(inputs, targets, weights)``, for criteria that look at data.
        loss: Of outputs and targets, for criteria that look at gradients.
        harm: Group -> (sparsity, rise of the loss), for allocation by sensitivity.
        seed: Of the criterion ``"random"``.
        original_widths: What ``sparsity`` is a fraction of, by layer as in
            `pastille.pruning.removal.layer_widths`, when an earlier step has already removed some; the
            present widths otherwise.

    Returns:
        The new model with its widths.

    Raises:
        PreconditionError: The model cannot be traced, nothing can be removed (`NothingToRemove`),
            ``protect`` or ``layers`` names no module, the pruned model no longer runs (code that fixes a
            width by hand), or its code moves channels in a way that was not followed.
        TypeError: ``batch`` is no mapping of tensors.
        ValueError: An argument is out of range, or missing for this criterion or allocation.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
        >>> dict(prune(net, {"input": torch.zeros(1, 1, 8, 8)}, sparsity=0.5).widths)
        {'0': (16, 8)}

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
    """
    asked = _Asked(
        sparsity=sparsity,
        allocation=allocation,
        layers=layers or {},
        round_to=round_to,
        original=original_widths or {},
    )
    _check_shares(asked, heads, blocks)
    _check_criterion(criterion, data, loss)
    _check_names(model, "protect", protect)
    _check_names(model, "layers", asked.layers)
    seen = None if data is None else tuple(_weighed(data))
    if blocks is not None:
        model = _shorter(model, batch, blocks, protect, seen)
        if sparsity is None and heads is None and not layers:
            return Pruned(model=model, widths={}, left_whole={})
    groups = [g for g in survey(model, batch, protect=protect) if g.kind == "channels" or heads is not None]
    scores = group_scores(
        model, groups, criterion, _evidence(model, groups, criterion, seen, loss), seed=seed
    )
    kept = _kept(groups, scores, asked, harm) | _heads_kept(groups, scores, heads or 0.0)
    gone = removals(groups, scores, kept)
    pruned = remove(model, batch, gone, protect=protect)
    left = {**_left(groups, gone, asked), **pruned.left_whole}
    if not pruned.widths and not pruned.heads and blocks is None:
        raise NothingToRemove(_nothing_removed(groups, left, asked))
    return replace(pruned, left_whole=left)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    sparsity: float | None
    allocation: str
    layers: Mapping[str, float]
    round_to: int | Mapping[str, int]
    original: Mapping[str, int]


def _kept(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], asked: _Asked, harm: Harm | None
) -> dict[str, int]:
    return allocate(
        [group for group in groups if group.kind == "channels"],
        scores,
        sparsity=asked.sparsity or 0.0,
        allocation=asked.allocation,
        layers=asked.layers,
        round_to=asked.round_to,
        original=_units(groups, asked.original),
        harm=harm,
    )


def _units(groups: Sequence[ChannelGroup], widths: Mapping[str, int]) -> dict[str, int]:
    """Units of each group from the widths of layers, of which some make two halves that are multiplied."""
    return {g.name: widths[g.name] // g.rows for g in groups if g.name in widths}


def _heads_kept(groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], share: float) -> dict[str, int]:
    return allocate([group for group in groups if group.kind == "heads"], scores, sparsity=share)


def _shorter(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    share: float,
    protect: Sequence[str],
    data: Sequence[WeighedBatch] | None,
) -> nn.Module:
    """The model without the blocks that matter least."""
    blocks = residual_blocks(model, batch, protect=protect)
    scores = block_magnitudes(model, blocks)
    if data is not None and blocks:
        scores = block_influences(trainable_copy(model), (inputs for inputs, *_ in data), blocks)
    names = least_blocks(blocks, scores, share)
    if not names:
        why = sorted({block.whole for block in blocks if block.whole}) or ["none has a way around it"]
        raise NothingToRemove(
            f"prune.blocks: no block can be left out at {share:g} of {len(blocks)} ({'; '.join(why)}); "
            "raise blocks, or leave it out"
        )
    return without_blocks(model, batch, names, protect=protect)


def _evidence(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    criterion: str,
    data: Sequence[WeighedBatch] | None,
    loss: Loss | None,
) -> Evidence | None:
    need = NEEDS.get(criterion)
    if need is None or data is None:
        return None
    return gather(model, groups, data, loss, what=frozenset({need}))


def _weighed(data: Data) -> Iterator[WeighedBatch]:
    for inputs, targets, *weights in data:
        yield inputs, targets, weights[0] if weights else None


def _check_shares(asked: _Asked, heads: float | None, blocks: float | None) -> None:
    shares = {"sparsity": asked.sparsity, "heads": heads, "blocks": blocks}
    if all(share is None for share in shares.values()) and not asked.layers:
        raise ValueError("sparsity must be given, e.g. sparsity=0.5; or heads, blocks or layers")
    for name, share in shares.items():
        if share is not None and not 0 < share < 1:
            raise ValueError(
                f"{name} must be more than 0 and less than 1, e.g. 0.5 to remove half of them, got {share:g}"
            )
    for name, share in asked.layers.items():
        if not 0 <= share < 1:
            raise ValueError(f"layers: sparsity of {name} must be at least 0 and less than 1, got {share:g}")
    every = [asked.round_to] if isinstance(asked.round_to, int) else [*asked.round_to.values()]
    if min(every, default=1) < 1:
        raise ValueError(f"round_to must be at least 1, got {min(every)}")


def _check_criterion(criterion: str, data: Data | None, loss: Loss | None) -> None:
    need = NEEDS.get(criterion)
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    if need is not None and data is None:
        others = ", ".join(name for name in CRITERIA if name not in NEEDS)
        raise ValueError(
            f"data must be given for criterion {criterion!r}: some hundred cases of train in batches of "
            f"(inputs, targets); of the weights alone judge {others}"
        )
    if need == "gradients" and loss is None:
        raise ValueError(
            f"loss must be given for criterion {criterion!r}, e.g. torch.nn.functional.cross_entropy"
        )


def _check_names(model: nn.Module, key: str, patterns: Iterable[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(is_within(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3) or names[:3]
            raise PreconditionError(
                f"prune.{key}: no module of the model is called {pattern!r}; closest: {', '.join(close)}"
            )


def _left(groups: Sequence[ChannelGroup], gone: Mapping[str, Tensor], asked: _Asked) -> dict[str, str]:
    """Layers that lose nothing, and why."""
    why = {group: _reason(group, asked) for group in groups if group.name not in gone}
    return {name: reason for group, reason in why.items() if reason for name in group.outputs}


def _reason(group: ChannelGroup, asked: _Asked) -> str:
    if group.whole:
        return group.whole
    if group.kind == "heads":
        return "it has no head to spare"
    own = override(group, asked.layers)
    if own == 0 or (own is None and asked.sparsity is None):
        return "no sparsity is asked of it"
    if own is None and asked.allocation != "uniform":
        return "its channels matter more than those of other layers"
    return f"no narrower multiple of {_widths(group, asked).unit}"


def _widths(group: ChannelGroup, asked: _Asked, round_to: int | None = None) -> Widths:
    return widths_of(group, round_to or asked.round_to, _units([group], asked.original))


def _nothing_removed(groups: Sequence[ChannelGroup], left: Mapping[str, str], asked: _Asked) -> str:
    reasons = sorted(set(left.values())) or ["it has no convolution or linear layer but the last"]
    return (
        f"prune: nothing can be removed at {_at(asked)} ({'; '.join(reasons)}){_possible(groups, asked)}; "
        "lower round_to, raise sparsity or leave prune out"
    )


def _at(asked: _Asked) -> str:
    shares = [] if asked.sparsity is None else [f"sparsity {asked.sparsity:g}"]
    return " and ".join(
        [*shares, *([f"round_to {asked.round_to}"] if isinstance(asked.round_to, int) else [])]
    )


def _possible(groups: Sequence[ChannelGroup], asked: _Asked) -> str:
    """What would remove something."""
    free = [g for g in groups if not g.whole and g.kind == "channels" and override(g, asked.layers) is None]
    if asked.sparsity is None:
        return ""
    widths = [_widths(group, asked) for group in free]
    least = [1 - w.narrower()[0] / w.original for w in widths if w.narrower()]
    finer = [n for n in (64, 32, 16, 8, 4, 2, 1) if any(_narrows(g, n, asked) for g in free)]
    ways = [f"sparsity from {math.ceil(min(least) * 1000) / 1000:g}"] if least else []
    ways += [f"round_to up to {finer[0]}"] if finer else []
    return f"; possible: {', or '.join(ways)}" if ways else ""


def _narrows(group: ChannelGroup, round_to: int, asked: _Asked) -> bool:
    widths = _widths(group, asked, round_to)
    return widths.kept(asked.sparsity or 0.0) < widths.now
