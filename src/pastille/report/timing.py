"""Speed and memory in detail, each with the conditions it was measured under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pastille.report.text as text
from pastille.report.account import Account, at_batch, machine
from pastille.report.banner import pace
from pastille.report.checks import Tone
from pastille.values import Conditions, Footprint, Latency, Profile, Speedup

_MAX_BATCHES = 12


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """One percentile, and the bound that it lies below with 99 % confidence."""

    value: str
    upper: str


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """One model at one batch size."""

    batch: str
    first: bool  # of its batch size
    model: str
    percentiles: tuple[Percentile, ...]  # p50, p90, p95, p99
    throughput: str
    samples: str
    speedup: str
    speedup_span: str
    pace: str
    pace_tone: Tone


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """A fresh process that loads one model and answers once."""

    model: str
    peak: str
    above_runtime: str
    cold_start: str
    importing: str


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """One input from file to answer."""

    model: str
    preparing_ms: float
    inference_ms: float
    words: str

    @property
    def total_ms(self) -> float:
        """Both parts together."""
        return self.preparing_ms + self.inference_ms


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Everything about speed and memory."""

    latency: tuple[LatencyRow, ...]
    memory: tuple[MemoryRow, ...]
    bottlenecks: tuple[Bottleneck, ...]
    slower_part: str
    conditions: str


def timing(run: Account) -> Timing:
    """Compare the baseline with the judged candidate, or with the newest kept stage."""
    models = [("baseline", run.before), ("compressed", run.after)]
    known = [(name, profile) for name, profile in models if profile]
    bottlenecks = tuple(_bottlenecks(known))
    where = machine(run)
    return Timing(
        latency=tuple(_latency_rows(run, known)),
        memory=tuple(_memory(name, p.footprint) for name, p in known if p.footprint),
        bottlenecks=bottlenecks,
        slower_part=_slower_part(bottlenecks),
        conditions=conditions_line(where) if where else "",
    )


def conditions_line(where: Conditions) -> str:
    """The conditions of a measurement in one sentence."""
    return text.clean(
        f"{where.device}, {where.isa}, {text.plural(where.threads, 'thread')} of "
        f"{text.plural(where.cores, 'core')}, {where.runtime} {where.runtime_version}, {where.os}",
        300,
    )


def _latency_rows(run: Account, known: list[tuple[str, Profile]]) -> Iterator[LatencyRow]:
    batches = sorted({latency.batch for _, profile in known for latency in profile.latency})
    for batch in batches[:_MAX_BATCHES]:
        first = True
        for name, profile in known:
            latency = at_batch(profile, batch)
            if latency:
                faster = _speedup(run, batch) if name != "baseline" else None
                yield _latency_row(name, latency, faster, first=first)
                first = False


def _speedup(run: Account, batch: int) -> Speedup | None:
    judged = run.final.speedups if run.final else ()
    mine = run.after.speedup if run.after else None
    found = next((s for s in judged if s.batch == batch), None)
    return found or (mine if mine and mine.batch == batch else None)


def _latency_row(name: str, latency: Latency, speedup: Speedup | None, *, first: bool) -> LatencyRow:
    word, tone = pace(speedup) if speedup else ("", "plain")
    return LatencyRow(
        batch=text.count(latency.batch),
        first=first,
        model=name,
        percentiles=tuple(_percentile(latency, q) for q in (0.5, 0.9, 0.95, 0.99)),
        throughput=text.significant(latency.throughput_per_s),
        samples=text.count(latency.samples),
        speedup=text.times(speedup.ratio) if speedup else "",
        speedup_span=text.ratio_span(speedup.interval) if speedup else "",
        pace=word,
        pace_tone=tone,
    )


def _percentile(latency: Latency, q: float) -> Percentile:
    found = next((x for x in latency.quantiles if abs(x.q - q) < 1e-9), None)
    if found is None:
        return Percentile(value=text.ABSENT, upper="")
    upper = f"≤ {text.significant(found.upper_ms)}" if found.upper_ms is not None else ""
    return Percentile(value=text.significant(found.value_ms), upper=upper)


def _memory(name: str, footprint: Footprint) -> MemoryRow:
    return MemoryRow(
        model=name,
        peak=text.size(footprint.peak_bytes),
        above_runtime=text.size(max(0, footprint.peak_bytes - footprint.runtime_bytes)),
        cold_start=text.milliseconds(footprint.cold_start_ms),
        importing=text.milliseconds(footprint.import_ms),
    )


def _bottlenecks(known: list[tuple[str, Profile]]) -> Iterator[Bottleneck]:
    for name, profile in known:
        latency = at_batch(profile)
        prepared = profile.preprocessing.ms(0.5) if profile.preprocessing else None
        answered = latency.ms(0.5) if latency else None
        if prepared is not None and answered is not None and prepared + answered > 0:
            yield Bottleneck(
                model=name,
                preparing_ms=prepared,
                inference_ms=answered,
                words=f"preprocessing {text.milliseconds(prepared)}, inference {text.milliseconds(answered)}",
            )


def _slower_part(bottlenecks: tuple[Bottleneck, ...]) -> str:
    if not bottlenecks:
        return ""
    last = bottlenecks[-1]
    if last.preparing_ms > last.inference_ms:
        share = text.fixed(100 * last.preparing_ms / last.total_ms, 0)
        return (
            f"Preprocessing is the bottleneck: {share}{text.UNIT_SPACE}% of the time from raw input to "
            "answer. A faster model would gain little; a faster decoder would."
        )
    share = text.fixed(100 * last.inference_ms / last.total_ms, 0)
    return f"Inference is the larger part: {share}{text.UNIT_SPACE}% of the time from raw input to answer."
