"""Augmentation: a dermatoscopic image has no up, so each of its eight orientations is as likely."""

import torch
from torch import Tensor


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror each image of a batch at random.

    Mirroring left to right, mirroring top to bottom and transposing, each with probability one half,
    reach all eight orientations of a square.

    Args:
        images: ``(N, C, H, W)`` with ``H == W``.
        generator: Decides; on the CPU.
    """
    coins = torch.rand((3, len(images), 1, 1, 1), generator=generator).to(images.device) < 0.5
    images = torch.where(coins[0], images.flip(-1), images)
    images = torch.where(coins[1], images.flip(-2), images)
    return torch.where(coins[2], images.transpose(-1, -2), images)
