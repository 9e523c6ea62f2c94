"""Answers of a model that is changed late: what is computed before the change is computed once.

Nothing is assumed of the model's form. A call of a module that is over before the changed layer begins
would answer the same again, so its answer is kept and handed out in place of the call. Of those answers
only the ones that code outside of such calls reads are held as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch.utils import _pytree as pytree

from pastille.stages.scanning.trace import Trace, replaced_forwards, tensors
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = Mapping[str, "Tensor"]


class _EnoughError(Exception):
    """Everything that was wanted of a forward pass is there."""


@final
class Replay:
    """One batch, and what the model computed of it up to some point.

    Example:
        >>> from torch import nn
        >>> from pastille.stages.scanning.trace import trace
        >>> net, batch = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), {"input": torch.ones(1, 2)}
        >>> with torch.inference_mode():
        ...     seen = trace(net, batch)
        ...     later = Replay(net, seen, batch)
        ...     later.advance(seen.uses["1"])
        ...     bool(later.answer() == net(batch["input"])), len(later.kept)
        (True, 1)
    """

    def __init__(self, model: nn.Module, trace: Trace, batch: Batch) -> None:
        self._model, self._trace, self._batch = model, trace, batch
        self._modules = dict(model.named_modules())
        self._index = {(call.module, call.nth): i for i, call in enumerate(trace.calls)}
        self._made_in = _made_in(trace)
        self.kept: dict[int, Any] = {}

    def advance(self, clock: int) -> None:
        """Go on to a later point of the trace, computing what lies between.

        Args:
            clock: Of the trace; no earlier than that of the call before.
        """
        skipped = self._trace.skipped(clock)
        found = self._computed(skipped - self.kept.keys())
        needed = self._trace.needed(skipped)
        every = {**self.kept, **found}
        self.kept = {i: every[i] if i in needed else _hollow(every[i]) for i in skipped if i in every}

    def answer(self) -> Tensor:
        """What the model answers as it is now, if nothing before the point was changed."""
        with self._standing_in({}, frozenset()):
            return forward(self._model, self._batch)

    @property
    def held_bytes(self) -> int:
        """Memory that the kept answers take."""
        return sum(x.untyped_storage().nbytes() for x in tensors(list(self.kept.values())))

    def _computed(self, wanted: frozenset[int]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        if wanted:
            try:
                with self._standing_in(found, wanted):
                    forward(self._model, self._batch)
            except _EnoughError:
                pass
        return found

    def _standing_in(self, found: dict[int, Any], wanted: frozenset[int]) -> Any:
        counts: dict[str, int] = {}

        def wrap(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                index = self._index.get((name, counts.get(name, 0)), -1)
                if index in self.kept:
                    _count(self._made_in[index], counts)
                    return _fresh(self.kept[index])
                counts[name] = counts.get(name, 0) + 1
                out = own(*args, **kwargs)
                if index in wanted:
                    found[index] = _fresh(out)
                    if len(found) == len(wanted):
                        raise _EnoughError
                return out

            return call

        names = {self._trace.calls[i].module for i in (*self.kept, *wanted)}
        return replaced_forwards({name: self._modules[name] for name in names}, wrap)


def _made_in(trace: Trace) -> list[dict[str, int]]:
    """Of each call: how many calls of each module it is, itself included."""
    counts: list[dict[str, int]] = [{call.module: 1} for call in trace.calls]
    for i in reversed(range(len(counts))):  # what is within comes later
        parent = trace.calls[i].parent
        if parent >= 0:
            _count(counts[i], counts[parent])
    return counts


def _count(more: Mapping[str, int], counts: dict[str, int]) -> None:
    for name, number in more.items():
        counts[name] = counts.get(name, 0) + number


def _fresh(value: Any) -> Any:
    """A copy: code may change what it is given."""
    return pytree.tree_map(lambda x: _copied(x) if isinstance(x, torch.Tensor) else x, value)


def _copied(x: Tensor) -> Tensor:
    return x if _is_hollow(x) else x.clone()


def _is_hollow(x: Tensor) -> bool:
    return x.ndim > 0 and not any(x.stride())


def _hollow(value: Any) -> Any:
    """The same shapes without the numbers, in no memory."""
    return pytree.tree_map(
        lambda x: x.new_zeros(()).expand(x.shape) if isinstance(x, torch.Tensor) else x, value
    )


def unfit_points(model: nn.Module, trace: Trace, batch: Batch, points: Iterable[int]) -> tuple[set[int], int]:
    """Points from which a model does not answer bit for bit what it answers as a whole.

    Such are models that run other code each time, or that write into what another module answered.

    Args:
        model: In eval mode.
        trace: Of it.
        batch: A few inputs.
        points: Times of the trace.

    Returns:
        The unfit points, and the most bytes that the others hold for one case.
    """
    expected = forward(model, batch)
    rows, most, unfit = len(expected), 0, set[int]()
    replay = Replay(model, trace, batch)
    for clock in sorted(set(points)):
        try:
            replay.advance(clock)
            fits = torch.equal(replay.answer(), expected)
        except Exception:  # whatever the model's own code makes of it: then it is run as a whole
            fits = False
        if fits:
            most = max(most, replay.held_bytes // rows)
        else:
            unfit.add(clock)
    return unfit, most
