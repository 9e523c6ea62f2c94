"""Which single weights go: masks by a score, 2 of 4, and how many by when. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from pastille.pruning.naming import check_names
from pastille.pruning.whole import WEIGHTED, is_within

Masks = Mapping[str, Tensor]  # name of a parameter -> bool, of its shape, True where a weight stays

GROUP: Final = 4  # of neighbouring weights, of which two stay
FLOOR: Final = 0.01  # of each layer's weights stay, however small: an emptied layer passes nothing on
_HOLDERS = (*WEIGHTED, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True, kw_only=True)
class Thinned:
    """What of a model may be thinned.

    Attributes:
        axes: Name of a weight -> the axis that runs over what comes in.
        left_whole: Module -> why its weights all stay.
    """

    axes: Mapping[str, int]
    left_whole: Mapping[str, str]


EMBEDDED: Final = "its weights are those of an embedding, whose rows are looked up and not multiplied"


def weights_to_thin(model: nn.Module, *, protect: Sequence[str] = (), by_four: bool = False) -> Thinned:
    """The weights of convolutions, linear layers, attention and recurrent layers; no bias, norm or embedding.

    A weight that several modules share counts once, under its first name, and stays if any is protected.

    Args:
        model: Not modified.
        protect: Names of modules left whole with all that they hold; ``*`` matches any part.
        by_four: Whether the width that comes in must be a multiple of 4. It is not padded: the zeros of the
            padding would count as those that may go, and nothing would be gained in that group.

    Raises:
        PreconditionError: ``protect`` names no module; the closest names are given.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
        >>> dict(weights_to_thin(net, by_four=True).axes)
        {'2.weight': 1}
        >>> weights_to_thin(net, by_four=True).left_whole["0"]
        'its input width of 3 is no multiple of 4'
    """
    check_names(model, "protect", protect)
    named = {id(p): name for name, p in model.named_parameters()}
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    axes: dict[str, int] = {}
    whole: dict[str, str] = {}
    for owner, module in model.named_modules():
        if not isinstance(module, _HOLDERS):
            continue
        for key, weight, axis in _weights(module):
            reason = _why_whole(owner, weight.shape[axis], protect, by_four=by_four)
            reason = EMBEDDED if id(weight) in embedded else reason
            if reason:
                whole[owner or key] = reason
            axes[named[id(weight)]] = -1 if reason or axes.get(named[id(weight)]) == -1 else axis
        if not any(True for _ in _weights(module)):
            whole[owner or "model"] = "its weight is computed from others"
    return Thinned(axes={name: axis for name, axis in axes.items() if axis >= 0}, left_whole=whole)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Name, weight and the axis that runs over what comes in."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.ndim > 1 and "bias" not in key:
            yield key, parameter, 0 if transposed else 1


def _why_whole(owner: str, width: int, protect: Sequence[str], *, by_four: bool) -> str:
    if any(is_within(owner, pattern) for pattern in protect):
        return "protected by the recipe"
    if by_four and width % GROUP:
        return f"its input width of {width} is no multiple of {GROUP}"
    return ""


def highest(scores: Tensor, sparsity: float) -> Tensor:
    """A mask that lets the lowest scores go; of equal scores the first ones.

    Args:
        scores: Of any shape.
        sparsity: Fraction that goes, in ``[0, 1]``; rounded to a whole number of weights.

    Returns:
        Bool, of the same shape.

    Raises:
        ValueError: ``sparsity`` is out of range.

    Example:
        >>> highest(torch.tensor([[0.3, 0.1], [0.2, 0.4]]), 0.5)
        tensor([[ True, False],
                [False,  True]])
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    gone = scores.flatten().argsort(stable=True)[: round(sparsity * scores.numel())]
    mask[gone] = False
    return mask.view(scores.shape)


def highest_of_each(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """A mask for each layer, that lets the same fraction of each go; see `highest`."""
    return {name: highest(of, sparsity) for name, of in scores.items()}


def highest_of_all(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks that let the lowest scores of all layers together go, but never the top 1 % of a layer.

    Args:
        scores: Name -> scores of any shape, comparable over layers.
        sparsity: Fraction of all weights that goes, in ``[0, 1]``; what must stay counts against it.

    Raises:
        ValueError: ``sparsity`` is out of range.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])}
        >>> [int(mask.sum()) for mask in highest_of_all(scores, 0.5).values()]
        [1, 1]
    """
    if not scores:
        return {}
    held = [
        of.masked_fill(highest(of, 1 - _floor(of.numel())), torch.inf).flatten() for of in scores.values()
    ]
    together = highest(torch.cat(held), sparsity) | torch.cat(held).isinf()
    parts = torch.split(together, [of.numel() for of in scores.values()])
    return {name: part.view(of.shape) for (name, of), part in zip(scores.items(), parts, strict=True)}


def _floor(count: int) -> float:
    """Share of a layer that stays: `FLOOR`, but one weight."""
    return max(FLOOR, 1 / count)


def two_of_four(scores: Tensor, axis: int = 1) -> Tensor:
    """A mask that keeps the two highest of every four neighbours along the axis of what comes in.

    Of a linear layer's ``(out, in)`` those are columns 4k … 4k + 3. Of a convolution's ``(out, in, h, w)``
    they are input channels 4k … 4k + 3 at one place of the kernel: the hardware multiplies the weight as a
    matrix ``(out, h·w·in)`` with the channels innermost, and so groups these.

    Args:
        scores: With a multiple of 4 entries along ``axis``.
        axis: That runs over what comes in.

    Returns:
        Bool, of the same shape; of equal scores the first two stay.

    Raises:
        ValueError: The width is no multiple of 4.

    References:
        Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378.

    Example:
        >>> two_of_four(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
        tensor([[False,  True,  True, False]])
    """
    grouped = in_fours(scores, axis)
    order = grouped.argsort(dim=-1, descending=True, stable=True)[..., :2]
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter(-1, order, True)
    return mask.flatten(-2).movedim(-1, axis)


def in_fours(weight: Tensor, axis: int = 1) -> Tensor:
    """Fours of neighbours along an axis: that axis goes last, and ``(..., n)`` becomes ``(..., n/4, 4)``.

    Raises:
        ValueError: The width is no multiple of 4.
    """
    if weight.shape[axis] % GROUP:
        raise ValueError(f"the width along axis {axis} must be a multiple of 4, got {weight.shape[axis]}")
    last = weight.movedim(axis, -1)
    return last.reshape(*last.shape[:-1], -1, GROUP)


def moved(total: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """Movement scores after one more step: high where training moves a weight away from zero.

    Args:
        total: Scores so far.
        weight: Its values, also where the mask has it out.
        gradient: Of the loss by the weight as it was used.

    References:
        Sanh et al., "Movement Pruning", NeurIPS 2020, arXiv:2005.07683.

    Example:
        >>> moved(torch.zeros(2), torch.tensor([1.0, 1.0]), torch.tensor([-0.5, 0.5]))
        tensor([ 0.5000, -0.5000])
    """
    return total - weight * gradient


def cubic_sparsity(done: float, *, target: float, until: float) -> float:
    """How sparse a model is to be part-way through its training: fast at first, slow towards the end.

    Args:
        done: Share of the steps that are done, in ``[0, 1]``.
        target: Sparsity at the end.
        until: Share of the steps at which it is reached, in ``(0, 1]``.

    References:
        Zhu & Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878, equation 1.

    Example:
        >>> [round(cubic_sparsity(done, target=0.8, until=0.5), 3) for done in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.7, 0.8, 0.8]
    """
    left = max(0.0, 1 - done / until)
    return target * (1 - left**3)


def masked(model: nn.Module, masks: Masks) -> None:
    """Set to zero, in place, what the masks do not keep.

    Not by a product: half of the zeros would be negative ones, whose signs take a bit each when stored.
    """
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            parameter.masked_fill_(~mask.to(parameter.device), 0.0)


def zero_masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks of the matrices that hold exact zeros, for a model of which a stage set some to zero."""
    found = {name: p.detach() != 0 for name, p in model.named_parameters() if p.ndim > 1 and p.numel()}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def share_gone(masks: Masks) -> float:
    """Fraction of the weights that the masks let go; 0 of none."""
    total = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0
