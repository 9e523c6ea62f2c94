"""Which module of a student learns from which of its teacher: by resolution and depth, or as named."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from torch import nn

from pastille.distillation.attention import attention_layers, sources
from pastille.distillation.probing import Form, Seen, attention_forms, probed
from pastille.distillation.watching import ATTENTION, Watched, watched
from pastille.errors import PreconditionError
from pastille.recipe import Hints

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Pair", "Watched", "proposed_pairs", "watched"]

_KEY: Final = "distill.hints.layers"
_MOST_STAGES: Final = 4  # the lowest resolutions: above them are edges, and most of the memory
_LAST_ALONE: Final = ("minilm", "relational")  # as in their papers
_BY_CASE: Final = ("relational", "similarity")  # compare cases: places and channels may differ


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A point of the student that learns from a point of the teacher; see `watched`.

    Attributes:
        student: Of the student.
        teacher: Of the teacher.
        ours: What the student's gives.
        told: What the teacher's gives.
    """

    student: str
    teacher: str
    ours: Form
    told: Form


def proposed_pairs(
    student: nn.Module, teacher: nn.Module, batch: Mapping[str, Tensor], hints: Hints
) -> tuple[Pair, ...]:
    """The layers that hints are given between.

    Layers of transformers are paired evenly over the depth. In other networks the last module of each
    resolution, four at most, is paired with the teacher's of the nearest resolution. Where there are no
    places, the last features before the answer are.

    Args:
        student: Not modified.
        teacher: Not modified.
        batch: Example inputs of both, ``{name: (N, ...)}``.
        hints: The loss, and the layers where they are named.

    Returns:
        At least one.

    Raises:
        PreconditionError: A named module does not exist or is not reached, two cannot be matched, or
            there is nothing that fits the loss.

    Example:
        >>> import torch
        >>> nets = [nn.Sequential(nn.Conv2d(1, c, 3), nn.ReLU(), nn.MaxPool2d(2)) for c in (2, 4)]
        >>> batch = {"input": torch.zeros(2, 1, 8, 8)}
        >>> [(p.student, p.teacher) for p in proposed_pairs(*nets, batch, Hints())]
        [('1', '1')]
    """
    ours, told = _Side.of(student, batch, "student"), _Side.of(teacher, batch, "teacher")
    if isinstance(hints.layers, Mapping):
        names = [(ours.named(a, hints.loss), told.named(b, hints.loss)) for a, b in hints.layers.items()]
    else:
        names = list(_automatic(ours, told, hints.loss))
    pairs = tuple(Pair(student=a, teacher=b, ours=ours.forms[a], told=told.forms[b]) for a, b in names)
    if not pairs:
        raise PreconditionError(
            f"{_KEY}: the student and its teacher have no features in common for loss: {hints.loss}; name "
            "modules, {MODULE OF THE STUDENT: MODULE OF THE TEACHER}, or leave hints out"
        )
    for pair in pairs:
        if (problem := _problem(pair, hints.loss)) is not None:
            raise PreconditionError(f"{_KEY}: {problem}")
    return pairs


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One of both models, and what its modules give.

    Attributes:
        who: It is.
        seen: Modules as they finish.
        forms: Of all its points.
        attention: Its self-attention layers that are reached.
    """

    who: str
    model: nn.Module
    seen: Sequence[Seen]
    forms: Mapping[str, Form]
    attention: Sequence[str]

    @classmethod
    def of(cls, model: nn.Module, batch: Mapping[str, Tensor], who: str) -> _Side:
        seen = probed(model, batch)
        inner = attention_forms(model, batch, list(attention_layers(model)))
        forms = {s.name: s.form for s in seen} | {f"{name}{ATTENTION}": form for name, form in inner.items()}
        return cls(who=who, model=model, seen=seen, forms=forms, attention=list(inner))

    def named(self, name: str, loss: str) -> str:
        """The point that a user means by a module's name."""
        modules = dict(self.model.named_modules())
        if name not in modules or not name:
            close = difflib.get_close_matches(name, modules, n=3) or [n for n in modules if n][:3]
            raise PreconditionError(
                f"{_KEY}: the {self.who} has no module {name!r}; closest: {', '.join(close) or 'none'}"
            )
        if loss == "minilm":
            return self._attention_in(name, modules[name])
        if name not in self.forms:
            raise PreconditionError(
                f"{_KEY}: module {name!r} of the {self.who} gives no features, one row for each case, in a "
                "forward pass; name another"
            )
        return name

    def _attention_in(self, name: str, module: nn.Module) -> str:
        inside = [n for n in self.attention if f"{n}.".startswith(f"{name}.")]
        if len(inside) != 1 and not sources(module):
            known = ", ".join(self.attention[:3]) or "none"
            raise PreconditionError(
                f"{_KEY}: module {name!r} of the {self.who} holds {len(inside)} self-attention layers, loss: "
                f"minilm takes one; the model has: {known}"
            )
        return f"{inside[0] if inside else name}{ATTENTION}"

    def layers(self) -> list[Seen]:
        """Of a transformer, the layers that hold attention; of its longest stack."""
        holders = [
            s
            for s in self.seen
            if s.is_block and s.form.is_tokens and any(a.startswith(f"{s.name}.") for a in self.attention)
        ]
        stacks: dict[str, list[Seen]] = {}
        for s in holders:
            stacks.setdefault(s.name.rpartition(".")[0], []).append(s)
        return max(stacks.values(), key=len, default=[])

    def stages(self) -> list[Seen]:
        """The last module of each resolution, in the order in which they finish."""
        maps = [s for s in self.seen if not s.is_answer and math.prod(s.form.places) > 1]
        within = [*self.attention, *_descents(maps)]
        outside = [s for s in maps if not any(s.name.startswith(f"{name}.") for name in within)]
        last = {s.form.places: s.name for s in outside}
        order = [s for s in outside if s.name in last.values()]
        lowest = sorted(order, key=lambda s: math.prod(s.form.places))[:_MOST_STAGES]
        return [s for s in order if s in lowest]

    def vectors(self) -> list[Seen]:
        """The last features of each case as a whole."""
        return [s for s in self.seen if not s.is_answer and math.prod(s.form.places) == 1][-1:]


def _descents(maps: Sequence[Seen]) -> Iterator[str]:
    """Blocks whose inner maps are no ends of a stage.

    Those that lead from one resolution to the next begin with a map of the former; others lay out places
    in their own way.
    """
    for block in (s for s in maps if s.is_block):
        places = block.form.places
        inside = {s.form.places for s in maps if s.name.startswith(f"{block.name}.")} - {places}
        if len(inside) == 1 or any(len(other) != len(places) for other in inside):
            yield block.name


def _automatic(ours: _Side, told: _Side, loss: str) -> Iterator[tuple[str, str]]:
    if loss == "minilm":
        if ours.attention and told.attention:
            yield f"{ours.attention[-1]}{ATTENTION}", f"{told.attention[-1]}{ATTENTION}"
        return
    layers = ours.layers(), told.layers()
    found = list(_evenly(*layers))
    if not any(layers):
        found = list(_by_resolution(ours.stages(), told.stages()))
    if not found and loss != "attention":
        found = list(zip(ours.vectors(), told.vectors(), strict=False))
    for a, b in found[-1:] if loss in _LAST_ALONE else found:
        yield a.name, b.name


def _evenly(ours: Sequence[Seen], told: Sequence[Seen]) -> Iterator[tuple[Seen, Seen]]:
    """Of n layers, number i learns from number i · m / n of m, counted from 1."""
    for i, layer in enumerate(ours if told else (), 1):
        yield layer, told[max(1, round(i * len(told) / len(ours))) - 1]


def _by_resolution(ours: Iterable[Seen], told: Sequence[Seen]) -> Iterator[tuple[Seen, Seen]]:
    """Each stage with the nearest of the teacher's; of several that are nearest to one, the nearest."""
    nearest: dict[str, tuple[Seen, Seen]] = {}
    for a in ours:
        alike = [b for b in told if len(b.form.places) == len(a.form.places)]
        if not alike:
            continue
        b = min(alike, key=lambda b: _apart(a, b))
        if b.name not in nearest or _apart(a, b) < _apart(*nearest[b.name]):
            nearest[b.name] = (a, b)
    yield from nearest.values()


def _apart(a: Seen, b: Seen) -> float:
    return abs(math.log(math.prod(a.form.places) / math.prod(b.form.places)))


def _problem(pair: Pair, loss: str) -> str | None:
    ours, told = pair.ours, pair.told
    if loss in _BY_CASE:
        return None
    if loss == "attention" and not (ours.places and told.places):
        return f"loss: attention needs features with places, but {_both(pair)}"
    if math.prod(ours.places) == math.prod(told.places):
        return None
    if len(ours.places) == len(told.places) and not (ours.is_tokens or told.is_tokens):
        return None
    return f"{_both(pair)}, which cannot be matched; name two of one kind, or take loss: similarity"


def _both(pair: Pair) -> str:
    return (
        f"student module {pair.student!r} gives {pair.ours.shape} and "
        f"teacher module {pair.teacher!r} {pair.told.shape} for each case"
    )
