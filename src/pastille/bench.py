"""Benchmark any ONNX file on this machine, with inputs made up from what it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from pastille.devices import this_machine
from pastille.errors import UsageError
from pastille.files import sha256_file
from pastille.measure.latency import compare, time_calls
from pastille.measure.memory import footprint
from pastille.progress import SILENT, Progress
from pastille.runtime import (
    ONNXRUNTIME,
    UNKNOWN_DIM,
    Session,
    kernels,
    load,
)
from pastille.runtime.self_check import saturates_here
from pastille.values import Footprint, KernelProof, Latency, Speedup, TensorSpec

_NO_SHAPES: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What `bench` found of one file."""

    file: str
    sha256: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]  # as they were made up, without the batch axis
    latency: tuple[Latency, ...]  # one per batch size
    footprint: Footprint
    kernels: KernelProof | None  # what runs in int8 and what that takes; a note says why it is not known
    saturates: bool  # whether this machine adds int8 products in saturating 16 bits
    against: str | None  # the file that the speed-ups are over
    speedups: tuple[Speedup, ...]  # one per batch size; empty without another file
    notes: tuple[str, ...]  # what was left out, and why


def bench(
    path: Path,
    *,
    against: Path | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES,
    threads: int = 1,
    budget_s: float = 3.0,
    confidence: float = 0.95,
    progress: Progress = SILENT,
) -> BenchResult:
    """Time a file, alone or in alternation with another, and look at how it is executed.

    Inputs are made up: floats are normal with mean 0 and deviation 1, from a fixed seed; integers are 0.

    Args:
        path: The ONNX file.
        against: Another ONNX file with the same inputs, e.g. what ``path`` was made from.
        batch_sizes: To time; a file with a fixed batch is timed with that one alone, and a note says so.
        shapes: Input name -> shape without the batch axis, for sizes that the file leaves open.
        threads: That the runtime may use.
        budget_s: Seconds to spend on timing each batch size, and again on comparing it.
        confidence: Of the intervals of the speed-ups.
        progress: Shown one step per batch size.

    Raises:
        IntegrityError: A file is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: ONNX Runtime cannot load or run a file.
        UsageError: A size is open and not in ``shapes``, a shape does not fit, an input is not numeric,
            or the two files do not take the same inputs.
    """
    session = load(path, threads=threads)
    other = load(against, threads=threads) if against else None
    specs = filled(session.inputs, shapes)
    sizes, notes = _batch_sizes([s for s in (session, other) if s], batch_sizes)
    if other:
        _require_same_inputs(specs, filled(other.inputs, shapes))
    here = this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    latencies, speedups = [], []
    for size in progress.track(sizes, what="timing", total=len(sizes)):
        batch = synthetic_batch(specs, size)
        latencies.append(time_calls(session, batch, conditions=here, budget_s=budget_s))
        if other:
            speedups.append(
                compare(other, session, batch, conditions=here, confidence=confidence, budget_s=budget_s)
            )
    proof, missing = _kernels(path, synthetic_batch(specs, sizes[0]), threads)
    return BenchResult(
        file=str(path),
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        inputs=specs,
        latency=tuple(latencies),
        footprint=footprint(path, synthetic_batch(specs, sizes[0]), threads=threads),
        kernels=proof,
        saturates=saturates_here(),
        against=str(against) if against else None,
        speedups=tuple(speedups),
        notes=(*notes, *missing),
    )


def synthetic_batch(specs: Sequence[TensorSpec], size: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Make up a batch: floats are standard normal, integers and booleans are 0.

    Args:
        specs: One per input; every size must be known.
        size: Inputs in the batch.
        seed: Of the random numbers.

    Raises:
        UsageError: An input is neither a number nor a boolean.

    Example:
        >>> spec = TensorSpec(name="input", shape=(3, 8, 8), dtype="float32")
        >>> synthetic_batch([spec], 2)["input"].shape
        (2, 3, 8, 8)
    """
    generator = np.random.default_rng(seed)
    return {spec.name: _made_up(spec, size, generator) for spec in specs}


def _made_up(spec: TensorSpec, size: int, generator: np.random.Generator) -> np.ndarray:
    shape = (size, *spec.shape)
    if spec.dtype in {"float16", "float32", "float64"}:
        return generator.standard_normal(shape).astype(spec.dtype)
    if spec.dtype == "bool" or spec.dtype.startswith(("int", "uint")):
        return np.zeros(shape, spec.dtype)
    raise UsageError(f"input {spec.name!r} is of type {spec.dtype}; only numbers can be made up")


def filled(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """The inputs with every size known.

    Args:
        inputs: As a session gives them.
        shapes: Input name -> shape without the batch axis, for sizes that are open.

    Raises:
        UsageError: A size stays open, a shape does not fit, or a name is no input's.
    """
    unknown = sorted(set(shapes) - {spec.name for spec in inputs})
    if unknown:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"--shape names {unknown[0]!r}, but the inputs are: {names}")
    return tuple(replace(spec, shape=_filled_shape(spec, shapes.get(spec.name))) for spec in inputs)


def _filled_shape(spec: TensorSpec, given: tuple[int, ...] | None) -> tuple[int, ...]:
    open_shape = ",".join("?" if size == UNKNOWN_DIM else str(size) for size in spec.shape)
    if given is None:
        if UNKNOWN_DIM in spec.shape:
            raise UsageError(
                f"input {spec.name!r} has open sizes ({open_shape}); give them: "
                f"--shape {spec.name}={open_shape.replace('?', '64')}"
            )
        return spec.shape
    fits = len(given) == len(spec.shape) and all(
        want in (UNKNOWN_DIM, size) for want, size in zip(spec.shape, given, strict=True)
    )
    if not fits or min(given, default=1) < 1:
        raise UsageError(f"--shape of input {spec.name!r} must be like ({open_shape}), got {given}")
    return tuple(given)


def _batch_sizes(
    sessions: Sequence[Session], asked: Sequence[int]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which batch sizes can be timed, and what to say about it."""
    wrong = [size for size in asked if size < 1]
    if wrong or not asked:
        raise UsageError(f"batch sizes must be at least 1, got {list(asked)}")
    fixed = {s.fixed_batch for s in sessions if s.fixed_batch}
    if len(fixed) > 1:
        raise UsageError(f"the two files have different fixed batch sizes, {sorted(fixed)}")
    if not fixed or fixed == set(asked):
        return tuple(asked), ()
    (size,) = fixed
    left_out = ", ".join(str(n) for n in asked if n != size)
    return (size,), (f"batch size fixed at {size} in the file; not timed: {left_out}",)


def _require_same_inputs(ours: Sequence[TensorSpec], others: Sequence[TensorSpec]) -> None:
    if sorted(ours, key=str) != sorted(others, key=str):
        raise UsageError(
            f"the two files must take the same inputs, got {_described(ours)} and {_described(others)}"
        )


def _described(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs)


def _kernels(
    path: Path, batch: Mapping[str, np.ndarray], threads: int
) -> tuple[KernelProof | None, tuple[str, ...]]:
    """What runs in int8, or why that is not known."""
    try:
        return kernels(path, batch, threads=threads), ()
    except UsageError as error:
        return None, (str(error),)
