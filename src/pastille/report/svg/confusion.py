"""A confusion matrix as a heat map with its counts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from markupsafe import Markup

from pastille.report.evidence import Matrix
from pastille.report.svg.elements import drawing, el, label, shortened, text_width
from pastille.report.text import count

WIDE_FROM = 13  # classes from which one matrix takes the whole width of the page


def confusion_matrix(matrix: Matrix) -> Markup:
    """Rows are the true labels, columns the decisions; shares are of the row."""
    k = len(matrix.labels)
    width = 900.0 if k >= WIDE_FROM else 500.0
    font = 11.0 if k >= 8 else 12.0
    names = [shortened(name, 16 if k < WIDE_FROM else 18) for name in matrix.labels]
    left = max(48.0, max(text_width(name, font) for name in names) + 10)
    longest = max(text_width(name, font) for name in names)
    upright = longest <= min(96.0, (width - left - 4) / k) - 4
    slant = 0.0 if upright else 0.72 * longest  # how far a name at 45 degrees reaches up and to the right
    cell = min(96.0, (width - left - 4 - max(0.0, slant - 10)) / k)
    top = 30.0 + (slant or 10.0)
    return drawing(
        width,
        top + k * cell + 6,
        f"Confusion matrix, {matrix.title}",
        _description(matrix),
        label(left, 13, "decided →", "axis-title"),
        *_heads(names, left, top, cell, upright=upright),
        *(mark for row in range(k) for mark in _row(matrix, row, names[row], left, top, cell)),
        class_="plot confusion small" if k >= 8 else "plot confusion",
    )


def _description(matrix: Matrix) -> str:
    right = sum(matrix.counts[i][i] for i in range(len(matrix.labels)))
    total = sum(map(sum, matrix.counts))
    rows = "; ".join(
        f"{name}: {matrix.counts[i][i]} of {sum(matrix.counts[i])}" for i, name in enumerate(matrix.labels)
    )
    return f"{right} of {total} cases decided rightly. {rows}"


def _heads(names: list[str], left: float, top: float, cell: float, *, upright: bool) -> Iterator[Markup]:
    for column, name in enumerate(names):
        x = left + (column + 0.5) * cell
        if upright:
            yield label(x, top - 8, name, "tick", "middle")
        else:
            turn = f"rotate(-45 {x:.0f} {top - 6:.0f})"
            yield el("text", name, x=x, y=top - 6, class_="tick", transform=turn)


def _row(matrix: Matrix, row: int, name: str, left: float, top: float, cell: float) -> Iterator[Markup]:
    counts = matrix.counts[row]
    total = sum(counts)
    y = top + row * cell
    yield label(left - 8, y + cell / 2 + 4, name, "tick", "end")
    for column, found in enumerate(counts):
        yield _cell(found, total, left + column * cell, y, cell, right=row == column)


def _cell(found: int, total: int, x: float, y: float, cell: float, *, right: bool) -> Markup:
    share = found / total if total else 0.0
    shade = el(
        "rect", x=x + 1, y=y + 1, width=cell - 2, height=cell - 2, class_=heat_class(share, right=right)
    )
    if not found:
        return shade
    middle = x + cell / 2
    if cell < 34:
        return shade + label(middle, y + cell / 2 + 4, count(found), "cell", "middle")
    number = label(middle, y + cell / 2 - 1, count(found), "cell", "middle")
    return shade + number + label(middle, y + cell / 2 + 12, _percent(share), "cell-share", "middle")


def heat_class(share: float, *, right: bool) -> str:
    """The shade of a cell: right and wrong have hues of their own, and no error is invisible.

    Example:
        >>> heat_class(0.97, right=True), heat_class(0.004, right=False), heat_class(0.0, right=False)
        ('right h10', 'wrong h2', 'h0')
    """
    if share <= 0:
        return "h0"
    if right:
        return f"right h{max(1, round(10 * share))}"
    return f"wrong h{min(10, 1 + math.ceil(18 * share))}"


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{100 * share:.0f}%"
