"""A transposed convolution: a convolution that computes s outputs per position, and a shuffle of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.helper import make_node

from pastille.quantization.rewrites.edit import Replacement, View, attributes, channels

_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One spatial axis. Output ``q · stride + r - crop[0]`` sums over inputs ``q + first + u``, u < taps."""

    stride: int
    offset: int  # index of the kernel's element that the first phase begins with
    first: int
    taps: int
    pads: tuple[int, int]
    crop: tuple[int, int]

    def element(self, phase: int, tap: int) -> int:
        """Which element of the transposed kernel it is; outside of the kernel it is zero."""
        return phase + self.offset - (self.first + tap) * self.stride


def conv_transpose(node: Any, view: View) -> Replacement | None:
    """ConvTranspose has no int8 kernel; its phases as channels of a convolution have one.

    Where the kernel is as large as the stride, it is a 1x1 convolution.

    Args:
        node: Any node.
        view: Of its graph.

    Returns:
        Convolution, shuffle and crop; None for groups, unknown sizes, and padding beyond the kernel.

    References:
        Shi et al., 2016, arXiv:1609.07009 (that the two are the same).
    """
    if node.op_type != "ConvTranspose" or not channels(node.input[0], view):
        return None
    if any(name not in view.constants for name in node.input[1:]):
        return None
    sizes = view.shapes[node.input[0]][2:]
    axes = _axes(attributes(node), view.constants[node.input[1]].shape[2:])
    if not axes or None in sizes or any(min(axis.pads) < 0 for axis in axes):
        return None
    weight = _phases(_dilated(view.constants[node.input[1]], attributes(node)), axes)
    filters = view.constants[node.input[1]].shape[1]
    bias = view.constants[node.input[2]] if len(node.input) > 2 else np.zeros(filters, np.float32)
    phases = len(weight) // filters
    name = node.output[0]
    tensors = {f"{node.input[1]}_phases_for_{name}": weight, f"{name}_bias": np.tile(bias, phases)}
    pads = [axis.pads[side] for side in (0, 1) for axis in axes]
    conv = make_node("Conv", [node.input[0], *tensors], [f"{name}_phases"], name=node.name, pads=pads)
    grown = [size + sum(axis.pads) - axis.taps + 1 for size, axis in zip(sizes, axes, strict=True) if size]
    shuffle = _shuffle(name, [axis.stride for axis in axes], grown, filters)
    crop = _crop(name, axes)
    return Replacement(
        nodes=(conv, *shuffle.nodes, *crop.nodes), tensors={**tensors, **shuffle.tensors, **crop.tensors}
    )


def _axes(given: dict[str, Any], kernel: tuple[int, ...]) -> list[Axis]:
    """How each axis is done; none where there are groups, or padding is to be worked out."""
    if given.get("group", 1) != 1 or given.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in given:
        return []
    rank = len(kernel)
    ones, zeros = [1] * rank, [0] * 2 * rank
    pads = given.get("pads", zeros)
    each = zip(
        kernel,
        given.get("dilations", ones),
        given.get("strides", ones),
        pads[:rank],
        pads[rank:],
        given.get("output_padding", zeros[:rank]),
        strict=True,
    )
    return [_axis((k - 1) * d + 1, s, p, q - extra) for k, d, s, p, q, extra in each]


def _axis(kernel: int, stride: int, begin: int, end: int) -> Axis:
    """Crop at the beginning only where that saves taps."""
    tries = [_with_offset(kernel, stride, begin, end, offset) for offset in range(begin, -1, -1)]
    return min(tries, key=lambda axis: axis.taps)


def _with_offset(kernel: int, stride: int, begin: int, end: int, offset: int) -> Axis:
    first = -((kernel - 1 - offset) // stride)
    last = (stride - 1 + offset) // stride
    more = kernel - offset - end  # outputs beyond (inputs - 1) · stride, before the crop at the end
    blocks = -(-more // stride)
    return Axis(
        stride=stride,
        offset=offset,
        first=first,
        taps=last - first + 1,
        pads=(-first, blocks - 1 + last),
        crop=(begin - offset, blocks * stride - more),
    )


def _dilated(weight: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """The kernel with the zeros written out that dilation leaves."""
    steps = given.get("dilations", [1] * (weight.ndim - 2))
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], steps, strict=True)]
    wide = np.zeros((*weight.shape[:2], *spans), weight.dtype)
    whole = slice(None)
    every: tuple[Any, ...] = (whole, whole, *(slice(None, None, step) for step in steps))
    wide[every] = weight
    return wide


def _phases(weight: np.ndarray, axes: list[Axis]) -> np.ndarray:
    """``(I, O, *kernel)`` -> ``(phases · O, I, *taps)``, phases in row-major order."""
    strides, taps = [a.stride for a in axes], [a.taps for a in axes]
    whole = slice(None)
    new = np.zeros((*strides, weight.shape[1], weight.shape[0], *taps), weight.dtype)
    for phase in np.ndindex(*strides):
        for tap in np.ndindex(*taps):
            at = [a.element(r, u) for a, r, u in zip(axes, phase, tap, strict=True)]
            source: tuple[Any, ...] = (whole, whole, *at)
            if all(0 <= i < size for i, size in zip(at, weight.shape[2:], strict=True)):
                new[(*phase, whole, whole, *tap)] = weight[source].T
    return new.reshape(-1, weight.shape[0], *taps)


def _shuffle(name: str, strides: list[int], grown: list[int], filters: int) -> Replacement:
    """Phases to positions, channels last: whole runs of channels move, and the layout is the kernels' own."""
    rank = len(strides)
    split = np.array([0, *grown, *strides, filters])
    order = [0, *(i for a in range(rank) for i in (1 + a, 1 + rank + a)), 1 + 2 * rank]
    whole = np.array([0, *(g * s for g, s in zip(grown, strides, strict=True)), filters])
    steps = [f"{name}_{step}" for step in ("phases", "last", "split", "mixed", "whole", "uncropped")]
    shapes = [f"{name}_split_shape", f"{name}_whole_shape"]
    nodes = (
        make_node("Transpose", [steps[0]], [steps[1]], name=steps[1], perm=[0, *range(2, rank + 2), 1]),
        make_node("Reshape", [steps[1], shapes[0]], [steps[2]], name=steps[2]),
        make_node("Transpose", [steps[2]], [steps[3]], name=steps[3], perm=order),
        make_node("Reshape", [steps[3], shapes[1]], [steps[4]], name=steps[4]),
        make_node(
            "Transpose", [steps[4]], [steps[5]], name=steps[5], perm=[0, rank + 1, *range(1, rank + 1)]
        ),
    )
    return Replacement(nodes=nodes, tensors=dict(zip(shapes, (split, whole), strict=True)))


def _crop(name: str, axes: list[Axis]) -> Replacement:
    names = [f"{name}_crop_{part}" for part in ("starts", "ends", "axes")]
    starts = np.array([axis.crop[0] for axis in axes])
    ends = np.array([-axis.crop[1] or _FAR for axis in axes])
    if not any(crop for axis in axes for crop in axis.crop):
        return Replacement(nodes=(make_node("Identity", [f"{name}_uncropped"], [name]),), tensors={})
    node = make_node("Slice", [f"{name}_uncropped", *names], [name], name=f"{name}_crop")
    return Replacement(
        nodes=(node,), tensors=dict(zip(names, (starts, ends, np.arange(2, 2 + len(axes))), strict=True))
    )
