"""Blockwise integer weights: the grid, rounding to it, and the layout of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

BITS: Final = (4, 8)
BLOCK_SIZES: Final = (16, 32, 64, 128, 256)
_SHRINKS: Final = np.linspace(1.0, 0.7, 13, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which values a weight may take: ``(q - zero) * scale`` for q in 0 … 2^bits - 1, per block.

    Attributes:
        bits: 4 or 8.
        scale: ``(N, blocks)`` float32.
        zero: ``(N, blocks)`` float32 whole numbers.
    """

    bits: int
    scale: np.ndarray
    zero: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A quantized weight.

    Attributes:
        grid: Per block.
        values: ``(N, blocks, block_size)`` uint8; what pads the last block is its zero point.
    """

    grid: Grid
    values: np.ndarray


def in_blocks(weight: np.ndarray, block_size: int) -> np.ndarray:
    """A weight ``(K, N)`` as ``(N, blocks, block_size)``, zeros after the last of K.

    Example:
        >>> in_blocks(np.ones((20, 3), np.float32), 16).shape
        (3, 2, 16)
    """
    k, n = weight.shape
    blocks = -(-k // block_size)
    padded = np.zeros((n, blocks * block_size), np.float32)
    padded[:, :k] = weight.T
    return padded.reshape(n, blocks, block_size)


def full_range(blocks: np.ndarray, *, bits: int, symmetric: bool) -> Grid:
    """The grid that clips nothing.

    Args:
        blocks: ``(N, blocks, block_size)``.
        bits: 4 or 8.
        symmetric: One zero point, 2^(bits - 1), for all; the value of the largest magnitude gets the
            lowest step, which is the one that the other sign lacks. Otherwise from the least to the largest.
    """
    top = float(2**bits - 1)
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    if symmetric:
        half = float(2 ** (bits - 1))
        extreme = np.where(-low >= high, low, high)
        return Grid(bits=bits, scale=_nonzero(-extreme / half), zero=np.full_like(low, half))
    scale = _nonzero((high - low) / top)
    return Grid(bits=bits, scale=scale, zero=np.clip(np.rint(-low / scale), 0, top))


def _nonzero(scale: np.ndarray) -> np.ndarray:
    """A scale of 1 where all weights of a block are zero."""
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny, 1, scale).astype(np.float32)


def least_error(
    blocks: np.ndarray, *, bits: int, symmetric: bool, importance: np.ndarray | None = None
) -> Grid:
    """The grid with the least squared rounding error among thirteen that clip a little more each.

    Args:
        blocks: ``(N, blocks, block_size)``.
        bits: 4 or 8.
        symmetric: As in `full_range`.
        importance: Weight of each error, ``(blocks, block_size)``; all alike if None.
    """
    full = full_range(blocks, bits=bits, symmetric=symmetric)
    best, scale = np.full(full.scale.shape, np.inf, np.float32), full.scale.copy()
    for shrink in _SHRINKS:
        tried = Grid(bits=bits, scale=full.scale * shrink, zero=full.zero)
        squared = np.square(on_grid(rounded(blocks, tried), tried) - blocks)
        error = (squared if importance is None else squared * importance).sum(axis=-1)
        scale = np.where(error < best, tried.scale, scale)
        best = np.minimum(best, error)
    return Grid(bits=bits, scale=scale, zero=full.zero)


def rounded(blocks: np.ndarray, grid: Grid) -> np.ndarray:
    """The nearest step of the grid to each value, ``(N, blocks, block_size)`` float32."""
    steps: np.ndarray = np.rint(blocks / grid.scale[..., None]) + grid.zero[..., None]
    clipped: np.ndarray = np.clip(steps, 0, 2**grid.bits - 1)
    return clipped


def on_grid(steps: np.ndarray, grid: Grid) -> np.ndarray:
    """The values of steps, ``(N, blocks, block_size)`` float32."""
    values: np.ndarray = (steps - grid.zero[..., None]) * grid.scale[..., None]
    return values


def round_to_nearest(weight: np.ndarray, block_size: int, *, bits: int, symmetric: bool) -> Blocks:
    """Each weight to the nearest step of its block's grid.

    Args:
        weight: ``(K, N)``.
        block_size: Weights of one output that share a scale.
        bits: 4 or 8.
        symmetric: As in `full_range`.
    """
    blocks = in_blocks(weight, block_size)
    grid = least_error(blocks, bits=bits, symmetric=symmetric)
    return Blocks(grid=grid, values=rounded(blocks, grid).astype(np.uint8))


def dequantized(blocks: Blocks, k: int) -> np.ndarray:
    """The weight that a runtime computes with, ``(K, N)`` float32.

    Example:
        >>> weight = np.array([[-1.0], [0.5], [0.0]], np.float32)
        >>> dequantized(round_to_nearest(weight, 16, bits=4, symmetric=True), 3).ravel().tolist()
        [-1.0, 0.5, 0.0]
    """
    values = on_grid(blocks.values.astype(np.float32), blocks.grid)
    return np.ascontiguousarray(values.reshape(len(values), -1)[:, :k].T)


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers along the last axis as bytes; with 4 bits two in one, the first in the low half.

    Args:
        values: uint8.
        bits: 4 or 8.

    Example:
        >>> packed(np.array([1, 2, 3], np.uint8), 4).tolist()
        [33, 3]
    """
    if bits == 8:
        return values
    odd = values.shape[-1] % 2
    even = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, odd)])
    pairs: np.ndarray = even[..., ::2] | (even[..., 1::2] << 4)
    return pairs
