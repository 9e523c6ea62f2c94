"""What a criterion is shown of one group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pastille.pruning.units import Member, Role

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One parameter that units run through.

    Attributes:
        weights: One row per unit, ``(U, M)`` float64.
        units: Which unit of the group each row is, ``(U,)`` int64, ascending.
        role: Whether it makes the units, reads them or scales them.
    """

    weights: Tensor
    units: Tensor
    role: Role


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What the data showed of each unit, as weighted means over cases; None where it was not looked at.

    Attributes:
        first_order: Of how much a case's loss changes without the unit, by its slope: |Δ|, ``(C,)``.
        second_order: Of that change squared, ``(C,)``.
        size: Of the unit's absolute activation, ``(C,)``.
        active: Of the share of the unit's activations that are not zero, ``(C,)``.
    """

    first_order: Tensor | None = None
    second_order: Tensor | None = None
    size: Tensor | None = None
    active: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One group, as a criterion sees it.

    Attributes:
        name: Of the group.
        num_units: ``C``.
        layers: That the units run through.
        observed: What the data showed; nothing for criteria that look at weights alone.
        seed: For what is left to chance.
    """

    name: str
    num_units: int
    layers: tuple[Layer, ...] = ()
    observed: Observed = Observed()
    seed: int = 0


Criterion = Callable[[View], "Tensor"]


def layer_of(member: Member, parameter: Tensor) -> Layer:
    """A member with all of a unit in one row: a head has many slices, a flattened channel many columns.

    Args:
        member: Of a group.
        parameter: The whole parameter, in any dtype, on any device.
    """
    rows = member.entries.rows(parameter.detach()).double().cpu()
    units, which, counts = torch.unique(member.channels, return_inverse=True, return_counts=True)
    # Where a slice goes in its unit's row: its rank among the slices of that unit.
    order = which.argsort(stable=True)
    rank = torch.empty_like(which)
    rank[order] = torch.arange(len(which)) - (counts.cumsum(0) - counts)[which[order]]
    held = rows.new_zeros(len(units), int(counts.max()), rows.shape[1])
    held[which, rank] = rows
    return Layer(weights=held.flatten(1), units=units, role=member.role)


def over_layers(
    view: View, score: Callable[[Tensor], Tensor], roles: tuple[Role, ...] = ("makes", "reads")
) -> Tensor:
    """Score units in every layer that they run through, and add up.

    Each layer's scores are divided by their mean first: neither large weights nor many rows per
    unit (a flattened map gives one per pixel) let a layer outvote the others.

    Args:
        view: Of a group.
        score: Maps weights ``(U, M)`` to ``(U,)``.
        roles: Of the layers that count.

    Returns:
        Scores ``(C,)`` float64.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
    """
    total = torch.zeros(view.num_units, dtype=torch.float64)
    for layer in view.layers:
        if layer.role in roles:
            each = score(layer.weights)
            total.index_add_(0, layer.units, each / each.mean().clamp(min=1e-12))
    return total
