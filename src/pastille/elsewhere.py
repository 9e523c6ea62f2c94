"""Does a file decide the same on another kind of CPU? Cases replayed under emulation."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pastille.bundle import Golden, Manifest, Variant, onnx_file, verify
from pastille.bundle.golden import DECIDING, MASK_SHARE, equal_share, tolerance_of
from pastille.bundle.manifest import OutputScale
from pastille.bundle.verify import golden_of
from pastille.errors import RecipeError, UsageError
from pastille.files import sha256_file
from pastille.progress import SILENT, Progress
from pastille.recipe import Recipe
from pastille.references import one_line
from pastille.runtime import UNKNOWN_DIM
from pastille.runtime.emulated import Answers, Isa, answers_on, check_emulated
from pastille.stats.decisions import decisions
from pastille.stats.scale import to_logits
from pastille.values import Kind, TensorSpec

Decide = Callable[[np.ndarray], np.ndarray]  # raw outputs (N, ...) -> decisions (N, ...)


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """How a file answers on another kind of CPU, against this one or against what was recorded."""

    file: str
    sha256: str
    isa: Isa
    against: str  # "native" or "recorded"
    output: str  # that decides
    cases: int
    equal_decisions: int
    identical: int  # cases whose raw output is the same to the last bit
    max_abs_difference: float  # of the raw outputs; infinite if one is not a number
    saturates: bool  # whether that CPU adds int8 products in saturating 16 bits
    runtime_version: str  # of ONNX Runtime there
    seconds: float  # that the answers took there
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseFile:
    """Cases to replay.

    Attributes:
        inputs: Input name -> ``(N, ...)``.
        recorded: What was answered to them elsewhere, ``(N, ...)``; None if that is not known.
    """

    inputs: Mapping[str, np.ndarray]
    recorded: np.ndarray | None = None


def check_isas(recipe: Recipe) -> None:
    """Refuse a recipe that asks for CPUs which cannot be emulated here, before any work.

    Raises:
        RecipeError: QEMU or the ARM root is missing; the message says what to install.
    """
    for isa in recipe.measure.isas:
        try:
            check_emulated(isa)
        except UsageError as error:
            raise RecipeError(f"measure.isas: {error}, or leave {isa} out", key="measure.isas") from None


def replay_on(
    isa: Isa,
    path: Path,
    cases: CaseFile,
    *,
    output: str | None = None,
    decide: Decide | None = None,
    threads: int = 1,
    timeout_s: float = 1800.0,
    budget_s: float | None = None,
    root: Path | None = None,
) -> Elsewhere:
    """Ask a file cases on another kind of CPU, and hold its answers against those given here.

    Args:
        isa: The other CPU; with ``"native"`` this one is held against what was recorded.
        path: The ONNX file.
        cases: To ask.
        output: Name of the output that decides; the first if left out.
        decide: Makes decisions of raw outputs; see `largest` for what is done without.
        threads: That the runtime may use.
        timeout_s: Seconds for each of the two processes.
        budget_s: Seconds after which no further case is asked there; fewer are then compared.
        root: Of an ARM system; see `answers_on`.

    Raises:
        UsageError: QEMU or an ARM root is missing, there is no such output, or nothing was recorded that
            ``"native"`` could be held against.
        IntegrityError: The file is not an ONNX model.
        InferenceError: A process failed or took too long.
    """
    if isa == "native" and cases.recorded is None:
        raise UsageError(
            "isa native is held against recorded answers, and there are none: give a bundle, or --cases with "
            "an array output.NAME; or choose another isa"
        )
    there = answers_on(
        isa, path, cases.inputs, threads=threads, timeout_s=timeout_s, budget_s=budget_s, root=root
    )
    name = output or next(iter(there.outputs))
    if name not in there.outputs:
        raise UsageError(f"{path.name} has no output {name!r}, but {sorted(there.outputs)}")
    notes: tuple[str, ...] = ()
    if isa == "native" and cases.recorded is not None:
        expected = cases.recorded
    else:
        here = answers_on("native", path, cases.inputs, threads=threads, timeout_s=timeout_s)
        expected, notes = here.outputs[name], _other_version(here, there)
    found = there.outputs[name]
    expected = expected if budget_s is None else expected[: len(found)]
    if found.shape != expected.shape:
        raise UsageError(f"recorded answers must have the shape {found.shape}, got {expected.shape}")
    equal, identical = _equal(found, expected, decide or largest)
    return Elsewhere(
        file=str(path),
        sha256=sha256_file(path),
        isa=isa,
        against="recorded" if isa == "native" else "native",
        output=name,
        cases=len(found),
        equal_decisions=int(equal.sum()),
        identical=int(identical.sum()),
        max_abs_difference=_largest_difference(found, expected),
        saturates=there.saturates,
        runtime_version=there.runtime_version,
        seconds=there.seconds,
        notes=notes,
    )


def replay_bundle(
    isa: Isa,
    directory: Path,
    *,
    threads: int = 1,
    timeout_s: float = 1800.0,
    root: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Elsewhere]:
    """Replay the golden cases of a bundle's variants on another kind of CPU.

    Args:
        isa: See `replay_on`.
        directory: The bundle; its hashes are checked first.
        threads: That the runtime may use.
        timeout_s: Seconds for each process.
        root: Of an ARM system; see `answers_on`.
        progress: Shown one step per variant.

    Returns:
        Variant name -> what was found.

    Raises:
        IntegrityError: The bundle is not what it was when it was written.
        UsageError: As `replay_on`.
        InferenceError: As `replay_on`.
    """
    manifest = verify(directory, replay=False).manifest
    golden = golden_of(directory, manifest)
    found: dict[str, Elsewhere] = {}
    for variant in progress.track(manifest.variants, what=f"replaying on {isa}"):
        with onnx_file(directory, variant) as path:
            answered = replay_on(
                isa,
                path,
                CaseFile(inputs=golden.inputs, recorded=golden.outputs[variant.name]),
                output=manifest.output.name,
                decide=_decider_of(variant, manifest, golden),
                threads=threads,
                timeout_s=timeout_s,
                root=root,
            )
        found[variant.name] = replace(answered, file=str(directory / variant.file))
    return found


def _decider_of(variant: Variant, manifest: Manifest, golden: Golden) -> Decide:
    return decider(
        manifest.kind,
        manifest.outputs,
        threshold=manifest.threshold_of(variant),
        positive=manifest.positive_class,
        near=golden.outputs[variant.name],
        precision=variant.precision,
    )


def decider(
    kind: Kind, scale: OutputScale, *, threshold: float, positive: int, near: np.ndarray, precision: str
) -> Decide:
    """How raw answers are decided; values that decide nothing count in steps of their tolerance.

    Args:
        kind: Of the task.
        scale: What the file answers with.
        threshold: Of a binary or multilabel task.
        positive: Of a binary task: the class that ``threshold`` speaks of.
        near: What is answered to the same cases here, ``(N, ...)``.
        precision: Of the file.
    """
    if kind not in DECIDING:
        step = 2 * tolerance_of(near.astype(np.float64), precision)
        return lambda raw: np.rint((raw - near[: len(raw)]) / step)
    return lambda raw: decisions(kind, to_logits(kind, raw, scale), threshold=threshold, positive=positive)


def largest(raw: np.ndarray) -> np.ndarray:
    """Decisions of a model of which nothing else is known.

    The class is the largest number along the last axis, or along the second of images and volumes. A
    single number is positive above 0, or above 0.5 where all lie between 0 and 1.

    Args:
        raw: ``(N, ...)``.

    Example:
        >>> largest(np.array([[0.1, 0.9], [3.0, 2.0]]))
        array([1, 0])
    """
    axis = 1 if raw.ndim > 3 else raw.ndim - 1
    if axis > 0 and raw.shape[axis] > 1:
        return np.asarray(raw.argmax(axis=axis))
    return np.asarray(raw > (0.5 if raw.min() >= 0 and raw.max() <= 1 else 0.0))


def read_cases(path: Path, inputs: Sequence[TensorSpec]) -> CaseFile:
    """Read cases from an npz: arrays ``NAME`` or ``input.NAME`` per input, perhaps one ``output.*``.

    Args:
        path: The npz; nothing in it is unpickled.
        inputs: What the model takes.

    Raises:
        UsageError: It is missing or no npz, lacks an input, or holds one of another shape, type or length.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"--cases must be an npz of plain arrays, got {path}: {one_line(error)}") from None
    given = {spec.name: _array_of(spec, arrays, path) for spec in inputs}
    recorded = [array for name, array in arrays.items() if name.startswith("output.")]
    if len({len(array) for array in (*given.values(), *recorded)}) != 1:
        raise UsageError(f"the arrays of {path} must have one row per case each, but differ in length")
    return CaseFile(inputs=given, recorded=recorded[0] if len(recorded) == 1 else None)


def _array_of(spec: TensorSpec, arrays: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    array = arrays.get(f"input.{spec.name}", arrays.get(spec.name))
    if array is None:
        raise UsageError(f"{path} must hold an array {spec.name!r}, got {sorted(arrays)}")
    fits = array.ndim == len(spec.shape) + 1 and all(
        want in (UNKNOWN_DIM, size) for want, size in zip(spec.shape, array.shape[1:], strict=True)
    )
    if not fits or array.dtype != spec.dtype or not len(array):
        raise UsageError(
            f"{path} must hold {spec.name!r} as {spec.dtype} (N, *{spec.shape}), "
            f"got {array.dtype} {array.shape}"
        )
    return array


def _equal(found: np.ndarray, expected: np.ndarray, decide: Decide) -> tuple[np.ndarray, np.ndarray]:
    """Which cases are decided alike, and which are answered alike to the last bit; both ``(N,)``."""
    finite = np.isfinite(found.reshape(len(found), -1)).all(axis=1)
    filled = np.where(np.isfinite(found), found, expected)
    share = MASK_SHARE if expected.ndim > 3 else 1.0
    alike = equal_share(decide(filled), decide(expected)) >= share
    return finite & alike, equal_share(found, expected) == 1.0


def _largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return float(np.where(np.isfinite(difference), difference, np.inf).max())


def _other_version(here: Answers, there: Answers) -> tuple[str, ...]:
    if here.runtime_version == there.runtime_version:
        return ()
    return (f"ONNX Runtime {there.runtime_version} there, {here.runtime_version} here",)
