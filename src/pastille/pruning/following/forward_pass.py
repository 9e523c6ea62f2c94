"""One forward pass of a model, followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch.overrides import TorchFunctionMode

from pastille.errors import PreconditionError
from pastille.pruning.following.arithmetic import ARITHMETIC
from pastille.pruning.following.labels import Channels, compressed, distinct, varying
from pastille.pruning.following.layers import LAYERS
from pastille.pruning.following.movement import MOVEMENT, written
from pastille.pruning.following.recurrent import PACKING, RECURRENT
from pastille.pruning.following.trace import Trace, Use
from pastille.pruning.following.tracer import Account, Call, opaque, tensors_in
from pastille.pruning.whole import OUTPUT, REARRANGED, unfollowed
from pastille.task.forward import answers

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLLOWED: dict[str, Callable[[Account, Call], None]] = {**ARITHMETIC, **MOVEMENT, **LAYERS, **RECURRENT}
_WRITING = {
    "setitem",
    "index_put",
    "scatter",
    "masked_scatter",
    "index_copy",
    "index_add",
    "index_fill",
    "set",
}
_LEAVING = {"numpy", "array", "dlpack", "data_ptr"}
# Python values made from computed ones: the code may go another way when they change.
_ASKING = {
    *("__bool__", "__int__", "__float__", "__index__", "item", "tolist"),
    *("nonzero", "masked_select", "unique", "unique_consecutive", "argwhere"),
}


def follow(model: nn.Module, batch: Mapping[str, Tensor]) -> Trace:
    """Follow the channels of a model through one forward pass.

    Args:
        model: In eval mode, every floating-point parameter with a gradient; not modified.
        batch: Example inputs, ``{name: (N, ...)}``.

    Returns:
        Which entries of which tensors are one channel, and which channels must stay.

    Raises:
        PreconditionError: Its code branches on, or takes shapes from, values that it computes.

    Example:
        >>> from torch import nn
        >>> found = follow(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), {"input": torch.zeros(1, 2)})
        >>> [(use.tensor, use.axis) for use in found.uses if use.role == "reads"]
        [('0.weight', 1), ('1.weight', 1)]
    """
    account = Account(model)
    with torch.enable_grad(), _named_calls(model, account), _Following(account):
        results = list(answers(model, batch))
    account.keep(results, OUTPUT)
    channels = account.labels.channels()
    _keep_divided(account, channels)
    none = torch.empty(0, dtype=torch.int64)
    made = torch.cat([none, *(channels.of[labels] for labels in account.makers.values())])
    for name, labels in account.parts.items():
        account.uses += _axis(name, labels, channels, made)
    return Trace(
        makers=account.makers,
        uses=tuple(account.uses),
        evens=tuple(account.evens),
        sizes=tuple(account.sizes),
        channels=channels,
    )


@final
class _Following(TorchFunctionMode):
    """Hands every call of a function of PyTorch's to what follows it."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account = account
        self._computed: set[int] = set()  # tensors that depend on weights

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = _name(function)
        if getattr(function, "__name__", "") in _ASKING:
            self._check_not_computed(name, args)
        result = function(*args, **(kwargs or {}))
        call = Call(name=name, function=function, args=args, kwargs=kwargs or {}, result=result)
        if name in _LEAVING:
            self._account.give_up(call.first, unfollowed(name))
        elif name in _WRITING:
            written(self._account, call)
        elif next(tensors_in(result), None) is not None:
            self._follow(call)
        return result

    def _follow(self, call: Call) -> None:
        FOLLOWED.get(call.name, opaque)(self._account, call)
        if any(id(t) in self._computed or id(t) in self._account.names for t in call.tensors):
            found = tensors_in(call.result)
            self._computed |= {id(t) for t in found if t.is_floating_point() or call.name not in PACKING}

    def _check_not_computed(self, name: str, args: Any) -> None:
        if any(id(t) in self._computed for t in tensors_in(args)):
            raise PreconditionError(
                f"prune: the model's code takes a decision or a shape from values that it computes ({name}); "
                "with fewer channels it may go another way: leave prune out of the plan"
            )


def _name(function: Any) -> str:
    name = str(getattr(function, "__name__", "")).strip("_")
    if name == "get":  # a property of a tensor
        name = str(getattr(getattr(function, "__self__", None), "__name__", name))
    return name


def _enter(account: Account, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
    account.modules.append(name)
    account.given.append([*args, *kwargs.values()])


def _leave(account: Account, *_: Any) -> None:
    del account.modules[-1], account.given[-1]


@contextmanager
def _named_calls(model: nn.Module, account: Account) -> Iterator[None]:
    """Let the account know which module is being called."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            enter = module.register_forward_pre_hook(partial(_enter, account, name), with_kwargs=True)
            leave = module.register_forward_hook(partial(_leave, account))
            hooks.callback(enter.remove)
            hooks.callback(leave.remove)
        yield


def _axis(name: str, labels: Tensor, channels: Channels, made: Tensor) -> list[Use]:
    """Where channels run along a parameter that is added or multiplied; if that is no axis, they stay."""
    of = channels.of[labels]
    found = compressed(torch.where(torch.isin(of, made), of, 0))
    axes = varying(found)
    if len(axes) == 1:
        line = labels.movedim(axes[0], 0).reshape(labels.shape[axes[0]], -1)[:, 0]
        scales = name.rpartition(".")[2] == "weight"
        return [Use(tensor=name, axis=axes[0], labels=line, role="scales" if scales else "follows")]
    for channel in distinct(found):
        if channel:
            channels.whole.setdefault(channel, REARRANGED)
    return []


def _keep_divided(account: Account, channels: Channels) -> None:
    """Channels that a reshape spread over several axes stay, unless their readers joined them again."""
    for labels in account.divided:
        found = compressed(channels.of[labels])
        if len(varying(found)) > 1:
            for channel in distinct(found):
                channels.whole.setdefault(channel, REARRANGED)
