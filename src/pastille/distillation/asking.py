"""Whether teachers are asked for each batch, or once for all: by what either costs, counted, not timed.

A run that is taken up after a kill must decide alike, so nothing here looks at a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch

from pastille.distillation.cache import bytes_of_case
from pastille.distillation.teaching import Live
from pastille.recipe import CacheLimits
from pastille.train.batches import Batch

if TYPE_CHECKING:
    from torch import nn

_FEWEST_VIEWS: Final = 4
_EPOCHS_PER_VIEW: Final = 4  # of auto: a fourth of the answers, and hardly less variety
_DISK: Final = 200e6  # bytes per second, of a slow one
_CPU, _GPU = 2e10, 2e12  # operations per second that a network reaches, roughly


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one case costs.

    Attributes:
        operations: Of all teachers' forward passes.
        bytes: Of what they answer.
    """

    operations: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How teachers are asked.

    Attributes:
        views: Of each case, that are kept; None where they are asked for each batch.
        bytes: On disk.
        why: Of one that is not kept, in a few words.
    """

    views: int | None = None
    bytes: int = 0
    why: str = ""

    def said(self, *, augmented: bool) -> str:
        """For the record.

        Example:
            >>> Asking(views=4, bytes=12_000_000).said(augmented=True)
            'cached, 4 views of each case, 12 MB'
        """
        if self.views is None:
            return f"asked for each batch{f': {self.why}' if self.why else ''}"
        of_each = f"{self.views} views of each case, " if augmented else ""
        return f"cached, {of_each}{_size(self.bytes)}"


def _size(count: float) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"


def asking(
    cache: Literal["auto", "off"] | CacheLimits,
    cost: Cost,
    *,
    cases: int,
    epochs: int,
    augmented: bool,
    free: float = math.inf,
) -> Asking:
    """Decide how teachers are asked.

    Without an augmentation each case looks the same in every epoch, and one answer is enough. With one, a
    cached training sees a fixed number of views of each case in turn: for ``auto`` one for every four
    epochs, at least four, since a student learns most from a teacher that answers many views.

    Args:
        cache: As in the recipe.
        cost: Of one case.
        cases: Of the training split.
        epochs: Of the training.
        augmented: Whether cases look different each time.
        free: Bytes on the disk.

    Example:
        >>> cost = Cost(operations=4e9, bytes=28)
        >>> asking("auto", cost, cases=1000, epochs=10, augmented=False)
        Asking(views=1, bytes=28000, why='')
        >>> asking("auto", cost, cases=1000, epochs=4, augmented=True).why
        '4 views of each case would cost as much as 4 epochs'

    References:
        Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022,
        arXiv:2106.05237 (the teacher must see the view that the student sees, and many of them).
    """
    if cache == "off":
        return Asking()
    limits = CacheLimits() if cache == "auto" else cache
    views = _views(cache, epochs=epochs) if augmented else 1
    size = views * cases * cost.bytes
    if size > limits.max_size:
        return Asking(why=f"{_size(size)} of answers are more than max_size, {_size(limits.max_size)}")
    if size > free:
        return Asking(why=f"{_size(size)} of answers do not fit on the disk")
    if cache == "auto" and not _cheaper(cost, views, epochs):
        many = f"{views} view{'s' if views > 1 else ''} of each case"
        return Asking(why=f"{many} would cost as much as {epochs} epoch{'s' if epochs > 1 else ''}")
    return Asking(views=views, bytes=size)


def _views(cache: Literal["auto"] | CacheLimits, *, epochs: int) -> int:
    asked = max(_FEWEST_VIEWS, math.ceil(epochs / _EPOCHS_PER_VIEW)) if cache == "auto" else cache.views
    return min(asked, epochs)


def _cheaper(cost: Cost, views: int, epochs: int) -> bool:
    """Each view is computed and written once, and each epoch reads one."""
    forward = cost.operations / (_GPU if torch.cuda.is_available() else _CPU)
    disk = cost.bytes / _DISK
    return views * (forward + disk) + epochs * disk < epochs * forward


def cost_of(live: Live, batch: Batch) -> Cost:
    """What one case costs, counted on a batch of a few.

    Args:
        live: The teachers.
        batch: ``{name: (n, ...)}``.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        told = live.told(batch)
    n = len(told.answers)
    # Kernels that the counter does not know, of recurrent layers say, read every weight at least.
    least = 2 * sum(_parameters(teacher) for teacher in live.teachers)
    return Cost(operations=max(counter.get_total_flops() / n, least), bytes=bytes_of_case(told))


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
