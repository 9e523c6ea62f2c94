"""From a budget to widths: a latency table, an allocation, and a loop that closes on what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pastille.errors import PreconditionError
from pastille.progress import Progress
from pastille.pruning.allocation import removals, unit_of
from pastille.pruning.budgeted import (
    Limit,
    OutOfReach,
    allocate,
    lost_by_harm,
    lost_by_scores,
    widths_of,
    with_narrow,
)
from pastille.pruning.cost import Costs, costs
from pastille.pruning.removal import remove
from pastille.pruning.units import ChannelGroup
from pastille.recipe import Quantize, StaticRanges
from pastille.recipe.pruning import Budget
from pastille.stages.closing import (
    LATENCY,
    MACS,
    SIZE,
    WITHIN,
    Prediction,
    Trial,
    best,
    closed,
    percentile,
    said,
    words,
)
from pastille.stages.table import table_for
from pastille.stages.trials import Cutter, Means, means_here
from pastille.task import Task, example_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

# What is aimed at, as a share of a limit: what is predicted exactly needs no room.
_AIM: Final = {MACS: 1.0, SIZE: 0.995}
_AIM_LATENCY: Final = 1 - WITHIN / 2
_BYTES: Final = {"fp32": 4, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """The widths that a budget allows.

    Attributes:
        kept: Units of each group that may be narrowed; the others keep all.
        predicted: Limit, e.g. ``"max_latency.p95"`` -> what the last prediction was.
        measured: Limit -> what the file of these widths costs, before any fine-tuning.
        limits: As asked.
        within: Whether every limit is kept.
        rounds: All that was made, in order.
        notes: What happened, for the record.
    """

    kept: Mapping[str, int]
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    limits: Mapping[str, float]
    within: bool
    rounds: tuple[Trial, ...]
    notes: tuple[str, ...]


def widths_for_budget(
    module: nn.Module,
    task: Task,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    baseline: Path,
    folder: Path,
    multiple: int,
    progress: Progress,
    protect: Sequence[str] = (),
    cut: Cutter | None = None,
    harm: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    comparable: bool = False,
    quantize: StaticRanges | None = None,
    table: Path | None = None,
) -> BudgetPlan:
    """Find how many units of each group may stay, by making networks and measuring them.

    Latencies are the baseline's own percentile divided by how many times faster a file is, timed in
    alternation: what else the machine does slows both.

    Args:
        module: Not modified.
        task: Train gives examples and calibration cases, validation the input that is timed.
        groups: From `survey` of the module.
        scores: Group -> importance of its units, ``(C,)``; the lowest go first.
        budget: What the file may cost.
        baseline: Float file of the module.
        folder: Exists; files are made in it, and removed.
        multiple: That widths should be multiples of.
        progress: Shown network by network.
        protect: Passed to `remove`.
        cut: Removes units, in place of `remove`.
        harm: Group -> (sparsity, rise of the loss) of a sensitivity scan, which then counts in place of
            the scores.
        comparable: Whether scores mean the same in every group.
        quantize: How the int8 file will be made, where ``budget.precision`` asks for it.
        table: Where the latency table is kept, and taken from if it fits.

    Raises:
        PreconditionError: The budget is below what one unit per group would cost, or nothing can be
            narrowed.
    """
    batch = example_batch(task.splits.train.inputs)
    cutter = cut or partial(remove, module, batch, protect=protect)
    free = movable(groups, scores, cutter)
    if not free:
        raise PreconditionError(
            "prune.budget: no channel of this model can be removed; protect fewer layers (prune.protect) or "
            "leave prune out of the plan"
        )
    made = _scratch(folder)
    ranges = ranges_for(budget, quantize)
    means = means_here(
        task,
        free,
        scores,
        cutter,
        baseline=baseline,
        folder=made,
        quantize=ranges,
        percentiles=[q for q, _ in budget.max_latency.limits()],
    )
    lost = {group.name: _lost(group, scores[group.name], harm, comparable=comparable) for group in free}
    try:
        return planned(
            costs(module, batch, free),
            lost,
            budget,
            means,
            steps={group.name: _steps(group, multiple) for group in free},
            progress=progress,
            table=table,
        )
    finally:
        for file in made.iterdir():
            file.unlink()
        made.rmdir()


def ranges_for(budget: Budget, later: StaticRanges | None) -> StaticRanges | None:
    """How the file that a budget is about is quantized; None where that is the float one.

    Args:
        budget: As asked in the recipe.
        later: How the plan will quantize, if it does so with fixed ranges.
    """
    return (later or Quantize()) if budget.precision == "int8" else None


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What the widths of a group are multiples of.

    Attributes:
        usual: Where kernels are fast.
        least: That no width can do without.
    """

    usual: int
    least: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """What is tried in turn where the usual steps are too coarse to come near a budget."""
        return self.usual, max(self.least, self.usual // 4 // self.least * self.least), self.least


def _steps(group: ChannelGroup, multiple: int) -> Steps:
    return Steps(usual=unit_of(group, multiple, group.num_channels), least=group.parts)


def _lost(
    group: ChannelGroup,
    scores: Tensor,
    harm: Mapping[str, Sequence[tuple[float, float]]] | None,
    *,
    comparable: bool,
) -> np.ndarray:
    if harm is not None and group.name in harm:
        return lost_by_harm(harm[group.name], group.num_channels)
    layers = {m.entries.parameter for m in group.members if m.role != "scales"}
    return lost_by_scores(scores, layers=len(layers), comparable=comparable and harm is None)


def _scratch(folder: Path) -> Path:
    made = folder / "trials"
    made.mkdir(parents=True, exist_ok=True)
    return made


def movable(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], cut: Cutter
) -> tuple[ChannelGroup, ...]:
    """The groups that can be narrowed, found by narrowing all by a half once."""
    free = [
        g for g in groups if not g.whole and g.kind != "blocks" and g.num_channels > 1 and g.name in scores
    ]
    left = cut(removals(free, scores, {g.name: (g.num_channels + 1) // 2 for g in free})).left_whole
    return tuple(group for group in free if not set(group.outputs) & left.keys())


def asked(budget: Budget) -> dict[str, float]:
    """Limit, as it is called in the recipe -> its value.

    Example:
        >>> asked(Budget.model_validate({"max_latency": {"p95": "5 ms"}, "max_macs": "3 M"}))
        {'max_latency.p95': 5.0, 'max_macs': 3000000.0}
    """
    limits = {f"{LATENCY}p{q * 100:g}": limit for q, limit in budget.max_latency.limits()}
    sizes = {SIZE: budget.max_size, MACS: budget.max_macs}
    return limits | {name: limit for name, limit in sizes.items() if limit is not None}


def planned(
    cost: Costs,
    lost: Mapping[str, np.ndarray],
    budget: Budget,
    means: Means,
    *,
    steps: Mapping[str, Steps],
    progress: Progress,
    table: Path | None = None,
) -> BudgetPlan:
    """The same with every means given.

    Args:
        cost: Of the network before anything is removed.
        lost: Group -> what is lost with its ``n`` least important units, ``(C + 1,)``.
        budget: What the file may cost.
        means: What makes and measures.
        steps: Group -> what its widths are multiples of.
        progress: Shown network by network.
        table: Where the latency table is kept.
    """
    limits = asked(budget)
    begun = _begun(cost, limits, means)
    if begun.nearness(limits) <= 1:
        return _plan([begun], limits, ())
    notes: list[str] = []
    known: Prediction | None = None
    usual = np.array([steps[name].usual for name in cost.groups])
    if any(name.startswith(LATENCY) for name in limits):
        found = table_for(cost, budget.precision, means, usual, table, progress)
        known = partial(found.milliseconds, cost)
        notes.append(
            f"latency table: {len(found.layers)} layers, from {found.files} networks of several widths; its "
            f"largest error for one of them is {found.error:.0%}"
        )
    predict = _predictions(cost, budget, limits, known, begun)
    choose = partial(_chosen, cost, lost, predict, steps, limits)
    measure = partial(_measured, limits, means)
    # Of latencies, predictions are relative to what the whole network takes.
    whole = {name: found for name, found in begun.measured.items() if name.startswith(LATENCY)}
    trials = closed(cost, choose, predict, measure, limits, progress, whole=whole)
    _refuse_unreachable(trials, limits, cost.named(_narrowest(cost, steps)))
    before = begun.kept
    notes += [words(n, trial, limits, before) for n, trial in enumerate(trials, start=1)]
    notes += _finer(best(trials, limits).kept, before, steps)
    return _plan(trials, limits, notes)


def _begun(cost: Costs, limits: Mapping[str, float], means: Means) -> Trial:
    """The network before anything is removed, as a trial: what it costs needs no prediction."""
    kept = cost.named(cost.widths)
    measured = _measured(limits, means, kept)
    return Trial(kept=kept, predicted=measured, measured=measured)


def _plan(trials: Sequence[Trial], limits: Mapping[str, float], notes: Sequence[str]) -> BudgetPlan:
    nearest = best(trials, limits)
    within = nearest.nearness(limits) <= 1
    missed = f"the budget was not reached in {len(trials)} rounds; the nearest is kept"
    return BudgetPlan(
        kept=nearest.kept,
        predicted=nearest.predicted,
        measured=nearest.measured,
        limits=limits,
        within=within,
        rounds=tuple(trials),
        notes=(*notes, *([] if within else [missed])),
    )


def _finer(kept: Mapping[str, int], before: Mapping[str, int], steps: Mapping[str, Steps]) -> list[str]:
    """That widths are no multiples of what was asked, in a sentence."""
    odd = [name for name, width in kept.items() if width % steps[name].usual and width != before[name]]
    nearer = "are given up to come nearer to the budget"
    return [f"multiples of round_to {nearer}, in {len(odd)} of {len(kept)} groups"] if odd else []


def _predictions(
    cost: Costs, budget: Budget, limits: Mapping[str, float], known: Prediction | None, begun: Trial
) -> dict[str, Prediction]:
    """Limit -> what networks are thought to cost, before anything was learned from trials."""
    full = cost.widths[None]
    times = sorted(name for name in limits if name.startswith(LATENCY))
    found: dict[str, Prediction] = {}
    if known is not None:
        for name in times:
            unit = begun.measured[name] / float(known(full)[0])
            found[name] = partial(_scaled, known, unit)
    found[MACS] = cost.macs
    found[SIZE] = partial(_scaled, cost.numbers, _BYTES[budget.precision])
    return {name: found[name] for name in limits}


def _scaled(function: Prediction, factor: float, kept: np.ndarray) -> np.ndarray:
    return function(kept) * factor


def _measured(limits: Mapping[str, float], means: Means, kept: Mapping[str, int]) -> dict[str, float]:
    """Limit -> what the file of some widths costs."""
    file = means.make(kept)
    times = {name: percentile(name) for name in limits if name.startswith(LATENCY)}
    found = means.latency(file, list(times.values())) if times else {}
    measured = {name: found[q] for name, q in times.items()}
    if SIZE in limits:
        measured[SIZE] = float(file.stat().st_size)
    if MACS in limits:
        measured[MACS] = float(means.macs(file))
    return measured


def _chosen(
    cost: Costs,
    lost: Mapping[str, np.ndarray],
    predict: Mapping[str, Prediction],
    steps: Mapping[str, Steps],
    limits: Mapping[str, float],
    factors: Mapping[str, float],
    finer: int,
) -> np.ndarray:
    """Widths that are predicted to keep to the limits, ``(G,)``; in finer steps than usual where asked.

    Raises:
        PreconditionError: Not even one unit per group does.
    """
    curves = [lost[name] for name in cost.groups]
    of = [steps[name] for name in cost.groups]
    each = [step.sizes[finer] for step in of]
    wide = [widths_of(int(w), step) for w, step in zip(cost.widths, each, strict=True)]
    narrow = [with_narrow(w, step, least=s.least) for w, step, s in zip(wide, each, of, strict=True)]
    narrowest = _narrowest(cost, steps)
    # First in whole multiples and with room for what is not predicted, then whatever is possible.
    attempts = [(wide, True), (narrow, True), (narrow, False)]
    for widths, roomy in attempts:
        aims = [
            Limit(
                name=name,
                value=limit * (_AIM.get(name, _AIM_LATENCY) if roomy else 1.0),
                cost=partial(_scaled, predict[name], factors[name]),
            )
            for name, limit in limits.items()
        ]
        try:
            return allocate(widths, curves, aims)
        except OutOfReach as error:
            failure = error
    if failure.limit.name.startswith(LATENCY):  # a prediction is no proof: it is made and measured
        return narrowest
    raise _unreachable(failure.limit.name, limits, failure.smallest, narrowest)


def _narrowest(cost: Costs, steps: Mapping[str, Steps]) -> np.ndarray:
    """The least width of every group, ``(G,)``."""
    each = [(int(w), steps[name]) for w, name in zip(cost.widths, cost.groups, strict=True)]
    return np.array(
        [with_narrow(widths_of(w, step.usual), step.usual, least=step.least)[-1] for w, step in each]
    )


def _refuse_unreachable(
    trials: Sequence[Trial], limits: Mapping[str, float], narrowest: Mapping[str, int]
) -> None:
    """Raise if even the narrowest network was made, and does not keep to a limit."""
    tried = next((trial for trial in trials if trial.kept == narrowest), None)
    if tried is None or best(trials, limits).nearness(limits) <= 1:
        return
    name = max(limits, key=lambda name: tried.measured[name] / limits[name])
    raise _unreachable(name, limits, tried.measured[name], np.array([*narrowest.values()]))


def _unreachable(
    name: str, limits: Mapping[str, float], smallest: float, narrowest: np.ndarray
) -> PreconditionError:
    return PreconditionError(
        f"prune.budget.{name}: {said(name, limits[name])} cannot be reached: the smallest network that this "
        f"plan can make, of {int(narrowest.sum())} units in {len(narrowest)} groups, takes about "
        f"{said(name, smallest)} here; raise it, protect fewer layers (prune.protect), or bring another model"
    )
