"""What can be removed from a network, and what a removal takes from its tensors: plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["makes", "reads", "scales"]
Kind = Literal["channels", "heads", "blocks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """Some slices of one parameter, along one of its axes.

    Attributes:
        parameter: Its name in the model, e.g. ``"layer1.0.conv1.weight"``.
        axis: Of the parameter.
        indices: Positions on that axis as they are numbered now, ``(C_i,)`` int64.
        blocks: Equal blocks of axis 0 that each have their own entries on ``axis``, and are counted one
            after the other: the input channels of a grouped convolution; else 1.
    """

    parameter: str
    axis: int
    indices: Tensor
    blocks: int = 1

    def rows(self, tensor: Tensor) -> Tensor:
        """The slices of a tensor of the parameter's shape (the weight, its gradient), one per row.

        Returns:
            ``(C_i, M)``.

        Example:
            >>> import torch
            >>> Entries(parameter="w", axis=1, indices=torch.tensor([2])).rows(torch.eye(3))
            tensor([[0., 0., 1.]])
        """
        return lined_up(tensor, self.axis, self.blocks)[self.indices]


def lined_up(tensor: Tensor, axis: int, blocks: int = 1) -> Tensor:
    """The entries of a tensor along one axis, one per row.

    Args:
        tensor: ``(D_0, …)``.
        axis: Of the tensor.
        blocks: As in `Entries`.

    Returns:
        ``(blocks · C, M)``, where ``C`` is the size of the axis.
    """
    if blocks > 1:
        apart = tensor.reshape(blocks, -1, *tensor.shape[1:]).movedim(axis + 1, 1)
        return apart.flatten(0, 1).flatten(1)
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One parameter that the units of a group run through.

    Attributes:
        entries: Its slices.
        channels: Which unit of the group each slice belongs to, ``(C_i,)`` int64; a head has many.
        role: Whether the parameter makes the channels, reads them, or scales them (a norm's weight).
    """

    entries: Entries
    channels: Tensor
    role: Role


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Units that are about to leave.

    Attributes:
        reads: Where they are read, so that zeros there are as good as the removal.
        exact: Whether each layer that makes them loses as many channels as were chosen.
        apply: Removes them from every layer, in place; raises `PreconditionError` if a layer cannot be cut.
    """

    reads: tuple[Entries, ...]
    exact: bool
    apply: Callable[[], None] = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """Units that are removed together from every layer they run through: channels, or attention heads.

    Attributes:
        name: The layer that makes them; the attention module, of heads.
        kind: What a unit is.
        num_channels: How many units there are now, ``C``.
        parts: Equal consecutive parts of the units from which equally many must go: the groups of a
            grouped convolution, the layers and directions of an LSTM.
        apart: Whether each part is a width of its own, and rounded by itself: the layers of an LSTM.
        rows: Output channels of the layer ``name`` per unit: 2 if it makes two halves that are multiplied.
        outputs: Layers whose output channels are in the group, the residual partners included.
        members: The parameters that they run through.
        whole: Why the group must be left whole; empty if it may be pruned.
        cut: What removing some units, ``(n,)`` int64, takes from every layer; nothing is changed by asking.
    """

    name: str
    kind: Kind = "channels"
    num_channels: int
    parts: int = 1
    apart: bool = False
    rows: int = 1
    outputs: tuple[str, ...]
    members: tuple[Member, ...]
    whole: str
    cut: Callable[[Tensor], Cut] = field(repr=False)
