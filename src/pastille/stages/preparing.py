"""What a pruning decides before its first step: what can be pruned, in which multiples, and how far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pastille.errors import IntegrityError, PreconditionError
from pastille.files import read_bounded, write_atomic
from pastille.processes import here
from pastille.progress import Progress
from pastille.pruning import survey
from pastille.pruning.criteria import COMPARABLE
from pastille.pruning.latency import FastWidths
from pastille.pruning.units import ChannelGroup
from pastille.recipe import Prune, QuantizeStep, StaticRanges
from pastille.stages.budget import BudgetPlan, widths_for_budget
from pastille.stages.closing import said
from pastille.stages.contract import Artifact
from pastille.stages.looking import conditions_of
from pastille.stages.removing import Goal, Work, count_blocks, goals, scored
from pastille.stages.scan_file import read_scan
from pastille.stages.scanning import scan_pruning
from pastille.stages.widths import Precision, fast_widths
from pastille.task import Task, example_batch
from pastille.values import from_json, to_json
from pastille.values.scanned import Scan

_BUDGET, _TABLE, _WIDTHS = "budget.json", "latencies.json", "widths.json"
_SCAN, _JOURNAL = "scan.json", "scan.journal"
_MAX_BYTES: Final = 16 << 20
_INT8: Final = frozenset({"ptq", "qat", "mixed", "auto", "dynamic"})

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What does not change from step to step.

    Attributes:
        work: What every step needs.
        goals: What is gone after each step.
        groups: Of the model before the first step.
        plan: What a budget came to; None where none was given.
        notes: For the record.
    """

    work: Work
    goals: Sequence[Goal]
    groups: tuple[ChannelGroup, ...]
    plan: BudgetPlan | None
    notes: tuple[str, ...]


def prepared(
    settings: Prune, base: Path, artifact: Artifact, task: Task, folder: Path, progress: Progress
) -> Prepared:
    """Survey the model, and find what every step is to reach.

    Args:
        settings: As asked in the recipe.
        base: The recipe's folder.
        artifact: As the stage was given it.
        task: The user's.
        folder: What is found is kept there, and found again after a kill.
        progress: Shown while networks are timed.

    Raises:
        PreconditionError: The model cannot be followed, or the budget cannot be reached, or is kept already.
    """
    groups = survey(artifact.module, example_batch(task.splits.train.inputs), protect=settings.protect)
    original = {group.name: group.num_channels for group in groups}
    among = here()  # what is timed differs from process to process
    multiple, notes = among.agreed(lambda: _multiple(settings, task, folder, progress))
    work = Work(
        settings=settings,
        task=task,
        original=original,
        round_to=multiple,
        blocks=count_blocks(artifact.module, settings, task),
    )
    scan = among.agreed(lambda: _scan(work, base, artifact, folder, progress))
    known = replace(work, harm=None if scan is None else scan.harm("pruning"))
    plan = among.agreed(lambda: _budget(known, artifact, folder, progress))
    widths = None if plan is None else plan.kept
    return Prepared(
        work=known,
        goals=goals(settings, original=original, widths=widths),
        groups=groups,
        plan=plan,
        notes=(*notes, *_other_criterion(scan, settings), *(() if plan is None else plan.notes)),
    )


def _scan(work: Work, base: Path, artifact: Artifact, folder: Path, progress: Progress) -> Scan | None:
    """What each layer minds: the scan that the recipe names, or one made now, by the recipe's criterion."""
    settings, task = work.settings, work.task
    if settings.allocation != "sensitivity":
        return None
    if settings.scan is not None:
        return read_scan(base / settings.scan, task.model, "pruning")
    known = _read(Scan, folder / _SCAN)
    if known is None:
        found = scored(artifact.module, _everything(settings), work, progress)
        known = scan_pruning(
            artifact.module,
            task,
            found.groups,
            found.scores,
            criterion=settings.criterion,
            journal=folder / _JOURNAL,
            progress=progress,
        )
        _write(known, folder / _SCAN)
        (folder / _JOURNAL).unlink(missing_ok=True)
    return known


def _other_criterion(scan: Scan | None, settings: Prune) -> tuple[str, ...]:
    """A word if a scan tried other channels than will go."""
    if scan is None or scan.criterion in ("", settings.criterion):
        return ()
    return (
        f"{settings.scan} measured the removal of the channels that matter least by {scan.criterion}, but "
        f"{settings.criterion} chooses those that go: how layers share the sparsity rests on the former",
    )


def _everything(settings: Prune) -> Goal:
    """All that a plan may narrow: heads where they are asked for, or a budget takes what it can."""
    return Goal(sparsity=0.0, layers={}, heads=0.0 if settings.budget is not None else settings.heads)


def _multiple(settings: Prune, task: Task, folder: Path, progress: Progress) -> tuple[int, tuple[str, ...]]:
    """Of which number widths are multiples, and why."""
    if isinstance(settings.round_to, int):
        return settings.round_to, ()
    known = _read(FastWidths, folder / _WIDTHS)
    if known is None:
        threads, conditions = task.recipe.measure.threads, conditions_of(task)
        precision = _ships(settings, task)
        known = fast_widths(precision, threads=threads, conditions=conditions, progress=progress)
        _write(known, folder / _WIDTHS)
    return known.multiple, (known.words,)


def _ships(settings: Prune, task: Task) -> Precision:
    """Whose kernels matter: those of the file that the plan ends with."""
    if settings.budget is not None:
        return settings.budget.precision
    methods = {step.quantize.method for step in task.recipe.plan if isinstance(step, QuantizeStep)}
    return "int8" if methods & _INT8 else "fp32"


def _budget(work: Work, artifact: Artifact, folder: Path, progress: Progress) -> BudgetPlan | None:
    """The widths that a budget allows, if there is one; those that an earlier process found, if it did."""
    if work.settings.budget is None:
        return None
    known = _read(BudgetPlan, folder / _BUDGET)
    if known is not None:
        return known
    plan = _planned(work, artifact, folder, progress)
    if plan.within and all(work.original[name] == width for name, width in plan.kept.items()):
        costs = (
            f"{name} {said(name, plan.measured[name])} of {said(name, limit)}"
            for name, limit in plan.limits.items()
        )
        raise PreconditionError(
            f"prune.budget: the model already keeps to it ({', '.join(costs)}); lower it, or leave prune "
            "out of the plan"
        )
    _write(plan, folder / _BUDGET)
    return plan


def _planned(work: Work, artifact: Artifact, folder: Path, progress: Progress) -> BudgetPlan:
    settings, budget = work.settings, work.settings.budget
    assert budget is not None
    found = scored(artifact.module, _everything(settings), work, progress)
    folder.mkdir(parents=True, exist_ok=True)
    return widths_for_budget(
        artifact.module,
        work.task,
        found.groups,
        found.scores,
        budget,
        baseline=artifact.file,
        folder=folder,
        multiple=work.round_to,
        progress=progress,
        protect=settings.protect,
        harm=work.harm,
        comparable=settings.criterion in COMPARABLE,
        quantize=later_int8(work.task),
        table=folder / _TABLE,
    )


def _write(found: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, to_json(found))


def _read(kind: type[T], file: Path) -> T | None:
    """What an earlier process found by timing, and so would find otherwise; None if it did not."""
    if not file.is_file():
        return None
    try:
        return from_json(kind, read_bounded(file, _MAX_BYTES, what=file.stem))
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{file} cannot be used: {problem}; start a new run") from None


def later_int8(task: Task) -> StaticRanges | None:
    """How the plan will quantize, if it does so with fixed ranges."""
    sections = [step.quantize for step in task.recipe.plan if isinstance(step, QuantizeStep)]
    return next((section for section in sections if isinstance(section, StaticRanges)), None)
