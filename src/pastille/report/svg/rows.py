"""Plots as tall as a line of text, for the cells of a table: all rows of one table share an axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from markupsafe import Markup

from pastille.report.checks import LimitMark
from pastille.report.evidence import PairTable, Reading
from pastille.report.kernels import ShareBar
from pastille.report.svg.elements import Scale, drawing, el, label, line, linear_ticks, tick_words
from pastille.report.timing import Bottleneck
from pastille.values import Precision

_W, _H = 220.0, 26.0
_PAD = 14.0


def _axis(low: float, high: float) -> Scale:
    return Scale(low=low, high=high, start=_PAD, end=_W - _PAD)


def axis_header(low: float, high: float, title: str) -> Markup:
    """The axis that stands over a column of rows."""
    xs = _axis(low, high)
    ticks = linear_ticks(low, high, 4)
    words = zip(ticks, tick_words(ticks), strict=True)
    marks = [label(xs(tick), 14, text, "tick", "middle") for tick, text in words]
    marks += [line(xs(tick), 20, xs(tick), 24, "axis") for tick in ticks]
    return drawing(_W, 24, title, f"Axis from {low:g} to {high:g}", *marks, class_="row-plot")


def dumbbell(table: PairTable, name: str, marks: tuple[Reading, Reading]) -> Markup:
    """One class or group: the hollow ring is before, the full disc after, thin lines are intervals."""
    xs = _axis(table.low, table.high)
    before, after = marks
    return drawing(
        _W,
        _H,
        f"{name}: {table.metric} {before.value:.3g} before, {after.value:.3g} after",
        f"On an axis from {table.low:g} to {table.high:g}",
        _grid(xs),
        *_whisker(xs, before, 8.0, "whisker baseline"),
        *_whisker(xs, after, 18.0, "whisker final"),
        line(xs(before.value), 8.0, xs(after.value), 18.0, "link"),
        el("circle", cx=xs(before.value), cy=8, r=3.5, class_="dot-before"),
        el("circle", cx=xs(after.value), cy=18, r=4, class_="dot-after"),
        class_="row-plot",
    )


def _grid(xs: Scale) -> Markup:
    ticks = linear_ticks(xs.low, xs.high, 4)
    return el("path", d="".join(f"M{xs(tick):.1f} 0V{_H:g}" for tick in ticks), class_="grid")


def _whisker(xs: Scale, reading: Reading, y: float, class_: str) -> Iterator[Markup]:
    if reading.low is not None and reading.high is not None:
        yield line(xs(reading.low), y, xs(reading.high), y, class_)


_LEAST, _MOST = -2.0, 4.0  # limits: what a row shows at most; what lies further out is drawn at the edge


def limit_axis(marks: Sequence[LimitMark]) -> tuple[float, float]:
    """An axis for the checks of a verdict, in units of their limits.

    Example:
        >>> limit_axis([LimitMark(value=0.2, interval=(-0.2, 0.6), level=False, tone="good", words="")])
        (-0.4, 1.4)
    """
    ends = [x for m in marks for x in (m.value, *(m.interval or ()))]
    return max(_LEAST, min([0.0, *ends]) - 0.2), min(_MOST, max([1.2, *ends]) + 0.2)


def limit_header(axis: tuple[float, float]) -> Markup:
    """Names the two lines that every row of the checks has."""
    xs = _axis(*axis)
    return drawing(
        _W,
        24,
        "Axis of the checks",
        "Zero is no loss; one is the limit.",
        label(xs(0.0), 14, "0", "tick", "middle"),
        label(xs(1.0), 14, "limit", "tick strong", "middle"),
        line(xs(0.0), 19, xs(0.0), 24, "zero"),
        line(xs(1.0), 19, xs(1.0), 24, "limit-line"),
        class_="row-plot",
    )


def limit_row(mark: LimitMark, axis: tuple[float, float]) -> Markup:
    """One check: a drop with its interval, or a level, against the limit; shaded beyond it."""
    xs = _axis(*axis)
    limit = xs(1.0)
    return drawing(
        _W,
        _H,
        mark.words,
        _standing(mark),
        el("rect", x=limit, y=0, width=max(0.0, _W - limit), height=_H, class_="beyond"),
        line(xs(0.0), 0, xs(0.0), _H, "zero"),
        *(_level(mark, xs) if mark.level else _drop(mark, xs)),
        line(limit, 0, limit, _H, "limit-line"),
        class_="row-plot",
    )


def _level(mark: LimitMark, xs: Scale) -> Iterator[Markup]:
    width = max(1.0, xs(mark.value) - xs(0.0))
    yield el("rect", x=xs(0.0), y=_H / 2 - 4, width=width, height=8, class_=f"level {mark.tone}")


def _drop(mark: LimitMark, xs: Scale) -> Iterator[Markup]:
    middle = _H / 2
    for end in mark.interval or ():
        yield line(xs(end), middle - 4, xs(end), middle + 4, f"ci {mark.tone}")
    if mark.interval:
        yield line(xs(mark.interval[0]), middle, xs(mark.interval[1]), middle, f"ci {mark.tone}")
    x = min(max(xs(mark.value), xs.start), xs.end)
    if x == xs(mark.value):
        yield el("circle", cx=x, cy=middle, r=4.5, class_=f"estimate {mark.tone}")
    else:
        tip = 10 if mark.value > 1 else -10  # an arrow: the drop lies further out than the axis reaches
        yield el("path", d=f"M{x:.1f} {middle - 6:.1f}l{tip} 6l{-tip} 6z", class_=f"estimate {mark.tone}")


def _standing(mark: LimitMark) -> str:
    low, high = mark.interval or (mark.value, mark.value)
    what = "The interval" if mark.interval else "The value"
    if high <= 1:
        return f"{what} lies within the limit."
    return f"{what} lies beyond the limit." if low > 1 else f"{what} spans the limit."


def left_bar(before: float, after: float, most: float, span: tuple[float, float] | None = None) -> Markup:
    """What is left of an amount: the outline is before, the filled part after, as the text beside it says."""
    unit = 118.0 / (most or 1.0)
    shapes = [
        el("path", d=f"M1 1h{max(0.5, round(amount * unit, 1)):g}v8H1z", class_=name)
        for amount, name in ((after, "bar-after"), (before, "bar-before"))
        if amount > 0
    ]
    if span:
        shapes.append(line(1 + span[0] * unit, 5, 1 + span[1] * unit, 5, "bar-span"))
    return el("svg", *shapes, viewBox="0 0 120 10", class_="left-bar", aria_hidden="true")


def time_bars(bottleneck: Bottleneck, most_ms: float) -> Markup:
    """One input from file to answer: preparing it, then inference."""
    width = 600.0
    unit = (width - 2) / (most_ms or 1.0)
    prepared = max(1.0, bottleneck.preparing_ms * unit)
    inferred = max(1.0, bottleneck.inference_ms * unit)
    return drawing(
        width,
        22,
        f"{bottleneck.model}: {bottleneck.words}",
        "",
        el("rect", x=1, y=3, width=prepared, height=16, class_="bar-prepare"),
        el("rect", x=1 + prepared, y=3, width=inferred, height=16, class_="bar-infer"),
        class_="plot time",
        stretched=True,
    )


_SHARE_CLASSES: dict[Precision, str] = {
    "int8": "bar-infer",
    "float": "bar-prepare",
    "conversion": "bar-convert",
    "other": "bar-before",
}


def share_bar(bar: ShareBar) -> Markup:
    """How much of one thing runs in which numbers: the parts of a whole, side by side."""
    width = 600.0
    ends = list(accumulate((part.share for part in bar.parts), initial=0.0))
    return drawing(
        width,
        14,
        bar.words,
        "",
        *(
            el(
                "rect",
                x=start * width,
                y=2,
                width=part.share * width,
                height=10,
                class_=_SHARE_CLASSES[part.kind],
            )
            for part, start in zip(bar.parts, ends, strict=False)
        ),
        class_="plot time",
        stretched=True,
    )
