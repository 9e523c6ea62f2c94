"""Reliability diagram: how often what a model gives a probability for comes true."""

from __future__ import annotations

import math
from collections.abc import Iterator

from markupsafe import Markup

from pastille.report.calibration import BinMark, Reliability
from pastille.report.svg.elements import Scale, drawing, el, label, line, shortened

_W, _H = 380.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 16.0, 26.0, 46.0
_SMALLEST, _LARGEST = 2.5, 9.0  # radii of a dot, whose area is the size of its bin


def reliability_diagram(diagram: Reliability) -> Markup:
    """One model; on the diagonal, probabilities mean what they say."""
    xs = Scale(low=0.0, high=1.0, start=_LEFT, end=_W - _RIGHT)
    ys = Scale(low=0.0, high=1.0, start=_H - _BOTTOM, end=_TOP)
    most = max((each.n for each in diagram.bins), default=1)
    return drawing(
        _W,
        _H,
        f"Reliability of the {diagram.model} model",
        f"Predicted probability of {diagram.of} against the share that came true: {_told(diagram)}",
        *_axes(xs, ys, diagram.of),
        line(xs(0), ys(0), xs(1), ys(1), "diagonal"),
        *(whisker for each in diagram.bins for whisker in _whisker(each, xs, ys)),
        *(_dot(each, xs, ys, most) for each in diagram.bins),
        class_=f"plot reliability {'after' if diagram.after else 'before'}",
    )


def _told(diagram: Reliability) -> str:
    return "; ".join(f"{100 * b.confidence:.0f} % – {100 * b.observed:.0f} %" for b in diagram.bins)


def _axes(xs: Scale, ys: Scale, of: str) -> Iterator[Markup]:
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield line(xs.start, ys(tick), xs.end, ys(tick), "grid")
        yield line(xs(tick), ys.start, xs(tick), ys.end, "grid")
        yield label(xs.start - 7, ys(tick) + 4, f"{100 * tick:.0f}", "tick", "end")
        yield label(xs(tick), ys.start + 18, f"{100 * tick:.0f}", "tick", "middle")
    yield label(0, 12, "came true, %", "axis-title")
    yield label(xs.end, _H - 8, f"predicted probability of {shortened(of, 24)}, % →", "axis-title", "end")


def _whisker(each: BinMark, xs: Scale, ys: Scale) -> Iterator[Markup]:
    if each.low is not None and each.high is not None:
        x = xs(each.confidence)
        yield line(x, ys(each.low), x, ys(each.high), "whisker")


def _dot(each: BinMark, xs: Scale, ys: Scale, most: int) -> Markup:
    radius = max(_SMALLEST, _LARGEST * math.sqrt(each.n / most) * 0.6)
    words = f"{each.n} cases: {100 * each.confidence:.1f} % predicted, {100 * each.observed:.1f} % came true"
    dot = el("circle", el("title", words), cx=xs(each.confidence), cy=ys(each.observed), r=radius)
    return el("g", dot, class_="bin")
