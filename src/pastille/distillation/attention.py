"""Self-attention: where its queries, keys and values are made, and how tokens relate by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

# What implementations call the layers that make them: one for all three, or one for each.
_TOGETHER: Final = ("qkv", "Wqkv", "qkv_proj")
_APART: Final = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)
_ENCODERS: Final = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
_MOST_HEADS: Final = 12

# Of the arguments by position, those by name, and the answer of a call.
Read = Callable[[tuple[Any, ...], dict[str, Any], Any], "Tensor"]


def sources(module: nn.Module) -> list[tuple[nn.Module, Read]]:
    """What makes the queries, keys and values of an attention layer, and how they are read of its calls.

    Side by side they are ``(N, T, 3C)``: C is the width of all heads together.

    Args:
        module: Any.

    Returns:
        Nothing for a module that is no self-attention, or whose heads share keys.

    Example:
        >>> len(sources(nn.MultiheadAttention(8, 2))), sources(nn.Linear(8, 8))
        (1, [])
    """
    if isinstance(module, nn.MultiheadAttention):
        return [(module, _packed(module))] if module.in_proj_weight is not None else []
    children = dict(module.named_children())
    for name in _TOGETHER:
        if isinstance(layer := children.get(name), nn.Linear) and layer.out_features % 3 == 0:
            return [(layer, _answer)]
    for names in _APART:
        layers = [children[n] for n in names if isinstance(children.get(n), nn.Linear)]
        if len(layers) == len(names) and len({x.out_features for x in layers}) == 1:
            return [(layer, _answer_of(module)) for layer in layers]
    return []


def _answer(_args: tuple[Any, ...], _kwargs: dict[str, Any], out: Any) -> Tensor:
    return out  # type: ignore[no-any-return]


def _answer_of(attention: nn.Module) -> Read:
    first = batch_axis(attention)
    return lambda _args, _kwargs, out: out.transpose(0, first)


def _packed(attention: nn.MultiheadAttention) -> Read:
    """PyTorch's own makes them within one operator, so they are made once more."""

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> Tensor:
        given = [*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :])][:3]
        weights = attention.in_proj_weight.chunk(3)
        none = (None, None, None)
        biases = none if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        made = [F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]
        return torch.cat(made, dim=-1).transpose(0, batch_axis(attention))

    return read


def batch_axis(module: nn.Module) -> int:
    """Where PyTorch's attention has its batch: axis 0, or 1 where ``batch_first`` is False.

    Example:
        >>> batch_axis(nn.MultiheadAttention(8, 2)), batch_axis(nn.Linear(8, 2))
        (1, 0)
    """
    inside = module.modules() if isinstance(module, _ENCODERS) else (module,)
    firsts = (getattr(part, "batch_first", None) for part in inside if not isinstance(part, nn.RNNBase))
    return next((int(not first) for first in firsts if isinstance(first, bool)), 0)


def attention_layers(model: nn.Module) -> Iterator[str]:
    """Names of the self-attention layers of a model, in its order.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> list(attention_layers(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)))
        ['layers.0.self_attn', 'layers.1.self_attn']
    """
    return (name for name, module in model.named_modules() if sources(module))


def relation_heads(student: int, teacher: int) -> int:
    """Into how many parts both widths are divided: both by the same number, whatever heads they have.

    Args:
        student: Width of all heads together.
        teacher: Likewise.

    Example:
        >>> relation_heads(384, 768), relation_heads(192, 256)
        (12, 8)
    """
    common = math.gcd(student, teacher)
    return max(n for n in range(1, _MOST_HEADS + 1) if common % n == 0)


def relations(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Match how tokens relate: softmax of the products of queries, of keys, and of values with each other.

    Args:
        student: Queries, keys and values side by side, ``(N, 3C, T)``.
        teacher: Likewise, ``(N, 3D, T)``.
        mask: ``(N, T)`` bool: tokens that count.

    Returns:
        KL(teacher ‖ student) in nats, averaged over the three, over heads and over tokens that count.

    References:
        Wang et al., "MiniLMv2", 2021, arXiv:2012.15828, section 3; values as in "MiniLM", arXiv:2002.10957.

    Example:
        >>> x = torch.arange(12.0).reshape(1, 6, 2)
        >>> float(relations(x, x))
        0.0
    """
    heads = relation_heads(student.shape[1] // 3, teacher.shape[1] // 3)
    ours, told = (_related(x, heads, mask) for x in (student, teacher))  # (3, N, heads, T, T), logarithms
    each = (told.exp() * (told - ours)).sum(dim=-1).mean(dim=(0, 2))  # (N, T)
    return each.mean() if mask is None else each[mask].mean()


def _related(x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    parts = torch.stack(x.mT.chunk(3, dim=-1))  # (3, N, T, C)
    split = parts.reshape(*parts.shape[:-1], heads, -1).transpose(2, 3)
    scores = split @ split.mT / math.sqrt(split.shape[-1])
    if mask is not None:  # finite, so that no 0 · ∞ comes of it
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)


def tokens_that_count(inputs: dict[str, Tensor]) -> Tensor | None:
    """Which tokens of a batch are not there to pad it, ``(N, T)`` bool; None where nothing says so.

    Args:
        inputs: ``attention_mask`` is 1 for tokens that count, ``…padding_mask`` True for those that do not.

    Example:
        >>> tokens_that_count({"attention_mask": torch.tensor([[1, 1, 0]])})
        tensor([[ True,  True, False]])
    """
    for name, x in inputs.items():
        if x.ndim == 2 and name.endswith("padding_mask"):
            return ~x.bool()
        if x.ndim == 2 and name == "attention_mask":
            return x.bool()
    return None
