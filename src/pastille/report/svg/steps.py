"""What each step of iterative pruning cost."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

import pastille.report.text as text
from pastille.report.steps import Steps
from pastille.report.svg.elements import Scale, drawing, label, line, linear_ticks, polyline, tick_words
from pastille.report.svg.scatter import Box, Mark, along, label_marks, symbol

_W, _H = 500.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 20.0, 26.0, 42.0


def steps_plot(found: Steps) -> Markup:
    """The metric against what was removed: a cross was rejected, the ring is the step that was kept."""
    xs, ys = _scales(found)
    marks = [_mark(xs(p.removed), ys(p.metric), p.label) for p in found.points]
    bounds = Box(x1=_LEFT + 2, y1=_TOP, x2=_W - 2, y2=_H - _BOTTOM - 2)
    return drawing(
        _W,
        _H,
        f"Pruning step by step: validation {found.metric}",
        _description(found),
        *_axes(found, xs, ys),
        polyline([(mark.x, mark.y) for mark in marks], "curve metric"),
        *(symbol(p.kind, m.x, m.y, p.label) for m, p in zip(marks, found.points, strict=True)),
        *label_marks(marks, bounds, along([(mark.x, mark.y) for mark in marks]), []),
        class_="plot scatter steps",
    )


def _scales(found: Steps) -> tuple[Scale, Scale]:
    values = [p.metric for p in found.points]
    low, high = min(values), max(values)
    pad = 0.15 * (high - low) or (0.5 if found.share else abs(high) * 0.05 or 0.05)
    most = max(p.removed for p in found.points) or 1.0
    xs = Scale(low=-0.03 * most, high=1.08 * most, start=_LEFT, end=_W - _RIGHT)
    return xs, Scale(low=low - pad, high=high + pad, start=_H - _BOTTOM, end=_TOP)


def _mark(x: float, y: float, words: str) -> Mark:
    return Mark(x=x, y=y, top=y, bottom=y, words=words)


def _axes(found: Steps, xs: Scale, ys: Scale) -> Iterator[Markup]:
    ticks = linear_ticks(ys.low, ys.high, 4)
    for tick, words in zip(ticks, tick_words(ticks), strict=True):
        yield line(_LEFT, ys(tick), _W - _RIGHT, ys(tick), "grid")
        yield label(_LEFT - 7, ys(tick) + 4, words, "tick", "end")
    for tick in linear_ticks(xs.low, xs.high, 5):
        yield line(xs(tick), _H - _BOTTOM, xs(tick), _H - _BOTTOM + 4, "axis")
        yield label(xs(tick), _H - _BOTTOM + 17, f"{tick:g}{text.UNIT_SPACE}%", "tick", "middle")
    yield line(_LEFT, _H - _BOTTOM, _W - _RIGHT, _H - _BOTTOM, "axis")
    yield label(0, 12, f"validation {found.metric}{', %' if found.share else ''}", "axis-title")
    yield label(_W - _RIGHT, _H - 5, "parameters removed →", "axis-title", "end")


def _description(found: Steps) -> str:
    unit = f"{text.UNIT_SPACE}%" if found.share else ""
    told = [
        f"{p.label} ({'rejected' if p.kind == 'dropped' else p.kind}): "
        f"{text.fixed(p.removed, 0)}{text.UNIT_SPACE}% removed, {text.fixed(p.metric, 1)}{unit}"
        for p in found.points
    ]
    return "; ".join(told)
