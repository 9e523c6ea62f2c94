"""What a scan does to one layer alone, without building a new model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pastille.pruning.allocation import removal_order
from pastille.pruning.units import ChannelGroup, Entries
from pastille.pruning.verify import blind_
from pastille.quantization.fake import Activation, fake_weight
from pastille.task.forward import forward
from pastille.values.scanned import Technique

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[float, float]
Spans = Mapping[str, tuple[Span | None, Span | None]]  # layer -> ranges of its input and its output

BITS = (8, 4)
_INT8 = (0, 255)
_ANY = (-float("inf"), float("inf"))
_REARRANGED = "its code moves channels in a way that could not be followed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """Something that is done to one layer.

    Attributes:
        technique: What.
        layer: The name of the channel group, or of the layer.
        level: Sparsity, or bits.
        touched: Parameters and modules that it changes: nothing that is computed before the first of them
            is used can differ.
        applied: Changes a model for as long as the context lasts.
        units: Of the group, which nobody reads.
    """

    technique: Technique
    layer: str
    level: float
    touched: tuple[str, ...]
    applied: Callable[[nn.Module], AbstractContextManager[None]] = field(repr=False)
    units: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[Technique, str, float]:
        """What it is called in a journal."""
        return self.technique, self.layer, self.level


def pruning_changes(
    groups: Iterable[ChannelGroup], scores: Mapping[str, Tensor], levels: Sequence[float]
) -> tuple[list[Change], dict[str, str]]:
    """Nobody reads the least important units of a group: the same answers as if they had been removed.

    Except where a LayerNorm, a GroupNorm or a mean is taken over them: it still counts them in.

    Args:
        groups: From `pastille.pruning.survey`.
        scores: Name of a group -> how much each unit matters, ``(C,)``.
        levels: Sparsities, in (0, 1).

    Returns:
        The changes, and group -> why there are none of it.
    """
    changes: list[Change] = []
    skipped: dict[str, str] = {}
    for group in groups:
        if why := group.whole or ("it has one channel alone" if group.num_channels < 2 else ""):
            skipped[group.name] = why
            continue
        units = [least_important(group, scores[group.name], level) for level in levels]
        cuts = [group.cut(going) for going in units]
        if not all(cut.exact for cut in cuts):
            skipped[group.name] = _REARRANGED
            continue
        each = zip(levels, units, cuts, strict=True)
        changes.extend(_unread(group.name, level, going, cut.reads) for level, going, cut in each)
    return changes, skipped


def least_important(group: ChannelGroup, scores: Tensor, level: float) -> Tensor:
    """The units that go first, ``(n,)`` int64 ascending: at least one goes, and one stays."""
    parts = int(getattr(group, "parts", 1))
    count = round(level * group.num_channels / parts) * parts
    count = min(max(count, parts), group.num_channels - parts)
    return removal_order(group, scores)[:count].sort().values


def _unread(name: str, level: float, units: Tensor, reads: Sequence[Entries]) -> Change:
    return Change(
        technique="pruning",
        layer=name,
        level=level,
        touched=tuple(entries.parameter for entries in reads),
        applied=lambda model: unread(model, reads),
        units=tuple(units.tolist()),
    )


@contextmanager
def unread(model: nn.Module, reads: Sequence[Entries]) -> Iterator[None]:
    """Entries of a model's parameters are zero for a while."""
    with _kept(model, {entries.parameter for entries in reads}):
        for entries in reads:
            blind_(model.get_parameter(entries.parameter).data, entries)
        yield


@contextmanager
def _kept(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Parameters are afterwards what they were, bit for bit."""
    before = {name: model.get_parameter(name).data.clone() for name in names}
    try:
        yield
    finally:
        for name, tensor in before.items():
            model.get_parameter(name).data.copy_(tensor)


def quantized_weights(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Layers whose products int8 would compute -> their weights; tables of embeddings are not among them."""
    found: dict[str, tuple[str, ...]] = {}
    for layer, module in model.named_modules():
        weights = [name for name, p in module.named_parameters(recurse=False) if _is_weight(name, p)]
        if weights and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            found[layer] = tuple(f"{layer}.{name}" if layer else name for name in weights)
    return found


def _is_weight(name: str, parameter: Tensor) -> bool:
    return "weight" in name and parameter.ndim > 1 and parameter.is_floating_point()


def quantization_changes(model: nn.Module, spans: Spans, bits: Sequence[int] = BITS) -> list[Change]:
    """One layer's weights are rounded, per channel and symmetric, and what it reads and answers to int8.

    Args:
        model: In eval mode.
        spans: From `measured_spans`.
        bits: Of the weights.
    """
    return [
        _rounded(model, layer, weights, spans.get(layer, (None, None)), of)
        for layer, weights in quantized_weights(model).items()
        for of in bits
    ]


def _rounded(
    model: nn.Module, layer: str, weights: tuple[str, ...], span: tuple[Span | None, Span | None], bits: int
) -> Change:
    axis = _channel_axis(model.get_submodule(layer))
    return Change(
        technique="quantization",
        layer=layer,
        level=bits,
        touched=(*weights, layer),
        applied=lambda one: rounded(one, layer, weights, span, bits=bits, axis=axis),
    )


def _channel_axis(module: nn.Module) -> int:
    """Where the weight has its output channels; transformers' Conv1D stores a transposed matrix."""
    return int(bool(getattr(module, "transposed", False)) or type(module).__name__ == "Conv1D")


@contextmanager
def rounded(
    model: nn.Module,
    layer: str,
    weights: Sequence[str],
    span: tuple[Span | None, Span | None],
    *,
    bits: int,
    axis: int,
) -> Iterator[None]:
    """A layer of a model computes as in integers for a while."""
    reads, answers = (None if ends is None else _rounder(ends) for ends in span)
    module = model.get_submodule(layer)
    with _kept(model, weights), ExitStack() as undo:
        for name in weights:
            tensor = model.get_parameter(name).data
            tensor.copy_(fake_weight(tensor, axis, 2 ** (bits - 1) - 1))
        if reads is not None:
            hook = module.register_forward_pre_hook(lambda _m, given: (reads(given[0]), *given[1:]))
            undo.callback(hook.remove)
        if answers is not None:
            after = module.register_forward_hook(lambda _m, _given, out: answers(out))
            undo.callback(after.remove)
        yield


def _rounder(span: Span) -> Activation:
    return Activation(span, _INT8, symmetric=False, bounds=_ANY, moves=False)


def measured_spans(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Spans:
    """The smallest and the largest number that each layer reads and answers; 0 lies between.

    None stands for what is no single tensor, or is never seen because the layer is not called as a module.

    Args:
        model: In eval mode.
        batches: Of inputs, ``{name: (N, ...)}``.
    """
    found: dict[tuple[str, int], Span] = {}

    def note(layer: str, which: int, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            low, high = (float(end) for end in value.detach().aminmax())
            before = found.get((layer, which), (0.0, 0.0))
            found[layer, which] = min(before[0], low), max(before[1], high)

    with ExitStack() as undo:
        for layer in quantized_weights(model):
            module = model.get_submodule(layer)
            hook = module.register_forward_hook(_noting(layer, note))
            undo.callback(hook.remove)
        for batch in batches:
            forward(model, batch)
    layers = {layer for layer, _ in found}
    return {layer: (found.get((layer, 0)), found.get((layer, 1))) for layer in layers}


def _noting(layer: str, note: Callable[[str, int, Any], None]) -> Callable[..., None]:
    def hook(_module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        note(layer, 0, given[0] if given else None)
        note(layer, 1, out)

    return hook
