"""How many units of each group stay, and which go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from pastille.pruning.criteria import channels_kept
from pastille.pruning.units import ChannelGroup
from pastille.pruning.whole import is_within

if TYPE_CHECKING:
    from torch import Tensor

ALLOCATIONS = ("uniform", "global", "sensitivity")
LEAST = 0.1  # of a group's units stay where groups are compared, so that none vanishes

Harm = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What a group's width may be.

    Attributes:
        now: Units that it has.
        original: Before any pruning; what a sparsity is a fraction of.
        unit: Widths kept are multiples of this, or the group stays as it is.
    """

    now: int
    original: int
    unit: int

    def kept(self, sparsity: float) -> int:
        """Width at a sparsity; never less than was asked for stays."""
        return min(self.now, channels_kept(self.original, sparsity=sparsity, round_to=self.unit))

    def narrower(self) -> Sequence[int]:
        """Every width below the present one, falling, down to the least where groups are compared."""
        least = max(self.unit, -int(-self.original * LEAST // self.unit) * self.unit)
        return range((self.now - 1) // self.unit * self.unit, least - 1, -self.unit)


def widths_of(group: ChannelGroup, round_to: int | Mapping[str, int], original: Mapping[str, int]) -> Widths:
    """What a group's width may be.

    Args:
        group: Heads are not rounded: a head is no lane of a kernel.
        round_to: For all groups, or by name; 1 where a name is missing.
        original: Name -> units before any pruning; the present ones where a name is missing.
    """
    wanted = round_to if isinstance(round_to, int) else round_to.get(group.name, 1)
    before = max(group.num_channels, original.get(group.name, 0))
    return Widths(now=group.num_channels, original=before, unit=unit_of(group, wanted, before))


def unit_of(group: ChannelGroup, round_to: int, original: int) -> int:
    """What the widths of a group are multiples of.

    Args:
        group: Layers of an LSTM are rounded each by itself. Heads are not rounded.
        round_to: Given up where, together with the parts of the group, it would leave no narrower width.
        original: Units before any pruning.

    Example:
        >>> group = ChannelGroup(name="conv", num_channels=440, parts=55, outputs=("conv",), members=(),
        ...                      whole="", cut=None)
        >>> unit_of(group, 8, 440), unit_of(group, 8, 880)
        (55, 440)
    """
    if group.kind == "heads":
        return group.parts
    unit = round_to * group.parts if group.apart else math.lcm(round_to, group.parts)
    return group.parts if _is_unrounded(group, unit, round_to, original) else unit


def _is_unrounded(group: ChannelGroup, unit: int, round_to: int, original: int) -> bool:
    """Whether the parts alone are to blame that a rounding leaves no narrower width."""
    return not group.apart and round_to < original <= unit


def unrounded(group: ChannelGroup, round_to: int | Mapping[str, int], original: Mapping[str, int]) -> str:
    """That the rounding of a group is given up, in a few words; empty if it is not."""
    wanted = round_to if isinstance(round_to, int) else round_to.get(group.name, 1)
    unit = widths_of(group, round_to, original).unit
    if group.kind == "heads" or unit % wanted == 0:
        return ""
    return f"not rounded to {wanted}: its channels go in {group.parts} equal parts"


def allocate(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    *,
    sparsity: float,
    allocation: str = "uniform",
    layers: Mapping[str, float] | None = None,
    round_to: int | Mapping[str, int] = 8,
    original: Mapping[str, int] | None = None,
    harm: Harm | None = None,
    cost: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Share a sparsity out among groups; never more is removed than was asked.

    Args:
        groups: From `pastille.pruning.survey`; those that must be left whole are passed over.
        scores: Name of a group -> how much each unit matters, ``(C,)``; looked at by ``"global"``.
        sparsity: Fraction to remove, of what was there before any pruning, in ``[0, 1)``.
        allocation: ``"uniform"``: of every group; ``"global"``: the units that matter least, wherever they
            are; ``"sensitivity"``: where the harm curves rise least. Those two leave every group a tenth of
            its units.
        layers: Module (``*`` matches any part) -> a sparsity for channels made there, in place of that; the
            most specific pattern counts, and of equally specific ones the lower sparsity. The overall share
            is that of the other groups.
        round_to: Widths kept are multiples of this, or whole; for all groups, or by name.
        original: Name -> units before any pruning, where an earlier step has already removed some.
        harm: Name -> (sparsity, rise of the loss) as scanned, ascending. Between them lines are drawn, beyond
            the last one the steepest of them; a rise never becomes less. Groups that were not scanned are
            given the median curve.
        cost: Name -> what a unit of the group costs (MACs, parameters). The overall share is then one of the
            cost, and units that save much go first; otherwise all units count alike.

    Returns:
        Name -> units kept, for every group that may be pruned.

    Raises:
        ValueError: An argument is out of range, or ``"sensitivity"`` is given no curve.

    Example:
        >>> from pastille.pruning.units import ChannelGroup
        >>> groups = [ChannelGroup(name=name, num_channels=4, outputs=(name,), members=(), whole="", cut=None)
        ...           for name in "ab"]
        >>> scores = {"a": torch.tensor([1.0, 2, 3, 9]), "b": torch.tensor([4.0, 5, 6, 7])}
        >>> allocate(groups, scores, sparsity=0.5, allocation="global", round_to=1)
        {'a': 1, 'b': 3}
    """
    channels_kept(1, sparsity=sparsity, round_to=1)
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {allocation!r}")
    if allocation == "sensitivity" and not harm:
        raise ValueError("allocation 'sensitivity' needs harm: what `pastille scan` measured of each layer")
    free = [group for group in groups if not group.whole]
    widths = {group.name: widths_of(group, round_to, original or {}) for group in free}
    own = {g.name: s for g in free if (s := override(g, layers or {})) is not None}
    shared = [group for group in free if group.name not in own]
    kept = {name: widths[name].kept(own.get(name, sparsity)) for name in widths}
    if allocation == "uniform" or not shared:
        return kept
    if allocation == "global":
        steps = [_by_score(g, widths[g.name], scores[g.name], _cost(g, cost)) for g in shared]
    else:
        curves = _curves(shared, harm or {})
        steps = [_by_harm(g, widths[g.name], curves[g.name], _cost(g, cost)) for g in shared]
    budget = sum(
        _cost(g, cost) * (widths[g.name].now - (1 - sparsity) * widths[g.name].original) for g in shared
    )
    return kept | {g.name: widths[g.name].now for g in shared} | _least_harmful(steps, budget)


def _cost(group: ChannelGroup, cost: Mapping[str, float] | None) -> float:
    found = 1.0 if cost is None else cost.get(group.name, 0.0)
    if not found > 0:
        raise ValueError(f"cost must say what a unit of {group.name} costs, more than 0")
    return found


def override(group: ChannelGroup, layers: Mapping[str, float]) -> float | None:
    """The sparsity that a recipe gives a group alone; None if it gives it none.

    Args:
        group: Any of its layers may be named, or a module that holds it. Heads are no channels: a sparsity
            of a layer is none of its heads.
        layers: Module (``*`` matches any part) -> sparsity.
    """
    if group.kind == "heads":
        return None
    named = [
        (_specificity(pattern), -sparsity)
        for pattern, sparsity in layers.items()
        if any(is_within(name, pattern) for name in (group.name, *group.outputs))
    ]
    return -max(named)[1] if named else None


def _specificity(pattern: str) -> tuple[int, bool, int]:
    """Deeper patterns say more, then such without a wildcard, then those that spell out more."""
    wild = sum(pattern.count(sign) for sign in "*?[")
    return pattern.count("."), not wild, len(pattern) - wild


@dataclass(frozen=True, kw_only=True)
class Step:
    """A group made one step narrower.

    Attributes:
        price: Harm per cost saved; steps with a low one are taken first. Never falls from step to step.
        share: Of the group's original units that are gone after it; of equal prices lower shares go first.
        group: Its name.
        kept: Units that it then has.
        saved: Cost saved.
    """

    price: float
    share: float
    group: str
    kept: int
    saved: float


def _least_harmful(steps: Sequence[Sequence[Step]], budget: float) -> dict[str, int]:
    """Take steps in the order of their price until the next would save more than the budget."""
    kept: dict[str, int] = {}
    for step in sorted((s for each in steps for s in each), key=lambda s: (s.price, s.share, s.group)):
        budget -= step.saved
        if budget < -1e-9 * step.saved:
            break
        kept[step.group] = step.kept
    return kept


def _by_score(group: ChannelGroup, widths: Widths, scores: Tensor, cost: float) -> list[Step]:
    """Each step removes the least important units that are left."""
    harm = scores.double()[removal_order(group, scores)].cumsum(0).numpy()
    return _steps(group.name, widths, [harm[widths.now - kept - 1] for kept in widths.narrower()], cost)


def _by_harm(group: ChannelGroup, widths: Widths, curve: Curve, cost: float) -> list[Step]:
    """Each step costs what the group's curve rises by."""
    now = curve.at(1 - widths.now / widths.original)
    harm = [curve.at(1 - kept / widths.original) - now for kept in widths.narrower()]
    return _steps(group.name, widths, harm, cost)


def _steps(name: str, widths: Widths, harm: Sequence[float], cost: float) -> list[Step]:
    """Price every step by the lower convex hull of the harm over what is removed.

    On the hull prices never fall, so that taking the cheapest step first is best (Everett, 1963). A step
    above it only makes sense together with those that follow, and is paid at their common price.
    """
    narrower = widths.narrower()
    saved = -np.diff([widths.now, *narrower])
    # The slopes of the hull are the isotonic regression of the slopes.
    slopes = np.diff([0.0, *harm]) / saved
    prices = isotonic_regression(slopes, weights=saved).x / cost if len(narrower) else ()
    return [
        Step(price=price, share=1 - kept / widths.original, group=name, kept=kept, saved=count * cost)
        for price, kept, count in zip(prices, narrower, saved.tolist(), strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Rise of the loss over sparsity.

    Attributes:
        levels: Ascending from 0, ``(L,)``.
        losses: Never falling from 0, ``(L,)``.
    """

    levels: np.ndarray
    losses: np.ndarray

    def at(self, level: float) -> float:
        """Between two levels on a line; beyond the last one along the steepest line."""
        beyond = max(0.0, level - float(self.levels[-1]))
        steepest = np.max(np.diff(self.losses) / np.diff(self.levels), initial=0.0)
        return float(np.interp(level, self.levels, self.losses) + beyond * steepest)


def _curve(points: Sequence[tuple[float, float]]) -> Curve:
    ascending = {0.0: 0.0} | {level: loss for level, loss in sorted(points) if level > 0}
    losses = np.array([*ascending.values()])
    if not np.isfinite(losses).all():
        raise ValueError(f"harm must be finite, got {losses[1:].tolist()}")
    return Curve(levels=np.array([*ascending]), losses=np.maximum.accumulate(losses))


def _curves(groups: Sequence[ChannelGroup], harm: Harm) -> Mapping[str, Curve]:
    """The curve of every group; the median of those scanned where one was not.

    Raises:
        ValueError: None was scanned.
    """
    scanned = {group.name: _curve(harm[group.name]) for group in groups if harm.get(group.name)}
    if not scanned:
        names = ", ".join(group.name for group in groups[:3])
        raise ValueError(f"harm has a curve for none of the groups ({names} …): is it of another model?")
    levels = sorted({level for curve in scanned.values() for level in curve.levels})
    typical = [(level, float(np.median([c.at(level) for c in scanned.values()]))) for level in levels]
    return {group.name: scanned.get(group.name, _curve(typical)) for group in groups}


def removals(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], kept: Mapping[str, int]
) -> dict[str, Tensor]:
    """The units to remove: the least important ones of each group, equally many of each of its parts.

    Args:
        groups: From `pastille.pruning.survey`.
        scores: Name -> how much each unit matters, ``(C,)``.
        kept: Name -> units that stay, rounded up to whole parts; a group that is missing is left as it is.

    Returns:
        Name -> indices, ``(n,)`` int64 ascending, for `pastille.pruning.remove`; groups that lose none are
        left out.
    """
    counts = {
        group: (group.num_channels - kept[group.name]) // group.parts * group.parts
        for group in groups
        if not group.whole and group.name in kept
    }
    return {
        group.name: removal_order(group, scores[group.name])[:count].sort().values
        for group, count in counts.items()
        if count > 0
    }


def removal_order(group: ChannelGroup, scores: Tensor) -> Tensor:
    """All units of a group in the order in which they go, ``(C,)`` int64: one of each part in turn."""
    by_part = scores.reshape(group.parts, -1)
    starts = torch.arange(len(by_part))[:, None] * by_part.shape[1]
    return (by_part.argsort(dim=1, stable=True) + starts).T.flatten()
