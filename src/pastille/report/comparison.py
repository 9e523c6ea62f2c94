"""Before and after: one row for each exported model, and the two plots that set quality against cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pastille.report.text as text
from pastille.record import FinalJudged, StageFinished
from pastille.report.account import Account, at_batch
from pastille.report.banner import pace, paired_medians
from pastille.report.checks import Tone, check_row
from pastille.report.options import options_line
from pastille.values import Metrics, Profile, Speedup, Verdict

PointKind = Literal["baseline", "kept", "dropped", "final"]
Unit = Literal["bytes", "ms"]

_MAX_METRICS = 3
_MAX_PLOTTED = 2
_MAX_ROWS = 18


@dataclass(frozen=True, kw_only=True)
class MetricCell:
    """One metric of one model, and its drop from the baseline."""

    value: str
    span: str
    drop: str
    drop_span: str


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One exported model."""

    name: str
    options: str
    precision: str
    size: str  # as a bundle stores it
    loaded: str  # where that is more
    smaller: str
    times_smaller: str  # the ratio alone; below 1 is larger
    parameters: str
    macs: str
    p50: str
    p95: str
    speedup: str
    speedup_span: str
    speedup_ms: str  # medians of the calls that the ratio is from; empty where they were not kept
    pace: str
    pace_tone: Tone
    metrics: tuple[MetricCell, ...]  # one per metric of the table
    status: str  # of its verdict; empty for the baseline
    tone: Tone
    fate: str  # "reference", "kept", "dropped", "judged"
    why: tuple[str, ...]
    seconds: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table of stages."""

    metrics: tuple[str, ...]
    rows: tuple[StageRow, ...]  # on validation
    final: tuple[StageRow, ...]  # baseline and candidate on the test split; empty before that
    more_rows: int
    not_faster: tuple[str, ...]  # one sentence for each compressed model that is slower


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in a plot of quality against cost."""

    label: str
    kind: PointKind
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """Quality against one cost."""

    title: str
    x_title: str
    x_unit: Unit
    y_title: str
    y_share: bool  # y is in percent
    higher_is_better: bool
    points: tuple[Point, ...]
    floor: float | None  # the lowest y that the limit permits
    floor_words: str


def stage_label(stage: StageFinished) -> str:
    """A stage by its place in the plan and its name."""
    return f"{stage.index} {text.clean(stage.name, 40)}"


def shown_metrics(run: Account) -> tuple[str, ...]:
    """The metric that the page leads with, then the others that a limit is set on."""
    verdicts = [s.verdict for s in run.stages] + ([run.final.verdict] if run.final else [])
    known = {name for metrics in run.metrics if metrics for name in metrics.overall}
    limited = [c.metric for v in reversed(verdicts) for c in v.checks if not c.where and c.metric in known]
    return tuple(name for name in dict.fromkeys([run.metric, *limited]) if name)[:_MAX_METRICS]


def comparison(run: Account) -> Comparison:
    """The table of every exported model."""
    metrics = shown_metrics(run)
    stages = run.stages[:_MAX_ROWS]
    baseline = [_baseline_row(run.before, run.before.metrics, metrics)] if run.before else []
    return Comparison(
        metrics=tuple(text.metric_name(name) for name in metrics),
        rows=tuple(baseline + [_stage_row(stage, run.before, metrics) for stage in stages]),
        final=tuple(_final_rows(run, metrics)),
        more_rows=len(run.stages) - len(stages),
        not_faster=tuple(_slower(stages)),
    )


def _slower(stages: Iterable[StageFinished]) -> Iterator[str]:
    for stage in stages:
        speedup = stage.profile.speedup
        if speedup and pace(speedup)[0] == "slower":
            yield (
                f"{stage_label(stage)} is slower than the baseline: {text.times(speedup.ratio)} the speed "
                f"({text.confidence(speedup.interval.confidence)} CI {text.ratio_span(speedup.interval)})."
            )


def _baseline_row(profile: Profile, metrics: Metrics, names: tuple[str, ...]) -> StageRow:
    return _row(profile, None, names, metrics=metrics, verdict=None, name="baseline", fate="reference")


def _stage_row(stage: StageFinished, before: Profile | None, names: tuple[str, ...]) -> StageRow:
    return _row(
        stage.profile,
        before,
        names,
        metrics=stage.profile.metrics,
        verdict=stage.verdict,
        name=stage_label(stage),
        fate="kept" if stage.kept else "dropped",
        options=options_line(stage.options),
        why=(text.sentence(stage.consequence, 400), text.sentence(stage.verdict.reason, 400)),
        seconds=text.duration(stage.seconds),
    )


def _final_rows(run: Account, names: tuple[str, ...]) -> Iterator[StageRow]:
    if run.final is None:
        return
    if run.before:
        yield _baseline_row(run.before, run.final.baseline_metrics, names)
    profile = run.after or run.before
    if profile:
        yield _judged_row(profile, run, run.final, names)


def _judged_row(profile: Profile, run: Account, final: FinalJudged, names: tuple[str, ...]) -> StageRow:
    return _row(
        profile,
        run.before,
        names,
        metrics=final.candidate_metrics,
        verdict=final.verdict,
        name=stage_label(run.candidate) if run.candidate else text.clean(final.candidate, 40),
        fate="judged",
        speedup=run.speedup,
    )


def _row(
    profile: Profile,
    before: Profile | None,
    names: tuple[str, ...],
    *,
    metrics: Metrics,
    verdict: Verdict | None,
    name: str,
    fate: str,
    options: str = "",
    why: tuple[str, ...] = (),
    seconds: str = "",
    speedup: Speedup | None = None,
) -> StageRow:
    latency = at_batch(profile)
    measured = speedup or profile.speedup
    word, tone = pace(measured) if measured else ("", "plain")
    return StageRow(
        name=name,
        options=options,
        precision=profile.precision,
        size=text.size(profile.bytes_on_disk),
        loaded=_loaded(profile),
        smaller=_smaller(profile, before),
        times_smaller=_times_smaller(profile, before),
        parameters=text.amount(profile.parameters),
        macs=text.amount(profile.macs),
        p50=text.significant(latency.ms(0.5)) if latency else text.ABSENT,
        p95=text.significant(latency.ms(0.95)) if latency else text.ABSENT,
        speedup=text.times(measured.ratio) if measured else text.ABSENT,
        speedup_span=text.ratio_span(measured.interval) if measured else "",
        speedup_ms=paired_medians(measured) if measured else "",
        pace=word,
        pace_tone=tone,
        metrics=tuple(_cell(name, metrics, verdict) for name in names),
        status=verdict.status.value if verdict else "",
        tone=_tone(verdict),
        fate=fate,
        why=tuple(dict.fromkeys(w for w in why if w)),
        seconds=seconds,
    )


def _tone(verdict: Verdict | None) -> Tone:
    tones: dict[str, Tone] = {"approved": "good", "rejected": "bad", "inconclusive": "unsure"}
    return tones[verdict.status.value] if verdict else "plain"


def _smaller(profile: Profile, before: Profile | None) -> str:
    if before is None or not profile.bytes_on_disk or not before.bytes_on_disk:
        return ""
    now, was = profile.bytes_on_disk, before.bytes_on_disk
    return f"{text.times(now / was)} larger" if now > was else f"{text.times(was / now)} smaller"


def _times_smaller(profile: Profile, before: Profile | None) -> str:
    if before is None or not profile.bytes_on_disk or not before.bytes_on_disk:
        return ""
    return text.times(before.bytes_on_disk / profile.bytes_on_disk)


def _loaded(profile: Profile) -> str:
    return "" if profile.stored_bytes is None else f"{text.size(profile.size_bytes)} loaded"


def _cell(name: str, metrics: Metrics, verdict: Verdict | None) -> MetricCell:
    value, span = text.estimate(name, metrics.overall.get(name))
    checks = verdict.checks if verdict else ()
    check = next((c for c in checks if c.metric == name and c.drop is not None and not c.where), None)
    row = check_row(check) if check else None
    return MetricCell(
        value=value,
        span=span,
        drop=row.drop if row else "",
        drop_span=row.interval.partition("CI ")[2] if row else "",
    )


def tradeoffs(run: Account) -> tuple[Tradeoff, ...]:
    """Quality against file size and against latency, for every model that was measured on validation."""
    if run.before is None:
        return ()
    plots = (
        plot
        for metric in shown_metrics(run)[:_MAX_PLOTTED]
        for plot in (
            _tradeoff(run, metric, "file size", "bytes", lambda p: float(p.bytes_on_disk)),
            _tradeoff(run, metric, "latency p50 at batch 1", "ms", _p50),
        )
    )
    return tuple(plot for plot in plots if plot.points)


def _p50(profile: Profile) -> float | None:
    latency = at_batch(profile)
    return latency.ms(0.5) if latency else None


def _tradeoff(
    run: Account, name: str, cost: str, unit: Unit, x: Callable[[Profile], float | None]
) -> Tradeoff:
    spoken = text.metric_name(name)
    points = [_point(profile, label, kind, name, x(profile)) for profile, label, kind in _models(run)]
    floor, words = _floor(run, name)
    return Tradeoff(
        title=f"{spoken[:1].upper()}{spoken[1:]} against {cost}",
        x_title=cost,
        x_unit=unit,
        y_title=f"{spoken} on validation",
        y_share=text.is_share(name),
        higher_is_better=not text.lower_is_better(name),
        points=tuple(point for point in points if point is not None),
        floor=floor,
        floor_words=words,
    )


def _models(run: Account) -> Iterator[tuple[Profile, str, PointKind]]:
    if run.before:
        yield run.before, "baseline", "baseline"
    for stage in run.stages[:_MAX_ROWS]:
        judged = run.final is not None and stage is run.candidate
        yield stage.profile, stage_label(stage), "final" if judged else "kept" if stage.kept else "dropped"


def _point(profile: Profile, label: str, kind: PointKind, metric: str, x: float | None) -> Point | None:
    found = profile.metrics.overall.get(metric)
    if found is None or x is None or not x > 0 or found.value != found.value:
        return None
    factor = text.scale(metric)
    return Point(
        label=label,
        kind=kind,
        x=x,
        y=found.value * factor,
        low=found.interval.low * factor if found.interval else None,
        high=found.interval.high * factor if found.interval else None,
    )


def _floor(run: Account, metric: str) -> tuple[float | None, str]:
    """What the baseline may worsen to, on validation."""
    verdicts = [s.verdict for s in run.stages] + ([run.final.verdict] if run.final else [])
    limits = [
        c.limit
        for v in verdicts
        for c in v.checks
        if c.metric == metric and c.drop is not None and not c.where
    ]
    found = run.before.metrics.overall.get(metric) if run.before else None
    if not limits or found is None:
        return None, ""
    lower, limit = text.lower_is_better(metric), limits[-1]
    words = f"limit: baseline {'+' if lower else text.MINUS} {text.drop_limit(metric, limit)}"
    return (found.value + (limit if lower else -limit)) * text.scale(metric), words
