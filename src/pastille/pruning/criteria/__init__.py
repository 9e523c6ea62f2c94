"""How much a unit matters: one small function per criterion, low scores go first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pastille.pruning.criteria.chance import random
from pastille.pruning.criteria.choice import channels_kept, lowest
from pastille.pruning.criteria.data import activation, apoz, fisher, taylor
from pastille.pruning.criteria.magnitude import bn_scale, fpgm, l1, l2, lamp
from pastille.pruning.criteria.view import Criterion, Layer, Observed, View, layer_of

Need = Literal["gradients", "activations"]

CRITERIA: Mapping[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "fisher": fisher,
    "fpgm": fpgm,
    "activation": activation,
    "apoz": apoz,
    "lamp": lamp,
    "random": random,
}

# What a criterion must have seen of the data; the others look at weights alone.
NEEDS: Mapping[str, Need] = {
    "taylor": "gradients",
    "fisher": "gradients",
    "activation": "activations",
    "apoz": "activations",
}

# Their scores mean the same in every group, so that groups can be compared as they are.
COMPARABLE = frozenset({"taylor", "fisher", "lamp"})

__all__ = [
    "COMPARABLE",
    "CRITERIA",
    "NEEDS",
    "Criterion",
    "Layer",
    "Need",
    "Observed",
    "View",
    "channels_kept",
    "layer_of",
    "lowest",
]
