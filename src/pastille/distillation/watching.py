"""Looking at what the modules of a model give while it runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import nn

from pastille.distillation.attention import Read, batch_axis, sources

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION: Final = "#qkv"  # behind a module's name: its queries, keys and values, side by side


@final
class Watched:
    """What some points of a model gave in its latest forward pass.

    Hooks are taken off with `remove`, or once nobody holds this object. Nothing is seen in inference mode:
    scoring must not hold on to features that nobody asks for.
    """

    def __init__(self, model: nn.Module, points: Iterable[str]) -> None:
        self._parts: dict[str, dict[int, Tensor]] = {point: {} for point in points}
        handles = [
            module.register_forward_hook(_hook(weakref.ref(self), point, i, read), with_kwargs=True)
            for point in self._parts
            for i, (module, read) in enumerate(_sources(model, point))
        ]
        self._remove = weakref.finalize(self, _take_off, handles)

    @property
    def latest(self) -> Mapping[str, Tensor]:
        """Point -> what it gave, ``(N, ...)``; those that were not reached are left out."""
        return {point: _joined(parts) for point, parts in self._parts.items() if parts}

    def taken(self) -> Mapping[str, Tensor]:
        """As `latest`, and forgotten here, so that memory is free once the caller has done with it."""
        found = self.latest
        for parts in self._parts.values():
            parts.clear()
        return found

    def saw(self, point: str, part: int, found: Tensor) -> None:
        """Note what a part of a point gave."""
        self._parts[point][part] = found

    def remove(self) -> None:
        """Take the hooks off; what was seen stays."""
        self._remove()


def watched(model: nn.Module, points: Iterable[str]) -> Watched:
    """Look at some points of a model while it runs.

    Args:
        model: Given hooks, not modified otherwise. Inner modules are hooked, so that it may be wrapped for
            several processes afterwards.
        points: Modules' names; with ``#qkv`` behind, an attention layer's queries, keys and values.

    Raises:
        AttributeError: There is no such module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> seen = watched(net, ["0"])
        >>> _ = net(torch.zeros(5, 2))
        >>> seen.latest["0"].shape
        torch.Size([5, 3])
    """
    return Watched(model, points)


def _sources(model: nn.Module, point: str) -> list[tuple[nn.Module, Read]]:
    module = model.get_submodule(point.removesuffix(ATTENTION))
    return sources(module) if point.endswith(ATTENTION) else [(module, _first_of(module))]


def _first_of(module: nn.Module) -> Read:
    axis = batch_axis(module)
    return lambda _args, _kwargs, out: by_case(first_tensor(out), axis)


def by_case(x: Any, axis: int) -> Any:
    """With the batch as its first axis."""
    return x.transpose(0, axis) if axis and isinstance(x, torch.Tensor) else x


def first_tensor(out: Any) -> Any:
    """What counts of a module's answer; None where that is no tensor."""
    while isinstance(out, tuple | list | Mapping) and out:
        out = next(iter(out.values())) if isinstance(out, Mapping) else out[0]
    return out if isinstance(out, torch.Tensor) else None


def _hook(seer: weakref.ref[Watched], point: str, part: int, read: Read) -> Callable[..., None]:
    """It must not keep its owner alive; copies of the model share it, and the latest call counts."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if (owner := seer()) is None or torch.is_inference_mode_enabled():
            return
        if isinstance(found := read(args, kwargs, out), torch.Tensor):
            owner.saw(point, part, found)

    return hook


def _joined(parts: Mapping[int, Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in sorted(parts)], dim=-1)


def _take_off(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()
