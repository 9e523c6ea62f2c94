"""Functions that only move entries about: their labels are moved by the same function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pastille.pruning.following.labels import compressed, varying
from pastille.pruning.following.trace import Even
from pastille.pruning.following.tracer import Account, Call, opaque, settle, tensors_in, words
from pastille.pruning.whole import REARRANGED

# Order among the channels stays, and none is left out.
STEADY = words(
    "view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t squeeze "
    "unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave flip pixel_shuffle "
    "pixel_unshuffle view_as reshape_as T mT H mH unsafe_view atleast_1d atleast_2d atleast_3d ravel "
    "adjoint"
)
# Some may be left out, or come in another order.
CHOOSING = words("getitem select narrow index_select roll gather take_along_dim unbind diagonal")


def _again(call: Call, account: Account) -> Any:
    """Call the function on the labels of its first tensor."""
    spread = account.spread(call.first)
    args = [spread if x is call.first else x for x in call.args]
    kwargs = {name: spread if x is call.first else x for name, x in call.kwargs.items()}
    if call.name in {"view", "reshape", "view_as", "reshape_as"}:
        return spread.reshape(call.result.shape)
    return call.function(*args, **kwargs)


def moved(account: Account, call: Call) -> None:
    """Reshapes, permutations and repetitions."""
    if call.name == "view" and any(isinstance(x, torch.dtype) for x in call.args):
        opaque(account, call)
        return
    before = len(varying(account.of(call.first)))
    if not account.of(call.first).any():
        account.put(call.result, torch.zeros((1,) * call.result.ndim, dtype=torch.int64))
        return
    settle(account, _again(call, account), call.result, before)


def chosen(account: Account, call: Call) -> None:
    """Slices, indices and rolls: they stay as they are only where no channel is left out or changes place."""
    labels = account.of(call.first)
    results = list(tensors_in(call.result))
    if not labels.any():
        for result in results:
            account.put(result, torch.zeros((1,) * result.ndim, dtype=torch.int64))
        return
    axes = len(varying(labels))
    for result, new in zip(results, tensors_in(_again(call, account)), strict=True):
        new = compressed(new)
        if not _all_there(labels, new) and not (axes > 1 and varying(new)):
            account.labels.keep(labels, REARRANGED)
        settle(account, new, result, axes)


def _all_there(labels: Tensor, new: Tensor) -> bool:
    some, others = labels.flatten(), new.flatten()
    return len(some) == len(others) and bool((some == others).all())


def cut_up(account: Account, call: Call) -> None:
    """`chunk`, `split` and `tensor_split`: parts that must lose equally many channels."""
    # How many parts there are stays when channels go; how long each is would not, and code may have it fixed.
    fixed = call.name != "chunk" and not (call.name == "tensor_split" and isinstance(call.args[1], int))
    x, axis = call.first, int(call.argument(2, "dim", default=0)) % call.first.ndim
    labels, place = account.of(x), 0
    parts = list(tensors_in(call.result))
    sizes = {part.shape[axis] for part in parts}
    for part in parts:
        piece = labels if labels.shape[axis] == 1 else labels.narrow(axis, place, part.shape[axis])
        account.put(part, compressed(piece))
        place += part.shape[axis]
    if labels.shape[axis] > 1 and (fixed or len(sizes) > 1):
        account.labels.keep(labels, REARRANGED)
    elif labels.shape[axis] > 1 and len(parts) > 1 and varying(labels) == [axis]:
        account.evens.append(Even(labels=account.along(x, axis), parts=len(parts)))


def joined(account: Account, call: Call) -> None:
    """`cat`: labels one after the other."""
    tensors = call.tensors
    axis = int(call.argument(1, "dim", "axis", default=0)) % call.result.ndim
    parts = [account.of(t) for t in tensors if t.ndim == call.result.ndim]
    sizes = [t.shape[axis] for t in tensors if t.ndim == call.result.ndim]
    account.put(call.result, _side_by_side(account, parts, sizes, axis))


def stacked(account: Account, call: Call) -> None:
    """`stack`: as `cat`, along an axis of its own."""
    axis = int(call.argument(1, "dim", default=0)) % call.result.ndim
    parts = [account.of(t).unsqueeze(axis) for t in call.tensors]
    account.put(call.result, _side_by_side(account, parts, [1] * len(parts), axis))


def _side_by_side(account: Account, parts: list[Tensor], sizes: list[int], axis: int) -> Tensor:
    """Labels along an axis; channels along another (of a class token before tokens) are the same."""
    if any(i != axis for part in parts for i in varying(part)):
        lines = [part.narrow(axis, i, 1) for part in parts for i in range(part.shape[axis])]
        smallest: Tensor = min((line for line in lines if line.any()), key=torch.numel)
        for line in lines:
            account.labels.same(smallest, line)
        return smallest
    spread = [
        part.expand([n if i == axis else m for i, m in enumerate(part.shape)])
        for part, n in zip(parts, sizes, strict=True)
    ]
    return compressed(torch.cat(spread, dim=axis))


def padded(account: Account, call: Call) -> None:
    """`F.pad`: of positions freely; channels that are padded stay."""
    x, pairs = call.argument(0, "input"), list(call.argument(1, "pad"))
    axes = {x.ndim - 1 - i // 2 for i, n in enumerate(pairs) if n}
    labels = account.of(x)
    if axes & set(varying(labels)):
        account.labels.keep(labels, REARRANGED)
        labels = F.pad(account.spread(x), pairs)
    account.put(call.result, compressed(labels))


def gated(account: Account, call: Call) -> None:
    """`F.glu`: one half of the channels times the gate that the other makes."""
    x, axis = call.first, int(call.argument(1, "dim", default=-1)) % call.first.ndim
    one, other = account.spread(x).chunk(2, dim=axis)
    account.labels.same(compressed(one), compressed(other))
    account.put(call.result, compressed(one))


def laid_out(account: Account, call: Call) -> None:
    """`F.unfold` of images: patches of every channel, one after the other along the channels."""
    if account.of(call.first).any():
        opaque(account, call)
    else:
        account.put(call.result, torch.zeros((1,) * call.result.ndim, dtype=torch.int64))


def written(account: Account, call: Call) -> None:
    """``x[…] = y`` and its like: both stay."""
    account.keep((t for t in call.tensors if t.is_floating_point()), REARRANGED)


MOVEMENT = {
    **dict.fromkeys(STEADY, moved),
    **dict.fromkeys(CHOOSING, chosen),
    **dict.fromkeys(("chunk", "split", "tensor_split", "split_with_sizes"), cut_up),
    **dict.fromkeys(("cat", "concat", "concatenate"), joined),
    "stack": stacked,
    "pad": padded,
    "glu": gated,
    "unfold": laid_out,
}
