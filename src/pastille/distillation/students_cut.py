"""Students cut out of their teacher: narrower, shallower, and begun anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from pastille.errors import PreconditionError
from pastille.pruning import remove, survey
from pastille.pruning.allocation import removals, unit_of
from pastille.pruning.blocks import (
    FIRST,
    Block,
    block_influences,
    block_magnitudes,
    residual_blocks,
    without_blocks,
)
from pastille.pruning.scores import group_scores
from pastille.pruning.units import ChannelGroup

if TYPE_CHECKING:
    from torch import Tensor

_ROUND_TO: Final = 8  # lanes of a kernel
_LARGE: Final = 64  # channels, from which a rounding to those changes little
_DEVIATION: Final = 0.02  # of tokens and tables of positions, as transformers begin them

Batch = Mapping[str, "Tensor"]


def narrower(
    model: nn.Module, batch: Batch, width: float, *, scores: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy of a model with a share of each layer's channels and attention heads, those that matter most.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        width: Share of the units of each layer that stay, in ``(0, 1)``: the nearest number of them, from 64
            on the nearest multiple of 8, and at least one. The width that a transformer's layers hand on to
            each other stays, as the head and the embedding are made for it.
        scores: Name of a group, as `pastille.pruning.survey` gives it -> how much each of its units matters,
            ``(C,)``; by default the length of the weights that run through it.

    Returns:
        A new module in eval mode.

    Raises:
        PreconditionError: The model cannot be followed, or this share leaves every layer as it is.
        ValueError: ``width`` is out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[9.0, 9], [0, 0], [8, 8], [0, 0]]))
        >>> narrower(net, {"input": torch.zeros(1, 2)}, 0.5)[0].weight.tolist()
        [[9.0, 9.0], [8.0, 8.0]]
    """
    _check_share("width", width)
    found = narrowed(model, batch, width, scores=scores)
    if found is None:
        raise PreconditionError(
            f"distill.student.width: {width:g} leaves every layer of the model as it is; lower it, or take "
            "depth, or a model of its own (student: {model: torchvision:resnet18})"
        )
    return found


def narrowed(
    model: nn.Module, batch: Batch, width: float, *, scores: Mapping[str, Tensor] | None = None
) -> nn.Module | None:
    """As `narrower`; None where this share leaves every layer as it is."""
    groups = survey(model, batch)
    scored = scores if scores is not None else group_scores(model, groups, "l2")
    gone = removals(groups, scored, {g.name: units_kept(g, width) for g in groups})
    if not gone:
        return None
    new = remove(model, batch, gone).model
    return new if _parameters(new) < _parameters(model) else None


def units_kept(group: ChannelGroup, width: float) -> int:
    """How many units of a group are nearest to a share of them.

    Example:
        >>> group = ChannelGroup(name="conv", num_channels=96, outputs=("conv",), members=(), whole="",
        ...                      cut=None)
        >>> units_kept(group, 0.4)
        40
    """
    each = group.num_channels // (group.parts if group.apart else 1)
    unit = unit_of(group, _ROUND_TO if each >= _LARGE else 1, group.num_channels)
    return min(group.num_channels, unit * nearest(width, group.num_channels // unit))


def nearest(share: float, count: int) -> int:
    """The nearest number to a share of a count, at least one; a half goes up.

    Example:
        >>> nearest(0.67, 3), nearest(0.5, 5), nearest(0.01, 8)
        (2, 3, 1)
    """
    return max(1, math.floor(share * count + 0.5))


def shallower(model: nn.Module, batch: Batch, depth: float, *, batches: Iterable[Batch] = ()) -> nn.Module:
    """A copy of a model with a share of its residual blocks, or of its transformer layers.

    Of a stack of transformer layers those that stay are evenly spaced, the first and the last among them.
    Of convolutional blocks those go that change least what they are given.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        depth: Share of the blocks that stays, in ``(0, 1)``: the nearest number of them, and at least one.
        batches: Some inputs of the training split to see what blocks change; without any, blocks of small
            weights go.

    Returns:
        A new module in eval mode, with `pastille.pruning.replacements.Skip` in the place of what went.

    Raises:
        PreconditionError: The model has no blocks that could go, or this share leaves all of them.
        ValueError: ``depth`` is out of range.

    References:
        Sanh et al., "DistilBERT", 2019, arXiv:1910.01108; Men et al., "ShortGPT", 2024, arXiv:2403.03853.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        >>> short = shallower(net, {"input": torch.ones(1, 3, 8)}, 0.5)
        >>> [type(layer).__name__ for layer in short.layers][1:4]
        ['Skip', 'TransformerEncoderLayer', 'Skip']
    """
    _check_share("depth", depth)
    blocks = [b for b in residual_blocks(model, batch) if b.whole in ("", FIRST)]
    names = [*_uneven(model, blocks, depth), *_least(model, blocks, depth, batches)]
    if not names:
        raise PreconditionError(_no_block(blocks, depth))
    return without_blocks(model, batch, names)


def _no_block(blocks: Sequence[Block], depth: float) -> str:
    if not any(not block.whole for block in blocks):
        return (
            "distill.student.depth: the model has no residual block or layer that could be left out; take "
            "width, or a model of its own (student: {model: torchvision:resnet18})"
        )
    return f"distill.student.depth: {depth:g} of {len(blocks)} blocks leaves all of them; lower it"


def _uneven(model: nn.Module, blocks: Sequence[Block], depth: float) -> Iterator[str]:
    """Layers of transformers that are not among the evenly spaced ones."""
    for _, stack in groupby((b for b in blocks if not _convolves(model, b)), key=_stack_of):
        layers = list(stack)
        stay = {layers[i].name for i in evenly(len(layers), nearest(depth, len(layers)))}
        yield from (layer.name for layer in layers if layer.name not in stay and not layer.whole)


def _stack_of(block: Block) -> str:
    return block.name.rpartition(".")[0]


def _convolves(model: nn.Module, block: Block) -> bool:
    return any(isinstance(m, nn.modules.conv._ConvNd) for m in model.get_submodule(block.name).modules())


def evenly(count: int, keep: int) -> list[int]:
    """Evenly spaced positions, the first and the last among them.

    Args:
        count: Of all positions.
        keep: Of those to choose, from 1 to ``count``.

    Example:
        >>> evenly(12, 6), evenly(6, 3), evenly(4, 1)
        ([0, 2, 4, 7, 9, 11], [0, 2, 5], [0])
    """
    return [round(i * (count - 1) / max(1, keep - 1)) for i in range(keep)]


def _least(model: nn.Module, blocks: Sequence[Block], depth: float, batches: Iterable[Batch]) -> list[str]:
    """Convolutional blocks that matter least."""
    convolving = [block for block in blocks if _convolves(model, block)]
    free = [block for block in convolving if not block.whole]
    if not free:
        return []
    seen = list(batches)
    scores = block_influences(model, seen, free) if seen else block_magnitudes(model, free)
    going = len(convolving) - nearest(depth, len(convolving))
    return sorted((block.name for block in free), key=lambda name: scores[name])[:going]


def anew(model: nn.Module, *, seed: int) -> nn.Module:
    """A copy of a model that has learned nothing.

    Args:
        model: Not modified.
        seed: Of the new weights.

    Returns:
        Every module that can begins anew, norms and their statistics included. Weights that a module keeps
        for itself (a class token, positions) are drawn with a deviation of 0.02; vectors become a gain of
        one, or a bias of zero.

    Example:
        >>> net = nn.BatchNorm1d(2).eval()
        >>> _ = net.running_mean.fill_(3)
        >>> anew(net, seed=0).running_mean
        tensor([0., 0.])
    """
    new = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in reversed(list(new.modules())):  # what a module says of its parts comes after them
            _restart_(module)
    return new


def _restart_(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
        return
    for name, parameter in module.named_parameters(recurse=False):
        if sum(size > 1 for size in parameter.shape) > 1 or "token" in name:
            parameter.normal_(std=_DEVIATION)
        else:
            parameter.fill_(0.0 if "bias" in name else 1.0)


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name} must be more than 0 and less than 1, e.g. 0.5, got {share:g}")


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
