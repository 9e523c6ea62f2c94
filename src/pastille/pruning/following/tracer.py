"""The account of one forward pass: labels of every tensor, and what layers do with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from pastille.pruning.following.labels import UNLABELLED, Labels, compressed, varying
from pastille.pruning.following.trace import Even, Size, Use
from pastille.pruning.whole import REARRANGED, SHARED, unfollowed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a function of PyTorch's.

    Attributes:
        name: Of the function, without underscores: ``add`` of ``__iadd__``, ``add_`` and ``torch.add``.
        function: It.
        args: By position.
        kwargs: By name.
        result: What it returned.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument, given by position or by one of its names."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return list(tensors_in((self.args, self.kwargs)))

    @property
    def first(self) -> Tensor:
        """What the function is applied to."""
        return self.tensors[0]


def words(text: str) -> list[str]:
    """The names in a text."""
    return text.split()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


@final
class Account:
    """Labels of all tensors met so far, and what must be done to cut them."""

    def __init__(self, model: nn.Module) -> None:
        self.root = model
        self.labels = Labels()
        self.makers: dict[str, Tensor] = {}
        self.uses: list[Use] = []
        self.evens: list[Even] = []
        self.sizes: list[Size] = []
        self.divided: list[Tensor] = []  # labels that a reshape spread over several axes
        self.modules: list[str] = []  # those being called, the innermost last
        self.given: list[list[Any]] = []  # what each of them was called with
        self.names: dict[int, str] = {}
        self.shared: set[int] = set()
        self._of: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # so that no id is given out twice
        self._functions: dict[Any, Tensor] = {}
        for name, tensor in (*_parameters(model), *_buffers(model)):
            if id(tensor) in self.names:
                self.shared.add(id(tensor))
            self.names.setdefault(id(tensor), name)
        self.parts: dict[str, Tensor] = {}  # parameters and buffers whose every entry is labelled

    def use(self, use: Use) -> None:
        """Note a use; a layer that is called again has the same channels again."""
        for known in self.uses:
            if (known.tensor, known.axis) == (use.tensor, use.axis):
                self.labels.same(known.labels, use.labels)
                return
        self.uses.append(use)

    def made(self, layer: str, labels: Tensor) -> None:
        """Note what a layer puts out."""
        if layer in self.makers:
            self.labels.same(self.makers[layer], labels)
        self.makers[layer] = labels

    def of(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor: of as many axes, with one entry along those that do not matter."""
        if id(tensor) not in self._of:
            self.put(tensor, self._first_seen(tensor))
        return self._of[id(tensor)]

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Note the labels of a tensor."""
        self._alive.append(tensor)
        self._of[id(tensor)] = labels.reshape((1,) * (tensor.ndim - labels.ndim) + tuple(labels.shape))
        if tensor.grad_fn is not None:
            self._functions[tensor.grad_fn] = self._of[id(tensor)]

    def spread(self, tensor: Tensor) -> Tensor:
        """The labels of every entry of a tensor."""
        return self.of(tensor).expand(tensor.shape)

    def keep(self, tensors: Iterable[Tensor], why: str) -> None:
        """Let all channels that run through some tensors stay."""
        for tensor in tensors:
            self.labels.keep(self.of(tensor), why)

    def give_up(self, tensor: Tensor, why: str) -> None:
        """Let what runs through a tensor stay; a parameter need not be looked into for that."""
        if id(tensor) in self.names and id(tensor) not in self._of:
            self.put(tensor, self.labels.fixed(why))
        elif self.of(tensor).any():
            self.labels.keep(self.of(tensor), why)

    def along(self, tensor: Tensor, axis: int) -> Tensor:
        """Labels along one axis, ``(C,)``: all that share a place on it are one channel."""
        labels = self.of(tensor)
        rows = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
        if rows.shape[1] > 1:
            self.labels.same(rows[:, :1], rows)
        return rows[:, 0].expand(tensor.shape[axis]).contiguous()

    def join(self, tensors: Iterable[Tensor], result: Tensor) -> None:
        """Let tensors that are added, multiplied or compared have the same channels, and their result too."""
        fitting = [t for t in tensors if t.ndim <= result.ndim]
        known = [(self._padded(self.of(t), result), _shape(t, result)) for t in fitting]
        known.sort(key=lambda pair: pair[0].numel(), reverse=True)
        if not known:
            self.put(result, torch.zeros((1,) * result.ndim, dtype=torch.int64))
            return
        (joined, _), *others = known
        for labels, shape in others:
            if not bool(joined.any()) and bool(labels.any()):
                joined, labels = labels, joined
            self._meet(joined, labels, shape)
        # All are the same now: the labels that vary along the fewest axes say it best.
        spans = [
            labels
            for labels, shape in known
            if labels.any() and all(shape[axis] > 1 for axis in varying(joined))
        ]
        self.put(result, min(spans, key=torch.numel, default=joined))

    def _meet(self, joined: Tensor, labels: Tensor, shape: list[int]) -> None:
        if any(shape[axis] == 1 for axis in varying(joined)):
            self.labels.keep(labels, REARRANGED)  # one entry that goes to many channels
        elif varying(joined) or bool(labels.any()):
            self.labels.same(joined, labels)

    def _padded(self, labels: Tensor, result: Tensor) -> Tensor:
        return labels.reshape((1,) * (result.ndim - labels.ndim) + tuple(labels.shape))

    def _first_seen(self, tensor: Tensor) -> Tensor:
        name = self.names.get(id(tensor))
        if name is not None and tensor.is_floating_point():
            self.parts[name] = self.labels.fresh(*tensor.shape)
            if id(tensor) in self.shared:
                self.labels.keep(self.parts[name], SHARED)
            return self.parts[name]
        if tensor.grad_fn is None:
            return torch.full((1,) * tensor.ndim, UNLABELLED)
        return self._from_elsewhere(tensor)

    def _from_elsewhere(self, tensor: Tensor) -> Tensor:
        """Made by code whose calls are not seen (a script, say): all that went in stays."""
        why = unfollowed(f"{type(tensor.grad_fn).__name__.removesuffix('Backward')}")
        pending, seen = [tensor.grad_fn], set[Any]()
        while pending:
            node: Any = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self._functions:
                self.labels.keep(self._functions[node], why)
            elif hasattr(node, "variable"):
                self.keep([node.variable], why)
            else:
                pending.extend(f for f, _ in node.next_functions)
        return self.labels.fixed(why)


def _shape(tensor: Tensor, result: Tensor) -> list[int]:
    return [1] * (result.ndim - tensor.ndim) + list(tensor.shape)


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return model.named_parameters(remove_duplicate=False)


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return model.named_buffers(remove_duplicate=False)


def opaque(account: Account, call: Call, why: str = "") -> None:
    """A function that is not followed: what goes in stays, and so does what it is added to."""
    why = why or unfollowed(call.name)
    for tensor in call.tensors:
        account.give_up(tensor, why)
    for tensor in tensors_in(call.result):
        account.put(tensor, account.labels.fixed(why))


def settle(account: Account, labels: Tensor, result: Tensor, before: int) -> None:
    """Note the labels of what was only moved about, as many axes as ``before`` varied in it."""
    labels = compressed(labels)
    if len(varying(labels)) > max(before, 1):
        account.divided.append(labels)
    account.put(result, labels)
