"""The scan itself: each layer is changed alone, and the same few cases are asked again and again."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from pastille.data.split import Inputs, batches
from pastille.errors import PreconditionError
from pastille.progress import SILENT, Progress
from pastille.pruning import survey
from pastille.pruning.scores import group_scores
from pastille.pruning.units import ChannelGroup
from pastille.stages.contract import state_digest
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
from pastille.stages.scanning.replay import Replay, unfit_points
from pastille.stages.scanning.scoring import metric_of, scorer
from pastille.stages.scanning.trace import Trace, trace
from pastille.task import Task, example_batch, forward
from pastille.task.forward import to_tensors
from pastille.values.scanned import Scan, Technique

if TYPE_CHECKING:
    from torch import Tensor, nn

TECHNIQUES: Final[tuple[Technique, ...]] = ("pruning", "quantization")
LEVELS: Final = (0.25, 0.5, 0.75)
_FIRST: Final = 64  # cases that every change is tried on
_MOST, _PART = 512, 7  # looked at by default: no more than that, and than that part of validation
_CALIBRATION: Final = 64  # cases of train that ranges of activations are measured on
_HELD_BYTES: Final = 1 << 30  # that kept answers may take
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    """A model that is asked, and where its answers may be taken up from.

    Attributes:
        model: A copy of the user's, in eval mode.
        starts: Change -> when the first thing that it changes is used; 0: the model is run as a whole.
        seen: Its forward pass.
        chunk: Cases that are asked at once.
        ask: Answers and rows ``(n,)`` -> losses and scores, ``(2, n)``.
        inputs: Of validation.
        device: Where the model is.
    """

    model: nn.Module
    starts: Mapping[Key, int]
    seen: Trace
    chunk: int
    ask: Callable[[Tensor, np.ndarray], np.ndarray]
    inputs: Inputs = field(repr=False)
    device: str

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Inputs of some rows."""
        return to_tensors(next(batches(self.inputs, rows.tolist(), len(rows))), self.device)


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
    progress: Progress = SILENT,
) -> Scan:
    """What removing channels costs, group by group, for an allocation by sensitivity.

    Args:
        module: In eval mode; not modified.
        task: Its validation split is asked.
        groups: From `pastille.pruning.survey` of this module.
        scores: Name of a group -> how much each unit matters, ``(C,)``; by the L1 norm if left out.
        levels: Sparsities, ascending.
        cases: As in `ScanSettings`.
        progress: Shown for each change.

    Raises:
        PreconditionError: The task has no loss, or no group can be pruned.
    """
    metric_of(task.cases["validation"])
    settings = ScanSettings(techniques=("pruning",), levels=tuple(levels), cases=cases)
    known = group_scores(module, groups, settings.criterion) if scores is None else scores
    changes, skipped = pruning_changes(groups, known, levels)
    plan = Plan(changes=tuple(changes), layers=_sizes(module, changes), skipped=skipped)
    return _carried_out(module, task, plan, settings, None, progress)


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
    with (
        findings(journal, _asked(module, task, settings)) as found,
        torch.inference_mode(),
        _slow_attention(),
    ):
        bench = _bench(module, task, plan.changes)
        baseline = _baseline(bench, len(cases.targets), progress)
        held = yardstick(baseline, cases, _groups(task), confidence=confidence, seed=task.recipe.seed)
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
        stopped=_stopped(plan.changes, found),
        seconds=time.monotonic() - began,
    )


def _asked(module: nn.Module, task: Task, settings: ScanSettings) -> dict[str, Any]:
    """All that a finding depends on; how many there are to be is no part of that."""
    told = {**asdict(settings), "cases": None, "agreement": None, "seed": task.recipe.seed}
    return {"schema": 1, "model": state_digest(module), "data": task.data_digest, "settings": told}


def _most(settings: ScanSettings, n: int) -> int:
    return settings.cases or max(_FIRST, min(_MOST, n // _PART))


def _groups(task: Task) -> dict[str, np.ndarray]:
    cases, limits = task.cases["validation"], task.recipe.requirements.fairness
    attributes = tuple(cases.groups) if limits is None else tuple(limits.by)
    return patient_groups(cases, attributes, _LEAST_GROUP if limits is None else limits.min_group)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Without PyTorch's fast path, which computes a transformer layer in one piece."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _bench(module: nn.Module, task: Task, changes: Sequence[Change]) -> _Bench:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = copy.deepcopy(module).eval().to(device)
    inputs = task.splits.validation.inputs
    few = {name: x.to(device) for name, x in example_batch(inputs).items()}
    seen = trace(model, few)
    starts = {c.key: min((seen.uses[x] for x in c.touched if x in seen.uses), default=0) for c in changes}
    unfit, held_bytes = unfit_points(model, seen, few, starts.values())
    return _Bench(
        model=model,
        starts={key: 0 if start in unfit else start for key, start in starts.items()},
        seen=seen,
        chunk=max(1, min(_FIRST, _HELD_BYTES // max(1, held_bytes))),
        ask=scorer(task.cases["validation"], task.recipe.task.outputs),
        inputs=inputs,
        device=device,
    )


def _baseline(bench: _Bench, n: int, progress: Progress) -> np.ndarray:
    """Losses and scores of the model as it is, ``(2, n)``."""
    chunks = [np.arange(i, min(i + bench.chunk, n)) for i in range(0, n, bench.chunk)]
    return np.concatenate(
        [
            bench.ask(forward(bench.model, bench.batch(rows)), rows)
            for rows in progress.track(chunks, what="evaluating the model as it is")
        ],
        axis=1,
    )


def _rounds(
    bench: _Bench,
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
        end = min(len(order), max(_FIRST, 2 * done))
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
    bench: _Bench,
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
        if known == start:
            found.add(change.key, start, bench.ask(_answers(bench, change, replay, batch), rows))
        if is_ruinous(change.key, found.of(change.key)[:, : start + len(rows)], held):
            ruined.add(layer)


def _answers(bench: _Bench, change: Change, replay: Replay, batch: Mapping[str, Tensor]) -> Tensor:
    at = bench.starts[change.key]
    if at:
        replay.advance(at)
    with change.applied(bench.model):
        return replay.answer() if at else forward(bench.model, batch)


def _stopped(changes: Sequence[Change], found: Findings) -> dict[str, str]:
    """Layers that were not tried at every level, in words."""
    stopped: dict[str, str] = {}
    for (technique, layer), group in groupby(changes, key=lambda c: (c.technique, c.layer)):
        tried = list(group)
        left = [change.level for change in tried if not found.of(change.key).shape[1]]
        if left:
            last = max((c.level for c in tried if c.level not in left), key=lambda x: x, default=0.0)
            stopped[f"{technique} of {layer}"] = (
                f"not tried at {', '.join(f'{x:g}' for x in left)}: at {last:g} nothing is left of the model"
            )
    return stopped
