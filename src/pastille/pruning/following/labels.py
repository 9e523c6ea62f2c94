"""Labels of channels: which entries of which tensors are one channel, and which of them must stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from pastille.pruning.whole import REARRANGED, rank

if TYPE_CHECKING:
    from torch import Tensor

UNLABELLED = 0  # an entry that belongs to no channel: of the model's input, or a constant


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What the labels came to.

    Attributes:
        of: Label -> channel, ``(L,)`` int64; channel 0 is none.
        whole: Channel -> why it must stay.
    """

    of: Tensor
    whole: dict[int, str]


@final
class Labels:
    """Gives out labels, and keeps account of which of them name the same channel."""

    def __init__(self) -> None:
        self._count = 1
        self._same: list[tuple[Tensor, Tensor]] = []
        self._whole: list[tuple[Tensor, str]] = []
        self._fixed: dict[int, str] = {UNLABELLED: REARRANGED}

    def fresh(self, *shape: int) -> Tensor:
        """New labels, one for each entry of a shape."""
        first, self._count = self._count, self._count + torch.Size(shape).numel()
        return torch.arange(first, self._count).reshape(shape)

    def fixed(self, why: str) -> Tensor:
        """A label of entries that can not be removed: what is added to them stays for the same reason."""
        label = self.fresh()
        self._fixed[int(label)] = why
        return label

    def same(self, some: Tensor, others: Tensor) -> None:
        """Let labels name the same channels, entry by entry; shapes broadcast."""
        shape = (some + others).shape
        self._same.append((some.expand(shape).flatten(), others.expand(shape).flatten()))

    def keep(self, labels: Tensor, why: str) -> None:
        """Let channels stay."""
        self._whole.append((labels.flatten(), why))

    def channels(self) -> Channels:
        """Follow what names the same channel through to the end."""
        none = torch.empty(0, dtype=torch.int64)
        some, others = (torch.cat([none, *(pair[i] for pair in self._same)]) for i in (0, 1))
        fixed = torch.zeros(self._count, dtype=torch.bool)
        fixed[list(self._fixed)] = True
        # A fixed label joins nothing: what it meets stays, but is not the same channel as what else it meets.
        free = ~(fixed[some] | fixed[others])
        of = _components(self._count, some[free], others[free])
        of = torch.where(fixed, 0, of + 1)
        whole: dict[int, str] = {}
        for labels, why in self._whole:
            _keep(whole, of[labels], why)
        for one, other in ((some, others), (others, some)):
            met, beside = one[fixed[one]], of[other[fixed[one]]]
            for label in distinct(met):
                _keep(whole, beside[met == label], self._fixed[label])
        return Channels(of=of, whole=whole)


def _components(count: int, some: Tensor, others: Tensor) -> Tensor:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = coo_array(([True] * len(some), (some.numpy(), others.numpy())), shape=(count, count))
    return torch.from_numpy(connected_components(pairs, directed=False)[1]).long()


def _keep(whole: dict[int, str], channels: Tensor, why: str) -> None:
    """Note a reason, unless a better one is known."""
    for channel in distinct(channels):
        if channel and rank(why) < rank(whole.get(channel, "")):
            whole[channel] = why


def compressed(labels: Tensor) -> Tensor:
    """The labels with one entry along each axis that they do not depend on."""
    for axis, size in enumerate(labels.shape):
        first = labels.narrow(axis, 0, min(size, 1))
        if size > 1 and (labels.stride(axis) == 0 or bool((labels == first).all())):
            labels = first
    return labels


def distinct(values: Tensor) -> list[int]:
    """The different values of a tensor of integers, in order."""
    return sorted(set(values.flatten().tolist()))


def varying(labels: Tensor) -> list[int]:
    """The axes along which labels differ."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]
