"""Attention layers whose heads may be fewer than fill the width of their input.

They answer like the layers of PyTorch and torchvision that they take the place of. What makes
queries, keys and values is ``num_heads × head_dim`` wide, whatever the width of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

_ACROSS_REGIONS = -100.0  # what torchvision adds where two positions are not neighbours
_LOG_100 = 4.605170185988092


class Attention(nn.Module):
    """`torch.nn.MultiheadAttention` with any number of heads, called the same way.

    Args:
        embed_dim: Width of the query and of the answer.
        num_heads: Heads.
        head_dim: Width of each.
        kdim: Width of the key.
        vdim: Width of the value.
        bias: Whether the projections have one.
        dropout: Of attention weights, while training.
        batch_first: Whether the batch is the first axis, or the second.
    """

    # With it False, PyTorch's encoder layers call this module instead of reading its weights for a fast path.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        kdim: int,
        vdim: int,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.dropout, self.batch_first = dropout, batch_first
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias)
        self.k_proj = nn.Linear(kdim, num_heads * head_dim, bias)
        self.v_proj = nn.Linear(vdim, num_heads * head_dim, bias)
        self.out_proj = nn.Linear(num_heads * head_dim, embed_dim, bias)

    @classmethod
    def shell(cls, original: Any, num_heads: int) -> Attention:
        """One that fits in the place of another, weights not copied."""
        return cls(
            original.embed_dim,
            num_heads,
            original.head_dim,
            kdim=original.kdim,
            vdim=original.vdim,
            bias=original.out_proj.bias is not None,
            dropout=original.dropout,
            batch_first=original.batch_first,
        )

    @classmethod
    def of(cls, original: nn.MultiheadAttention) -> Attention:
        """One that answers the same.

        Raises:
            ValueError: The original attends to more than it is given (``add_bias_kv``, ``add_zero_attn``).
        """
        if original.bias_k is not None or original.add_zero_attn:
            raise ValueError("attention with add_bias_kv or add_zero_attn is not supported")
        new = cls.shell(original, original.num_heads).to(original.out_proj.weight)
        packed, apart = original.in_proj_weight, (original.q_proj_weight, original.k_proj_weight)
        weights = (*apart, original.v_proj_weight) if packed is None else packed.chunk(3)
        biases = [None] * 3 if original.in_proj_bias is None else original.in_proj_bias.chunk(3)
        with torch.no_grad():
            for layer, weight, bias in zip(
                (new.q_proj, new.k_proj, new.v_proj), weights, biases, strict=True
            ):
                layer.weight.copy_(weight)
                if bias is not None:
                    layer.bias.copy_(bias)
            new.out_proj.load_state_dict(original.out_proj.state_dict())
        return new.train(original.training)

    @property
    def in_proj_weight(self) -> Tensor:
        """Looked at, not used, by PyTorch's encoder."""
        return self.q_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Looked at, not used, by PyTorch's encoder."""
        return self.q_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of `torch.nn.MultiheadAttention`; ``is_causal`` is a hint that is not needed."""
        if query.is_nested:
            return self._nested(query), None
        axis = 0 if query.ndim == 2 else int(not self.batch_first)
        q, k, v = (
            self._split(x.unsqueeze(0) if query.ndim == 2 else x.transpose(0, axis))
            for x in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        out, weights = self._weighed(q, k, v, mask) if need_weights else (self._attend(q, k, v, mask), None)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if query.ndim == 2:
            return out.squeeze(0), weights if weights is None else weights.squeeze(0)
        return out.transpose(0, axis), weights

    def _nested(self, query: Tensor) -> Tensor:
        """Of sequences of several lengths, as PyTorch's encoder makes them of a padded batch."""
        rows = (x.unsqueeze(0) if self.batch_first else x.unsqueeze(1) for x in query.unbind())
        answers = [self(x, x, x, need_weights=False)[0] for x in rows]
        return torch.nested.as_nested_tensor([x.squeeze(0 if self.batch_first else 1) for x in answers])

    def _split(self, x: Tensor) -> Tensor:
        """``(N, T, C)`` as ``(N, H, T, D)``."""
        return _unflat(x, -1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        masks = []
        if attention is not None:
            by_head = attention.ndim == 3  # (N * H, T, S)
            masks.append(_unflat(attention, 0, (-1, self.num_heads)) if by_head else attention)
        if padding is not None:
            masks.append(padding[..., None, None, :] if padding.ndim == 2 else padding)
        return sum(_added(mask, q) for mask in masks) if masks else None  # type: ignore[return-value]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)

    def _weighed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        weights = F.dropout(weights, self.dropout, self.training)
        return weights @ v, weights


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to the scores; True says that a position is not attended to."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


class WindowAttention(nn.Module):
    """The attention of Swin within shifted windows, version 1 or 2, with any number of heads.

    Args:
        original: torchvision's, whose windows, shifts and widths are taken over, its weights not.
        num_heads: Heads.

    References:
        Liu et al., "Swin Transformer", ICCV 2021, arXiv:2103.14030; version 2, CVPR 2022, arXiv:2111.09883.
    """

    relative_position_index: Tensor
    relative_coords_table: Tensor

    def __init__(self, original: Any, num_heads: int) -> None:
        super().__init__()
        dim = original.proj.out_features
        self.num_heads, self.head_dim = num_heads, original.qkv.out_features // 3 // original.num_heads
        self.window_size, self.shift_size = list(original.window_size), list(original.shift_size)
        self.attention_dropout, self.dropout = original.attention_dropout, original.dropout
        self.qkv = nn.Linear(dim, 3 * num_heads * self.head_dim, original.qkv.bias is not None)
        self.proj = nn.Linear(num_heads * self.head_dim, dim, original.proj.bias is not None)
        self.register_buffer("relative_position_index", torch.empty_like(original.relative_position_index))
        self.cosine = hasattr(original, "logit_scale")
        if self.cosine:
            hidden = original.cpb_mlp[0].out_features
            self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, num_heads, bias=False)
            )
            self.register_buffer("relative_coords_table", torch.empty_like(original.relative_coords_table))
        else:
            places = original.relative_position_bias_table.shape[0]
            self.relative_position_bias_table = nn.Parameter(torch.empty(places, num_heads))

    @classmethod
    def shell(cls, original: Any, num_heads: int) -> WindowAttention:
        """One that fits in the place of another, weights not copied."""
        return cls(original, num_heads)

    @classmethod
    def of(cls, original: Any) -> WindowAttention:
        """One that answers the same."""
        new = cls(original, original.num_heads).to(original.qkv.weight)
        new.load_state_dict(original.state_dict())
        return new.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window.

        Args:
            x: ``(N, H, W, C)``.

        Returns:
            ``(N, H, W, C)``.
        """
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        sizes = x.shape[1:3]
        shift = [
            0 if w >= s else by for w, s, by in zip(self.window_size, sizes, self.shift_size, strict=True)
        ]
        shifted = x.roll([-by for by in shift], (1, 2)) if any(shift) else x
        mask = self._across_regions(sizes, shift, x) if any(shift) else None
        out = _joined(self._attend(_windows(shifted, self.window_size), mask), sizes, self.window_size)
        out = out.roll(shift, (1, 2)) if any(shift) else out
        return out[:, :height, :width].contiguous()

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Of windows ``(N * windows, positions, C)``; the mask is ``(windows, positions, positions)``."""
        q, k, v = _unflat(self._projected(x), -1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        scores: Tensor = self._scores(q, k) + self._position_bias()
        if mask is not None:
            scores = (_unflat(scores, 0, (-1, len(mask))) + mask.unsqueeze(1)).flatten(0, 1)
        weights = F.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        out = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return F.dropout(out, self.dropout, self.training)

    def _projected(self, x: Tensor) -> Tensor:
        if not self.cosine or self.qkv.bias is None:
            out: Tensor = self.qkv(x)
            return out
        q, k, v = self.qkv.bias.chunk(3)
        return F.linear(x, self.qkv.weight, torch.cat([q, torch.zeros_like(k), v]))  # keys have no bias

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        if not self.cosine:
            return torch.matmul(q * self.head_dim**-0.5, k.transpose(-2, -1))
        cosines: Tensor = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return cosines.mul(self.logit_scale.clamp(max=_LOG_100).exp())

    def _position_bias(self) -> Tensor:
        """``(1, H, positions, positions)``."""
        positions = self.window_size[0] * self.window_size[1]
        bias: Tensor = _unflat(self._table()[self.relative_position_index], 0, (positions, positions))
        bias = bias.permute(2, 0, 1).unsqueeze(0).contiguous()  # torchvision's order rounds the sigmoid
        return bias.sigmoid().mul(16) if self.cosine else bias

    def _table(self) -> Tensor:
        """``(distances, H)``."""
        if not self.cosine:
            return self.relative_position_bias_table
        table: Tensor = self.cpb_mlp(self.relative_coords_table)
        return table.flatten(0, -2)

    def _across_regions(self, sizes: Sequence[int], shift: Sequence[int], like: Tensor) -> Tensor:
        """What keeps positions apart that only the shift brought into one window."""
        rows, columns = (_wrapped(size, by, like) for size, by in zip(sizes, shift, strict=True))
        regions = _windows((2 * rows[:, None] + columns)[None, :, :, None], self.window_size).squeeze(-1)
        return (regions[:, None] != regions[:, :, None]).to(like.dtype) * _ACROSS_REGIONS


def _wrapped(size: int, shift: int, like: Tensor) -> Tensor:
    """Which rows or columns of a shifted map came from the other side: 0 or 1."""
    return (torch.arange(size, device=like.device) >= size - shift).long()


def _unflat(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    out: Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return out


def _windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """``(N, H, W, C)`` as ``(N * windows, positions, C)``."""
    rows, columns = window
    split = _unflat(_unflat(x, 2, (-1, columns)), 1, (-1, rows))
    return split.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _joined(x: Tensor, sizes: Sequence[int], window: Sequence[int]) -> Tensor:
    """The inverse of `_windows`."""
    down, across = sizes[0] // window[0], sizes[1] // window[1]
    split = _unflat(_unflat(x, 1, (window[0], window[1])), 0, (-1, down, across))
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def is_window_attention(module: nn.Module) -> bool:
    """Whether a module is torchvision's attention of Swin, told without importing torchvision."""
    kind = type(module)
    names = {"ShiftedWindowAttention", "ShiftedWindowAttentionV2"}
    return kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__ in names
