"""Forest plot: the drop of every comparison with its interval, against its limit."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from pastille.report.forest import ForestBlock, ForestRow
from pastille.report.svg.elements import (
    Scale,
    drawing,
    el,
    label,
    line,
    linear_ticks,
    shortened,
    tick_words,
)

_W = 500.0
_LEFT, _RIGHT = 172.0, 382.0  # of the axis; row labels to the left of it, drop and n to the right
_DROP, _N = 444.0, _W
_ROW, _TOP, _BOTTOM = 23.0, 30.0, 26.0
_MAX_LABEL = 22
_MAX_TITLE = 46


def forest_block(block: ForestBlock) -> Markup:
    """One block of rows; the area beyond a limit is shaded."""
    xs = Scale(low=block.low, high=block.high, start=_LEFT, end=_RIGHT)
    places = list(_places(block))
    bottom = _TOP + _ROW * (len(block.rows) + sum(bool(row.heading) for row in block.rows))
    return drawing(
        _W,
        bottom + _BOTTOM,
        f"Drops by {block.title}",
        f"{len(block.rows)} rows; zero is no loss, to the right is worse.",
        *_axis(block, xs, bottom),
        *(part for row, y in places for part in _heading(row, y)),
        *(_row(row, y, xs) for row, y in places),
        class_="plot forest",
    )


def _places(block: ForestBlock) -> Iterator[tuple[ForestRow, float]]:
    """Each row with the middle of its line; a heading takes a line of its own."""
    y = _TOP + _ROW / 2
    for row in block.rows:
        y += _ROW if row.heading else 0.0
        yield row, y
        y += _ROW


def _axis(block: ForestBlock, xs: Scale, bottom: float) -> Iterator[Markup]:
    ticks = linear_ticks(xs.low, xs.high, 5)
    for tick, words in zip(ticks, tick_words(ticks), strict=True):
        yield line(xs(tick), _TOP, xs(tick), bottom, "zero" if tick == 0 else "grid")
        yield label(xs(tick), bottom + 16, words, "tick", "middle")
    yield label(0, 18, shortened(block.title, 20), "block-title")
    yield label((_LEFT + _RIGHT) / 2, 18, f"drop, {block.unit} →", "axis-title", "middle")
    yield label(_DROP, 18, "drop", "axis-title", "end")
    yield label(_N, 18, "n", "axis-title", "end")


def _heading(row: ForestRow, y: float) -> Iterator[Markup]:
    if row.heading:
        yield label(0, y - _ROW + 4, shortened(row.heading, _MAX_TITLE), "row-heading")


def _row(row: ForestRow, y: float, xs: Scale) -> Markup:
    return el(
        "g",
        el("title", row.words),
        *_limit(row, y, xs),
        label(0, y + 4, shortened(row.label, _MAX_LABEL)),
        *_interval(row, y, xs),
        *_dot(row, y, xs),
        label(_DROP, y + 4, "too few" if row.few else row.drop_words, anchor="end"),
        label(_N, y + 4, row.n, anchor="end"),
        class_=f"row {row.tone}{' few' if row.few else ''}",
    )


def _limit(row: ForestRow, y: float, xs: Scale) -> Iterator[Markup]:
    if row.limit is not None:
        x, top = min(max(xs(row.limit), _LEFT), _RIGHT), y - _ROW / 2
        yield el("rect", x=x, y=top, width=_RIGHT - x, height=_ROW, class_="beyond")
        yield line(x, top, x, top + _ROW, "limit-line")


def _interval(row: ForestRow, y: float, xs: Scale) -> Iterator[Markup]:
    """From end to end; an end that lies further out than the axis is an arrow."""
    if row.low is None or row.high is None:
        return
    start, end = (min(max(xs(x), _LEFT), _RIGHT) for x in (row.low, row.high))
    ends = _end(start, y, -5 if row.low < xs.low else 0) + _end(end, y, 5 if row.high > xs.high else 0)
    yield el("path", d=f"M{start:.1f} {y:g}H{end:.1f}{ends}", class_="ci")


def _end(x: float, y: float, tip: int) -> str:
    """A bar, or an arrow head of some length."""
    return f"M{x - tip:.1f} {y - 4:g}l{tip} 4l{-tip} 4" if tip else f"M{x:.1f} {y - 4:g}v8"


def _dot(row: ForestRow, y: float, xs: Scale) -> Iterator[Markup]:
    if row.drop is not None and xs.low <= row.drop <= xs.high:
        yield el("circle", cx=xs(row.drop), cy=y, r=4.5, class_="estimate")
