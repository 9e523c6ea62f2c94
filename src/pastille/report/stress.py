"""Both models under perturbed inputs: how much faster the candidate degrades than the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pastille.report.text as text
from pastille.report.account import Account
from pastille.report.checks import TONES, Tone
from pastille.report.evidence import Reading
from pastille.values import Check, Estimate, StressCurve, StressPoint

_MAX_CURVES = 9
_MAX_ROWS = 20
_MAX_POINTS = 12


@dataclass(frozen=True, kw_only=True)
class StressMark:
    """Both models at one severity, in the metric's printed unit."""

    severity: int
    baseline: Reading
    candidate: Reading
    expected: float  # where the candidate would be, had it lost as much as the baseline


@dataclass(frozen=True, kw_only=True)
class StressPlot:
    """One metric under one perturbation."""

    title: str
    metric: str
    unit: str
    setting: str
    low: float  # of the axis
    high: float
    marks: tuple[StressMark, ...]


@dataclass(frozen=True, kw_only=True)
class StressRow:
    """The excess at every severity."""

    perturbation: str
    metric: str
    cells: tuple[tuple[str, str], ...]  # (excess, interval), one per severity of the table
    limit: str
    status: str  # empty where no limit holds
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Stressed:
    """Curves and table."""

    plots: tuple[StressPlot, ...]
    more_plots: int
    severities: tuple[str, ...]
    rows: tuple[StressRow, ...]
    more_rows: int
    confidence: str


def stressed(run: Account) -> Stressed:
    """Arrange the stress curves of the verdict."""
    curves = [curve for curve in run.evidence.stress if curve.points]
    checks = {
        (c.where["perturbation"], c.metric): c
        for c in (run.verdict.checks if run.verdict else ())
        if "perturbation" in c.where
    }
    severities = sorted({p.severity for curve in curves for p in curve.points if p.severity})[:_MAX_POINTS]
    intervals = [p.interval for curve in curves for p in curve.points if p.interval]
    return Stressed(
        plots=tuple(_plot(curve) for curve in curves[:_MAX_CURVES]),
        more_plots=max(0, len(curves) - _MAX_CURVES),
        severities=tuple(text.count(severity) for severity in severities),
        rows=tuple(_row(curve, severities, checks) for curve in curves[:_MAX_ROWS]),
        more_rows=max(0, len(curves) - _MAX_ROWS),
        confidence=text.confidence(intervals[0].confidence) if intervals else "",
    )


def _plot(curve: StressCurve) -> StressPlot:
    marks = [_mark(curve.metric, point) for point in curve.points[:_MAX_POINTS]]
    known = [m for m in marks if math.isfinite(m.baseline.value) and math.isfinite(m.candidate.value)]
    low, high = _range(known, share=text.is_share(curve.metric))
    return StressPlot(
        title=text.clean(curve.perturbation, 60),
        metric=text.metric_name(curve.metric),
        unit="%" if text.is_share(curve.metric) else "",
        setting=text.clean(curve.setting, 160),
        low=low,
        high=high,
        marks=tuple(sorted(known, key=lambda mark: mark.severity)),
    )


def _mark(metric: str, point: StressPoint) -> StressMark:
    excess = point.excess if math.isfinite(point.excess) else 0.0
    better = -1.0 if text.lower_is_better(metric) else 1.0
    return StressMark(
        severity=point.severity,
        baseline=_reading(metric, point.baseline),
        candidate=_reading(metric, point.candidate),
        expected=text.scale(metric) * (point.candidate.value + better * max(0.0, excess)),
    )


def _reading(metric: str, found: Estimate) -> Reading:
    factor, interval = text.scale(metric), found.interval
    finite = interval is not None and math.isfinite(interval.low) and math.isfinite(interval.high)
    return Reading(
        value=factor * found.value,
        low=factor * interval.low if interval and finite else None,
        high=factor * interval.high if interval and finite else None,
    )


def _range(marks: list[StressMark], *, share: bool) -> tuple[float, float]:
    """From the least to the greatest that is drawn, with air around it."""
    readings = [reading for mark in marks for reading in (mark.baseline, mark.candidate)]
    ends = [x for r in readings for x in (r.value, r.low, r.high) if x is not None] or [0.0, 1.0]
    pad = 0.06 * (max(ends) - min(ends)) or 0.5
    high = max(ends) + pad
    return min(ends) - pad, min(high, 100.0) if share else high


def _row(curve: StressCurve, severities: list[int], checks: Mapping[tuple[str, str], Check]) -> StressRow:
    check = checks.get((curve.perturbation, curve.metric))
    points = {point.severity: point for point in curve.points}
    limit = text.points(curve.metric, text.drop_limit(curve.metric, check.limit)) if check else text.ABSENT
    return StressRow(
        perturbation=text.clean(curve.perturbation, 60),
        metric=text.metric_name(curve.metric),
        cells=tuple(_cell(curve.metric, points.get(severity)) for severity in severities),
        limit=limit,
        status=check.status.value if check else "",
        tone=TONES[check.status] if check else "plain",
    )


def _cell(metric: str, point: StressPoint | None) -> tuple[str, str]:
    if point is None:
        return text.ABSENT, ""
    return text.bare_drop(metric, point.excess), text.drop_span(metric, point.interval)
