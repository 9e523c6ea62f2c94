"""What became of a budget: the file that a stage gives back, measured once more by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pastille.recipe import StaticRanges
from pastille.record import BudgetLimit
from pastille.stages.budget import BudgetPlan
from pastille.stages.closing import LATENCY, MACS, SIZE, WITHIN, percentile, said
from pastille.stages.trials import as_shipped, network_macs, timed_alone
from pastille.task import Task

if TYPE_CHECKING:
    from torch import nn


def spending(
    module: nn.Module,
    task: Task,
    plan: BudgetPlan,
    folder: Path,
    *,
    quantize: StaticRanges | None,
    arrived: bool,
) -> tuple[BudgetLimit, ...]:
    """Measure the file of a module against the limits of a budget.

    While widths are searched, a latency is the baseline's divided by how many times faster a file is, since
    that can be told in little time; here the file's own is measured.

    Args:
        module: That the stage gives back.
        task: Its validation split's first input is what is timed.
        plan: What the search came to.
        folder: Exists; the file is made in it, and removed.
        quantize: As the file that the budget is about is quantized; None where that is float.
        arrived: Whether the module has the widths of the plan.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        file = as_shipped(module, task, Path(made) / "model.onnx", quantize)
        found = _costs(file, task, plan.limits)
    ratios = {name: ms for name, ms in plan.measured.items() if arrived and name.startswith(LATENCY)}
    return tuple(
        BudgetLimit(name=name, asked=limit, reached=found.get(name), by_ratio=ratios.get(name))
        for name, limit in plan.limits.items()
    )


def _costs(file: Path, task: Task, names: Iterable[str]) -> dict[str, float | None]:
    """Limit -> what a file costs; None of a percentile that too few calls were made for."""
    times = [name for name in names if name.startswith(LATENCY)]
    alone = timed_alone(file, task) if times else None
    own = {} if alone is None else {name: alone.ms(percentile(name)) for name in times}
    return {SIZE: float(file.stat().st_size), MACS: float(network_macs(file)), **own}


def budget_words(limits: Sequence[BudgetLimit]) -> list[str]:
    """What was asked and what was reached, in sentences.

    Args:
        limits: Of one budget.

    Example:
        >>> limit = BudgetLimit(name="max_macs", asked=3e6, reached=2.5e6, by_ratio=None)
        >>> print(*budget_words([limit]), sep=chr(10))
        budget: max_macs 3 M asked, 2.5 M reached
        the budget is not used up: 83 % of it is spent, and no widths that were tried come nearer
    """
    told = [
        f"budget: {limit.name} {said(limit.name, limit.asked)} asked, {_found(limit)}" for limit in limits
    ]
    shares = [share for limit in limits if (share := limit.spent) is not None]
    return [*told, *([_verdict(max(shares), limits)] if shares and not _is_near(max(shares)) else [])]


def _is_near(spent: float) -> bool:
    return 1 - WITHIN <= spent <= 1


def _verdict(spent: float, limits: Sequence[BudgetLimit]) -> str:
    share = f"{100 * spent:.0f} % of it is spent"
    if spent < 1:
        return f"the budget is not used up: {share}, and no widths that were tried come nearer"
    broken = [limit for limit in limits if (limit.spent or 0.0) > 1]
    if all(limit.by_ratio is not None and limit.by_ratio <= limit.asked for limit in broken):
        return (
            f"the budget is not kept: {share} when timed alone; the machine was quicker when this was planned"
        )
    return f"the budget is not kept: {share}"


def _found(limit: BudgetLimit) -> str:
    by_ratio = "" if limit.by_ratio is None else said(limit.name, limit.by_ratio)
    how = f"{by_ratio} by how many times faster than before it is"
    if limit.reached is None:
        return how if by_ratio else "not told by so few calls; raise measure.seconds"
    own = f"{said(limit.name, limit.reached)} reached"
    alone = f"{own} when timed alone" if limit.name.startswith(LATENCY) else own
    return f"{alone} ({how})" if by_ratio else alone
