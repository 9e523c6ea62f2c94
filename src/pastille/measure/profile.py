"""Everything that is measured of one exported file, in one `Profile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pastille.data.split import Split, collate
from pastille.devices import this_machine
from pastille.errors import InferenceError, UsageError
from pastille.files import sha256_file
from pastille.measure import counts
from pastille.measure.latency import MIN_SAMPLES, compare, time_calls, time_preprocessing
from pastille.measure.layers import layer_costs
from pastille.measure.memory import footprint
from pastille.progress import SILENT, Progress
from pastille.runtime import ONNXRUNTIME, Session, kernels, load
from pastille.runtime.packed import packed_size
from pastille.stats.metrics import score
from pastille.values import Cases, Conditions, KernelProof, Latency, ModelPrecision, Profile


def profile_file(
    path: Path,
    *,
    name: str,
    file: str,
    precision: ModelPrecision,
    split: Split,
    outputs: np.ndarray,
    cases: Cases,
    parameters: int | None = None,
    confidence: float = 0.95,
    threads: int = 1,
    baseline: Session | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    with_footprint: bool = True,
    budget_s: float = 3.0,
    preprocessing: Latency | None = None,
    progress: Progress = SILENT,
) -> Profile:
    """Measure one exported file in the runtime that will run it.

    Args:
        path: The ONNX file.
        name: ``"baseline"``, or the stage's name.
        file: Its place relative to the run directory.
        precision: Of its weights and activations.
        split: Its first inputs are what is timed.
        outputs: What the file answered to the whole split, ``(N, ...)``; see `pastille.measure.evaluate`.
        cases: What the answers are held against.
        parameters: Of the model; counted in the file if None.
        confidence: Of all intervals.
        threads: That the runtime may use; ``baseline`` must have been loaded with as many.
        baseline: What the speed-up is over, timed in alternation at the first batch size.
        batch_sizes: To time; a file with a fixed batch is timed with that one alone.
        with_footprint: Whether to start fresh processes (about two seconds).
        budget_s: Seconds to spend on the first batch size; the others, the comparison and the
            preprocessing get a part of it each.
        preprocessing: What reading and preparing one input takes, where that was timed already: it
            does not depend on the file.
        progress: Shown one step per batch size.

    Raises:
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: The runtime failed on it.
        UsageError: Its MACs cannot be counted, or the `onnx` package is not installed.
        ValueError: ``outputs`` do not fit ``cases``.
    """
    session = load(path, threads=threads)
    here = this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    sizes = (session.fixed_batch,) if session.fixed_batch else tuple(batch_sizes)
    first = _batch(split, sizes[0])
    part_s = budget_s / 3
    return Profile(
        name=name,
        file=file,
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        precision=precision,
        parameters=counts.parameters(path) if parameters is None else parameters,
        macs=counts.macs(path),
        metrics=score(outputs, cases, confidence=confidence),
        latency=_latencies(session, split, sizes, here, budget_s, progress),
        speedup=compare(baseline, session, first, conditions=here, confidence=confidence, budget_s=part_s)
        if baseline
        else None,
        footprint=footprint(path, first, threads=threads) if with_footprint else None,
        preprocessing=preprocessing or time_preprocessing(split, conditions=here, budget_s=part_s),
        kernels=kernels_if_possible(path, first, threads=threads),
        layers=layer_costs(path),
        stored_bytes=packed_size(path),
    )


def kernels_if_possible(path: Path, batch: Mapping[str, np.ndarray], *, threads: int) -> KernelProof | None:
    """What a file runs in; None for one too large to be looked into, which can still be judged by the rest.

    Args:
        path: The ONNX file.
        batch: ``{name: (N, ...)}``, what it is asked.
        threads: That the runtime may use.

    Raises:
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.
    """
    try:
        return kernels(path, batch, threads=threads)
    except (InferenceError, UsageError):
        return None


def _latencies(
    session: Session,
    split: Split,
    sizes: Sequence[int],
    conditions: Conditions,
    budget_s: float,
    progress: Progress,
) -> tuple[Latency, ...]:
    found = []
    for size in progress.track(sizes, what="timing", total=len(sizes)):
        is_first = size == sizes[0]
        latency = time_calls(
            session,
            _batch(split, size),
            conditions=conditions,
            min_samples=MIN_SAMPLES if is_first else MIN_SAMPLES // 5,
            budget_s=budget_s if is_first else budget_s / 3,
        )
        found.append(latency)
    return tuple(found)


def _batch(split: Split, size: int) -> dict[str, np.ndarray]:
    """The first inputs of the split, from the start again where it holds fewer."""
    return collate([split.inputs[i % split.n] for i in range(size)])


def bottleneck(profile: Profile) -> str:
    """Say in one sentence whether preparing an input or the model takes the time.

    Args:
        profile: Of any file; the smallest batch that was timed is used.
    """
    model = min(profile.latency, key=lambda latency: latency.batch)
    model_ms = _typical_ms(model) / model.batch
    if profile.preprocessing is None:
        return f"The model takes {model_ms:.3g} ms per input; preparing one was not timed."
    prepare_ms = _typical_ms(profile.preprocessing)
    share = max(model_ms, prepare_ms) / (model_ms + prepare_ms)
    what = "Preparing an input" if prepare_ms > model_ms else "The model"
    return (
        f"{what} takes most of the time, {share:.0%}: "
        f"{prepare_ms:.3g} ms to prepare one input, {model_ms:.3g} ms for the model."
    )


def _typical_ms(latency: Latency) -> float:
    median = latency.ms(0.5)
    return latency.mean_ms if median is None else median
