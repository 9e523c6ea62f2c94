"""What each module of a model gives, and which axis of it is channels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from pastille.distillation.attention import batch_axis
from pastille.distillation.watching import ATTENTION, by_case, first_tensor, watched
from pastille.pruning.hooks import no_fast_path
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

_POOLS: Final[Mapping[int, Any]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_WIDTHS: Final = (
    "out_features",
    "out_channels",
    "num_features",
    "num_channels",
    "normalized_shape",
    "embedding_dim",
)
_CHANNELS_LAST: Final = (nn.Linear, nn.LayerNorm, nn.Embedding)
_STACKS: Final = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What features are like.

    Attributes:
        shape: Of one case.
        last: Whether channels are the last axis; else they are the first.
    """

    shape: tuple[int, ...]
    last: bool

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.shape[-1 if self.last else 0]

    @property
    def places(self) -> tuple[int, ...]:
        """Sizes of the other axes: pixels, points in time, tokens."""
        return self.shape[:-1] if self.last else self.shape[1:]

    @property
    def is_tokens(self) -> bool:
        """A row of vectors: there is no in-between of two of them."""
        return self.last and len(self.shape) == 2

    def laid_out(self, x: Tensor) -> Tensor:
        """Features of a batch as ``(N, C, *places)`` float32; a vector has one place."""
        x = x.movedim(-1, 1) if self.last else x
        return x.float() if x.ndim > 2 else x[:, :, None].float()


def matched(ours: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same places, ``(N, C, P)`` and ``(N, D, P)``: each axis is pooled to the shorter one.

    Args:
        ours: ``(N, C, *places)``.
        told: ``(N, D, *places)``.

    Example:
        >>> [tuple(x.shape) for x in matched(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4))]
        [(2, 3, 16), (2, 5, 16)]
    """
    sizes = ours.shape[2:], told.shape[2:]
    if sizes[0] == sizes[1] or len(sizes[0]) != len(sizes[1]):  # tokens and pixels, as many
        return ours.flatten(2), told.flatten(2)
    size = tuple(map(min, *sizes))
    pool = _POOLS[len(size)]
    return pool(ours, size).flatten(2), pool(told, size).flatten(2)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a module gave.

    Attributes:
        name: Of the module.
        form: Of its features.
        is_block: Whether it is one of those in a `Sequential` or `ModuleList`, but none of these itself.
        is_answer: Whether what it gave is the model's answer.
    """

    name: str
    form: Form
    is_block: bool
    is_answer: bool


def probed(model: nn.Module, batch: Mapping[str, Tensor]) -> list[Seen]:
    """What every module of a model gives that has a row for each case, in the order in which they finish.

    Args:
        model: Not modified.
        batch: Inputs, ``{name: (N, ...)}``.
    """
    model = _still(model)
    found: dict[str, Tensor] = {}
    widths: dict[str, tuple[tuple[int, bool], ...]] = {}
    before: list[tuple[int, bool]] = []

    def saw(name: str, module: nn.Module, _args: Any, out: Any) -> None:
        before[:] = [_width(module)] if _has_width(module) else before
        x = by_case(first_tensor(out), batch_axis(module))
        if isinstance(x, torch.Tensor) and x.ndim > 1 and x.is_floating_point():
            found.pop(name, None)
            found[name], widths[name] = x, (*_widths_in(module), *before)

    handles = [m.register_forward_hook(partial(saw, name)) for name, m in model.named_modules() if name]
    try:
        with torch.no_grad(), no_fast_path():
            answer = forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    blocks = set(_blocks(model))
    return [
        Seen(name=name, form=_form(x, widths[name]), is_block=name in blocks, is_answer=_is(x, answer))
        for name, x in found.items()
        if len(x) == len(answer)
    ]


def attention_forms(model: nn.Module, batch: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Form]:
    """What attention layers make of a batch, queries, keys and values side by side.

    Args:
        model: Not modified.
        batch: Inputs, ``{name: (N, ...)}``.
        names: Of attention layers; those that are not reached, or do not attend within one sequence, are
            left out.
    """
    model = _still(model)
    seen = watched(model, [f"{name}{ATTENTION}" for name in names])
    with torch.no_grad(), no_fast_path():
        answer = forward(model, batch)
    return {
        point.removesuffix(ATTENTION): Form(shape=tuple(x.shape[1:]), last=True)
        for point, x in seen.latest.items()
        if x.ndim == 3 and len(x) == len(answer)
    }


def _still(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().eval()


def _blocks(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        for child, inner in module.named_children() if isinstance(module, _STACKS) else ():
            if not isinstance(inner, _STACKS):
                yield f"{name}.{child}".lstrip(".")


def _is(x: Tensor, answer: Tensor) -> bool:
    """Also where the answer is another look at it, without an axis of one."""
    return x.data_ptr() == answer.data_ptr() and x.numel() == answer.numel()


def _form(x: Tensor, widths: Iterable[tuple[int, bool]]) -> Form:
    shape = tuple(x.shape[1:])
    if len(shape) == 1:
        return Form(shape=shape, last=False)
    for width, last in widths:
        if width in (shape[0], shape[-1]):
            both = shape[0] == shape[-1]
            return Form(shape=shape, last=last if both else width == shape[-1])
    return Form(shape=shape, last=len(shape) == 2)


def _widths_in(module: nn.Module) -> list[tuple[int, bool]]:
    """Of the layers in a module, the last one first, and whether they have channels last."""
    return [_width(m) for m in reversed(list(module.modules())) if _has_width(m)]


def _has_width(module: nn.Module) -> bool:
    return any(isinstance(getattr(module, name, None), int | tuple) for name in _WIDTHS)


def _width(module: nn.Module) -> tuple[int, bool]:
    value = next(v for n in _WIDTHS if isinstance(v := getattr(module, n, None), int | tuple))
    return value[-1] if isinstance(value, tuple) else value, isinstance(module, _CHANNELS_LAST)
