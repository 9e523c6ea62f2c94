"""What a network costs as a function of the widths it keeps: multiply-accumulates and parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pastille.pruning.removal import trainable_copy
from pastille.pruning.units import ChannelGroup
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor, nn

AXES: Final = 2  # of a weight that channels leave: what it makes and what it reads


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """Every parameter of a network, and what of it leaves with each unit of each group.

    A parameter that multiplies is applied to every position (pixel, token, time step) alike, so its
    multiply-accumulates are its size times the number of positions, whatever its width: depthwise,
    grouped and transposed convolutions, linear layers over tokens and recurrent layers are one case.

    Attributes:
        groups: Names, ``G`` of them; only groups that may be pruned.
        widths: Units of each group before anything is removed, ``(G,)`` int64.
        parameters: Names, ``P`` of them.
        sizes: Numbers in each parameter, ``(P,)``.
        uses: How often each number of it is multiplied for one input, ``(P,)``; 0 of biases and norms.
        answers: Numbers that are computed with it for one input, ``(P,)``.
        lost: Share of a parameter's axes 0 and 1 that one unit of a group takes away, ``(P, 2, G)``.
        order: Parameters in the order in which they multiply, one for each time.
        products: Multiply-accumulates between activations for one input (attention).
        heads: Which groups are attention heads, ``(G,)`` bool: products shrink with them.
    """

    groups: tuple[str, ...]
    widths: np.ndarray
    parameters: tuple[str, ...]
    sizes: np.ndarray = field(repr=False)
    uses: np.ndarray = field(repr=False)
    answers: np.ndarray = field(repr=False)
    lost: np.ndarray = field(repr=False)
    order: tuple[str, ...] = field(repr=False)
    products: float
    heads: np.ndarray

    def vector(self, kept: Mapping[str, int]) -> np.ndarray:
        """Widths by group as an array ``(G,)``; a group that is not named keeps all."""
        return np.array([kept.get(name, full) for name, full in zip(self.groups, self.widths, strict=True)])

    def named(self, kept: np.ndarray) -> dict[str, int]:
        """Widths ``(G,)`` by group."""
        return {name: int(width) for name, width in zip(self.groups, kept, strict=True)}

    def shares(self, kept: np.ndarray) -> np.ndarray:
        """What is left of each parameter's two axes.

        Args:
            kept: Widths of ``B`` networks, ``(B, G)``.

        Returns:
            ``(B, P, 2)`` in [0, 1].
        """
        left: np.ndarray = 1.0 - np.tensordot(self.widths - kept, self.lost, axes=(1, 2))
        return left

    def macs(self, kept: np.ndarray) -> np.ndarray:
        """Multiply-accumulates for one input of networks of these widths, ``(B, G)`` -> ``(B,)``."""
        heads = self.widths[self.heads]
        left = kept[:, self.heads].sum(axis=1) / heads.sum() if len(heads) else 1.0
        weights: np.ndarray = self.shares(kept).prod(axis=2) @ (self.sizes * self.uses)
        return weights + self.products * left

    def numbers(self, kept: np.ndarray) -> np.ndarray:
        """Parameters of networks of these widths, ``(B, G)`` -> ``(B,)``."""
        found: np.ndarray = self.shares(kept).prod(axis=2) @ self.sizes
        return found


def costs(model: nn.Module, batch: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> Costs:
    """Trace one forward pass, and relate what is multiplied in it to the groups of channels.

    Args:
        model: Not modified.
        batch: Example inputs, ``{name: (N, ...)}``.
        groups: From `survey`; those that must be left whole are passed over.

    Returns:
        Exact where each unit of a group takes as many slices of a parameter as every other.

    Example:
        >>> from torch import nn
        >>> from pastille.pruning.removal import survey
        >>> net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
        >>> batch = {"input": torch.zeros(2, 1, 8, 8)}
        >>> found = costs(net, batch, survey(net, batch))
        >>> found.macs(np.array([[16], [8]]))  # 36 · 9 · 16 + 16 · 9 · 16 · 4, and half of it
        array([14400.,  7200.])
    """
    traced = trainable_copy(model)
    free = [group for group in groups if not group.whole and group.kind != "blocks"]
    held = dict(traced.named_parameters())
    seen = _Products(held, rows=len(next(iter(batch.values()))))
    with torch.enable_grad(), seen:  # with gradients, or fused kernels hide what is multiplied
        forward(traced, batch)
    return Costs(
        groups=tuple(group.name for group in free),
        widths=np.array([group.num_channels for group in free], np.int64),
        parameters=tuple(held),
        sizes=np.array([p.numel() for p in held.values()], float),
        uses=np.array([seen.macs[name] / p.numel() for name, p in held.items()]),
        answers=np.array([seen.answers[name] for name in held]),
        lost=_lost(held, free),
        order=tuple(seen.order),
        products=seen.between,
        heads=np.array([group.kind == "heads" for group in free], bool),
    )


def _lost(parameters: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> np.ndarray:
    found = np.zeros((len(parameters), AXES, len(groups)))
    at = {name: row for row, name in enumerate(parameters)}
    beside = _beside(parameters)
    for column, group in enumerate(groups):
        for (name, axis, blocks), count in _taken(group).items():
            share = count / (parameters[name].shape[axis] * blocks) / group.num_channels
            found[at[name], axis, column] = share
            for bias in beside.get((name, axis), ()):
                found[at[bias], 0, column] = share
    return found


def _taken(group: ChannelGroup) -> Mapping[tuple[str, int, int], int]:
    """Slices of each parameter, axis and blocks that a group runs through; named twice, they count once."""
    slices: dict[tuple[str, int, int], set[int]] = defaultdict(set)
    for entries in (member.entries for member in group.members if member.entries.axis < AXES):
        slices[entries.parameter, entries.axis, entries.blocks].update(entries.indices.tolist())
    return {place: len(indices) for place, indices in slices.items()}


def _beside(parameters: Mapping[str, Tensor]) -> Mapping[tuple[str, int], list[str]]:
    """Biases: they lose what their weight makes, and are no members of a group."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        if parameter.ndim == 1 and "bias" in leaf:
            weight = f"{owner}." * bool(owner) + leaf.replace("bias", "weight")
            shape = tuple(parameters[weight].shape) if weight in parameters else ()
            axis = next((axis for axis in _makes(shape) if shape[axis] == len(parameter)), None)
            if axis is not None:
                found[weight, axis].append(name)
    return found


def _makes(shape: Sequence[int]) -> Iterable[int]:
    return range(min(len(shape), AXES))


@final
class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a forward pass multiplies, by the parameter that it multiplies with."""

    def __init__(self, parameters: Mapping[str, Tensor], *, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {_storage(p): name for name, p in parameters.items()}
        self._rows = rows
        self.macs: defaultdict[str, float] = defaultdict(float)
        self.answers: defaultdict[str, float] = defaultdict(float)
        self.between = 0.0
        self.order: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple | list) else out
        for macs, factors in _products_of(func.overloadpacket.__name__, args, first):
            weights = [name for x in factors if (name := self._names.get(_storage(x)))]
            if not weights:
                self.between += macs / self._rows
            for name in weights[:1]:
                self.macs[name] += macs / self._rows
                self.answers[name] += first.numel() / self._rows
                self.order.append(name)
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _products_of(name: str, args: tuple[Any, ...], out: Any) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
    """Multiply-accumulates of an operator, and what is multiplied."""
    match name:
        case "convolution" | "_convolution":
            data, weight, transposed = args[0], args[1], args[6]
            yield float((data if transposed else out).numel() * prod(weight.shape[1:])), (weight,)
        case "mm" | "bmm":
            yield float(out.numel() * args[0].shape[-1]), (args[0], args[1])
        case "addmm" | "baddbmm":
            yield float(out.numel() * args[1].shape[-1]), (args[1], args[2])
        case "mkldnn_rnn_layer":
            positions = math.prod(args[0].shape[:2])
            yield from ((float(positions * w.numel()), (w,)) for w in args[1:3])
        case _ if name.startswith("_scaled_dot_product"):
            query, key, value = args[:3]
            yield float(query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])), ()
