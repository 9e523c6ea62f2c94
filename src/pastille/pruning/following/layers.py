"""Layers with weights: they read channels, make new ones, or scale those that run through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from pastille.pruning.following.labels import varying
from pastille.pruning.following.trace import Even, Size, Use
from pastille.pruning.following.tracer import Account, Call, opaque
from pastille.pruning.whole import REARRANGED, SHARED, WEIGHTED, by_hand

if TYPE_CHECKING:
    from torch import Tensor


def linear(account: Account, call: Call) -> None:
    """`F.linear`: reads the last axis, makes a new one."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    axes = varying(account.of(x))
    made = account.labels.fresh(weight.shape[0])
    if axes and axes != [x.ndim - 1]:
        # It mixes positions, or flattens channels that are told apart by another axis too.
        _stays(account, [x] if x.ndim - 1 in axes else [], made, REARRANGED)
        _makes(account, weight, bias, made)
        passed = account.of(x) if x.ndim - 1 not in axes else made
        account.put(call.result, passed)
        return
    _reads(account, weight, account.along(x, -1), axis=1)
    _makes(account, weight, bias, made)
    account.put(call.result, made)


def convolution(account: Account, call: Call) -> None:
    """`F.conv1d` to `F.conv3d`, and their transposed forms."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    transposed = "transpose" in call.name
    # After stride, padding and dilation; a transposed one has its output padding instead of the last.
    groups = int(call.argument(6, "groups", default=1))
    axis = x.ndim - weight.ndim + 1
    read = account.along(x, axis)
    if varying(account.of(x)) and axis not in varying(account.of(x)):
        _stays(account, [x], read, REARRANGED)
    per_group = weight.shape[1]
    width = per_group * groups if transposed else weight.shape[0]
    made = account.labels.fresh(width)
    if groups > 1 and groups == x.shape[axis]:
        account.labels.same(made.reshape(groups, -1), read.reshape(groups, 1))
        _makes(account, weight, bias, made, axis=0, rows=read if transposed else made)
    else:
        # The second axis of a grouped weight holds the channels of one group.
        reading, making = (1, groups) if transposed else (groups, 1)
        _reads(account, weight, read, axis=0 if transposed else 1, blocks=reading)
        _makes(account, weight, bias, made, axis=1 if transposed else 0, blocks=making)
        if groups > 1:
            account.evens += [Even(labels=read, parts=groups), Even(labels=made, parts=groups)]
    account.put(call.result, made.reshape(-1, *(1,) * (weight.ndim - 2)))


def _makes(
    account: Account,
    weight: Tensor,
    bias: Tensor | None,
    made: Tensor,
    *,
    axis: int = 0,
    rows: Tensor | None = None,
    blocks: int = 1,
) -> None:
    name = account.names.get(id(weight))
    shared = id(weight) in account.shared
    own = name is not None and not shared and name.rpartition(".")[2] == "weight"
    layer = str(name).rpartition(".")[0] if own else (account.modules[-1] if account.modules else "")
    known = isinstance(account.root.get_submodule(layer), (*WEIGHTED, torch.nn.Embedding))
    if name is None or not own or not known:
        account.labels.keep(made, by_hand(name) if name and not shared else SHARED)
        if known:
            account.made(layer, made)
        return
    account.made(layer, made)
    labels = made if rows is None else rows
    account.use(Use(tensor=name, axis=axis, labels=labels, role="makes", blocks=blocks))
    if bias is not None and id(bias) in account.names:
        account.use(Use(tensor=account.names[id(bias)], axis=0, labels=made, role="follows"))
    elif bias is not None:
        account.labels.keep(made, SHARED)


def _reads(account: Account, weight: Tensor, read: Tensor, *, axis: Literal[0, 1], blocks: int = 1) -> None:
    name = account.names.get(id(weight))
    if name is None or id(weight) in account.shared:
        account.labels.keep(read, SHARED)
        return
    if not isinstance(account.root.get_submodule(name.rpartition(".")[0]), WEIGHTED):
        account.labels.keep(read, by_hand(name))
        return
    account.use(Use(tensor=name, axis=axis, labels=read, role="reads", blocks=blocks))


def _stays(account: Account, tensors: list[Tensor], made: Tensor, why: str) -> None:
    account.keep(tensors, why)
    account.labels.keep(made, why)


def embedding(account: Account, call: Call) -> None:
    """`F.embedding`: makes channels from integers."""
    weight = call.argument(1, "weight")
    made = account.labels.fresh(weight.shape[1])
    _makes(account, weight, None, made, axis=1)
    account.put(call.result, made)


def batch_norm(account: Account, call: Call) -> None:
    """`F.batch_norm` and `F.instance_norm`: statistics of each channel by itself."""
    _per_channel(account, call, [call.argument(i, n) for i, n in enumerate(_BATCH_NORM) if i])


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias")


def group_norm(account: Account, call: Call) -> None:
    """`F.group_norm`: statistics of equally many channels each, which stay together."""
    x, groups = call.argument(0, "input"), int(call.argument(1, "num_groups"))
    if groups > 1:
        account.evens.append(Even(labels=account.along(x, 1), parts=groups))
    _per_channel(account, call, [call.argument(2, "weight"), call.argument(3, "bias")])


def prelu(account: Account, call: Call) -> None:
    """`F.prelu`: a slope for each channel, or one for all."""
    _per_channel(account, call, [call.argument(1, "weight")])


def _per_channel(account: Account, call: Call, parameters: list[Tensor | None]) -> None:
    x = call.argument(0, "input")
    given = [p for p in parameters if p is not None]
    shape = (-1, *(1,) * max(x.ndim - 2, 0))
    for parameter in given:
        if parameter.numel() > 1:
            labels = account.of(parameter).expand(parameter.shape).reshape(shape)
            account.labels.same(account.of(x), labels)
    if not given:
        _resized(account, x, 1)
    account.put(call.result, account.of(x))


def layer_norm(account: Account, call: Call) -> None:
    """`F.layer_norm` and `F.rms_norm`: statistics over the last axes, a weight for each entry of them."""
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    given = [p for p in (call.argument(2, "weight"), call.argument(3, "bias")) if isinstance(p, torch.Tensor)]
    if len(shape) > 1 and varying(account.of(x)):
        opaque(account, call, "is normalized together with positions")
        return
    account.join([x, *given], call.result)
    if not given:
        _resized(account, x, -1)


_SIZES = {
    torch.nn.LayerNorm: "normalized_shape",
    torch.nn.RMSNorm: "normalized_shape",
    torch.nn.GroupNorm: "num_channels",
    torch.nn.modules.batchnorm._NormBase: "num_features",
}


def _resized(account: Account, x: Tensor, axis: int) -> None:
    """A norm without weights: nothing of it is cut, but it says how many channels it has."""
    layer = account.modules[-1] if account.modules else ""
    for kind, attribute in _SIZES.items():
        if isinstance(account.root.get_submodule(layer), kind):
            account.sizes.append(Size(module=layer, attribute=attribute, labels=account.along(x, axis)))
            return


LAYERS = {
    "linear": linear,
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "embedding": embedding,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "prelu": prelu,
}
