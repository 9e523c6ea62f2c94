"""Teachers and students on one axis, and what teaching was worth on another."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from pastille.report.students import LearnedMark, LearnedPanel
from pastille.report.svg.elements import Scale, drawing, el, label, line, linear_ticks, shortened, tick_words

_W = 500.0
_LEFT, _RIGHT = 210.0, 428.0  # of the axis; names to the left of it, figures to the right
_ROW, _TOP, _BOTTOM = 23.0, 26.0, 22.0
_MAX_LABEL = 26


def learned_plot(panel: LearnedPanel) -> Markup:
    """A row for each model: a square is a teacher, a disc a taught student, a ring one by labels alone."""
    xs = Scale(low=panel.low, high=panel.high, start=_LEFT, end=_RIGHT)
    bottom = _TOP + _ROW * len(panel.rows)
    return drawing(
        _W,
        bottom + _BOTTOM,
        panel.title,
        "; ".join(mark.words for mark in panel.rows),
        *_axis(panel, xs, bottom),
        *(_row(mark, _TOP + _ROW * (i + 0.5), xs) for i, mark in enumerate(panel.rows)),
        class_="plot forest learned",
    )


def _axis(panel: LearnedPanel, xs: Scale, bottom: float) -> Iterator[Markup]:
    ticks = linear_ticks(xs.low, xs.high, 5)
    for tick, words in zip(ticks, tick_words(ticks), strict=True):
        yield line(xs(tick), _TOP, xs(tick), bottom, "zero" if panel.from_zero and tick == 0 else "grid")
        yield label(xs(tick), bottom + 16, words, "tick", "middle")
    yield label((_LEFT + _RIGHT) / 2, 14, panel.title, "axis-title", "middle")


def _row(mark: LearnedMark, y: float, xs: Scale) -> Markup:
    return el(
        "g",
        el("title", mark.words),
        label(0, y + 4, shortened(mark.label, _MAX_LABEL)),
        *_interval(mark, y, xs),
        _symbol(mark, xs(mark.value), y),
        label(_W, y + 4, mark.printed, anchor="end"),
        class_=f"row {mark.tone} {mark.kind}",
    )


def _interval(mark: LearnedMark, y: float, xs: Scale) -> Iterator[Markup]:
    if mark.low is not None and mark.high is not None:
        start, end = xs(mark.low), xs(mark.high)
        yield el(
            "path",
            d=f"M{start:.1f} {y:g}H{end:.1f}M{start:.1f} {y - 4:g}v8M{end:.1f} {y - 4:g}v8",
            class_="ci",
        )


def _symbol(mark: LearnedMark, x: float, y: float) -> Markup:
    if mark.kind == "teacher":
        return el("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_="estimate")
    return el("circle", cx=x, cy=y, r=4.5, class_="estimate")
