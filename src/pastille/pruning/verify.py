"""The proof that channels were cut where they are read: nothing but the removed channels is missing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pastille.errors import PreconditionError
from pastille.pruning.following.arithmetic import STATISTICS
from pastille.pruning.units import Entries
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

RELATIVE_TOLERANCE = 1e-4  # rounding gives up to 1e-6

Place = tuple[str, int, int]  # a parameter, one of its axes, and the blocks that it is counted in


class Unfollowed(PreconditionError):  # noqa: N818, it names a result
    """The model's code moves channels in a way that was not followed."""


@final
class Reads:
    """Keeps count of which entries of the original parameters are gone, while layers shrink."""

    def __init__(self, model: nn.Module) -> None:
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._kept: dict[Place, Tensor] = {}

    def remove_(self, reads: Iterable[Entries]) -> None:
        """Note that parameters lose entries, by their present index."""
        for entries in reads:
            place = entries.parameter, entries.axis, entries.blocks
            kept = self._kept.get(place, torch.arange(self._size(place)))
            self._kept[place] = kept[~torch.isin(torch.arange(len(kept)), entries.indices)]

    def removed(self) -> dict[Place, Tensor]:
        """Parameter and axis -> its entries that are gone, by their original index."""
        gone = {}
        for place, kept in self._kept.items():
            before = torch.arange(self._size(place))
            gone[place] = before[~torch.isin(before, kept)]
        return {place: indices for place, indices in gone.items() if len(indices)}

    def _size(self, place: Place) -> int:
        name, axis, blocks = place
        return self._shapes[name][axis] * blocks


def check_followed(
    original: nn.Module, pruned: nn.Module, removed: Mapping[Place, Tensor], batch: Mapping[str, Tensor]
) -> None:
    """Compare the pruned model with the original that does not read the removed channels.

    Both answer alike exactly if every layer lost the same channels that its readers lost. Code that
    moves channels (a shuffle, a reshape, padding) can deceive the tracer, and the pruned model then
    runs, but reads the wrong ones.

    What is taken over all channels (the mean and variance of a LayerNorm, a mean) is another number
    with fewer of them although nothing is wrong: the pruned model is given the number that the
    original found, so that the answers must be equal here too.

    Args:
        original: In eval mode; not modified.
        pruned: The result.
        removed: From `Reads.removed`.
        batch: Example inputs.

    Raises:
        Unfollowed: They answer differently.
    """
    blind = copy.deepcopy(original)
    with torch.no_grad():
        for (name, axis, blocks), entries in removed.items():
            blind_(
                blind.get_parameter(name), Entries(parameter=name, axis=axis, indices=entries, blocks=blocks)
            )
        noted: list[Any] = []
        with _Statistics(noted, replay=False):
            expected = forward(blind, batch)
        with _Statistics(noted, replay=True):
            answer = forward(pruned, batch)
    scale = float(expected.abs().max())
    error = float((answer - expected).abs().max())
    if not error <= RELATIVE_TOLERANCE * scale:
        raise Unfollowed(
            f"prune: pruned layers would read other channels than before (answers differ by {error:.2g}): "
            "the model's code shuffles, pads or reshapes channels; protect the layers around that code "
            "(prune.protect) or leave prune out of the plan"
        )


def blind_(parameter: Tensor, entries: Entries) -> None:
    """Set some entries of a parameter to zero."""
    keep = torch.ones(parameter.shape[entries.axis] * entries.blocks)
    keep[entries.indices] = 0
    if entries.blocks == 1:
        shape = [1] * parameter.ndim
        shape[entries.axis] = -1
        parameter.mul_(keep.reshape(shape).to(parameter))
    else:
        whole = parameter.view(entries.blocks, -1, *parameter.shape[1:])
        shape = [entries.blocks] + [1] * parameter.ndim
        shape[entries.axis + 1] = -1
        whole.mul_(keep.reshape(shape).to(parameter))


_OVER_AXES = {*STATISTICS, "max", "min"}
_NORMS = {"layer_norm", "rms_norm", "group_norm"}
_NORM_ARGUMENTS = ("input", "size", "weight", "bias", "eps")


@final
class _Statistics(TorchFunctionMode):
    """Notes what is taken over many entries, or gives it back where there are fewer entries now."""

    def __init__(self, noted: list[Any], *, replay: bool) -> None:
        super().__init__()
        self._noted, self._replay, self._next = noted, replay, 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        kwargs = kwargs or {}
        if name in _NORMS:
            order = [n for n in _NORM_ARGUMENTS if n != "bias" or name != "rms_norm"]
            given = dict(zip(order, args, strict=False)) | {
                "size" if key in {"normalized_shape", "num_groups"} else key: value
                for key, value in kwargs.items()
            }
            return self._norm(name, **given)
        result = function(*args, **kwargs)
        if name not in _OVER_AXES:
            return result
        shape = tuple(args[0].shape) if args else ()
        before, old = self._note((shape, result))
        return result if before == shape else _given_back(old, result)

    def _note(self, found: Any) -> Any:
        if not self._replay:
            self._noted.append(found)
            return found
        self._next += 1
        return self._noted[self._next - 1] if self._next <= len(self._noted) else found

    def _norm(
        self,
        name: str,
        *,
        input: Tensor,  # noqa: A002
        size: Any,
        weight: Any = None,
        bias: Any = None,
        eps: Any = None,
        **_: Any,
    ) -> Tensor:
        x, parts = input, (int(size) if name == "group_norm" else 1)
        axes = 1 if name == "group_norm" else x.ndim - len(size)
        flat = x.flatten(1) if name == "group_norm" else x.flatten(axes)
        rows = flat.reshape(*flat.shape[:-1], parts, -1)
        mean = rows.mean(-1, keepdim=True) if name != "rms_norm" else torch.zeros_like(rows[..., :1])
        square = (rows - mean).square().mean(-1, keepdim=True)
        mean, scale = self._note((mean, (square + (1e-5 if eps is None else eps)).rsqrt()))
        result: Tensor = ((rows - mean) * scale).reshape(x.shape)
        shape = (-1, *(1,) * (x.ndim - 2)) if name == "group_norm" else ()
        weight, bias = (p.reshape(shape) if p is not None and shape else p for p in (weight, bias))
        result = result if weight is None else result * weight
        return result + (0 if bias is None else bias)


def _given_back(old: Any, new: Any) -> Any:
    """What was found before where it has the same shape; of values and their places, the values alone."""
    if isinstance(new, torch.Tensor):
        return old if old.shape == new.shape and old.is_floating_point() else new
    return type(new)(map(_given_back, old, new)) if isinstance(new, tuple) else new
