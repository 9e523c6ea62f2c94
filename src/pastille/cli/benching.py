"""``pastille bench``: a file, or every variant of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pastille.bench import BenchResult
from pastille.bench import bench as bench_file
from pastille.cli.console import out
from pastille.cli.shown import (
    bytes_text,
    conditions_text,
    latency_table,
    milliseconds_text,
    speed_interval_text,
    speed_text,
)
from pastille.errors import UsageError

if TYPE_CHECKING:
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
    from pastille.bundle import verify

    manifest = verify(file, replay=False).manifest
    fp32 = file / manifest.variant("fp32").file
    return {
        v.name: bench_file(
            file / v.file,
            against=against or (fp32 if v.name != "fp32" else None),
            **options,  # type: ignore[arg-type]
        )
        for v in manifest.variants
    }


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
    """The result as a table, then memory, operators and the comparison."""
    out.print(f"[bold]{name}[/]: {bytes_text(result.size_bytes)}")
    out.print(latency_table(result.latency))
    foot = result.footprint
    out.print(
        f"  peak memory {bytes_text(foot.peak_bytes)} (the runtime alone {bytes_text(foot.runtime_bytes)}), "
        f"cold start {milliseconds_text(foot.cold_start_ms)}"
    )
    operators = result.operators
    kinds = {} if operators is None else {"int8": operators.int8, "float": operators.floating}
    for kind, counts in kinds.items():
        listed = ", ".join(f"{count} {op}" for op, count in counts.items()) or "none"
        out.print(f"  in {kind}: {listed}", markup=False)
    for speedup in result.speedups:
        out.print(
            f"  {speed_text(speedup.ratio)} at batch {speedup.batch} "
            f"({speed_interval_text(speedup.interval)}, {speedup.pairs} pairs)"
        )
    for note in result.notes:
        out.print(f"  {note}", markup=False)
    out.print(f"  {conditions_text(result.latency[0].conditions)}", markup=False)
