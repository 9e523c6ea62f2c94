"""ONNX operators in torch, differentiable where their inputs are: one small function each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto

if TYPE_CHECKING:
    from torch import Tensor

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]  # (attributes, *inputs) -> one tensor, or a tuple of them


class UnknownFormError(ValueError):
    """An operator in a form that no function here computes."""


_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.BOOL: torch.bool,
}


def _padding(a: Attributes, rank: int) -> list[int]:
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnknownFormError("auto_pad")
    return list(a.get("pads", [0] * 2 * rank))


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """ONNX gives all beginnings, then all ends; torch the last axis first, in pairs."""
    rank = len(pads) // 2
    pairs = [p for i in reversed(range(rank)) for p in (pads[i], pads[i + rank])]
    return F.pad(x, pairs, value=value) if any(pairs) else x


def _conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = w.ndim - 2
    call: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    x = _padded(x, _padding(a, rank))
    out: Tensor = call(
        x, w, b, a.get("strides", [1] * rank), 0, a.get("dilations", [1] * rank), a.get("group", 1)
    )
    return out


def _conv_transpose(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = w.ndim - 2
    pads = _padding(a, rank)
    if pads[:rank] != pads[rank:] or "output_shape" in a:
        raise UnknownFormError("padding that differs between the sides")
    call: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    strides, extra = a.get("strides", [1] * rank), a.get("output_padding", [0] * rank)
    dilations = a.get("dilations", [1] * rank)
    out: Tensor = call(x, w, b, strides, pads[:rank], extra, a.get("group", 1), dilations)
    return out


def _gemm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA") else x
    w = w.T if a.get("transB") else w
    out = float(a.get("alpha", 1.0)) * (x @ w)
    return out if b is None else out + float(a.get("beta", 1.0)) * b


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    rank = len(kernel)
    call: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    x = _padded(x, _padding(a, rank), -math.inf)
    out: Tensor = call(
        x,
        kernel,
        a.get("strides", [1] * rank),
        0,
        a.get("dilations", [1] * rank),
        ceil_mode=bool(a.get("ceil_mode")),
    )
    return out


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    rank = len(kernel)
    pads = _padding(a, rank)
    if pads[:rank] != pads[rank:]:
        raise UnknownFormError("padding that differs between the sides")
    call: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    strides, ceil = a.get("strides", [1] * rank), bool(a.get("ceil_mode"))
    out: Tensor = call(x, kernel, strides, pads[:rank], ceil, bool(a.get("count_include_pad")))
    return out


_MODES = {
    (b"nearest", b"asymmetric"): ("nearest", None),
    (b"linear", b"half_pixel"): ("linear", False),
    (b"linear", b"pytorch_half_pixel"): ("linear", False),
    (b"linear", b"align_corners"): ("linear", True),
}


def _resize(
    a: Attributes, x: Tensor, _roi: Any = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    key = (a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel"))
    if key not in _MODES or (key[0] == b"nearest" and a.get("nearest_mode") != b"floor"):
        raise UnknownFormError(f"mode {key[0].decode()}, {key[1].decode()}")
    mode, corners = _MODES[key]
    mode = {"linear": ("linear", "bilinear", "trilinear")[x.ndim - 3]}.get(mode, mode)
    if sizes is not None and sizes.numel():
        return F.interpolate(x, size=_ints(sizes)[2:], mode=mode, align_corners=corners)
    assert scales is not None
    return F.interpolate(x, scale_factor=scales.tolist()[2:], mode=mode, align_corners=corners)


def _layer_norm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[a.get("axis", -1) :], w, b, a.get("epsilon", 1e-5))


def _ints(x: Tensor) -> list[int]:
    return [int(v) for v in x.reshape(-1).tolist()]


def _axes(a: Attributes, given: Tensor | None, x: Tensor) -> list[int]:
    return _ints(given) if given is not None else list(a.get("axes", range(x.ndim)))


def _reduced(call: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    return lambda a, x, axes=None: call(x, _axes(a, axes, x), bool(a.get("keepdims", 1)))


def _reshape(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(_ints(shape))])


def _squeeze(_: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(i % rank for i in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _slice(
    _: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Any = None, steps: Any = None
) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    along = _ints(axes) if axes is not None else list(range(len(first)))
    strides = _ints(steps) if steps is not None else [1] * len(first)
    if min(strides) < 1:
        raise UnknownFormError("a step backwards")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, strides, strict=True):
        size = x.shape[axis]  # the format lets both ends lie far outside
        index[axis] = slice(max(min(start, size), -size), max(min(end, size), -size), min(step, max(size, 1)))
    return x[tuple(index)]


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    parts = -(-x.shape[axis] // a["num_outputs"]) if sizes is None else _ints(sizes)
    return tuple(torch.split(x, parts, axis))


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    flat = torch.where(index < 0, index + x.shape[axis], index).reshape(-1)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _expand(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_ints(shape))))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _filled(a: Attributes, shape: Tensor) -> Tensor:
    value = a.get("value", torch.zeros(1))
    return value.expand(_ints(shape)).clone()  # type: ignore[no-any-return]


def _divide(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Any = None) -> Tensor:
    if a.get("mode", b"constant") != b"constant" or axes is not None:
        raise UnknownFormError(f"mode {a.get('mode', b'constant').decode()}")
    return _padded(x, _ints(pads), 0.0 if value is None else float(value))


def _range(_: Attributes, start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype, device=start.device)


def _batch_norm(a: Attributes, x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    # torch's own passes no gradient to statistics that are taken from the batch.
    scale: Tensor = w * (var + a.get("epsilon", 1e-5)).rsqrt()
    across = [1, -1, *[1] * (x.ndim - 2)]
    out: Tensor = x * scale.reshape(across) + (b - mean * scale).reshape(across)
    return out


def _trilu(a: Attributes, x: Tensor, k: int) -> Tensor:
    return x.triu(k) if a.get("upper", 1) else x.tril(k)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _folded(call: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(_: Attributes, x: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            x = call(x, other)
        return x

    return operator


def _plain(call: Callable[..., Any]) -> Operator:
    """An operator without attributes that torch has under some name."""
    return lambda _, *inputs: call(*inputs)


_SIMPLE: dict[str, Callable[..., Any]] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Softplus": F.softplus,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "MatMul": torch.matmul,
    "Equal": torch.eq,
    "Less": torch.lt,
    "Greater": torch.gt,
    "LessOrEqual": torch.le,
    "GreaterOrEqual": torch.ge,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Not": torch.logical_not,
    "Where": torch.where,
    "IsNaN": torch.isnan,
    "Identity": lambda x: x,
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Dropout": lambda x, *_: x,
    "Tile": lambda x, repeats: x.repeat(_ints(repeats)),
    "GlobalAveragePool": lambda x: x.mean(_spatial(x), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(_spatial(x), keepdim=True),
}

OPERATORS: dict[str, Operator] = {
    **{name: _plain(call) for name, call in _SIMPLE.items()},
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Resize": _resize,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
    "Shape": _shape,
    "ConstantOfShape": _filled,
    "Div": _divide,
    "Pad": _pad,
    "Range": _range,
    "Clip": _clip,
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Sum": _folded(torch.add),
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "Concat": lambda a, *parts: torch.cat(parts, dim=a["axis"]),
    "Transpose": lambda a, x: x.permute(*a.get("perm", reversed(range(x.ndim)))),
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "LogSoftmax": lambda a, x: torch.log_softmax(x, a.get("axis", -1)),
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", b"none").decode()),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "QuickGelu": lambda a, x: x * torch.sigmoid(a.get("alpha", 1.702) * x),
    "Trilu": lambda a, x, k=None: _trilu(a, x, 0 if k is None else int(k)),
    "Cast": lambda a, x: x.to(_TYPES[a["to"]]),
    "Constant": lambda a: a["value"],
    "InstanceNormalization": lambda a, x, w, b: F.instance_norm(
        x, weight=w, bias=b, eps=a.get("epsilon", 1e-5)
    ),
    "Einsum": lambda a, *inputs: torch.einsum(a["equation"].decode(), *inputs),
}
