"""int8 where it is faster and accurate enough, float elsewhere: by measurement, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import inf
from time import monotonic
from typing import Any, Final, Literal

from pastille.progress import SILENT, Progress
from pastille.quantization.layers import Layer, layers, sections
from pastille.quantization.ranges import Batches
from pastille.quantization.sensitivity import gains_db
from pastille.recipe import Goal
from pastille.values import Speedup

Nodes = frozenset[str]
Span = tuple[int, int]  # sections from the first to the last
Times = tuple[Mapping[str, float], Mapping[str, float]]  # of all in int8, and of all in float

_NOTHING: Final = 0.002  # of the time of a call: below it no section is worth a try
_PATIENCE: Final = 8  # trials for speed in a row that bring nothing
_LOST: Final = 0.001  # of the time of a call: what leaving a layer in float costs at least
_BYTES: Final = 3  # that a weight in float has more than one in int8
_INT8: Final = "int8 is accurate enough here"


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the search measures and decides with; all of it sees what would ship.

    Attributes:
        quantize: Names of nodes that stay float -> the quantized graph.
        passes: Whether a graph keeps the recipe's limits on validation.
        speed: How many times faster the second graph is than the first, timed in alternation.
        times: Tensor -> milliseconds of the kernel that makes it; see `pastille.quantization.timing`.
        harm: Layer -> what int8 does to it, as a scan found; None: the search measures that itself.
    """

    quantize: Callable[[Nodes], Any]
    passes: Callable[[Any], bool]
    speed: Callable[[Any, Any], Speedup]
    times: Callable[[Any], Mapping[str, float]]
    harm: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What became of one layer, and why.

    Attributes:
        name: As in PyTorch.
        precision: Of its kernel.
        sqnr_gain_db: How much nearer to float the answers come when it alone is float; None where
            accuracy asked for no choice.
        speed_ratio: Time of its kernels in float over that in int8, conversions of its answer included;
            above 1, int8 is faster. None where it was not seen.
        reason: In words.
    """

    name: str
    precision: Literal["int8", "float"]
    sqnr_gain_db: float | None
    speed_ratio: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that was tried: some nodes in float, and what that brought."""

    what: str
    speedup: Speedup | None  # over what was best before; None where only accuracy was asked
    passes: bool | None  # None where only speed was asked
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """What `search_mixed` found.

    Attributes:
        model: The quantized graph.
        keep_float: Names of the nodes that stay float in it.
        layers: All of them in order.
        speedup: Of ``model`` over all int8; None where they are the same or nothing was timed.
        passes: Whether ``model`` keeps the limits. If not, not even the float graph does.
        trials: In order.
    """

    model: Any
    keep_float: Nodes
    layers: tuple[LayerChoice, ...]
    speedup: Speedup | None
    passes: bool
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class _State:
    """What was found so far."""

    model: Any
    kept: Nodes
    passes: bool
    trials: tuple[Trial, ...] = ()


def search_mixed(
    model: Any,
    held: Batches,
    means: Means,
    *,
    goal: Goal = "fastest",
    asked: Nodes = frozenset(),
    budget_s: float = 300.0,
    progress: Progress = SILENT,
) -> Mixed:
    """Find the fastest or the smallest assignment of int8 and float that passes.

    It begins with all in int8. For speed, runs of neighbouring sections whose float kernels take less time
    are put in float where the whole file becomes faster by more than the noise; all of them together are
    timed against all int8 before they are kept. For accuracy, layers are put in float in the order of what
    they win per millisecond, or per byte, until the graph passes, and those that turn out not to be needed
    are put back.

    Args:
        model: A float ``onnx.ModelProto``, from ``prepared(rewritten(…))``; not modified.
        held: Batches that the ranges were not made with, whose answers show how sensitive a layer is.
        means: What is measured and decided with.
        goal: What is made small: time or bytes.
        asked: Names of nodes that stay float whatever is measured.
        budget_s: Seconds after which no further trial for speed begins.
        progress: Shows each trial.

    Returns:
        The assignment, the same each time that the measurements are the same.

    Raises:
        CalibrationError: There are no held-out batches, or an answer is not finite.

    References:
        Dong et al., ICCV 2019, arXiv:1905.03696 (HAWQ; here sensitivity is measured, not derived).
        Zeller & Hildebrandt, IEEE TSE 28(2), 2002 (putting back by halves).
    """
    known = layers(model)
    start = _State(model=means.quantize(asked), kept=asked, passes=False)
    times = means.times(start.model), means.times(model)
    found = _faster(start, model, means, times, budget_s, progress) if goal == "fastest" else start
    fast = found.kept
    costs = {layer.name: _cost(layer, model, times, goal) for layer in known}
    found, gains = _accurate(found, model, held, means, costs, progress)
    speedup = means.speed(start.model, found.model) if found.kept != asked else None
    reasons = _reasons(known, found, asked, fast)
    return Mixed(
        model=found.model,
        keep_float=found.kept,
        layers=tuple(_choice(x, reasons[x.name], gains, _ratio(x, model, times)) for x in known),
        speedup=speedup,
        passes=found.passes,
        trials=found.trials,
    )


def _ms(nodes: Sequence[str], model: Any, times: Mapping[str, float]) -> float:
    named = set(nodes)
    made = (name for node in model.graph.node if node.name in named for name in node.output)
    return sum(times.get(name, 0.0) for name in made)


def _cost(layer: Layer, model: Any, times: Times, goal: Goal) -> float:
    """What it costs to leave a layer in float: milliseconds or bytes, never nothing."""
    if goal == "smallest":
        return float(max(1, _BYTES * layer.weights))
    lost = _ms(layer.nodes, model, times[1]) - _ms(layer.nodes, model, times[0])
    return max(lost, _LOST * sum(times[0].values()), 1e-9)


def _faster(
    start: _State, model: Any, means: Means, times: Times, budget_s: float, progress: Progress
) -> _State:
    """Put runs of sections in float while that makes the whole faster."""
    parts = sections(model)
    gains = [_ms(part, model, times[0]) - _ms(part, model, times[1]) for part in parts]
    least = _NOTHING * sum(times[0].values())
    waiting, state, refused = _promising(gains, least), start, 0
    deadline = monotonic() + budget_s
    for span in progress.track(_best_first(waiting, gains, deadline), what="timing layers in float"):
        nodes = frozenset(name for part in parts[span[0] : span[1] + 1] for name in part)
        if nodes <= state.kept:
            continue
        state, kept = _timed(state, nodes, means, _words(nodes, model))
        waiting.extend(_around(span, len(parts)) if kept else _halves(span, gains))
        refused = 0 if kept else refused + 1
        if refused == _PATIENCE:
            break
    if state.kept == start.kept:
        return state
    whole = means.speed(start.model, state.model)
    last = Trial(what="all of these", speedup=whole, passes=None, kept=whole.faster)
    state = replace(state, trials=(*state.trials, last))
    return state if last.kept else replace(start, trials=state.trials)


def _best_first(waiting: list[Span], gains: Sequence[float], deadline: float) -> Iterator[Span]:
    """What is still to be tried, each once, the most promising first, while there is time."""
    seen = set[Span]()
    while waiting and monotonic() < deadline:
        span = max(waiting, key=lambda s: (sum(gains[s[0] : s[1] + 1]), -s[0]))
        waiting.remove(span)
        if span not in seen:
            seen.add(span)
            yield span


def _promising(gains: Sequence[float], least: float) -> list[Span]:
    """Runs of sections that promise to be faster in float.

    Two runs are joined across what lies between them where that costs less than either promises.
    """
    sums = [0.0, *accumulate(gains)]
    runs: list[Span] = []
    for at in (i for i, gain in enumerate(gains) if gain > least):
        runs.append((at, at))
        while len(runs) > 1 and _joins(runs[-2], runs[-1], sums):
            runs[-2:] = [(runs[-2][0], runs[-1][1])]
    return runs


def _joins(left: Span, right: Span, sums: Sequence[float]) -> bool:
    between = sums[left[1] + 1] - sums[right[0]]
    return between < min(sums[run[1] + 1] - sums[run[0]] for run in (left, right))


def _around(span: Span, count: int) -> list[Span]:
    """The sections beside a run that is in float now: one of its two conversions moves, no new one comes."""
    first, last = span
    return [(at, at) for at in (first - 1, last + 1) if 0 <= at < count]


def _halves(span: Span, gains: Sequence[float]) -> list[Span]:
    first, last = span
    middle = (first + last) // 2
    halves = [(first, middle), (middle + 1, last)] if first < last else []
    return [(a, b) for a, b in halves if sum(gains[a : b + 1]) > 0]


def _timed(state: _State, nodes: Nodes, means: Means, what: str) -> tuple[_State, bool]:
    candidate = means.quantize(state.kept | nodes)
    speedup = means.speed(state.model, candidate)
    kept = speedup.faster
    trials = (*state.trials, Trial(what=what, speedup=speedup, passes=None, kept=kept))
    if not kept:
        return replace(state, trials=trials), False
    return replace(state, model=candidate, kept=state.kept | nodes, trials=trials), True


def _words(nodes: Nodes, model: Any) -> str:
    named = [layer.name for layer in layers(model) if nodes.intersection(layer.nodes)] or sorted(nodes)
    return named[0] if len(named) == 1 else f"{named[0]} to {named[-1]}"


def _accurate(
    state: _State, model: Any, held: Batches, means: Means, costs: Mapping[str, float], progress: Progress
) -> tuple[_State, dict[str, float]]:
    """Put layers in float until the limits are kept; and what each would win, where that had to be asked."""
    if means.passes(state.model):
        return replace(state, passes=True), {}
    if not means.passes(model):
        impossible = Trial(what="everything in float", speedup=None, passes=False, kept=False)
        return replace(state, trials=(*state.trials, impossible)), {}
    int8 = [layer for layer in layers(model) if not state.kept.issuperset(layer.nodes)]
    gains = gains_db(model, state.model, held, int8, progress=progress) if means.harm is None else {}
    harm = {name: _share(gain) for name, gain in gains.items()} if means.harm is None else means.harm
    order = sorted(int8, key=lambda layer: -_worth(harm.get(layer.name, -inf), costs[layer.name]))
    enough, chosen = _until_it_passes(state, model, order, means, progress)
    dearest = sorted(chosen, key=lambda layer: -costs[layer.name])
    return _put_back(enough, state.kept, dearest, means, progress), gains


def _share(gain_db: float) -> float:
    """Of the error, what goes with a layer's: of errors of different layers the powers add up."""
    return 1 - float(10 ** (-gain_db / 10))


def _worth(harm: float, cost: float) -> float:
    return harm / cost if harm > 0 else harm * cost


def _until_it_passes(
    state: _State, model: Any, order: Sequence[Layer], means: Means, progress: Progress
) -> tuple[_State, Sequence[Layer]]:
    """The fewest of the first layers in this order that suffice; by doubling, then by halving."""
    too_few, enough, best = 0, len(order), None
    for count in progress.track(_doubling(len(order)), what="putting sensitive layers in float"):
        tried = _with_float(state, order[:count], means)
        state = replace(state, trials=tried.trials)
        if tried.passes:
            enough, best = count, tried
            break
        too_few = count
    if best is None:  # something between the layers needs float as well
        every = frozenset(node.name for node in model.graph.node)
        whole = Trial(what="everything in float", speedup=None, passes=True, kept=True)
        return _State(model=model, kept=every, passes=True, trials=(*state.trials, whole)), []
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        tried = _with_float(replace(state, trials=best.trials), order[:middle], means)
        if tried.passes:
            enough, best = middle, tried
        else:
            too_few, best = middle, replace(best, trials=tried.trials)
    return best, order[:enough]


def _doubling(most: int) -> list[int]:
    return [*(1 << i for i in range((most - 1).bit_length())), most] if most else []


def _with_float(state: _State, group: Sequence[Layer], means: Means) -> _State:
    kept = state.kept.union(*(layer.nodes for layer in group))
    candidate = means.quantize(kept)
    passes = means.passes(candidate)
    what = f"{_listed(group)} in float"
    trial = Trial(what=what, speedup=None, passes=passes, kept=passes)
    return _State(model=candidate, kept=kept, passes=passes, trials=(*state.trials, trial))


def _put_back(
    state: _State, base: Nodes, chosen: Sequence[Layer], means: Means, progress: Progress
) -> _State:
    """Take what is not needed out of float again: by halves, the dearest layers first."""
    waiting = _two(chosen)
    for group in progress.track(_popped(waiting), what="putting layers back to int8"):
        kept = state.kept.difference(*(layer.nodes for layer in group)) | base
        candidate = means.quantize(kept)
        passes = means.passes(candidate)
        what = f"{_listed(group)} back in int8"
        trials = (*state.trials, Trial(what=what, speedup=None, passes=passes, kept=passes))
        if passes:
            state = _State(model=candidate, kept=kept, passes=True, trials=trials)
        else:
            state = replace(state, trials=trials)
            waiting.extend(_two(group))
    return state


def _two(group: Sequence[Layer]) -> list[Sequence[Layer]]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


def _popped(waiting: list[Sequence[Layer]]) -> Iterator[Sequence[Layer]]:
    while waiting:
        yield waiting.pop(0)


def _listed(group: Sequence[Layer]) -> str:
    names = [layer.name for layer in group[:3]]
    return ", ".join(names) + (f" and {len(group) - 3} more" if len(group) > 3 else "")


def _choice(layer: Layer, reason: str, gains: Mapping[str, float], ratio: float | None) -> LayerChoice:
    return LayerChoice(
        name=layer.name,
        precision="int8" if reason is _INT8 else "float",
        sqnr_gain_db=gains.get(layer.name),
        speed_ratio=ratio,
        reason=reason,
    )


def _reasons(known: Sequence[Layer], found: _State, asked: Nodes, fast: Nodes) -> dict[str, str]:
    sets = (
        (asked, "float was asked for"),
        (fast, "float is faster here"),
        (found.kept, "accuracy needs float"),
    )
    int8 = _in_int8(found.model)
    reasons = {}
    for layer in known:
        kept = (reason for nodes, reason in sets if layer.nodes[0] in nodes)
        default = _INT8 if layer.nodes[0] in int8 else "no int8 kernel pays here"
        reasons[layer.name] = next(kept, default)
    return reasons


def _in_int8(model: Any) -> set[str]:
    """Names of the nodes that read what was stored in 8 bits."""
    bytes_ = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {node.name for node in model.graph.node if bytes_.issuperset(node.input[:2])}


def _ratio(layer: Layer, model: Any, times: Times) -> float | None:
    int8, floating = (_ms(layer.nodes, model, part) for part in times)
    return floating / int8 if int8 > 0 and floating > 0 else None
