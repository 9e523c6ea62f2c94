"""Looking at a model while it runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pastille.pruning.whole import WEIGHTED
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def first_calls(
    model: nn.Module, batch: Mapping[str, Tensor], names: AbstractSet[str]
) -> tuple[dict[str, Call], list[str]]:
    """Run a model and note what some of its modules are called with.

    Args:
        model: In eval mode.
        batch: Inputs, ``{name: (N, ...)}``.
        names: Modules.

    Returns:
        Module -> its first call, for those that are called; and the names of all linear layers and
        convolutions in the order in which they are called.
    """
    calls: dict[str, Call] = {}
    order: dict[str, None] = {}

    def call(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if name not in calls:
            calls[name] = _kept(Call(args=args, kwargs=kwargs))

    def layer(name: str, *_: Any) -> None:
        order.setdefault(name)

    with ExitStack() as hooks, torch.no_grad(), no_fast_path():
        for name, module in model.named_modules():
            if name in names:
                hook = module.register_forward_pre_hook(partial(call, name), with_kwargs=True)
                hooks.enter_context(hooked(hook))
            if isinstance(module, WEIGHTED):
                hooks.enter_context(hooked(module.register_forward_pre_hook(partial(layer, name))))
        forward(model, batch)
    return calls, list(order)


def _kept(call: Call) -> Call:
    args, kwargs = pytree.tree_map(_detached, (call.args, dict(call.kwargs)))
    return copy.deepcopy(Call(args=args, kwargs=kwargs))


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """Take a hook off again."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def no_fast_path() -> Iterator[None]:
    """PyTorch's encoder calls its attention layers, instead of reading their weights."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
