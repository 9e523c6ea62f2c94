"""Criteria that look at what the data does to each unit: they need `pastille.pruning.evidence`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pastille.pruning.criteria.magnitude import l2

if TYPE_CHECKING:
    from torch import Tensor

    from pastille.pruning.criteria.view import View


def taylor(view: View) -> Tensor:
    """How much the loss of a case changes without the unit, by its slope: mean of |Σ weight · gradient|.

    Summed over the weights that read the unit, of which each would be zero without it, and taken per
    case, so that changes of one case do not hide those of another.

    References:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019,
        arXiv:1906.10771, eq. 9; the absolute value per case is that of arXiv:1611.06440.
    """
    assert view.observed.first_order is not None
    return view.observed.first_order


def fisher(view: View) -> Tensor:
    """How much the loss rises without the unit, by its curvature: ½ · mean of (Σ weight · gradient)².

    Optimal Brain Damage of a factor before each unit, with the diagonal of the empirical Fisher
    information for the Hessian; the layers that read a unit share its factor.

    References:
        LeCun et al., "Optimal Brain Damage", NeurIPS 1989; Theis et al., "Faster gaze prediction with
        dense networks and Fisher pruning", 2018, arXiv:1801.05787; Liu et al., "Group Fisher Pruning",
        ICML 2021, arXiv:2108.00708.
    """
    assert view.observed.second_order is not None
    return view.observed.second_order / 2


def activation(view: View) -> Tensor:
    """Mean absolute activation, as the layers that read the unit are fed it; as `l2` where that is not seen.

    References:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
        ICLR 2017, arXiv:1611.06440.
    """
    return l2(view) if view.observed.size is None else view.observed.size


def apoz(view: View) -> Tensor:
    """Share of activations that are not zero, as the layers that read the unit are fed them; else as `l2`.

    References:
        Hu et al., "Network Trimming", 2016, arXiv:1607.03250 (which counts the zeros).
    """
    return l2(view) if view.observed.active is None else view.observed.active
