"""Criteria that look at the weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pastille.pruning.criteria.view import View, over_layers

if TYPE_CHECKING:
    from torch import Tensor


def l1(view: View) -> Tensor:
    """Sum of a unit's absolute weights.

    References:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710.
    """
    return over_layers(view, lambda weights: weights.abs().sum(dim=1))


def l2(view: View) -> Tensor:
    """Euclidean norm of a unit's weights.

    References:
        He et al., "Soft Filter Pruning", IJCAI 2018, arXiv:1808.06866.
    """
    return over_layers(view, _norm)


def _norm(weights: Tensor) -> Tensor:
    return weights.square().sum(dim=1).sqrt()


def bn_scale(view: View) -> Tensor:
    """Absolute scale that the norm behind a unit gives it; where there is no norm, as `l2`.

    References:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
        arXiv:1708.06519.
    """
    if not any(layer.role == "scales" for layer in view.layers):
        return l2(view)
    return over_layers(view, _norm, roles=("scales",))


def fpgm(view: View) -> Tensor:
    """Distance of a unit's weights to those of all others: what is near the middle can be replaced by them.

    References:
        He et al., "Filter Pruning via Geometric Median", CVPR 2019, arXiv:1811.00250.
    """
    return over_layers(view, lambda weights: torch.cdist(weights, weights).sum(dim=1))


def lamp(view: View) -> Tensor:
    """Squared norm of a unit's weights, over that of all units of its group which are not smaller.

    Scores of different groups can be compared: the largest unit of each scores 1, so none is emptied.

    References:
        Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
        arXiv:2010.07611.
    """
    squared = over_layers(view, lambda weights: weights.square().sum(dim=1))
    ascending, order = squared.sort(stable=True)
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    return torch.empty_like(squared).index_copy_(0, order, ascending / not_smaller.clamp(min=1e-300))
