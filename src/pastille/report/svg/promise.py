"""Measured time against multiply-accumulates, with the line on which the speed keeps up with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

import pastille.report.text as text
from pastille.report.spending import PromisePoint
from pastille.report.svg.elements import (
    Scale,
    drawing,
    label,
    line,
    linear_ticks,
    log_ticks,
    shortened,
    text_width,
    tick_words,
)
from pastille.report.svg.scatter import Box, Mark, along, label_marks, symbol

_W, _H = 500.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 26.0, 46.0
_LOG_FROM = 4.0  # both axes are logarithmic where one spans more than this factor
_PARTS = 24  # that the line is cut into, so that no name is written across it
_MAX_LABEL = 22
_FONT = 12.0
_WORDS = "as fast as the MACs promise"


def promise_plot(points: Sequence[PromisePoint]) -> Markup:
    """Scatter plot; above the line a model is slower than its multiply-accumulates promise, below it faster.

    Args:
        points: The baseline first: the line goes through it, and through zero.
    """
    xs, ys = _scales(points)
    marks = [_mark(point, xs, ys) for point in points]
    promised = _promised(points[0], xs, ys)
    words = _place_of_words(promised, marks)
    bounds = Box(x1=_LEFT + 2, y1=_TOP, x2=_W - 2, y2=_H - _BOTTOM - 2)
    return drawing(
        _W,
        _H,
        "Time against multiply-accumulates",
        _description(points),
        *_axes(xs, ys),
        line(*promised[0], *promised[1], "diagonal"),
        label(words.x1, words.y2 - 4, _WORDS, "tick"),
        *(line(m.x, m.top, m.x, m.bottom, f"err {p.kind}") for m, p in zip(marks, points, strict=True)),
        *(symbol(p.kind, m.x, m.y, p.label) for m, p in zip(marks, points, strict=True)),
        *label_marks(marks, bounds, along(promised, _PARTS), [words]),
        class_="plot scatter promise",
    )


def _scales(points: Sequence[PromisePoint]) -> tuple[Scale, Scale]:
    macs = [p.macs for p in points]
    times = [ms for p in points for ms in (p.ms, p.low, p.high) if ms is not None]
    log = max(max(found) / min(found) for found in (macs, times)) > _LOG_FROM
    xs = _scale(macs, _LEFT, _W - _RIGHT, log=log)
    return xs, _scale(times, _H - _BOTTOM, _TOP, log=log)


def _scale(values: Sequence[float], start: float, end: float, *, log: bool) -> Scale:
    low, high = min(values), max(values)
    if log:
        pad = max(1.25, (high / low) ** 0.1)
        return Scale(low=low / pad, high=high * pad, start=start, end=end, log=True)
    return Scale(low=0.0, high=high * 1.15, start=start, end=end)


def _promised(
    baseline: PromisePoint, xs: Scale, ys: Scale
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both ends of the line within the axes."""
    slope = baseline.ms / baseline.macs
    low, high = max(xs.low, ys.low / slope), min(xs.high, ys.high / slope)
    return (xs(low), ys(low * slope)), (xs(high), ys(high * slope))


def _place_of_words(promised: Sequence[tuple[float, float]], marks: Sequence[Mark]) -> Box:
    """What the line means: under its right or over its left part, wherever fewer models are in the way.

    Beside its middle, where it is so steep that neither lies within the axes.
    """
    (x1, y1), (x2, y2) = promised
    width, slope = text_width(_WORDS, _FONT), (y2 - y1) / ((x2 - x1) or 1.0)
    under, over = _W - _RIGHT - width, _LEFT + 6
    places = [
        Box(x1=under, y1=(y := y1 + slope * (under - x1)) + 4, x2=under + width, y2=y + 20),
        Box(x1=over, y1=(y := y1 + slope * (over + width - x1)) - 22, x2=over + width, y2=y - 6),
    ]
    reaches = [Box(x1=m.x - 9, y1=m.y - 9, x2=m.x + 9, y2=m.y + 9) for m in marks]
    inside = [place for place in places if place.y1 >= _TOP and place.y2 <= _H - _BOTTOM]
    inside = inside or _beside((x1 + x2) / 2, (y1 + y2) / 2, width)
    return min(inside, key=lambda place: sum(place.meets(reach) for reach in reaches))


def _beside(x: float, y: float, width: float) -> list[Box]:
    """To the left and to the right of a point, as far as there is room."""
    lefts = [x - 8 - width, x + 8]
    room = [left for left in lefts if left >= _LEFT and left + width <= _W - _RIGHT] or [_LEFT]
    return [Box(x1=left, y1=y - 8, x2=left + width, y2=y + 8) for left in room]


def _mark(point: PromisePoint, xs: Scale, ys: Scale) -> Mark:
    y = ys(point.ms)
    return Mark(
        x=xs(point.macs),
        y=y,
        top=ys(point.high) if point.high is not None else y,
        bottom=ys(point.low) if point.low is not None else y,
        words=shortened(point.label, _MAX_LABEL),
    )


def _axes(xs: Scale, ys: Scale) -> Iterator[Markup]:
    y_ticks = log_ticks(ys.low, ys.high) if ys.log else linear_ticks(ys.low, ys.high)
    words = [f"{tick:g}" for tick in y_ticks] if ys.log else tick_words(y_ticks)
    for tick, said in zip(y_ticks, words, strict=True):
        yield line(_LEFT, ys(tick), _W - _RIGHT, ys(tick), "grid")
        yield label(_LEFT - 7, ys(tick) + 4, said, "tick", "end")
    for tick in log_ticks(xs.low, xs.high) if xs.log else linear_ticks(xs.low, xs.high, 5):
        yield line(xs(tick), _H - _BOTTOM, xs(tick), _H - _BOTTOM + 4, "axis")
        yield label(xs(tick), _H - _BOTTOM + 18, _amount(tick), "tick", "middle")
    scale = ", both logarithmic" if xs.log else ""
    yield line(_LEFT, _H - _BOTTOM, _W - _RIGHT, _H - _BOTTOM, "axis")
    yield label(0, 12, "milliseconds at batch 1", "axis-title")
    yield label(_W - _RIGHT, _H - 8, f"multiply-accumulates{scale} →", "axis-title", "end")


def _amount(value: float) -> str:
    number, _, unit = text.amount(value).partition(text.UNIT_SPACE)
    return f"{float(number.replace(',', '')):g}{text.UNIT_SPACE if unit else ''}{unit}"


def _description(points: Sequence[PromisePoint]) -> str:
    told = [f"{p.label}: {text.amount(p.macs)}, {text.milliseconds(p.ms)}" for p in points]
    return "; ".join(told)
