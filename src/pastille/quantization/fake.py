"""Rounding as an int8 file rounds, with a gradient that passes straight through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["measure", "again", "follow", "fixed"]

# No channel's steps are finer than this share of its layer's coarsest: its bias, stored in those steps
# as 32-bit integers, would overflow, and an empty channel would have none.
SMALLEST_SCALE = 2.0**-12
_TINY = torch.finfo(torch.float32).tiny
_SLOWEST, _FASTEST = 0.05, 0.5  # how much of a moving average one batch may be
_EPOCH = 3.0  # time constants of the moving average in one epoch, within these limits
_SMALLEST_SHARE = 0.25
_LARGEST_GROWTH = 256.0  # a layer that died or exploded has no range to follow


class Activation(nn.Module):
    """One pair of QuantizeLinear and DequantizeLinear, by its range.

    The range starts where the file has it and then grows and shrinks with the extremes of the batches:
    whatever calibration chose, a percentile or the full range, is scaled rather than replaced. While
    weights are trained the extremes are a moving average, faster in epochs of few batches, which would
    else leave it at half of what a layer has come to. After each epoch they are measured again on the
    batches of the first time, so that no augmentation and no lag is taken for a change.

    Args:
        span: The file's range, ``(low, high)``.
        levels: Of the integers, ``(first, last)``.
        symmetric: Whether the zero point lies in the middle.
        bounds: What the tensor cannot leave, since a Relu or Clip made it.
        moves: Whether the range follows; that of a model's input does not.

    References:
        Jacob et al., CVPR 2018, arXiv:1712.05877, section 3.1 (moving averages of ranges).
    """

    start: Tensor
    reference: Tensor
    average: Tensor
    batches: Tensor

    def __init__(
        self,
        span: tuple[float, float],
        levels: tuple[int, int],
        *,
        symmetric: bool,
        bounds: tuple[float, float],
        moves: bool,
    ) -> None:
        super().__init__()
        self.levels, self.symmetric, self.bounds, self.moves = levels, symmetric, bounds, moves
        self.mode: Mode = "fixed"
        self.momentum = _SLOWEST
        self.register_buffer("start", torch.tensor(span, dtype=torch.float64))
        for name in ("reference", "average", "batches"):
            self.register_buffer(name, torch.zeros(2, dtype=torch.float64))

    def begin(self, mode: Mode, batches: int) -> None:
        """Enter a mode, for an epoch of so many batches; measuring starts anew."""
        self.mode, self.momentum = mode, min(max(_EPOCH / batches, _SLOWEST), _FASTEST)
        if mode in ("measure", "again"):
            self.batches.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid of the file, same shape and dtype."""
        if self.mode != "fixed" and self.moves:
            self._observe(x.detach())
        scale, zero = self.grid()
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, *self.levels)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale, float32, and zero point, int32; scalars, by the rule of the static path."""
        low, high = self._span().unbind()
        first, last = self.levels
        if self.symmetric:
            scale = torch.maximum(-low, high) / last
            zero = torch.zeros_like(scale)
        else:
            scale = (high - low) / (last - first)
            zero = (first - low / scale.clamp_min(_TINY)).round().clamp(first, last)
        empty = scale < _TINY
        return torch.where(empty, 1.0, scale).float(), torch.where(empty, 0.0, zero).int()

    def _span(self) -> Tensor:
        """The range; an end that batches rarely come near moves by as much as they do, not as many times."""
        near = (self.start != 0) & (self.reference / self.start >= _SMALLEST_SHARE)
        growth = torch.where(near, self.average / torch.where(near, self.reference, 1.0), 1.0)
        scaled = self.start * growth.clamp(1 / _LARGEST_GROWTH, _LARGEST_GROWTH)
        span = torch.where(near, scaled, self.start + self.average - self.reference)
        low, high = span.clamp(*self.bounds).unbind()
        return torch.stack([low.clamp(max=0.0), high.clamp(min=0.0)])

    def _observe(self, x: Tensor) -> None:
        extremes = torch.stack(torch.aminmax(x)).double().clamp(*self.bounds)
        if not bool(torch.isfinite(extremes).all()):
            return  # the loss will say so
        if self.mode == "follow":
            self.average.lerp_(extremes, self.momentum)
            return
        self.batches += 1
        self.average.lerp_(extremes, 1 / self.batches)
        if self.mode == "measure":
            self.reference.copy_(self.average)


def weight_scales(weight: Tensor, axis: int | None, half: int) -> Tensor:
    """The steps of a symmetric weight: of each channel, its largest magnitude over ``half``.

    Args:
        weight: Any shape.
        axis: Of the channels; None for one step size for all.
        half: Largest integer, 64 for 7 bits.

    Returns:
        ``(C,)`` or a scalar, float32, positive.

    Example:
        >>> weight_scales(torch.tensor([[64.0, -1.0], [0.0, 32.0]]), 0, 64)
        tensor([1.0000, 0.5000])
    """
    sizes = weight.detach().abs()
    largest = sizes.amax() if axis is None else sizes.movedim(axis, 0).reshape(sizes.shape[axis], -1).amax(1)
    scale = largest / half
    floor = scale.max() * SMALLEST_SCALE
    return scale.clamp_min(float(floor) if float(floor) > _TINY else 1.0)


def fake_weight(weight: Tensor, axis: int | None, half: int) -> Tensor:
    """A weight on its int8 grid; the gradient passes through.

    Example:
        >>> fake_weight(torch.tensor([[1.0, 0.3]]), 0, 4)
        tensor([[1.0000, 0.2500]])
    """
    scale = weight_scales(weight, axis, half)
    if axis is None:
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -half, half)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -half, half)


def fake_bias(bias: Tensor, steps: Tensor) -> Tensor:
    """A bias in whole steps of the sums of products that it is added to; the gradient passes through.

    Example:
        >>> fake_bias(torch.tensor([1.0, 0.3]), torch.tensor([0.5, 0.2]))
        tensor([1.0000, 0.4000])
    """
    return bias + (torch.round(bias.detach() / steps) * steps - bias.detach())


def fake_constant(value: Tensor, levels: tuple[int, int]) -> Tensor:
    """A constant that is stored like an activation, with a zero point; the gradient passes through."""
    scale, zero = constant_grid(value, levels)
    return torch.fake_quantize_per_tensor_affine(value, scale, zero, *levels)


def constant_grid(value: Tensor, levels: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale, float32, and zero point, int32, that hold every value of a constant and zero."""
    low, high = (float(v) for v in torch.aminmax(value.detach()))
    span = (min(low, 0.0), max(high, 0.0))
    held = Activation(span, levels, symmetric=False, bounds=span, moves=False)
    scale, zero = held.grid()
    return scale.to(value.device), zero.to(value.device)
