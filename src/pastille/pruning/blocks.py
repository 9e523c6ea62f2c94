"""Depth: whole residual blocks and layers that can be left out, and how much each of them changes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pastille.errors import PreconditionError
from pastille.pruning.hooks import hooked, no_fast_path
from pastille.pruning.removal import trainable_copy
from pastille.pruning.replacements import MAX_RETURNS, Skip
from pastille.pruning.whole import PROTECTED, WEIGHTED, is_within
from pastille.references import one_line
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

FIRST = "the first of its stack"
REPEATED = "called more than once"
_ALMOST = 1e-9

_STACKS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# What a block's input does not pass through on its way around the block, as autograd names it.
_NO_WAY_AROUND = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Mul", "Attention", "Embedding")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A residual block, or a layer with a residual connection.

    Attributes:
        name: Its module.
        returns: Length of the tuple that it returns; 0 for a bare tensor.
        whole: Why it must stay; empty if it may be left out.
    """

    name: str
    returns: int
    whole: str


def residual_blocks(
    model: nn.Module, batch: Mapping[str, Tensor], *, protect: Sequence[str] = ()
) -> tuple[Block, ...]:
    """Find the blocks of a model's stacks that add something to what they are given.

    A block is a child of a `Sequential` or `ModuleList` whose answer has the shape of its first argument,
    which reaches it through a sum without passing a layer. The first of a stack stays: what follows is
    built on it, and code often looks at it.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        protect: Module names left whole with all that they hold, ``*`` matches any part.

    Returns:
        Every block in the order of the model, those that must stay with the reason.

    Raises:
        PreconditionError: The model cannot be copied.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> [(b.name, b.whole) for b in residual_blocks(net, {"input": torch.ones(1, 3, 8)})]
        [('layers.0', 'the first of its stack'), ('layers.1', ''), ('layers.2', '')]
    """
    new = trainable_copy(model)
    found: dict[str, Block] = {}
    with torch.enable_grad(), ExitStack() as hooks:
        for name in _stacked(new):
            for hook in _watch(name, new.get_submodule(name), found):
                hooks.enter_context(hooked(hook))
        forward(new, batch)
    innermost = [b for n, b in found.items() if not any(other.startswith(f"{n}.") for other in found)]
    order = {name: i for i, (name, _) in enumerate(new.named_modules())}
    whole = partial(_why_whole, new, protect)
    return tuple(
        Block(name=b.name, returns=b.returns, whole=b.whole or whole(b.name))
        for b in sorted(innermost, key=lambda block: order[block.name])
    )


def _stacked(model: nn.Module) -> Iterator[str]:
    """Members of stacks that are more than one layer."""
    for name, module in model.named_modules():
        for child, block in module.named_children() if isinstance(module, _STACKS) else ():
            if not isinstance(block, WEIGHTED) and any(isinstance(m, WEIGHTED) for m in block.modules()):
                yield f"{name}.{child}".lstrip(".")


def _watch(name: str, module: nn.Module, found: dict[str, Block]) -> Iterator[Any]:
    """Hooks that mark what a block is given, and look for the mark in what it answers."""
    marks: list[tuple[Any, torch.Size]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(first, torch.Tensor) or not first.is_floating_point():
            return None
        marked = (first if first.requires_grad else first.detach().requires_grad_()).clone()
        marks.append((marked.grad_fn, marked.shape))
        return ((marked, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): marked})

    def after(_: nn.Module, _args: Any, out: Any) -> None:
        first = out[0] if isinstance(out, tuple) and out else out
        returns = len(out) if isinstance(out, tuple) else 0
        if not isinstance(first, torch.Tensor) or not marks or returns > MAX_RETURNS:
            return
        start, shape = marks[-1]
        if first.shape == shape and _goes_around(first, start):
            found[name] = Block(name=name, returns=returns, whole=REPEATED if len(marks) > 1 else "")

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after)


def _goes_around(answer: Tensor, start: Any) -> bool:
    """Whether a sum on the way from a mark to the answer passes no layer."""
    pending, seen = [(answer.grad_fn, False)], set()
    while pending:
        node, summed = pending.pop()
        if node is None or (node, summed) in seen:
            continue
        seen.add((node, summed))
        if node is start and summed:
            return True
        name = type(node).__name__
        if node is not start and not name.startswith(_NO_WAY_AROUND):
            pending.extend((f, summed or name.startswith("Add")) for f, _ in node.next_functions)
    return False


def _why_whole(model: nn.Module, protect: Sequence[str], name: str) -> str:
    if any(is_within(name, pattern) for pattern in protect):
        return PROTECTED
    stack, _, child = name.rpartition(".")
    return FIRST if child == next(iter(model.get_submodule(stack)._modules)) else ""


def block_influences(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], blocks: Sequence[Block]
) -> dict[str, float]:
    """How much each block changes what it is given: one minus the cosine of the angle between the two.

    Args:
        model: In eval mode; not modified.
        batches: Inputs, each ``{name: (N, ...)}``.
        blocks: From `residual_blocks`.

    Returns:
        Block -> mean over tokens of ``(N, T, C)``, over samples of other shapes; within ``[0, 2]``.

    Raises:
        ValueError: There is no batch.

    References:
        Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024,
        arXiv:2403.03853.
    """
    cosines: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    with torch.no_grad(), no_fast_path(), ExitStack() as hooks:
        for name, values in cosines.items():
            keep = partial(_cosine, values)
            module = model.get_submodule(name)
            hooks.enter_context(hooked(module.register_forward_hook(keep, with_kwargs=True)))
        for batch in batches:
            forward(model, batch)
    if not all(cosines.values()):
        raise ValueError("block_influences needs a batch that reaches every block")
    return {name: 1.0 - float(torch.cat(values).mean()) for name, values in cosines.items()}


def _cosine(values: list[Tensor], _: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
    given = args[0] if args else next(iter(kwargs.values()))
    answer = out[0] if isinstance(out, tuple) else out
    before, after = (x.double() if x.ndim == 3 else x.double().flatten(1) for x in (given, answer))
    values.append(F.cosine_similarity(before, after, dim=-1).flatten())


def block_magnitudes(model: nn.Module, blocks: Sequence[Block]) -> dict[str, float]:
    """The mean absolute weight of the layers of each block, where there are no data to score it by.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
        >>> _ = nn.init.constant_(net[1][0].weight, -0.5)
        >>> block_magnitudes(net, [Block(name="1", returns=0, whole="")])
        {'1': 0.5}
    """
    return {block.name: _mean_weight(model.get_submodule(block.name)) for block in blocks}


def _mean_weight(block: nn.Module) -> float:
    weights = [m.weight.detach().abs().flatten() for m in block.modules() if isinstance(m, WEIGHTED)]
    return float(torch.cat(weights).mean())


def least_blocks(blocks: Sequence[Block], scores: Mapping[str, float], share: float) -> tuple[str, ...]:
    """The blocks of the lowest scores, as many as are a share of all, of those that may be left out.

    Args:
        blocks: From `residual_blocks`.
        scores: Block -> how much it matters.
        share: Of all blocks, in ``[0, 1)``; rounded down.

    Raises:
        ValueError: ``share`` is out of range.

    Example:
        >>> blocks = [Block(name=n, returns=0, whole=w) for n, w in {"a": FIRST, "b": "", "c": ""}.items()]
        >>> least_blocks(blocks, {"a": 0.1, "b": 0.3, "c": 0.2}, 0.4)
        ('c',)
    """
    if not 0 <= share < 1:
        raise ValueError(f"share of blocks must be within [0, 1), got {share}")
    free = sorted((b.name for b in blocks if not b.whole), key=lambda name: scores[name])
    return tuple(free[: number_of_blocks(share, len(blocks))])


def number_of_blocks(share: float, count: int) -> int:
    """How many blocks a share of them is, rounded down, whatever the float says of a share that is whole.

    Example:
        >>> number_of_blocks(0.58, 50), int(0.58 * 50)
        (29, 28)
    """
    return int(share * count + _ALMOST)


def without_blocks(
    model: nn.Module, batch: Mapping[str, Tensor], names: Sequence[str], *, protect: Sequence[str] = ()
) -> nn.Module:
    """A copy of a model that passes some blocks by.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        names: Of blocks that `residual_blocks` found.
        protect: As for `residual_blocks`.

    Returns:
        A new module in eval mode, with `Skip` in the place of the blocks.

    Raises:
        PreconditionError: A name is no block, the block must stay, or the model's code needs it.
    """
    blocks = {b.name: b for b in residual_blocks(model, batch, protect=protect)}
    for name in names:
        _check_removable(name, blocks)
    new = trainable_copy(model)
    for name in names:
        new.set_submodule(name, Skip(blocks[name].returns))
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(model.get_parameter(name).requires_grad)
    _check_runs(new, model, batch, names)
    return new


def _check_removable(name: str, blocks: Mapping[str, Block]) -> None:
    if name not in blocks:
        close = difflib.get_close_matches(name, blocks, n=3) or list(blocks)[:3]
        raise PreconditionError(
            f"prune: the model has no residual block {name!r}; closest: {', '.join(close) or 'none'}"
        )
    if blocks[name].whole:
        raise PreconditionError(f"prune: block {name} must stay: it is {blocks[name].whole}")


def _check_runs(new: nn.Module, model: nn.Module, batch: Mapping[str, Tensor], names: Sequence[str]) -> None:
    with torch.no_grad():
        expected = tuple(forward(trainable_copy(model), batch).shape)
        try:
            shape = tuple(forward(new, batch).shape)
        except Exception as error:
            raise PreconditionError(
                f"prune: the model does not run without {', '.join(names)} ({one_line(error, 160)}); "
                "protect them in the recipe (prune.protect)"
            ) from error
    if shape != expected:
        raise PreconditionError(
            f"prune: without {', '.join(names)} the output has shape {shape} instead of {expected}"
        )
