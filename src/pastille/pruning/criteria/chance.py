"""The baseline that every criterion must beat."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pastille.pruning.criteria.view import View


def random(view: View) -> Tensor:
    """Chance, the same for the same seed and group.

    References:
        Li et al., "Revisiting Random Channel Pruning", CVPR 2022, arXiv:2205.05676.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{view.seed} {view.name}".encode()))
    return torch.rand(view.num_units, generator=generator, dtype=torch.float64)
