"""Structured pruning as one function: a copy of the model with fewer channels, heads and blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Final

from pastille.errors import PreconditionError
from pastille.pruning.allocation import Harm, Widths, allocate, override, removals, unrounded, widths_of
from pastille.pruning.blocks import (
    block_influences,
    block_magnitudes,
    least_blocks,
    residual_blocks,
    without_blocks,
)
from pastille.pruning.criteria import CRITERIA, NEEDS
from pastille.pruning.evidence import Evidence, Loss, WeighedBatch, gather
from pastille.pruning.naming import check_names
from pastille.pruning.removal import Pruned, layer_widths, remove, survey, trainable_copy
from pastille.pruning.scores import group_scores
from pastille.pruning.units import ChannelGroup
from pastille.pruning.whole import PROTECTED

if TYPE_CHECKING:
    from torch import Tensor, nn

# Inputs and targets, and how much each case counts where not all count alike.
Data = Iterable["tuple[Mapping[str, Tensor], Tensor] | WeighedBatch"]


_TOO_LITTLE = "less is asked than one of its channels"
_OTHERS_FIRST = "its channels matter more than those of other layers"
_NO_MULTIPLE = "no narrower multiple of"
_NO_HEAD = "it has no head to spare"
# What helps, by how the reason begins; what must be left whole has no way but one.
_WAYS = {
    **dict.fromkeys((_NO_MULTIPLE, _OTHERS_FIRST), "lower round_to, raise sparsity"),
    _TOO_LITTLE: "raise sparsity",
    _NO_HEAD: "raise heads",
    PROTECTED: "protect less",
}


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
        now=layer_widths(model),
    )
    _check_types(asked, heads, blocks, protect)
    _check_shares(asked, heads, blocks)
    _check_criterion(criterion, data, loss)
    check_names(model, "protect", protect)
    check_names(model, "layers", asked.layers)
    seen = None if data is None else tuple(_weighed(data))
    if blocks is not None:
        model = _shorter(model, batch, blocks, protect, seen)
        if sparsity is None and heads is None and not layers:
            return Pruned(model=model, widths={}, left_whole={})
    groups = [g for g in survey(model, batch, protect=protect) if g.kind == "channels" or heads is not None]
    if heads is not None and not any(group.kind == "heads" for group in groups):
        raise PreconditionError(NO_HEADS)
    scores = group_scores(
        model, groups, criterion, _evidence(model, groups, criterion, seen, loss), seed=seed
    )
    kept = _kept(groups, scores, asked, harm) | _heads_kept(groups, scores, heads or 0.0)
    gone = removals(groups, scores, kept)
    pruned = remove(model, batch, gone, protect=protect)
    left = {**_left(groups, gone, asked), **pruned.left_whole}
    left = {name: why for name, why in left.items() if name not in pruned.widths}
    if not pruned.widths and not pruned.heads and blocks is None:
        raise nothing_removed(left, _at(asked), _possible(groups, asked))
    return replace(pruned, left_whole=left, unrounded=_unrounded(groups, pruned, asked))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    sparsity: float | None
    allocation: str
    layers: Mapping[str, float]
    round_to: int | Mapping[str, int]
    original: Mapping[str, int]
    now: Mapping[str, int]

    def units(self, groups: Sequence[ChannelGroup]) -> dict[str, int]:
        """Units of each group before any pruning, from the widths of the layers that make them."""
        known = {
            g.name: [n for n in (g.name, *g.outputs) if n in self.original.keys() & self.now] for g in groups
        }
        return {g.name: self._units(g, known[g.name][0]) for g in groups if known[g.name]}

    def _units(self, group: ChannelGroup, layer: str) -> int:
        """Some layers make two halves that are multiplied; one that was put in is known by its partners."""
        if layer == group.name:
            return self.original[layer] // group.rows
        return self.original[layer] * group.num_channels // self.now[layer]


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
        original=asked.units(groups),
        harm=harm,
    )


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
        if not isinstance(inputs, Mapping):
            raise TypeError(
                f"data must give batches of ({{input name: tensor}}, targets), as batch has it, got "
                f"{type(inputs).__name__} for the inputs"
            )
        yield inputs, targets, weights[0] if weights else None


NO_HEADS: Final = "prune: heads was asked for, but the model has no attention layer; leave heads out"


def _check_types(asked: _Asked, heads: object, blocks: object, protect: object) -> None:
    for name, share in {"sparsity": asked.sparsity, "heads": heads, "blocks": blocks}.items():
        if share is not None and (isinstance(share, bool) or not isinstance(share, Real)):
            raise TypeError(f"{name} must be a number such as 0.5, got {share!r}")
    if not isinstance(asked.round_to, int | Mapping):
        raise TypeError(
            f"round_to must be a whole number, or {{group: number}}, got {asked.round_to!r}; auto is for "
            "recipes, which are measured on a machine"
        )
    if isinstance(protect, str):
        raise TypeError(f"protect must be a list of names, e.g. [{protect!r}], got {protect!r}")


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


def _left(groups: Sequence[ChannelGroup], gone: Mapping[str, Tensor], asked: _Asked) -> dict[str, str]:
    """Layers that lose nothing, and why."""
    why = {group: _reason(group, asked) for group in groups if group.name not in gone}
    return {name: reason for group, reason in why.items() if reason for name in group.outputs}


def _reason(group: ChannelGroup, asked: _Asked) -> str:
    if group.whole:
        return group.whole
    if group.kind == "heads":
        return _NO_HEAD
    own = override(group, asked.layers)
    if own == 0 or (own is None and asked.sparsity is None):
        return "no sparsity is asked of it"
    if own is None and asked.allocation != "uniform":
        return _OTHERS_FIRST
    unit = _widths(group, asked).unit
    return f"{_NO_MULTIPLE} {unit}" if unit > 1 else _TOO_LITTLE


def _widths(group: ChannelGroup, asked: _Asked, round_to: int | None = None) -> Widths:
    return widths_of(group, round_to or asked.round_to, asked.units([group]))


def _unrounded(groups: Sequence[ChannelGroup], pruned: Pruned, asked: _Asked) -> dict[str, str]:
    """Layers that changed without the rounding that was asked for, and why."""
    found = {group: unrounded(group, asked.round_to, asked.units([group])) for group in groups}
    return {
        name: why for group, why in found.items() if why for name in group.outputs if name in pruned.widths
    }


def nothing_removed(left: Mapping[str, str], asked: str, possible: str = "") -> NothingToRemove:
    """Why nothing can be removed, and what to do about it.

    Args:
        left: Layer -> why it lost nothing.
        asked: What was asked for, in words.
        possible: What would remove something, beginning with ``"; possible: "``.
    """
    reasons = sorted(set(left.values())) or ["it has no convolution or linear layer but the last"]
    ways = dict.fromkeys(way for why in reasons for sign, way in _WAYS.items() if why.startswith(sign))
    advice = f"{', '.join(ways)} or leave prune out" if ways else "leave prune out of the plan"
    return NothingToRemove(
        f"prune: nothing can be removed at {asked} ({'; '.join(reasons)}){possible}; {advice}"
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
