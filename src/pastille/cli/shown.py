"""Results as text for people and as plain data for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pastille.cli.console import out
from pastille.cli.pruned import operations_line, step_lines
from pastille.values import Check, Estimate, Interval, Latency, Profile, Speedup, Status, Verdict, to_json
from pastille.vocabulary import is_share

if TYPE_CHECKING:
    from pastille.bundle import Verification
    from pastille.runner import RunResult

_FEW = 4  # approved checks of groups that are still told one by one
COLOURS = {Status.APPROVED: "green", Status.REJECTED: "red", Status.INCONCLUSIVE: "yellow"}


_NOISE = 3.0  # times that the upper end of a ratio's interval is the lower one: then it says nothing


def as_data(value: object) -> Any:
    """A value of Pastille as dictionaries, lists, numbers and strings."""
    return json.loads(to_json(value))


def bytes_text(size: float) -> str:
    """Bytes in SI units.

    Example:
        >>> bytes_text(123_456)
        '123 kB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 999.5 * factor else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"


def size_text(before: float, after: float) -> str:
    """Two sizes and what one is of the other; growth is called so.

    Example:
        >>> size_text(400_000, 100_000)
        '400 kB → 100 kB (4.00× smaller)'
        >>> size_text(50_000, 55_000)
        '50 kB → 55 kB (1.10× LARGER)'
    """
    share = before / after
    said = f"{share:.2f}× smaller" if share >= 1 else f"{1 / share:.2f}× LARGER"
    return f"{bytes_text(before)} → {bytes_text(after)} ({said})"


def milliseconds_text(ms: float) -> str:
    """A time to three digits.

    Example:
        >>> milliseconds_text(0.04321)
        '0.0432 ms'
    """
    return f"{ms:.3g} ms"


def estimate_text(name: str, estimate: Estimate) -> str:
    """A metric with its interval."""
    return value_text(name, estimate.value) + _interval_text(name, estimate.interval)


def value_text(name: str, value: float) -> str:
    """A metric: shares in per cent, others as they are."""
    return f"{100 * value:.1f} %" if is_share(name) else f"{value:.4g}"


def _interval_text(name: str, interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = value_text(name, interval.low), value_text(name, interval.high)
    return f" ({100 * interval.confidence:g} % CI {low.removesuffix(' %')} to {high})"


def show_verdict(said: Verdict) -> None:
    """The verdict, then each check with its reason."""
    out.print(f"[bold {COLOURS[said.status]}]{said.status.upper()}[/] on {said.split}")
    shown, folded = told(said.checks)
    for check in shown:
        out.print(f"  {_mark(check)} ", end="")
        out.print(check.reason, markup=False)
    if folded:
        out.print(f"  [green]✓[/] {folded} more checks of classes, groups and stress, all approved")
    if not said.checks:
        out.print(f"  {said.reason}", markup=False)
    for note in said.notes:
        out.print("  [yellow]![/] ", end="")
        out.print(note, markup=False)


def told(checks: Sequence[Check]) -> tuple[list[Check], int]:
    """Which checks are told one by one, what failed first; and how many approved ones are only counted."""
    order = (Status.REJECTED, Status.INCONCLUSIVE, Status.APPROVED)
    telling = [check for check in checks if check.status is not Status.APPROVED or not check.where]
    folded = len(checks) - len(telling)
    if folded <= _FEW:
        telling, folded = list(checks), 0
    return sorted(telling, key=lambda check: order.index(check.status)), folded


def _mark(check: Check) -> str:
    sign = {Status.APPROVED: "✓", Status.REJECTED: "✗", Status.INCONCLUSIVE: "?"}[check.status]
    return f"[{COLOURS[check.status]}]{sign}[/]"


def show_profile(profile: Profile) -> None:
    """What was measured of one file."""
    out.print(
        f"[bold]{profile.name}[/]: {_size(profile)}, {profile.parameters:,} parameters, "
        f"{profile.macs:,} MACs, {profile.precision}, {profile.metrics.n} {profile.metrics.split} cases"
    )
    for name, estimate in profile.metrics.overall.items():
        out.print(f"  {name:<18} {estimate_text(name, estimate)}", markup=False)
    out.print(latency_table(profile.latency))
    conditions = profile.latency[0].conditions
    if profile.footprint is not None:
        foot = profile.footprint
        out.print(
            f"  peak memory {bytes_text(foot.peak_bytes)} "
            f"(the runtime alone {bytes_text(foot.runtime_bytes)}), "
            f"cold start {milliseconds_text(foot.cold_start_ms)}"
        )
    if profile.preprocessing is not None:
        from pastille.measure.profile import bottleneck

        out.print(f"  {bottleneck(profile)}", markup=False)
    out.print(f"  {conditions_text(conditions)}", markup=False)


def _size(profile: Profile) -> str:
    """What it takes on disk, and unpacked where that is more."""
    stored = bytes_text(profile.bytes_on_disk)
    packed = profile.stored_bytes is not None
    return f"{stored} as a bundle stores it, {bytes_text(profile.size_bytes)} loaded" if packed else stored


def conditions_text(conditions: Any) -> str:
    """What a figure depends on, in one line."""
    return (
        f"on {conditions.device} ({conditions.isa}, {conditions.cores} cores, "
        f"{conditions.threads} used), "
        f"{conditions.runtime} {conditions.runtime_version}, {conditions.os}"
    )


def latency_table(latencies: tuple[Latency, ...]) -> Table:
    """Percentiles and throughput per batch size."""
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for head in ("batch", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "per second", "samples"):
        table.add_column(head, justify="right")
    for latency in latencies:
        cells = [latency.ms(q) for q in (0.5, 0.9, 0.95, 0.99)]
        shown = ["–" if ms is None else f"{ms:.3g}" for ms in cells]
        table.add_row(str(latency.batch), *shown, f"{latency.throughput_per_s:,.0f}", str(latency.samples))
    return table


def show_result(result: RunResult) -> None:
    """What a run came to: the verdict, what was gained, and where everything lies."""
    for line in gains(result):
        out.print(line, markup=False)
    show_verdict(result.verdict)
    for note in stage_notes(result):
        out.print(f"  · {note}", markup=False)
    for line in step_lines(result.record):
        out.print(f"  · {line}", markup=False)
    final = _final(result)
    out.print(f"the bundle serves {final.selected}: {final.selection_reason}", markup=False)
    out.print(f"bundle  {result.bundle}", markup=False)
    out.print(f"report  {result.report}", markup=False)
    out.print(f"record  {result.directory / 'run.json'}", markup=False)


def stage_notes(result: RunResult) -> list[str]:
    """What stages had to say beside their figures: whom ranges clip, a training that was stopped."""
    from pastille.record import StageFinished

    stages = result.record.all(StageFinished)
    return [f"{stage.name}: {note}" for stage in stages for note in stage.details.notes]


def gains(result: RunResult) -> list[str]:
    """Before and after, one line each for size, speed and the headline metric."""
    before, after = profiles(result)
    if before.sha256 == after.sha256:
        return ["nothing was compressed: the file is that of the model as it was brought"]
    final = _final(result)
    lines = [f"size        {size_text(before.bytes_on_disk, after.bytes_on_disk)}"]
    lines += operations_line(before, after, next((s for s in final.speedups if s.batch == 1), None))
    lines += [
        f"latency     {_side_by_side(s)} at batch {s.batch} "
        f"({speed_text(s)}, {speed_interval_text(s.interval)})"
        for s in final.speedups
    ]
    old, new = final.baseline_metrics.overall, final.candidate_metrics.overall
    lines += [
        f"{name:<11} {estimate_text(name, old[name])} → {estimate_text(name, new[name])}"
        for name in ("accuracy", "sensitivity", "specificity", "auroc", "r2")
        if name in old
    ]
    return lines


def _side_by_side(speedup: Speedup) -> str:
    if speedup.baseline_ms is None or speedup.candidate_ms is None:
        return "–"
    return f"{milliseconds_text(speedup.baseline_ms)} → {milliseconds_text(speedup.candidate_ms)}"


def speed_text(speedup: Speedup) -> str:
    """A slow-down is called one, and a difference that the interval does not show is not.

    Example:
        >>> from pastille.devices import this_machine
        >>> here = this_machine(threads=1, runtime="onnxruntime", runtime_version="1")
        >>> seen = [(2.0, 1.9, 2.1), (0.5, 0.4, 0.6), (0.98, 0.9, 1.1)]
        >>> for ratio, low, high in seen:
        ...     interval = Interval(low=low, high=high, confidence=0.95)
        ...     print(speed_text(Speedup(ratio=ratio, interval=interval, pairs=9, batch=1, conditions=here)))
        2.00× faster
        0.50× the speed: SLOWER
        0.98× the speed: no clear difference
    """
    ratio, interval = speedup.ratio, speedup.interval
    if interval.high > _NOISE * interval.low:
        return f"{ratio:.2f}× the speed: too noisy to say"
    if speedup.faster or speedup.slower:
        return f"{ratio:.2f}× faster" if speedup.faster else f"{ratio:.2f}× the speed: SLOWER"
    return f"{ratio:.2f}× the speed: no clear difference"


def speed_interval_text(interval: Interval) -> str:
    """The interval of a ratio of speeds, with as many digits as tell its ends apart.

    Example:
        >>> speed_interval_text(Interval(low=1.7701, high=1.7742, confidence=0.95))
        '95 % CI 1.770–1.774×'
    """
    digits = next((d for d in (2, 3) if f"{interval.low:.{d}f}" != f"{interval.high:.{d}f}"), 4)
    return f"{100 * interval.confidence:g} % CI {interval.low:.{digits}f}–{interval.high:.{digits}f}×"


def profiles(result: RunResult) -> tuple[Profile, Profile]:
    """The baseline's profile, and that of the candidate that was judged on test."""
    from pastille.record import BaselineProfiled, StageFinished

    baseline = result.record.last(BaselineProfiled)
    assert baseline is not None
    judged = _final(result).candidate
    stages = [e.profile for e in result.record.all(StageFinished) if e.kept and e.name == judged]
    return baseline.profile, stages[-1] if stages else baseline.profile


def _final(result: RunResult) -> Any:
    from pastille.record import FinalJudged

    final = result.record.last(FinalJudged)
    assert final is not None
    return final


def result_json(result: RunResult) -> dict[str, Any]:
    """A run's result for a program."""
    before, after = profiles(result)
    final = _final(result)
    return {
        "status": str(result.verdict.status),
        "verdict": as_data(result.verdict),
        "compressed": before.sha256 != after.sha256,
        "notes": stage_notes(result),
        "selected": final.selected,
        "selection_reason": final.selection_reason,
        "baseline": as_data(before),
        "candidate": as_data(after),
        "speedups": [as_data(s) for s in final.speedups],
        "test": {
            "baseline": as_data(final.baseline_metrics),
            "candidate": as_data(final.candidate_metrics),
        },
        "directory": str(result.directory),
        "bundle": str(result.bundle),
        "report": str(result.report),
    }


def show_verification(found: Verification) -> None:
    """What was checked of a bundle."""
    for passed in found.passed:
        out.print(f"[green]✓[/] {passed.what}: ", end="")
        out.print(passed.detail, markup=False)
    manifest = found.manifest
    for variant in manifest.variants:
        cpus = "; ".join(seen.words for seen in variant.validated)
        out.print(f"– {variant.name} on {cpus}", markup=False)
    out.print(
        f"{manifest.name}: {manifest.verdict.status}, serves {manifest.selected}, content {manifest.content}",
        markup=False,
    )
