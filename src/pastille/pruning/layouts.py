"""Where the heads of an attention layer lie in its weights: guessed from sizes, then proven by numbers.

Nothing in a module says which rows of a projection are a head's, or which of its integers must change
when heads leave. There are few ways to write attention, though, so each is tried: heads are cut out of a
copy with random weights, and it must answer like a copy that does not read them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pastille.pruning.hooks import Call
from pastille.pruning.units import Role
from pastille.pruning.whole import WEIGHTED

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of the largest answer; rounding gives up to 1e-6, a wrong head about 1

# What implementations call their sizes.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads", "num_head", "nheads", "h")
SHARED = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
REPEATS = ("num_key_value_groups", "n_rep", "num_queries_per_kv")
PER_HEAD = ("head_dim", "attention_head_size", "dim_head", "head_size", "d_head", "d_k", "d_kv")
INNER = ("all_head_size", "attn_dim", "inner_dim", "attention_dim", "inner_size", "qkv_dim", "proj_dim")
# The width of the heads together in one implementation, of what comes in in another.
WIDTHS = (
    "embed_dim",
    "dim",
    "hidden_size",
    "d_model",
    "hidden_dim",
    "width",
    "n_embd",
    "emb_dim",
    "channels",
)
HEAD_SIZES = frozenset({*HEADS, *SHARED, *REPEATS, *INNER, *WIDTHS})

_MOST_GUESSES = 64  # layers in use are found with the first nine

Rewrite = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """The head that each position on one axis of a tensor belongs to, ``(C,)`` int64."""

    tensor: str
    axis: int
    heads: Tensor
    role: Role


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the heads of an attention layer lie.

    Attributes:
        num_heads: Heads that can be removed one by one: groups of them where keys are shared.
        slices: Tensors, named from the module that holds all of them.
        sizes: Integers in proportion to the number of heads, as (module, attribute).
    """

    num_heads: int
    slices: tuple[Slices, ...]
    sizes: tuple[tuple[str, str], ...]

    @property
    def read(self) -> Slices:
        """Where the heads' answers are read."""
        return next(s for s in self.slices if s.role == "reads")


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A module with weights and inputs of which each one matters, and what it answers.

    Attributes:
        unit: Holds an attention layer.
        call: Its inputs, no two tokens alike.
        answers: Every tensor of its answer.
    """

    unit: nn.Module
    call: Call
    answers: tuple[Tensor, ...]


def on_bench(unit: nn.Module, call: Call) -> Bench:
    """Prepare a copy of a module for the proof of what its heads are.

    Code that does not run with other weights and noise gets no answers, so that nothing is proven of it.
    """
    lively, noisy = _lively(unit), _noisy(call)
    try:
        return Bench(unit=lively, call=noisy, answers=_answers(lively, noisy))
    except Exception:  # the user's code, with what it never had to expect
        return Bench(unit=lively, call=noisy, answers=())


def is_proven(bench: Bench, layout: Layout, heads: Tensor, rewrite: Rewrite) -> bool:
    """Whether cutting heads out of a module does nothing but that.

    Args:
        bench: Not modified.
        layout: What is to be proven.
        heads: To remove, ``(n,)`` int64.
        rewrite: Makes the module one that can lose heads.
    """
    if not bench.answers:
        return False
    try:
        found = _answers_without(bench, layout, heads, rewrite)[0]
        expected = _answers(blind(bench.unit, layout, heads), bench.call)[0]
    except Exception:  # a wrong guess can fail in every way there is
        return False
    limit = TOLERANCE * float(expected.abs().max())
    # A layer that would answer the same with those heads proves nothing.
    return is_close(found, expected) and float((bench.answers[0] - expected).abs().max()) > 10 * limit


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether two answers differ by rounding alone."""
    limit = TOLERANCE * float(expected.abs().max())
    return found.shape == expected.shape and float((found - expected).abs().max()) <= limit


def shows_heads(bench: Bench, layout: Layout, heads: Tensor, rewrite: Rewrite) -> bool:
    """Whether a module gives away more than its answer that depends on how many heads it has."""
    found = _answers_without(bench, layout, heads, rewrite)
    return [x.shape for x in found] != [x.shape for x in bench.answers]


def _answers_without(bench: Bench, layout: Layout, heads: Tensor, rewrite: Rewrite) -> tuple[Tensor, ...]:
    return _answers(without_heads_(rewrite(copy.deepcopy(bench.unit)), layout, heads), bench.call)


def blind(unit: nn.Module, layout: Layout, heads: Tensor) -> nn.Module:
    """A copy that makes some heads, but does not read them."""
    new = copy.deepcopy(unit)
    with torch.no_grad():
        columns = torch.isin(layout.read.heads, heads).nonzero()[:, 0]
        new.get_parameter(layout.read.tensor).index_fill_(layout.read.axis, columns, 0.0)
    return new


def _lively(unit: nn.Module) -> nn.Module:
    """A copy with weights of which each one matters."""
    new, generator = copy.deepcopy(unit), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in new.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=fan_in**-0.5, generator=generator)
    return new


def _noisy(call: Call) -> Call:
    generator, seen = torch.Generator().manual_seed(1), dict[int, Any]()

    def noisy(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        if id(x) not in seen:  # query, key and value are often one tensor, and must stay one
            seen[id(x)] = x + torch.randn(x.shape, generator=generator).to(x)
        return seen[id(x)]

    args, kwargs = pytree.tree_map(noisy, (call.args, dict(call.kwargs)))
    return Call(args=args, kwargs=kwargs)


def _answers(module: nn.Module, call: Call) -> tuple[Tensor, ...]:
    args, kwargs = copy.deepcopy((call.args, call.kwargs))  # a cache of keys grows by being used
    with torch.no_grad():
        answers = pytree.tree_leaves(module(*args, **kwargs))
    return tuple(x for x in answers if isinstance(x, torch.Tensor))


def without_heads_(unit: nn.Module, layout: Layout, heads: Tensor) -> nn.Module:
    """Remove heads from every tensor, and say so in every size; in place."""
    kept = int((~torch.isin(torch.arange(layout.num_heads), heads)).sum())
    for place in layout.slices:
        _keep_(unit, place, ~torch.isin(place.heads, heads))
    for name, attribute in layout.sizes:
        owner = unit.get_submodule(name)
        setattr(owner, attribute, getattr(owner, attribute) // layout.num_heads * kept)
    return unit


def _keep_(unit: nn.Module, place: Slices, keep: Tensor) -> None:
    owner_name, _, leaf = place.tensor.rpartition(".")
    owner = unit.get_submodule(owner_name)
    old = getattr(owner, leaf)
    new = old.detach().index_select(place.axis, keep.nonzero()[:, 0])
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(owner, leaf, new)


@dataclass(frozen=True, kw_only=True)
class _Guess:
    """The sizes of an attention layer, and which layers make and read its heads."""

    heads: int
    head_dim: int
    shared: int  # heads of keys and values
    makers: tuple[str, ...]
    reader: str

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def units(self) -> int:
        return self.heads if self.shared == 1 else self.shared


def possible_layouts(unit: nn.Module, attention: str, order: Sequence[str]) -> Iterator[Layout]:
    """Every way in which the heads may lie, the likely ones first.

    Args:
        unit: Holds the attention layer.
        attention: Its name in there, empty if it is the unit.
        order: Names in the unit of its linear layers, as they are called.
    """
    guesses = (_layouts_of(guess, unit, attention) for guess in _guesses(unit, attention, order))
    yield from itertools.islice(itertools.chain.from_iterable(guesses), _MOST_GUESSES)


def _guesses(unit: nn.Module, attention: str, order: Sequence[str]) -> Iterator[_Guess]:
    layers = {name: unit.get_submodule(name) for name in order}
    inside = [name for name in order if f"{name}.".startswith(f"{attention}.") or not attention]
    for heads, head_dim in _head_sizes(unit.get_submodule(attention), [layers[n] for n in inside]):
        inner = heads * head_dim
        for reader in (n for n in order if widths(layers[n])[1] == inner):
            before = [n for n in inside if order.index(n) < order.index(reader)]
            made = {name: widths(layers[name])[0] for name in before}
            shared = {m for m in made.values() if m < inner and not inner % m and not m % head_dim}
            makers = tuple(n for n, m in made.items() if not m % inner or (m in shared and m > head_dim))
            if len(shared) < 2 and any(not made[n] % inner for n in makers):
                groups = shared.pop() // head_dim if shared else heads
                yield _Guess(heads=heads, head_dim=head_dim, shared=groups, makers=makers, reader=reader)


def _head_sizes(attention: nn.Module, layers: Sequence[nn.Module]) -> Iterator[tuple[int, int]]:
    """Numbers of heads and their widths that the attributes and the layers allow, each once."""
    heads, head_dim = _first(attention, HEADS), _first(attention, PER_HEAD)
    found = dict.fromkeys([(heads, head_dim)] if heads and head_dim else [])
    for made, (known, parts) in itertools.product(layers, ((heads, 1), (heads, 3), (heads, 2))):
        width, rest = divmod(widths(made)[0], parts)
        if not rest and known and not width % known:
            found[known, width // known] = None
        elif not rest and not known and head_dim and not width % head_dim:
            found[width // head_dim, head_dim] = None
    yield from ((h, d) for h, d in found if h and d)


def _first(module: nn.Module, names: Sequence[str]) -> int | None:
    values = (vars(module).get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def counts_heads(module: nn.Module) -> bool:
    """Whether a module says how many heads it has, or how wide they are."""
    return _first(module, HEADS) is not None or _first(module, PER_HEAD) is not None


def widths(layer: nn.Module) -> tuple[int, int]:
    """Output and input width of a linear layer or a convolution."""
    made = getattr(layer, "out_features", getattr(layer, "out_channels", 0))
    read = getattr(layer, "in_features", getattr(layer, "in_channels", 0))
    return int(made), int(read)


def _layouts_of(guess: _Guess, unit: nn.Module, attention: str) -> Iterator[Layout]:
    fused = any(widths(unit.get_submodule(n))[0] > guess.inner for n in guess.makers)
    biases = tuple(_by_head(guess, unit, attention))
    fixed, doubtful = _sizes(guess, unit)
    for interleaved, left, changed in itertools.product(
        (False, True) if fused else (False,), _subsets(biases), _subsets(doubtful)
    ):
        slices = [s for name in guess.makers for s in _made(guess, unit, name, interleaved=interleaved)]
        weight = Slices(tensor=f"{guess.reader}.weight", axis=1, heads=_columns(guess), role="reads")
        more = [s for s in biases if s not in left]
        layers = {s.tensor.rpartition(".")[0] for s in more if s.tensor.endswith(".weight") and not s.axis}
        yield Layout(
            num_heads=guess.units,
            slices=(*slices, weight, *more),
            sizes=(*fixed, *changed, *_layer_sizes(guess, unit, layers)),
        )


def _subsets(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    for n in range(len(items) + 1):
        yield from itertools.combinations(items, n)


def _columns(guess: _Guess) -> Tensor:
    return torch.arange(guess.inner) // guess.head_dim * guess.units // guess.heads


def _made(guess: _Guess, unit: nn.Module, name: str, *, interleaved: bool) -> Iterator[Slices]:
    layer = unit.get_submodule(name)
    made = widths(layer)[0]
    rows, parts = torch.arange(made), max(1, made // guess.inner)
    shared = made < guess.inner
    by_part = rows % guess.inner // guess.head_dim
    by_head = rows // (parts * guess.head_dim)
    heads = by_head if shared else (by_head if interleaved else by_part) * guess.units // guess.heads
    yield Slices(tensor=f"{name}.weight", axis=0, heads=heads, role="makes")
    if layer.bias is not None:
        yield Slices(tensor=f"{name}.bias", axis=0, heads=heads, role="makes")


def _by_head(guess: _Guess, unit: nn.Module, attention: str) -> Iterator[Slices]:
    """What has one value per head: a table of relative positions, a scale."""
    inside = unit.get_submodule(attention)
    saved = inside.state_dict()
    prefix = f"{attention}." if attention else ""
    layers = {*guess.makers, guess.reader}
    for name, tensor in saved.items():
        axes = [axis for axis, size in enumerate(tensor.shape) if size == guess.heads]
        if axes and f"{prefix}{name}".rpartition(".")[0] not in layers:
            heads = torch.arange(guess.heads) * guess.units // guess.heads
            yield Slices(tensor=f"{prefix}{name}", axis=axes[-1], heads=heads, role="scales")


def _sizes(guess: _Guess, unit: nn.Module) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Which integers surely change with the number of heads, and which may."""
    values = [(HEADS, guess.heads), (INNER, guess.inner)]
    values += [(SHARED, guess.shared)] if guess.shared > 1 else [(REPEATS, guess.heads)]
    others = [(n, m) for n, m in unit.named_modules() if not isinstance(m, WEIGHTED)]
    sure = [(n, key) for n, m in others for keys, value in values for key in keys if _is(m, key, value)]
    doubtful = [(n, key) for n, m in others for key in WIDTHS if _is(m, key, guess.inner)]
    return sure, doubtful


def _is(module: nn.Module, attribute: str, value: int) -> bool:
    found = vars(module).get(attribute)
    return type(found) is int and found == value


def _layer_sizes(guess: _Guess, unit: nn.Module, others: set[str]) -> Iterator[tuple[str, str]]:
    for name in (*guess.makers, *sorted(others)):
        layer = unit.get_submodule(name)
        if isinstance(layer, WEIGHTED):
            yield name, "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    reader = unit.get_submodule(guess.reader)
    yield guess.reader, "in_features" if isinstance(reader, nn.Linear) else "in_channels"
