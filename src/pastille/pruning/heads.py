"""Which attention heads can be removed, and their removal.

Michel et al., "Are Sixteen Heads Really Better than One?", NeurIPS 2019, arXiv:1905.10650.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from pastille.errors import PreconditionError
from pastille.pruning.attention import Attention, WindowAttention, is_window_attention
from pastille.pruning.hooks import Call, first_calls
from pastille.pruning.layouts import (
    Layout,
    Slices,
    blind,
    counts_heads,
    is_close,
    is_proven,
    on_bench,
    possible_layouts,
    shows_heads,
    without_heads_,
)
from pastille.pruning.units import ChannelGroup, Cut, Entries, Member
from pastille.pruning.whole import PROTECTED, SHARED, WEIGHTED, is_within
from pastille.references import one_line
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

ONE_HEAD = "it has one head, or all its heads share their keys"
UNSEEN = "the example inputs do not reach it"
UNPROVEN = "its code does not work with fewer heads"
SHOWN = "other layers work with as many heads as it has"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Site:
    """An attention layer in a model.

    Attributes:
        name: Of the layer.
        unit: Of the module that holds it and what reads its heads.
        layout: Where the heads lie in the unit once it is `_roomy`.
        call: What the unit was called with.
    """

    name: str
    unit: str
    layout: Layout
    call: Call


def head_groups(
    model: nn.Module, batch: Mapping[str, Tensor], *, protect: Sequence[str] = ()
) -> tuple[ChannelGroup, ...]:
    """Find the attention layers of a model and the weights of each head.

    Layers of PyTorch, torchvision, timm and transformers are found by the same means as the user's own:
    a number of heads among their attributes, and sizes that fit it. That heads can be cut out is proven on
    the layer's inputs. Heads that share keys and values are one unit.

    Args:
        model: In eval mode; cutting a group changes it.
        batch: Example inputs, ``{name: (N, ...)}``.
        protect: Module names left whole with all that they hold, ``*`` matches any part.

    Returns:
        Every attention layer, those that are left whole with the reason.

    Raises:
        PreconditionError: The model does not run on the batch.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True).eval()
        >>> [(g.name, g.num_channels) for g in head_groups(layer, {"input": torch.ones(1, 3, 8)})]
        [('self_attn', 4)]
    """
    names = tuple(_attention_layers(model))
    if not names:
        return ()
    units = {unit for name in names for unit in _units(model, name)}
    calls, order = first_calls(model, batch, units)
    return tuple(_group(model, batch, name, calls, order, protect) for name in names)


def remove_heads_(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    removals: Mapping[str, Tensor],
    *,
    protect: Sequence[str] = (),
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Cut heads out of a model, in place.

    Args:
        model: In eval mode, and not an attention layer itself.
        batch: Example inputs, ``{name: (N, ...)}``.
        removals: Attention layer -> heads to remove, ``(n,)`` int64; other names are left alone.
        protect: Module names left whole with all that they hold, ``*`` matches any part.

    Returns:
        Attention layer -> its heads (before, after), and attention layer -> why it was left whole.

    Raises:
        PreconditionError: No head of a layer would stay, or the model does not answer like one that does
            not read those heads.
    """
    masked, counts, whole = copy.deepcopy(model), dict[str, tuple[int, int]](), dict[str, str]()
    for group in head_groups(model, batch, protect=protect):
        heads = removals.get(group.name, torch.empty(0, dtype=torch.int64))
        if group.whole:
            whole[group.name] = group.whole
        elif len(heads):
            cut = group.cut(heads)
            _mask_(masked, cut.reads)
            cut.apply()
            counts[group.name] = group.num_channels, group.num_channels - len(heads)
    if counts:
        _check_followed(model, masked, batch)
    return counts, whole


def _mask_(model: nn.Module, reads: Sequence[Entries]) -> None:
    with torch.no_grad():
        for entries in reads:
            model.get_parameter(entries.parameter).index_fill_(entries.axis, entries.indices, 0.0)


def _check_followed(model: nn.Module, masked: nn.Module, batch: Mapping[str, Tensor]) -> None:
    advice = "protect the attention layers in the recipe (prune.protect)"
    with torch.no_grad():
        expected = forward(masked, batch)
        try:
            found = forward(model, batch)
        except Exception as error:
            raise PreconditionError(
                f"prune: the model does not run with fewer heads ({one_line(error, 160)}); {advice}"
            ) from error
    if not is_close(found, expected):
        raise PreconditionError(f"prune: other layers depend on the number of heads; {advice}")


def _attention_layers(model: nn.Module) -> Iterator[str]:
    """The innermost modules that have heads and the layers to make them."""
    found = [n for n, m in model.named_modules() if _attends(m)]
    yield from (
        n for n in found if not any(other.startswith(f"{n}." if n else "") for other in found if other != n)
    )


def _attends(module: nn.Module) -> bool:
    if _is_rewritten(module):
        return True
    inside = [m for m in module.modules() if isinstance(m, WEIGHTED)]
    return len(inside) > 1 and not isinstance(module, WEIGHTED) and counts_heads(module)


def _is_rewritten(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention or is_window_attention(module)


def _roomy(module: nn.Module) -> nn.Module:
    """The same answers from a module whose number of heads is free."""
    if type(module) is nn.MultiheadAttention:
        return Attention.of(module)
    return WindowAttention.of(module) if is_window_attention(module) else module


def _units(model: nn.Module, name: str) -> Iterator[str]:
    """The attention layer and, nearest first, the modules that may hold the layer which reads its heads."""
    yield name
    if name and not _is_rewritten(model.get_submodule(name)):
        parts = name.split(".")
        yield from (".".join(parts[:i]) for i in range(len(parts) - 1, max(0, len(parts) - 3), -1))


def _group(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    name: str,
    calls: Mapping[str, Call],
    order: Sequence[str],
    protect: Sequence[str],
) -> ChannelGroup:
    found = _why_whole(model, name, calls, protect) or _site(model, batch, name, calls, order)
    if isinstance(found, str):
        return _whole(name, found)
    return ChannelGroup(
        name=name,
        kind="heads",
        num_channels=found.layout.num_heads,
        outputs=(name,),
        members=tuple(_members(model, found)),
        whole="",
        cut=partial(_cut, model, found),
    )


def _why_whole(model: nn.Module, name: str, calls: Mapping[str, Call], protect: Sequence[str]) -> str:
    if any(is_within(name, pattern) for pattern in protect):
        return PROTECTED
    if not name and _is_rewritten(model):
        return "it is the whole model"
    return "" if name in calls else UNSEEN


def _whole(name: str, reason: str) -> ChannelGroup:
    def refuse(_: Tensor) -> Cut:
        raise PreconditionError(f"prune: the heads of {name} must stay: {reason}")

    return ChannelGroup(
        name=name, kind="heads", num_channels=0, outputs=(name,), members=(), whole=reason, cut=refuse
    )


def _shares_weights(model: nn.Module, name: str) -> bool:
    """Whether a module shares weights with others, or is one of several names of one that gets replaced."""
    named = list(model.named_modules(remove_duplicate=False))
    module = model.get_submodule(name)
    own = {id(p) for p in module.parameters()}
    uses = [id(p) for _, m in named for p in m.parameters(recurse=False) if id(p) in own]
    times = sum(m is module for _, m in named)
    return len(uses) > times * len(own) or (times > 1 and _is_rewritten(module))


def _site(
    model: nn.Module, batch: Mapping[str, Tensor], name: str, calls: Mapping[str, Call], order: Sequence[str]
) -> _Site | str:
    sizes = set()
    for unit in (u for u in _units(model, name) if u in calls):
        holder = model.get_submodule(unit)
        bench = on_bench(holder, calls[unit])
        for layout in _layouts(holder, name[len(unit) :].lstrip("."), unit, order):
            sizes.add(layout.num_heads)
            # One head in two, so that a wrong order of the heads shows.
            heads = torch.arange(0, layout.num_heads, 2)
            if layout.num_heads > 1 and is_proven(bench, layout, heads, _roomy):
                if _shares_weights(model, unit):
                    return SHARED
                shown = shows_heads(bench, layout, heads, _roomy)
                if shown and not _is_followed(model, unit, layout, heads, batch):
                    return SHOWN
                return _Site(name=name, unit=unit, layout=layout, call=calls[unit])
    return ONE_HEAD if sizes == {1} else UNPROVEN


def _is_followed(
    model: nn.Module, unit: str, layout: Layout, heads: Tensor, batch: Mapping[str, Tensor]
) -> bool:
    """Whether the whole model works with fewer heads in one layer, which says more than its answer."""
    fewer, masked = copy.deepcopy(model), copy.deepcopy(model)
    new = without_heads_(_roomy(fewer.get_submodule(unit)), layout, heads)
    fewer = _with(fewer, unit, new)
    masked = _with(masked, unit, blind(masked.get_submodule(unit), layout, heads))
    with torch.no_grad():
        try:
            return is_close(forward(fewer, batch), forward(masked, batch))
        except Exception:  # the user's code, with what it never had to expect
            return False


def _with(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    if name:
        model.set_submodule(name, new)
    return model if name else new


def _layouts(holder: nn.Module, attention: str, unit: str, order: Sequence[str]) -> Iterator[Layout]:
    try:
        roomy = _roomy(holder)
    except ValueError:
        return
    prefix = f"{unit}." if unit else ""
    layers = [n for n, m in roomy.named_modules() if isinstance(m, WEIGHTED) and getattr(m, "groups", 1) == 1]
    called = [n[len(prefix) :] for n in order if n.startswith(prefix)]
    # Code that reads the weights of a layer does not call it: then the order of registration has to do.
    yield from possible_layouts(
        roomy, attention, [n for n in called if n in layers] if set(layers) <= set(called) else layers
    )


def _members(model: nn.Module, site: _Site) -> Iterator[Member]:
    """Of the model as it is, before an attention layer is rewritten."""
    unit = model.get_submodule(site.unit)
    prefix = f"{site.unit}." if site.unit else ""
    for place in site.layout.slices:
        at = _packed(unit, place) if type(unit) is nn.MultiheadAttention else place
        if place.tensor.endswith(".weight") and place.role != "scales":
            yield Member(
                entries=Entries(
                    parameter=f"{prefix}{at.tensor}",
                    axis=at.axis,
                    indices=_first_row(unit, place) + torch.arange(len(at.heads)),
                ),
                channels=at.heads,
                role=at.role,
            )


def _packed(attention: nn.MultiheadAttention, place: Slices) -> Slices:
    """Where PyTorch's layer has what `Attention` has in layers of their own."""
    part = place.tensor.partition("_")[0]
    if part == "out":
        return place
    packed = attention.in_proj_weight is not None
    return replace(place, tensor="in_proj_weight" if packed else f"{part}_proj_weight")


def _first_row(unit: nn.Module, place: Slices) -> int:
    packed = type(unit) is nn.MultiheadAttention and unit.in_proj_weight is not None
    part = "qkv".find(place.tensor[0]) if packed and place.role == "makes" else 0
    return part * len(place.heads)


def _cut(model: nn.Module, site: _Site, heads: Tensor) -> Cut:
    prefix = f"{site.unit}." if site.unit else ""
    read = site.layout.read
    columns = torch.isin(read.heads, heads).nonzero()[:, 0]
    return Cut(
        reads=(Entries(parameter=f"{prefix}{read.tensor}", axis=read.axis, indices=columns),),
        exact=True,
        apply=partial(_apply, model, site, heads),
    )


def _apply(model: nn.Module, site: _Site, heads: Tensor) -> None:
    unit = model.get_submodule(site.unit)
    left = site.layout.num_heads - int(torch.isin(torch.arange(site.layout.num_heads), heads).sum())
    if not left:
        raise PreconditionError(f"prune: {site.name} must keep one of its {site.layout.num_heads} heads")
    if not is_proven(on_bench(unit, site.call), site.layout, heads, _roomy):
        raise PreconditionError(
            f"prune: {site.name} does not answer as it should without some heads; protect it (prune.protect)"
        )
    new = without_heads_(_roomy(unit), site.layout, heads)
    if new is not unit:
        model.set_submodule(site.unit, new)
