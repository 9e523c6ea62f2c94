"""What following a model's channels through one forward pass finds: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from pastille.pruning.following.labels import Channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """One axis of a parameter or buffer that channels run along.

    Attributes:
        tensor: Its name in the model.
        axis: Of the tensor.
        labels: Of the entries on that axis, ``(C,)`` int64.
        role: What it does with the channels; ``"follows"`` if it only has to keep step (a bias).
        blocks: Equal blocks of axis 0 that each have their own entries on this axis: the channels that
            a grouped convolution reads are counted through all its groups; else 1.
    """

    tensor: str
    axis: int
    labels: Tensor
    role: Literal["makes", "reads", "scales", "follows"]
    blocks: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Even:
    """Consecutive parts of some entries that must lose equally many.

    Attributes:
        labels: ``(C,)`` int64.
        parts: How many, equal in size.
    """

    labels: Tensor
    parts: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Size:
    """An integer attribute of a module that is the number of some channels, and of no tensor's axis."""

    module: str
    attribute: str
    labels: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What was found.

    Attributes:
        makers: Layer -> labels of the channels that it puts out, ``(C,)``, in the order of the forward pass.
        uses: Every axis of every tensor that channels run along.
        evens: What must lose equally many.
        sizes: Attributes to change with the channels.
        channels: Label -> channel, and which must stay.
    """

    makers: dict[str, Tensor]
    uses: tuple[Use, ...]
    evens: tuple[Even, ...]
    sizes: tuple[Size, ...]
    channels: Channels
