"""The scan itself: each layer is changed alone, and the same few cases are asked again and again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from pastille.data.split import batches
from pastille.errors import PreconditionError
from pastille.progress import SILENT, Progress
from pastille.pruning import survey
from pastille.pruning.hooks import no_fast_path
from pastille.pruning.scores import group_scores
from pastille.pruning.units import ChannelGroup
from pastille.stages.contract import state_digest
from pastille.stages.scanning.bench import FIRST, Bench, bench_of
from pastille.stages.scanning.changes import (
    BITS,
    Change,
    measured_spans,
    pruning_changes,
    quantization_changes,
    quantized_weights,
)
from pastille.stages.scanning.effects import (
    Yardstick,
    effect,
    is_ruinous,
    is_settled,
    patient_groups,
    yardstick,
)
from pastille.stages.scanning.journal import Findings, Key, findings
from pastille.stages.scanning.replay import Replay
from pastille.stages.scanning.scoring import metric_of
from pastille.task import Task, example_batch
from pastille.task.forward import to_tensors
from pastille.values.scanned import Scan, Technique

if TYPE_CHECKING:
    from torch import Tensor, nn

TECHNIQUES: Final[tuple[Technique, ...]] = ("pruning", "quantization")
LEVELS: Final = (0.25, 0.5, 0.75)
_MOST, _PART = 512, 7  # looked at by default: no more than that, and than that part of validation
_CALIBRATION: Final = 64  # cases of train that ranges of activations are measured on
_LEAST_GROUP: Final = 30  # where the recipe sets no limits for groups


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """How a scan is done.

    Attributes:
        techniques: What layers are tried with.
        levels: Sparsities, ascending.
        bits: Of weights, descending: the mildest change comes first.
        cases: Of validation, looked at for one change at most; None: a seventh of it, within limits, so that
            a scan takes a tenth of the time of one that looks at all of validation every time.
        agreement: Expected Kendall's tau to the order of the layers by all of validation, at which no further
            cases are looked at; 1 asks until no two layers could change places.
        criterion: Which channels are the least important; one that looks at weights alone.
        protect: Modules that are not pruned, ``*`` matches any part.
    """

    techniques: tuple[Technique, ...] = TECHNIQUES
    levels: tuple[float, ...] = LEVELS
    bits: tuple[int, ...] = BITS
    cases: int | None = None
    agreement: float = 0.9
    criterion: str = "l1"
    protect: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a scan will try."""

    changes: tuple[Change, ...]
    layers: Mapping[str, int]
    skipped: Mapping[str, str]


def scan(
    module: nn.Module,
    task: Task,
    settings: ScanSettings = ScanSettings(),
    *,
    journal: Path | None = None,
    progress: Progress = SILENT,
) -> Scan:
    """Change every layer alone, a little and a lot, and measure what that costs on validation.

    Pruning is tried by not reading channels, quantization by rounding in PyTorch; no file is made. Each
    change is tried on the same cases: first a few, then more while the order of the layers is in doubt. The
    cases are those that the model is unsure of rather than others, and are weighted for it.

    Args:
        module: In eval mode; not modified.
        task: Its validation split is asked; ranges of activations are measured on train.
        settings: What is tried.
        journal: Each finding is written there, and those that are there are not made again.
        progress: Shown for each change.

    Raises:
        PreconditionError: The task has no loss, or no layer can be changed.
    """
    metric_of(task.cases["validation"])
    plan = plan_of(module, task, settings)
    return _carried_out(module, task, plan, settings, journal, progress)


def scan_pruning(
    module: nn.Module,
    task: Task,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor] | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    cases: int | None = None,
    criterion: str = "l1",
    journal: Path | None = None,
    progress: Progress = SILENT,
) -> Scan:
    """What removing channels costs, group by group, for an allocation by sensitivity.

    Args:
        module: In eval mode; not modified.
        task: Its validation split is asked.
        groups: From `pastille.pruning.survey` of this module.
        scores: Name of a group -> how much each unit matters, ``(C,)``; found here if left out.
        levels: Sparsities, ascending.
        cases: As in `ScanSettings`.
        criterion: That the scores are of; noted in the result.
        journal: As of `scan`.
        progress: Shown for each change.

    Raises:
        PreconditionError: The task has no loss, or no group can be pruned.
    """
    metric_of(task.cases["validation"])
    settings = ScanSettings(techniques=("pruning",), levels=tuple(levels), cases=cases, criterion=criterion)
    known = group_scores(module, groups, settings.criterion) if scores is None else scores
    changes, skipped = pruning_changes(groups, known, levels)
    plan = Plan(changes=tuple(changes), layers=_sizes(module, changes), skipped=skipped)
    return _carried_out(module, task, plan, settings, journal, progress)


def plan_of(module: nn.Module, task: Task, settings: ScanSettings) -> Plan:
    """Every change that a scan tries, in the order of the model."""
    changes: list[Change] = []
    skipped: dict[str, str] = {}
    if "pruning" in settings.techniques:
        groups = survey(module, example_batch(task.splits.train.inputs), protect=settings.protect)
        scores = group_scores(module, groups, settings.criterion, seed=task.recipe.seed)
        found, skipped = pruning_changes(groups, scores, settings.levels)
        changes.extend(found)
    if "quantization" in settings.techniques:
        changes.extend(quantization_changes(module, _spans(module, task), settings.bits))
    return Plan(changes=tuple(changes), layers=_sizes(module, changes), skipped=skipped)


def _spans(module: nn.Module, task: Task) -> Any:
    inputs = task.splits.train.inputs
    rows = np.random.default_rng(task.recipe.seed).permutation(len(inputs))[:_CALIBRATION]
    with torch.inference_mode():
        return measured_spans(module, (to_tensors(x) for x in batches(inputs, rows.tolist(), 32)))


def _sizes(module: nn.Module, changes: Sequence[Change]) -> dict[str, int]:
    """Parameters of every layer, of those that hold weights and those that are scanned, in order."""
    wanted = {change.layer for change in changes} | quantized_weights(module).keys()
    return {
        name: sum(p.numel() for p in layer.parameters())
        for name, layer in module.named_modules()
        if name in wanted
    }


def _carried_out(
    module: nn.Module,
    task: Task,
    plan: Plan,
    settings: ScanSettings,
    journal: Path | None,
    progress: Progress,
) -> Scan:
    if not plan.changes:
        why = "; ".join(sorted(set(plan.skipped.values()))) or "it has no layer with weights"
        raise PreconditionError(f"scan: there is nothing to try on this model ({why})")
    began, cases, confidence = time.monotonic(), task.cases["validation"], task.recipe.requirements.confidence
    with findings(journal) as found, torch.inference_mode(), no_fast_path():
        bench = bench_of(module, task, plan.changes)
        baseline = bench.baseline(len(cases.targets), progress)
        held = yardstick(baseline, cases, _groups(task), confidence=confidence, seed=task.recipe.seed)
        found.take_up(_asked(module, task, plan, settings, held))
        _rounds(bench, plan.changes, found, held, settings, progress)
    effects = (effect(c.key, found.of(c.key), held) for c in plan.changes if found.of(c.key).shape[1])
    return Scan(
        model_digest=state_digest(module),
        data_digest=task.data_digest,
        metric=metric_of(cases),
        baseline_metric=float(np.nanmean(baseline[1])),
        baseline_loss=float(baseline[0].mean()),
        confidence=confidence,
        effects=tuple(effects),
        layers=plan.layers,
        skipped=plan.skipped,
        criterion=settings.criterion if "pruning" in settings.techniques else "",
        stopped=_stopped(plan.changes, found),
        seconds=time.monotonic() - began,
    )


def _asked(
    module: nn.Module, task: Task, plan: Plan, settings: ScanSettings, held: Yardstick
) -> dict[str, Any]:
    """All that a finding depends on; how many there are to be is no part of that."""
    units = json.dumps([(*change.key, change.units) for change in plan.changes])
    return {
        "schema": 1,
        "model": state_digest(module),
        "data": task.data_digest,
        "task": [task.recipe.task.kind, task.recipe.task.outputs],
        "order": hashlib.sha256(held.sample.order.tobytes()).hexdigest(),
        "units": hashlib.sha256(units.encode()).hexdigest(),
        "settings": {**asdict(settings), "cases": None, "agreement": None, "seed": task.recipe.seed},
    }


def _most(settings: ScanSettings, n: int) -> int:
    return settings.cases or max(FIRST, min(_MOST, n // _PART))


def _groups(task: Task) -> dict[str, np.ndarray]:
    cases, limits = task.cases["validation"], task.recipe.requirements.fairness
    attributes = tuple(cases.groups) if limits is None else tuple(limits.by)
    return patient_groups(cases, attributes, _LEAST_GROUP if limits is None else limits.min_group)


def _rounds(
    bench: Bench,
    changes: Sequence[Change],
    found: Findings,
    held: Yardstick,
    settings: ScanSettings,
    progress: Progress,
) -> None:
    """Look at more and more cases, of the changes whose order is in doubt."""
    order = held.sample.order[: _most(settings, len(held.sample.order))]
    open_sets = {(c.technique, c.level) for c in changes}
    done = 0
    while open_sets and done < len(order):
        end = min(len(order), max(FIRST, 2 * done))
        asked = [c for c in changes if (c.technique, c.level) in open_sets]
        for start in range(done, end, bench.chunk):
            rows = order[start : min(start + bench.chunk, end)]
            _one_chunk(bench, asked, found, held, (start, rows), progress)
        done = end
        open_sets = {
            which
            for which in open_sets
            if not is_settled(_of(which, asked), found, held, agreement=settings.agreement)
        }


def _of(which: tuple[str, float], changes: Sequence[Change]) -> list[Key]:
    return [change.key for change in changes if (change.technique, change.level) == which]


def _one_chunk(
    bench: Bench,
    changes: Sequence[Change],
    found: Findings,
    held: Yardstick,
    part: tuple[int, np.ndarray],
    progress: Progress,
) -> None:
    """Try every change on the same cases, in the order in which the model comes to them."""
    start, rows = part
    batch = bench.batch(rows)
    replay = Replay(bench.model, bench.seen, batch)
    in_order = sorted(changes, key=lambda change: bench.starts[change.key])
    ruined: set[tuple[str, str]] = set()
    for change in progress.track(in_order, what=f"scanning, cases {start + 1} to {start + len(rows)}"):
        layer, known = (change.technique, change.layer), found.of(change.key).shape[1]
        # The levels of a layer begin at one point, and so stay in their order: the mildest first.
        if layer in ruined or known < start:
            continue
        if known < start + len(rows):  # those that an earlier process asked of them, if any, are asked again
            found.add(change.key, start, bench.ask(bench.answers(change, replay, batch), rows))
        if is_ruinous(change.key, found.of(change.key)[:, : start + len(rows)], held):
            ruined.add(layer)


def _stopped(changes: Sequence[Change], found: Findings) -> dict[str, str]:
    """Layers that were not tried at every level, in words."""
    stopped: dict[str, str] = {}
    for (technique, layer), group in groupby(changes, key=lambda c: (c.technique, c.layer)):
        tried = list(group)
        left = [change.level for change in tried if not found.of(change.key).shape[1]]
        if left:
            last = [change.level for change in tried if change.level not in left][-1]
            stopped[f"{technique} of {layer}"] = (
                f"not tried at {', '.join(f'{x:g}' for x in left)}: at {last:g} nothing is left of the model"
            )
    return stopped
