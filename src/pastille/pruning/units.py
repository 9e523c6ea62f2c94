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
    """

    parameter: str
    axis: int
    indices: Tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """The slices of a tensor of the parameter's shape (the weight, its gradient), one per row.

        Returns:
            ``(C_i, M)``.

        Example:
            >>> import torch
            >>> Entries(parameter="w", axis=1, indices=torch.tensor([2])).rows(torch.eye(3))
            tensor([[0., 0., 1.]])
        """
        return (
            tensor.movedim(self.axis, 0)[self.indices].flatten(1)
            if tensor.ndim > 1
            else _column(tensor[self.indices])
        )


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1)


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
        outputs: Layers whose output channels are in the group, the residual partners included.
        members: The parameters that they run through.
        whole: Why the group must be left whole; empty if it may be pruned.
        cut: What removing some units, ``(n,)`` int64, takes from every layer; nothing is changed by asking.
    """

    name: str
    kind: Kind = "channels"
    num_channels: int
    outputs: tuple[str, ...]
    members: tuple[Member, ...]
    whole: str
    cut: Callable[[Tensor], Cut] = field(repr=False)
