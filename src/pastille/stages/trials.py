"""Networks of any widths, made as they would ship and measured on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from pastille.data.split import batches
from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.measure import counts
from pastille.measure.latency import time_calls
from pastille.pruning.allocation import removals
from pastille.pruning.removal import Pruned
from pastille.pruning.units import ChannelGroup
from pastille.quantization.post_training import quantize_static
from pastille.quantization.timing import node_times
from pastille.recipe import Quantize, StaticRanges
from pastille.runtime import load
from pastille.stages.calibration import sample
from pastille.stages.looking import conditions_of
from pastille.task import Task, example_batch
from pastille.values import Conditions, Latency

if TYPE_CHECKING:
    from torch import Tensor, nn

_CALIBRATION: Final = 16  # cases of train that ranges of an int8 trial are measured on: it is only timed
_FLOAT: Final = ".fp32"
_FEWEST_PAIRS: Final = 10
_MOST_PAIRS: Final = 2000
_UNDISTURBED: Final = 0.1  # share of the calls that count
_TIMING: Final = 0.67  # of the recipe's time for one measurement

Cutter = Callable[[Mapping[str, "Tensor"]], Pruned]


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the search for widths makes and measures with.

    Attributes:
        make: Units kept of each group -> the file of that network.
        times: File -> milliseconds of the kernel that makes each tensor.
        latency: File, and percentiles in (0, 1) -> milliseconds of each.
        macs: File -> multiply-accumulates of one input to its network.
        conditions: What is measured on.
    """

    make: Callable[[Mapping[str, int]], Path]
    times: Callable[[Path], Mapping[str, float]]
    latency: Callable[[Path, Sequence[float]], Mapping[float, float]]
    macs: Callable[[Path], float]
    conditions: Conditions


def means_here(
    task: Task,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    cut: Cutter,
    *,
    baseline: Path,
    folder: Path,
    quantize: StaticRanges | None,
    percentiles: Sequence[float],
) -> Means:
    """Make real files, and measure them in ONNX Runtime.

    Args:
        task: Its validation split's first input is what is timed.
        groups: That may be narrowed.
        scores: Of each group's units, ``(C,)``; the lowest go.
        cut: Removes units from the network.
        baseline: File of the network before anything is removed, float.
        folder: Exists; each network is made once and stays there.
        quantize: How files are quantized; None leaves them in float.
        percentiles: Of latencies that will be asked for, in (0, 1).

    Raises:
        PreconditionError: The baseline is too slow to tell a percentile in the recipe's time.
    """
    threads = task.recipe.measure.threads
    (batch,) = batches(task.splits.validation.inputs, [0], 1)
    clock = node_times(batch, threads=threads)
    return Means(
        make=partial(_file, task, groups, scores, cut, folder=folder, quantize=quantize),
        times=lambda file: clock(onnx.load(file)),
        latency=_stopwatch(task, baseline, percentiles),
        macs=network_macs,
        conditions=conditions_of(task),
    )


def _file(
    task: Task,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    cut: Cutter,
    kept: Mapping[str, int],
    *,
    folder: Path,
    quantize: StaticRanges | None,
) -> Path:
    """A network of some widths as a file."""
    digest = hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()
    target = folder / f"{digest[:16]}.onnx"
    if target.exists():
        return target
    return as_shipped(cut(removals(groups, scores, kept)).model, task, target, quantize)


def as_shipped(module: nn.Module, task: Task, target: Path, quantize: StaticRanges | None) -> Path:
    """Write a network as it would ship, to be measured.

    Args:
        module: Not modified.
        task: Train gives examples and calibration cases.
        target: The file to write; its float form stays beside it.
        quantize: How; None leaves it in float.
    """
    plain = target.with_suffix(_FLOAT)
    export_onnx(module, example_batch(task.splits.train.inputs), plain)
    if quantize is None:
        return plain.replace(target)
    shared = {name: getattr(quantize, name) for name in ("weight_bits", "scheme", "keep_float")}
    quantize_static(plain, target, sample(task, _CALIBRATION), Quantize.model_construct(**shared))
    return target


def network_macs(file: Path) -> int:
    """Of the network: what quantization pads channels with for its kernels is not asked about."""
    plain = file.with_suffix(_FLOAT)
    return counts.macs(plain if plain.exists() else file)


def _stopwatch(
    task: Task, baseline: Path, percentiles: Sequence[float]
) -> Callable[[Path, Sequence[float]], Mapping[float, float]]:
    """The baseline's percentiles, divided by how many times faster a file is.

    Other work on the machine slows a file that is timed alone; timed in alternation with the baseline, it
    slows both. The baseline is timed alone once, so all trials are held against the same figure; that a
    narrower network has the same spread about its quick calls is taken for granted.
    """
    asked = task.recipe.measure
    (batch,) = batches(task.splits.validation.inputs, [0], 1)
    first = load(baseline, threads=asked.threads)
    # One thread runs in the caller's, whose own time stands still while others have the core.
    clock = thread_time_ns if asked.threads == 1 else perf_counter_ns
    begun = _percentiles_of(baseline, task, percentiles)

    def latency(file: Path, percentiles: Sequence[float]) -> Mapping[float, float]:
        session = load(file, threads=asked.threads)
        ratio = undisturbed_ratio(
            lambda: first(batch), lambda: session(batch), budget_s=asked.seconds * _TIMING, clock=clock
        )
        return {q: begun[q] / ratio for q in percentiles}

    return latency


def _percentiles_of(file: Path, task: Task, percentiles: Sequence[float]) -> dict[float, float]:
    if not percentiles:
        return {}  # nothing is timed
    alone, seconds = timed_alone(file, task), task.recipe.measure.seconds
    found = {q: alone.ms(q) for q in percentiles}
    missing = [f"p{q * 100:g}" for q, value in found.items() if value is None]
    if missing:
        raise PreconditionError(
            f"prune.budget.max_latency.{missing[0]}: {alone.samples} calls in {seconds:g} s are too few to "
            "tell it; raise measure.seconds, or ask for a lower percentile"
        )
    return {q: value for q, value in found.items() if value is not None}


def timed_alone(file: Path, task: Task) -> Latency:
    """Time a file on the first input of validation, for as long as the recipe gives one measurement."""
    asked = task.recipe.measure
    (batch,) = batches(task.splits.validation.inputs, [0], 1)
    session = load(file, threads=asked.threads)
    return time_calls(session, batch, conditions=conditions_of(task), budget_s=asked.seconds)


def undisturbed_ratio(
    one: Callable[[], object],
    other: Callable[[], object],
    *,
    budget_s: float,
    clock: Callable[[], int] = perf_counter_ns,
) -> float:
    """How many times faster ``other`` is, by the calls of each that nothing disturbed.

    The two are called in turns. Where a core has more to do than one thing, a call that outlasts the
    scheduler's slice waits for all others and a shorter one does not, so that medians say more of the
    scheduler than of the files; the quickest tenth of the calls does not.

    Args:
        one: The file that is compared with.
        other: The file in question.
        budget_s: Seconds to spend; ten pairs are timed even if they take longer.
        clock: Nanoseconds.
    """
    times: tuple[list[int], list[int]] = ([], [])
    end = clock() + budget_s * 1e9
    while len(times[0]) < _FEWEST_PAIRS or (clock() < end and len(times[0]) < _MOST_PAIRS):
        for call, found in zip((one, other), times, strict=True):
            call()  # the other file has just had the caches
            begun = clock()
            call()
            found.append(clock() - begun)
    quick = np.quantile(times, _UNDISTURBED, axis=1)
    return float(quick[0] / quick[1])
