"""Quality against cost: every model with its interval, and the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

import pastille.report.text as text
from pastille.report.comparison import Point, PointKind, Tradeoff
from pastille.report.svg.elements import (
    Scale,
    drawing,
    el,
    label,
    line,
    linear_ticks,
    log_ticks,
    polyline,
    shortened,
    text_width,
    tick_words,
)

_W, _H = 500.0, 340.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 26.0, 46.0
_FONT = 12.0
_LOG_FROM = 4.0  # a logarithmic axis where the costs span more than this factor
_MAX_LABEL = 22


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of the plot."""

    x1: float
    y1: float
    x2: float
    y2: float

    def meets(self, other: Box) -> bool:
        """Whether two rectangles overlap."""
        return self.x1 < other.x2 and other.x1 < self.x2 and self.y1 < other.y2 and other.y1 < self.y2

    def within(self, other: Box) -> bool:
        """Whether this rectangle lies inside another."""
        return self.x1 >= other.x1 and self.y1 >= other.y1 and self.x2 <= other.x2 and self.y2 <= other.y2


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point on the page: where it is drawn, how far its error bar reaches, what it is called."""

    x: float
    y: float
    top: float
    bottom: float
    words: str


def pareto_front(points: Sequence[Point], *, higher_is_better: bool = True) -> list[Point]:
    """The points that no other beats in both directions, from cheap to dear.

    Example:
        >>> def at(x, y): return Point(label="", kind="kept", x=x, y=y, low=None, high=None)
        >>> [p.x for p in pareto_front([at(1, 90), at(2, 89), at(3, 95)])]
        [1, 3]
    """
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -sign * p.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


def tradeoff_plot(plot: Tradeoff) -> Markup:
    """Scatter plot with error bars, the Pareto front and the lowest quality that the limit permits."""
    xs, ys = _x_scale(plot), _y_scale(plot)
    marks = [_mark(point, xs, ys) for point in plot.points]
    floor = _floor_place(plot, ys, marks)
    bounds = Box(x1=_LEFT + 2, y1=_TOP, x2=_W - 2, y2=_H - _BOTTOM - 2)
    return drawing(
        _W,
        _H,
        plot.title,
        _description(plot),
        *_axes(plot, xs, ys),
        *_floor(plot, ys, floor),
        polyline(_steps(plot, xs, ys), "front"),
        *(line(m.x, m.top, m.x, m.bottom, f"err {p.kind}") for m, p in zip(marks, plot.points, strict=True)),
        *(symbol(p.kind, m.x, m.y, p.label) for m, p in zip(marks, plot.points, strict=True)),
        *label_marks(marks, bounds, _lines(plot, xs, ys), [floor] if floor else []),
        class_="plot scatter",
    )


def _description(plot: Tradeoff) -> str:
    cost = text.size if plot.x_unit == "bytes" else text.milliseconds
    unit = f"{text.UNIT_SPACE}%" if plot.y_share else ""
    decimals = 1 if plot.y_share else 3
    told = [f"{p.label} ({p.kind}): {cost(p.x)}, {text.fixed(p.y, decimals)}{unit}" for p in plot.points]
    return f"{plot.y_title} against {plot.x_title}. " + "; ".join(told)


def _x_scale(plot: Tradeoff) -> Scale:
    low, high = min(p.x for p in plot.points), max(p.x for p in plot.points)
    if high / low > _LOG_FROM:
        pad = (high / low) ** 0.1
        return Scale(low=low / pad, high=high * pad, start=_LEFT, end=_W - _RIGHT, log=True)
    return Scale(low=0.0, high=high * 1.22, start=_LEFT, end=_W - _RIGHT)


def _y_scale(plot: Tradeoff) -> Scale:
    values = [v for p in plot.points for v in (p.y, p.low, p.high) if v is not None]
    values += [plot.floor] if plot.floor is not None else []
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.5
    return Scale(low=low - pad, high=high + pad, start=_H - _BOTTOM, end=_TOP)


def _mark(point: Point, xs: Scale, ys: Scale) -> Mark:
    y = ys(point.y)
    top = ys(point.high) if point.high is not None else y
    bottom = ys(point.low) if point.low is not None else y
    return Mark(x=xs(point.x), y=y, top=top, bottom=bottom, words=shortened(point.label, _MAX_LABEL))


def _axes(plot: Tradeoff, xs: Scale, ys: Scale) -> Iterator[Markup]:
    y_ticks = linear_ticks(ys.low, ys.high)
    for tick, words in zip(y_ticks, tick_words(y_ticks), strict=True):
        yield line(_LEFT, ys(tick), _W - _RIGHT, ys(tick), "grid")
        yield label(_LEFT - 7, ys(tick) + 4, words, "tick", "end")
    x_ticks = log_ticks(xs.low, xs.high) if xs.log else linear_ticks(xs.low, xs.high, 5)
    for tick in x_ticks:
        yield line(xs(tick), _H - _BOTTOM, xs(tick), _H - _BOTTOM + 4, "axis")
        yield label(xs(tick), _H - _BOTTOM + 18, _cost(plot, tick), "tick", "middle")
    yield line(_LEFT, _H - _BOTTOM, _W - _RIGHT, _H - _BOTTOM, "axis")
    yield label(0, 12, f"{plot.y_title}{', %' if plot.y_share else ''}", "axis-title")
    scale = ", logarithmic" if xs.log else ""
    yield label(_W - _RIGHT, _H - 8, f"{plot.x_title}{scale} →", "axis-title", "end")


def _cost(plot: Tradeoff, tick: float) -> str:
    if tick == 0:
        return "0"
    if plot.x_unit == "ms":
        return f"{tick:g}{text.UNIT_SPACE}ms"
    number, _, unit = text.size(tick).partition(text.UNIT_SPACE)
    return f"{float(number.replace(',', '')):g}{text.UNIT_SPACE}{unit}"


def _floor_place(plot: Tradeoff, ys: Scale, marks: Sequence[Mark]) -> Box | None:
    """Where the limit is named: below or above its line, at the end where no model stands in the way."""
    if plot.floor is None:
        return None
    y, width = ys(plot.floor), text_width(plot.floor_words, _FONT)
    ends = (_W - _RIGHT - width, _LEFT + 4, (_LEFT + _W - width) / 2)
    places = [Box(x1=x, y1=top, x2=x + width, y2=top + 16) for x in ends for top in (y + 2, y - 18)]
    reaches = [Box(x1=m.x - 9, y1=min(m.top, m.y - 9), x2=m.x + 9, y2=max(m.bottom, m.y + 9)) for m in marks]
    inside = [place for place in places if place.y2 <= _H - _BOTTOM - 2] or places
    return min(inside, key=lambda place: sum(place.meets(reach) for reach in reaches))


def _floor(plot: Tradeoff, ys: Scale, place: Box | None) -> Iterator[Markup]:
    if plot.floor is not None and place is not None:
        yield line(_LEFT, ys(plot.floor), _W - _RIGHT, ys(plot.floor), "limit")
        at_end = place.x2 > _W - _RIGHT - 1
        x, anchor = (place.x2, "end") if at_end else (place.x1, None)
        yield label(x, place.y2 - 4, plot.floor_words, "limit-words", anchor)


def _steps(plot: Tradeoff, xs: Scale, ys: Scale) -> list[tuple[float, float]]:
    """Corners of the front: between two models, the better one's quality is not to be had for less."""
    front = pareto_front(plot.points, higher_is_better=plot.higher_is_better)
    corners = [(xs(front[0].x), ys(front[0].y))]
    for before, after in itertools.pairwise(front):
        corners += [(xs(after.x), ys(before.y)), (xs(after.x), ys(after.y))]
    return [*corners, (_W - _RIGHT, corners[-1][1])]


def symbol(kind: PointKind, x: float, y: float, name: str) -> Markup:
    """A model's mark, by what became of it; its name shows when it is pointed at."""
    return el("g", el("title", f"{name} ({kind})"), *_shape(kind, x, y), class_=f"mark {kind}")


def _shape(kind: PointKind, x: float, y: float) -> Iterator[Markup]:
    """A square for the baseline, a cross for what was dropped, discs for what was kept, a ring if judged."""
    match kind:
        case "baseline":
            yield el("rect", x=x - 5, y=y - 5, width=10, height=10)
        case "dropped":
            yield line(x - 5, y - 5, x + 5, y + 5, "stroke")
            yield line(x - 5, y + 5, x + 5, y - 5, "stroke")
        case "kept":
            yield el("circle", cx=x, cy=y, r=5)
        case "final":
            yield el("circle", cx=x, cy=y, r=9, class_="ring")
            yield el("circle", cx=x, cy=y, r=5)


def key_mark(kind: PointKind) -> Markup:
    """One symbol of the plot's key; its meaning stands beside it as text."""
    shape = el("g", *_shape(kind, 10, 10), class_=f"mark {kind}")
    return el("svg", shape, viewBox="0 0 20 20", width=18, height=18, aria_hidden="true", class_="key")


def label_marks(
    marks: Sequence[Mark], bounds: Box, avoid: Sequence[Box], taken: Sequence[Box]
) -> Iterator[Markup]:
    """The names of the marks, each where `place_labels` finds room."""
    for mark, box in zip(marks, place_labels(marks, bounds, avoid=avoid, taken=taken), strict=True):
        if box is None:
            continue
        middle = (box.y1 + box.y2) / 2
        if abs(middle - mark.y) > 24:
            yield line(mark.x, mark.y + (7 if middle > mark.y else -7), *_nearest(box, mark), "leader")
        yield label(box.x1, box.y2 - 4, mark.words, "point-label")


def _nearest(box: Box, mark: Mark) -> tuple[float, float]:
    y = box.y1 if box.y1 > mark.y else box.y2
    return min(max(mark.x, box.x1), box.x2), y


def _lines(plot: Tradeoff, xs: Scale, ys: Scale) -> list[Box]:
    """What is drawn across the plot: the front and the limit."""
    limit = [] if plot.floor is None else [(_LEFT, ys(plot.floor)), (_W - _RIGHT, ys(plot.floor))]
    return [*_along(_steps(plot, xs, ys)), *_along(limit)]


def _along(steps: Sequence[tuple[float, float]]) -> list[Box]:
    """The upright and level lines through the corners, as thin boxes."""
    return [
        Box(x1=min(x1, x2) - 1, y1=min(y1, y2) - 1, x2=max(x1, x2) + 1, y2=max(y1, y2) + 1)
        for (x1, y1), (x2, y2) in itertools.pairwise(steps)
    ]


def along(corners: Sequence[tuple[float, float]], parts: int = 12) -> list[Box]:
    """Boxes along a line through points, for labels to avoid; upright and level or not."""
    places = [
        (x1 + (x2 - x1) * i / parts, y1 + (y2 - y1) * i / parts)
        for (x1, y1), (x2, y2) in itertools.pairwise(corners)
        for i in range(parts + 1)
    ]
    return [Box(x1=x - 3, y1=y - 3, x2=x + 3, y2=y + 3) for x, y in places]


def place_labels(
    marks: Sequence[Mark], bounds: Box, *, avoid: Sequence[Box] = (), taken: Sequence[Box] = ()
) -> list[Box | None]:
    """Where each label goes, so that none covers another, a symbol or, if it can be helped, a line.

    Args:
        marks: The points.
        bounds: What labels stay within.
        avoid: Lines that labels had better not cross, beside the error bars.
        taken: What labels must not cover, beside the symbols.

    Returns:
        A box for each, None where there is no room: its name is then read by pointing at it, and in the
        table above.
    """
    symbols = [Box(x1=m.x - 8, y1=m.y - 8, x2=m.x + 8, y2=m.y + 8) for m in marks]
    bars = [Box(x1=m.x - 2, y1=min(m.top, m.bottom), x2=m.x + 2, y2=max(m.top, m.bottom)) for m in marks]
    lines = [*bars, *avoid]
    placed: list[Box | None] = []
    for mark in marks:
        full = [*taken, *symbols, *(box for box in placed if box is not None)]
        free = [b for b in _candidates(mark) if b.within(bounds) and not any(b.meets(t) for t in full)]
        clear = (box for box in free if not any(box.meets(bar) for bar in lines))
        placed.append(next(clear, next(iter(free), None)))
    return placed


def _candidates(mark: Mark) -> Iterator[Box]:
    width, height = text_width(mark.words, _FONT), 16.0
    sides = (mark.x + 10, mark.x - 10 - width)
    for shift in (0.0, -14.0, 14.0, -28.0, 28.0, -44.0, 44.0, -60.0, 60.0, -80.0, 80.0, -100.0, 100.0):
        y = mark.y + shift - height / 2
        for x in (*sides, *((mark.x - width / 2,) if abs(shift) > 16 else ())):
            yield Box(x1=x, y1=y, x2=x + width, y2=y + height)
