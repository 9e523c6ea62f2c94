"""What a model does, in order: which module is called when, what reads its answer, where weights are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pastille.task.forward import answers

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = -1

# To ask for these is not to read the numbers of a tensor.
_METADATA = {torch.Tensor.size, torch.Tensor.dim} | {
    inspect.getattr_static(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad")
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module.

    Attributes:
        module: Its name.
        nth: Which of its calls, from 0.
        start: Of the trace's clock.
        end: Likewise.
        parent: Index of the call that it was made in, or `ROOT`.
    """

    module: str
    nth: int
    start: int
    end: int
    parent: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One forward pass.

    Attributes:
        calls: Those that ended, in the order in which they began, without the model's own.
        uses: Parameter or module -> when it is first used.
        readers: Call -> the innermost calls whose own code reads the numbers that it answered.
    """

    calls: tuple[Call, ...]
    uses: Mapping[str, int]
    readers: Mapping[int, frozenset[int]]

    def skipped(self, clock: int) -> frozenset[int]:
        """The outermost calls that are over at that time."""
        return frozenset(
            i
            for i, call in enumerate(self.calls)
            if call.end < clock and (call.parent == ROOT or self.calls[call.parent].end >= clock)
        )

    def needed(self, skipped: frozenset[int]) -> frozenset[int]:
        """Those of the skipped calls whose answer is read by code that is not skipped."""
        return frozenset(
            i for i in skipped if any(not self.within(r, skipped) for r in self.readers.get(i, ()))
        )

    def within(self, call: int, some: frozenset[int]) -> bool:
        """Whether a call is one of some, or was made in one of them."""
        while call != ROOT:
            if call in some:
                return True
            call = self.calls[call].parent
        return False


@dataclass
class _Recorder(TorchFunctionMode):
    parameters: Mapping[int, tuple[str, ...]]  # identity of a tensor -> its names
    clock: int = 0
    stack: list[int] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    uses: dict[str, int] = field(default_factory=dict)
    makers: dict[int, list[int]] = field(default_factory=dict)  # identity of a tensor -> calls
    readers: dict[int, set[int]] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)  # so that no identity is given twice

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.clock += 1
        if function not in _METADATA:
            for tensor in tensors((args, dict(kwargs or {}))):
                self.read(tensor)
        return function(*args, **(kwargs or {}))

    def read(self, tensor: Tensor) -> None:
        for name in self.parameters.get(id(tensor), ()):
            self.uses.setdefault(name, self.clock)
        for maker in self.makers.get(id(tensor), ()):
            self.readers.setdefault(maker, set()).add(self.stack[-1] if self.stack else ROOT)

    def called(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            index = self.begin(name)
            out = forward(*args, **kwargs)
            self.end(index, out)
            return out

        return recorded

    def begin(self, name: str) -> int:
        self.clock += 1
        self.uses.setdefault(name, self.clock)
        nth = sum(call["module"] == name for call in self.calls)
        parent = self.stack[-1] if self.stack else ROOT
        self.calls.append({"module": name, "nth": nth, "start": self.clock, "parent": parent})
        self.stack.append(len(self.calls) - 1)
        return self.stack[-1]

    def end(self, index: int, out: Any) -> None:
        self.clock += 1
        self.calls[index]["end"] = self.clock
        self.stack.pop()
        self.alive.append(out)
        for tensor in tensors(out):
            # What a call made within this one gave is handed on; what came in was changed in place.
            inner = [i for i in self.makers.get(id(tensor), ()) if i > index]
            self.makers[id(tensor)] = [*inner, index]


def trace(model: nn.Module, batch: Mapping[str, Tensor]) -> Trace:
    """Follow one forward pass.

    Args:
        model: In eval mode; unchanged afterwards.
        batch: A few inputs, ``{name: (N, ...)}``.
    """
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    recorder = _Recorder(names)
    inner = {name: module for name, module in model.named_modules() if name}
    with replaced_forwards(inner, recorder.called), recorder:
        for tensor in answers(model, batch):
            recorder.read(tensor)
    return Trace(
        calls=tuple(Call(**call) for call in recorder.calls),
        uses=recorder.uses,
        readers={call: frozenset(found) for call, found in recorder.readers.items()},
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers."""
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


@contextmanager
def replaced_forwards(
    modules: Mapping[str, nn.Module], wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Put something in place of the ``forward`` of modules, for a while.

    Args:
        modules: By name.
        wrap: Of a module's name and its own ``forward``, what is called instead.
    """
    with ExitStack() as undo:
        for name, module in modules.items():
            own = module.__dict__.get("forward")
            undo.callback(_restore, module, own)
            module.__dict__["forward"] = wrap(name, module.forward)
        yield


def _restore(module: nn.Module, own: Any) -> None:
    if own is None:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = own
