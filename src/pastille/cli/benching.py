"""``pastille bench``: a file, or every variant of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pastille.bench import BenchResult, filled, synthetic_batch
from pastille.bench import bench as bench_file
from pastille.cli.console import out
from pastille.cli.kernels import kernel_summary, kernel_table
from pastille.cli.shown import (
    bytes_text,
    conditions_text,
    latency_table,
    milliseconds_text,
    speed_interval_text,
    speed_text,
)
from pastille.elsewhere import CaseFile, Elsewhere, read_cases, replay_bundle, replay_on
from pastille.errors import UsageError
from pastille.runtime import load
from pastille.runtime.emulated import ISAS, Isa

if TYPE_CHECKING:
    from pastille.bundle import Variant
    from pastille.progress import Progress


def bench_files(
    file: Path,
    *,
    against: Path | None,
    batch_sizes: tuple[int, ...],
    threads: int,
    shapes: Sequence[str],
    progress: Progress,
) -> Mapping[str, BenchResult]:
    """Time a file, or each variant of a bundle against its fp32.

    Raises:
        UsageError: There is no such file, or ``--shape`` is malformed.
        IntegrityError: The bundle is not what it was when it was written.
    """
    options = {
        "batch_sizes": batch_sizes,
        "threads": threads,
        "shapes": dict(parse_shape(text) for text in shapes),
        "progress": progress,
    }
    if not file.is_dir():
        _must_exist(file)
        if against is not None:
            _must_exist(against)
        return {file.name: bench_file(file, against=against, **options)}  # type: ignore[arg-type]
    from pastille.bundle import onnx_file, verify

    manifest = verify(file, replay=False).manifest
    found: dict[str, BenchResult] = {}
    with onnx_file(file, manifest.variant("fp32")) as fp32:
        for v in manifest.variants:
            other = against or (fp32 if v.name != "fp32" else None)
            with onnx_file(file, v) as path:
                result = bench_file(path, against=other, **options)  # type: ignore[arg-type]
            if other is fp32:
                result = replace(result, against=str(file / manifest.variant("fp32").file))
            found[v.name] = _as_stored(result, file, v)
    return found


def _as_stored(result: BenchResult, bundle: Path, variant: Variant) -> BenchResult:
    """Place and size are those of the bundle's own file, not of what was unpacked to be timed."""
    if variant.unpacked is None:
        return result
    note = f"stored packed; {bytes_text(variant.unpacked.size_bytes)} when it is loaded"
    return replace(
        result,
        file=str(bundle / variant.file),
        size_bytes=variant.size_bytes,
        notes=(*result.notes, note),
    )


def replay_files(
    file: Path,
    isa: str,
    *,
    cases: Path | None,
    shapes: Sequence[str],
    threads: int,
    timeout_s: float,
    progress: Progress,
) -> Mapping[str, Elsewhere]:
    """Replay cases on another kind of CPU: a bundle's golden ones, those given, or made-up ones.

    Raises:
        UsageError: The isa is unknown, what emulates it is missing, or an option does not fit.
        IntegrityError: A file is not an ONNX model, or the bundle is not what it was.
        InferenceError: The emulated process failed or took longer than ``timeout_s``.
    """
    chosen = _isa(isa)
    if file.is_dir():
        if cases is not None or shapes:
            raise UsageError("--cases and --shape are for ONNX files; a bundle has its golden cases")
        return replay_bundle(chosen, file, threads=threads, timeout_s=timeout_s, progress=progress)
    _must_exist(file)
    inputs = load(file).inputs
    if cases is None:
        specs = filled(inputs, dict(parse_shape(text) for text in shapes))
        asked = CaseFile(inputs=synthetic_batch(specs, _MADE_UP))
    else:
        asked = read_cases(cases, inputs)
    return {file.name: replay_on(chosen, file, asked, threads=threads, timeout_s=timeout_s)}


_MADE_UP = 100  # cases, where none are given


def _isa(text: str) -> Isa:
    for isa in ISAS:
        if isa == text:
            return isa
    raise UsageError(f"--isa must be one of {', '.join(ISAS)}, got {text!r}")


def show_elsewhere(name: str, found: Elsewhere) -> None:
    """How many decisions are equal, and how far the answers lie apart."""
    path = "saturates 16-bit sums" if found.saturates else "adds int8 products exactly"
    equal = "as on this machine" if found.against == "native" else "as recorded"
    out.print(f"[bold]{name}[/] on {found.isa} (ONNX Runtime {found.runtime_version}, {path})")
    out.print(
        f"  {found.equal_decisions} of {found.cases} decisions {equal}, {found.identical} answers identical, "
        f"largest difference of {found.output!r} {found.max_abs_difference:.3g}; {found.seconds:.1f} s there",
        markup=False,
    )
    for note in found.notes:
        out.print(f"  {note}", markup=False)


def _must_exist(file: Path) -> None:
    if not file.is_file():
        raise UsageError(f"there is no file {file}; bench takes an ONNX file or a bundle's directory")


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``NAME=D1,D2``.

    Raises:
        UsageError: It is written otherwise.

    Example:
        >>> parse_shape("input=3,224,224")
        ('input', (3, 224, 224))
    """
    name, _, sizes = text.partition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise UsageError(f"--shape must be NAME=D1,D2 without the batch axis, got {text!r}")
    return name, shape


def show_bench(name: str, result: BenchResult) -> None:
    """The result as a table, then memory, what runs in int8, and the comparison."""
    out.print(f"[bold]{name}[/]: {bytes_text(result.size_bytes)}")
    out.print(latency_table(result.latency))
    foot = result.footprint
    out.print(
        f"  peak memory {bytes_text(foot.peak_bytes)} (the runtime alone {bytes_text(foot.runtime_bytes)}), "
        f"cold start {milliseconds_text(foot.cold_start_ms)}"
    )
    if result.kernels is not None:
        out.print(f"  {kernel_summary(result.kernels)}", markup=False)
        out.print(kernel_table(result.kernels))
    if result.saturates:
        out.print("  this machine saturates 16-bit sums: 8-bit weights may answer otherwise than elsewhere")
    for speedup in result.speedups:
        out.print(
            f"  {speed_text(speedup)} at batch {speedup.batch} "
            f"({speed_interval_text(speedup.interval)}, {speedup.pairs} pairs)"
        )
    for note in result.notes:
        out.print(f"  {note}", markup=False)
    out.print(f"  {conditions_text(result.latency[0].conditions)}", markup=False)
