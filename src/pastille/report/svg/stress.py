"""Stress curve: one metric of both models as its inputs get worse."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from pastille.report.evidence import Reading
from pastille.report.stress import StressMark, StressPlot
from pastille.report.svg.elements import (
    Scale,
    drawing,
    el,
    label,
    line,
    linear_ticks,
    polyline,
    tick_words,
)

_W, _H = 320.0, 186.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 14.0, 24.0, 34.0
_APART = 2.5  # so that the intervals of both models do not cover each other


def stress_curve(plot: StressPlot) -> Markup:
    """Both models over the severities; what the candidate loses beyond the baseline's loss is shaded."""
    xs = Scale(low=0.0, high=float(_last(plot)), start=_LEFT + 8, end=_W - _RIGHT)
    ys = Scale(low=plot.low, high=plot.high, start=_H - _BOTTOM, end=_TOP)
    before = [(xs(m.severity), ys(m.baseline.value)) for m in plot.marks]
    after = [(xs(m.severity), ys(m.candidate.value)) for m in plot.marks]
    return drawing(
        _W,
        _H,
        f"{plot.metric} under {plot.title}",
        _told(plot),
        *_axes(plot, xs, ys),
        *_excess(plot, xs, ys),
        *(w for m in plot.marks for w in _whiskers(m, xs(m.severity), ys)),
        polyline(before, "curve before"),
        polyline(after, "curve after"),
        *(el("circle", cx=x, cy=y, r=3.4, class_="dot-before") for x, y in before),
        *(el("circle", cx=x, cy=y, r=3.4, class_="dot-after") for x, y in after),
        class_="plot stress",
    )


def _last(plot: StressPlot) -> int:
    return max((mark.severity for mark in plot.marks), default=1) or 1


def _told(plot: StressPlot) -> str:
    marks = (f"severity {m.severity}: {m.baseline.value:.3g} – {m.candidate.value:.3g}" for m in plot.marks)
    return f"Baseline and compressed model by severity. {'; '.join(marks)}"


def _axes(plot: StressPlot, xs: Scale, ys: Scale) -> Iterator[Markup]:
    ticks = linear_ticks(ys.low, ys.high, 4)
    for tick, words in zip(ticks, tick_words(ticks), strict=True):
        yield line(_LEFT, ys(tick), _W - _RIGHT, ys(tick), "grid")
        yield label(_LEFT - 6, ys(tick) + 4, words, "tick", "end")
    bottom = _H - _BOTTOM
    yield line(_LEFT, bottom, _W - _RIGHT, bottom, "axis")
    for mark in plot.marks:
        yield label(xs(mark.severity), bottom + 15, str(mark.severity), "tick", "middle")
    yield label(0, 12, f"{plot.metric}{', %' if plot.unit else ''}", "axis-title")
    yield label(_W - _RIGHT, _H - 4, "severity →", "axis-title", "end")


def _excess(plot: StressPlot, xs: Scale, ys: Scale) -> Iterator[Markup]:
    """Between the candidate and where it would be, had it lost as much as the baseline."""
    if any(mark.expected != mark.candidate.value for mark in plot.marks):
        there = [(xs(m.severity), ys(m.expected)) for m in plot.marks]
        here = [(xs(m.severity), ys(m.candidate.value)) for m in reversed(plot.marks)]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*there, *here])
        yield el("polygon", points=corners, class_="excess")


def _whiskers(mark: StressMark, x: float, ys: Scale) -> Iterator[Markup]:
    yield from _whisker(mark.baseline, x - _APART, ys, "whisker baseline")
    yield from _whisker(mark.candidate, x + _APART, ys, "whisker final")


def _whisker(reading: Reading, x: float, ys: Scale, class_: str) -> Iterator[Markup]:
    if reading.low is not None and reading.high is not None:
        yield line(x, ys(reading.low), x, ys(reading.high), class_)
