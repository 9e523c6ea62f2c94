"""Functions of each entry by itself, of all entries along an axis, and products of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pastille.pruning.following.labels import varying
from pastille.pruning.following.tracer import Account, Call, opaque, tensors_in, words
from pastille.pruning.whole import ATTENTION, handmade, summed

if TYPE_CHECKING:
    from torch import Tensor

ENTRYWISE = words(
    "abs add addcdiv addcmul alpha_dropout and bernoulli bfloat16 bitwise_and bitwise_not bitwise_or "
    "bool ceil celu clamp clamp_max clamp_min clip clone contiguous copysign cos cosh cpu cuda data "
    "detach div divide double dropout dropout1d dropout2d dropout3d elu empty_like eq equal erf exp "
    "exp2 expm1 feature_alpha_dropout feature_dropout float floor floor_divide floordiv fmod frac "
    "full_like ge gelu gt half hardshrink hardsigmoid hardswish hardtanh iadd idiv imul int invert "
    "ipow isfinite isinf isnan isub itruediv le leaky_relu lerp log log10 log1p log2 logical_and "
    "logical_not logical_or logsigmoid long lt masked_fill maximum minimum mish mod mul multiply "
    "nan_to_num ne neg negative not ones_like or positive pow quick_gelu radd rand_like randn_like "
    "rdiv real reciprocal relu relu6 remainder requires_grad rmul round rpow rrelu rsqrt rsub "
    "rtruediv selu sigmoid sign silu sin sinh softplus softshrink softsign sqrt square sub subtract "
    "tan tanh tanhshrink threshold to true_divide truediv trunc type type_as where xlogy xor "
    "zeros_like fmax fmin atan atan2 hypot square_ float_power"
)
POOLS = [
    f"{name}{n}d"
    for n in (1, 2, 3)
    for name in (
        *("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool"),
        *("max_pool_with_indices", "boolean_dispatch"),
    )
]
STATISTICS = words(
    "mean var std amax amin norm vector_norm var_mean std_mean logsumexp median nanmean aminmax"
)
TOTALS = words("sum prod nansum any all count_nonzero argmax argmin")
ORDERED = words("softmax log_softmax softmin cumsum cumprod sort argsort topk gumbel_softmax logcumsumexp")
PRODUCTS = words(
    "matmul rmatmul bmm baddbmm mm addmm einsum scaled_dot_product_attention tensordot dot mv outer "
    "cdist bilinear cosine_similarity multi_dot"
)


def entrywise(account: Account, call: Call) -> None:
    """Activations and arithmetic."""
    for result in tensors_in(call.result):
        if any(result is t for t in call.tensors):
            _in_place(account, call, result)
        else:
            account.join(call.tensors, result)


def _in_place(account: Account, call: Call, result: Tensor) -> None:
    others = [t for t in call.tensors if t is not result]
    labels = account.of(result)
    if others:
        account.join([result, *others], result)
        labels = account.of(result) if varying(account.of(result)) else labels
    account.put(result, labels)


def copied(account: Account, call: Call) -> None:
    """``copy_``: takes over the labels."""
    source = call.argument(1, "src")
    if source.shape == call.first.shape:
        account.put(call.first, account.of(source))
    else:
        opaque(account, call)


def pooled(account: Account, call: Call) -> None:
    """Pooling and interpolation: of positions, each channel by itself."""
    x = call.first
    space = int(call.name[-2]) if call.name[-2:-1].isdigit() else x.ndim - 2
    if any(axis >= x.ndim - space for axis in varying(account.of(x))):
        opaque(account, call)
        return
    for result in tensors_in(call.result):
        account.put(result, account.of(x))


def _axes(call: Call, position: int) -> list[int]:
    dims = call.argument(position, "dim", "axis")
    ndim = call.first.ndim
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return list(range(ndim))
    return [d % max(ndim, 1) for d in ([dims] if isinstance(dims, int) else dims)]


def _reduced(account: Account, call: Call, axes: list[int]) -> None:
    labels = account.of(call.first)
    for axis in axes:
        labels = labels.narrow(axis, 0, min(1, labels.shape[axis])) if labels.ndim else labels
        if axis in varying(account.of(call.first)):
            labels = torch.zeros_like(labels)
    for result in tensors_in(call.result):
        keeps = result.ndim == labels.ndim
        shape = labels.shape if keeps else [n for i, n in enumerate(labels.shape) if i not in axes]
        account.put(result, labels.reshape(shape))


def statistic(account: Account, call: Call) -> None:
    """Over channels, as a norm has it: of those that are left."""
    axes = _axes(call, 2 if call.name in {"norm", "vector_norm"} else 1)
    if len(varying(account.of(call.first))) > 1 and set(axes) & set(varying(account.of(call.first))):
        account.divided.append(account.of(call.first))
    _reduced(account, call, axes)


def total(account: Account, call: Call) -> None:
    """A sum over channels is no longer the same with fewer of them."""
    axes = _axes(call, 1)
    if set(axes) & set(varying(account.of(call.first))):
        account.keep([call.first], summed(call.name))
    _reduced(account, call, axes)


def largest(account: Account, call: Call) -> None:
    """``max`` and ``min``: of two tensors, or along an axis."""
    if len(call.tensors) > 1:
        entrywise(account, call)
    else:
        statistic(account, call)


def ordered(account: Account, call: Call) -> None:
    """Softmax and its like: of positions freely; over channels they stay."""
    default = 2 if call.name == "topk" else 1
    axes = _axes(call, default)
    mixed = bool(set(axes) & set(varying(account.of(call.first))))
    if mixed:
        account.keep([call.first], summed(call.name))
    for result in tensors_in(call.result):
        fewer = mixed and result.shape != call.first.shape  # the largest few
        account.put(result, account.labels.fixed(summed(call.name)) if fewer else account.of(call.first))


def product(account: Account, call: Call) -> None:
    """Products of activations: what an attention multiplies stays, but for its values."""
    known = [t for t in call.tensors if t.is_floating_point()]
    *_, last = known
    free = call.name in {"matmul", "bmm", "rmatmul", "mm"} and not {*map(id, known)} & account.names.keys()
    if free and not account.of(known[0]).any() and varying(account.of(last)) in ([], [last.ndim - 1]):
        lines = account.of(last).reshape(-1)
        account.put(call.result, lines if len(lines) > 1 else _none(call))
        return
    if (weight := next((t for t in known if id(t) in account.names and t.ndim == 2), None)) is not None:
        _multiplied(account, call, weight)
        return
    attends = call.name == "scaled_dot_product_attention"
    why = ATTENTION if attends else summed(call.name)
    for tensor in known:
        account.give_up(tensor, why)
    values = account.of(known[2]) if attends else None
    if values is not None and varying(values):
        account.put(call.result, values)
    else:
        mixed = any(account.of(t).any() for t in known)
        account.put(call.result, account.labels.fixed(why) if mixed else _none(call))


def _multiplied(account: Account, call: Call, weight: Tensor) -> None:
    """A layer of the code's own, as the ``Conv1D`` of GPT-2: all that it reads and makes stays."""
    layer = account.names[id(weight)].rpartition(".")[0]
    why = handmade(type(account.root.get_submodule(layer)).__name__)
    for tensor in call.tensors:
        account.give_up(tensor, why)
    made = account.labels.fresh(call.result.shape[-1])
    account.labels.keep(made, why)
    account.made(layer, made)
    account.put(call.result, made)


def attention(account: Account, call: Call) -> None:
    """`nn.MultiheadAttention`, as one function."""
    opaque(account, call, ATTENTION)


def _none(call: Call) -> Tensor:
    return torch.zeros((1,) * call.result.ndim, dtype=torch.int64)


def constant(account: Account, call: Call) -> None:
    """What depends on no channel."""
    for result in tensors_in(call.result):
        account.put(result, torch.zeros((1,) * result.ndim, dtype=torch.int64))


ARITHMETIC: dict[str, Any] = {
    **dict.fromkeys(ENTRYWISE, entrywise),
    **dict.fromkeys(POOLS, pooled),
    **dict.fromkeys(("interpolate", "upsample", "grid_sample"), pooled),
    **dict.fromkeys(STATISTICS, statistic),
    **dict.fromkeys(TOTALS, total),
    **dict.fromkeys(ORDERED, ordered),
    **dict.fromkeys(PRODUCTS, product),
    **dict.fromkeys(("max", "min"), largest),
    "copy": copied,
    "multi_head_attention_forward": attention,
    **dict.fromkeys(
        words(
            "arange zeros ones full empty rand randn tensor as_tensor linspace eye new_zeros new_ones "
            "new_full "
            "new_empty new_tensor scalar_tensor meshgrid tril triu one_hot bucketize randint randperm"
        ),
        constant,
    ),
}
