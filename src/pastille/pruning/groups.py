"""Which channels must go together: the coupled groups of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pastille.errors import PastilleError, PreconditionError
from pastille.pruning.following import Trace, follow
from pastille.pruning.following.labels import distinct
from pastille.pruning.surgery import Surgery
from pastille.pruning.units import ChannelGroup, Cut
from pastille.pruning.whole import ATTENTION, COUPLED, REARRANGED, UNSAVED, attends, protected, rank
from pastille.references import one_line

if TYPE_CHECKING:
    from torch import Tensor


def channel_groups(
    model: nn.Module, batch: Mapping[str, Tensor], *, protect: Sequence[str] = ()
) -> Iterator[ChannelGroup]:
    """Follow a model's channels and find which are coupled.

    Args:
        model: In eval mode, every parameter with a gradient; pruning a group changes it.
        batch: Example inputs, ``{name: (N, ...)}``.
        protect: Module names left whole with all that they hold, ``*`` matches any part.

    Yields:
        Every group, those that are left whole with the reason.

    Raises:
        PreconditionError: The model does not run, or its code branches on values that it computes.

    References:
        What must go together is called a group since Fang et al., "DepGraph: Towards Any Structural
        Pruning", CVPR 2023, arXiv:2301.12900.
    """
    with _explained():
        trace = follow(model, batch)
        unsaved = _unsaved(model, trace)
        found = list(_coupled(trace))
        surgery = Surgery(model, trace, [one.units for one in found])
        parts = _parts(found, trace)
        attending = _attending(model, trace)
        whole = [
            _reason(one, parts[i], trace, tuple(protect), attending, unsaved) for i, one in enumerate(found)
        ]
        groups = [_channel_group(i, one, parts[i], whole[i], surgery, model) for i, one in enumerate(found)]
    yield from groups


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coupled:
    """Channels that run from the same layers.

    Attributes:
        name: The layer that the group is called by.
        units: Its channels, in the order of that layer's rows, ``(C,)``.
        outputs: The layers.
        rows: Rows of that layer per channel.
        whole: Why it can not be pruned at all.
    """

    name: str
    units: Tensor
    outputs: tuple[str, ...]
    rows: int
    whole: str


def _coupled(trace: Trace) -> Iterator[_Coupled]:
    """Channels by the layers that make them: those that run from the same layers are one group."""
    of = {name: trace.channels.of[labels] for name, labels in trace.makers.items()}
    makers: dict[int, list[str]] = {}
    for name, channels in of.items():
        for channel in dict.fromkeys(channels.tolist()):
            makers.setdefault(channel, []).append(name)
    together: dict[tuple[str, ...], list[int]] = {}
    for channel, names in makers.items():
        if channel:
            together.setdefault(tuple(names), []).append(channel)
    taken: set[str] = set()
    for outputs, units in together.items():
        members = set(units)
        whole = [n for n in outputs if n not in taken and set(of[n].tolist()) == members]
        name = next(iter(whole or [n for n in outputs if n not in taken]), outputs[0])
        taken.add(name)
        own = torch.tensor(list(dict.fromkeys(c for c in of[name].tolist() if c in members)))
        yield _Coupled(
            name=name,
            units=own,
            outputs=outputs,
            rows=len(of[name]) // max(len(own), 1),
            whole="" if whole else REARRANGED,
        )


def _channel_group(
    index: int, found: _Coupled, parts: int, whole: str, surgery: Surgery, model: nn.Module
) -> ChannelGroup:
    return ChannelGroup(
        name=found.name,
        kind="channels",
        num_channels=len(found.units),
        parts=parts or 1,
        apart=any(isinstance(model.get_submodule(name), nn.RNNBase) for name in found.outputs),
        rows=found.rows,
        outputs=found.outputs,
        members=tuple(surgery.members(index)),
        whole=whole,
        cut=lambda chosen: _cut(index, found, parts, surgery, chosen),
    )


def _reason(
    found: _Coupled,
    parts: int,
    trace: Trace,
    protect: tuple[str, ...],
    attending: frozenset[int],
    unsaved: frozenset[int],
) -> str:
    units = found.units.tolist()
    reasons = [
        found.whole,
        protected(found.outputs, protect),
        *(trace.channels.whole.get(unit, "") for unit in units),
        "" if attending.isdisjoint(units) else ATTENTION,
        "" if unsaved.isdisjoint(units) else UNSAVED,
        "" if parts else REARRANGED,
        COUPLED if parts == len(units) > 1 else "",
    ]
    return min(reasons, key=rank)


def _parts(found: Sequence[_Coupled], trace: Trace) -> list[int]:
    """In how many equal parts the units of each group must lose equally many; 0 if they can not."""
    group = {unit: i for i, one in enumerate(found) for unit in one.units.tolist()}
    evens: list[list[Tensor]] = [[] for _ in found]
    for even in trace.evens:
        pieces = trace.channels.of[even.labels].reshape(even.parts, -1)
        if not bool((pieces.sort(1).values == pieces[0].sort().values).all()):
            for i in {group[unit] for unit in pieces.flatten().tolist() if unit in group}:
                evens[i].append(pieces)
    return [_common(one.units.tolist(), pieces) for one, pieces in zip(found, evens, strict=True)]


def _common(units: list[int], evens: list[Tensor]) -> int:
    parts = math.lcm(*(len(pieces) for pieces in evens))
    if len(units) % parts:
        return 0
    place = {unit: i * parts // len(units) for i, unit in enumerate(units)}
    return parts if all(_is_even(pieces.tolist(), place, len(units) // parts) for pieces in evens) else 0


def _is_even(pieces: list[list[int]], place: Mapping[int, int], size: int) -> bool:
    """Whether every piece holds whole parts alone, and as many of them as the others."""
    held = [[place.get(channel) for channel in piece] for piece in pieces]
    if any(part is None for piece in held for part in piece):
        return False
    counts = [{part: piece.count(part) for part in piece} for piece in held]
    return all(n == size for count in counts for n in count.values()) and len({*map(len, counts)}) == 1


def _attending(model: nn.Module, trace: Trace) -> frozenset[int]:
    """Channels that an attention's layers make or read."""
    layers = {use.tensor.rpartition(".")[0] for use in trace.uses if use.role in {"makes", "reads"}}
    near = {name for name in layers if attends(model, name)}
    found = [trace.channels.of[u.labels] for u in trace.uses if u.tensor.rpartition(".")[0] in near]
    made = [trace.channels.of[labels] for name, labels in trace.makers.items() if name in near]
    return frozenset(c for channels in (*found, *made) for c in distinct(channels))


def _unsaved(model: nn.Module, trace: Trace) -> frozenset[int]:
    """Channels along a buffer that the state dict lacks: a fresh process would build the whole of it."""
    lost = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    found = (trace.channels.of[use.labels] for use in trace.uses if use.tensor in lost)
    return frozenset(c for channels in found for c in distinct(channels))


def _cut(index: int, found: _Coupled, parts: int, surgery: Surgery, chosen: Tensor) -> Cut:
    _check_choice(found, parts, chosen)
    gone = found.units[chosen]
    return Cut(
        reads=tuple(surgery.reads(index, gone)), exact=True, apply=lambda: surgery.remove_(index, gone)
    )


def _check_choice(found: _Coupled, parts: int, chosen: Tensor) -> None:
    count = len(found.units)
    places = torch.tensor(distinct(chosen), dtype=torch.int64)
    if (
        len(places) != len(chosen)
        or not len(chosen) < count
        or not bool(((places >= 0) & (places < count)).all())
    ):
        raise ValueError(
            f"removals[{found.name!r}] must be different channels from 0 to {count - 1}, and leave one; "
            f"got {len(chosen)} of {count}"
        )
    if len({int((places * parts // count == part).sum()) for part in range(parts)}) > 1:
        raise ValueError(
            f"removals[{found.name!r}] must take equally many from each of the {parts} consecutive parts of "
            f"its {count} channels"
        )


def out_width(layer: nn.Module) -> int:
    """Output channels of a convolution or a linear layer."""
    return int(getattr(layer, "out_channels", None) or layer.out_features)  # type: ignore[arg-type]


def in_width(layer: nn.Module) -> int:
    """Input channels of a convolution or a linear layer."""
    return int(getattr(layer, "in_channels", None) or layer.in_features)  # type: ignore[arg-type]


@contextmanager
def _explained() -> Iterator[None]:
    """What the following stumbles over, as one line with advice."""
    try:
        yield
    except PastilleError:
        raise
    except Exception as error:
        raise PreconditionError(
            f"prune: the channels of this model cannot be followed ({one_line(error, 160)}); "
            "leave prune out of the plan"
        ) from error
