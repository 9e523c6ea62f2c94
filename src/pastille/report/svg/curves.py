"""One training: its loss, the metric that chose the epoch, and the epoch that was kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from pastille.report.changes import Training
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

_W, _H = 320.0, 188.0
_LEFT, _RIGHT = 48.0, 12.0
_PANELS = ((20.0, 78.0), (104.0, 168.0))  # top and bottom of loss and metric


def training_curve(training: Training) -> Markup:
    """Two panels over the same epochs: they share no unit, so they share no axis."""
    last = max(training.epochs, default=1)
    xs = Scale(low=1.0, high=float(max(2, last)), start=_LEFT, end=_W - _RIGHT)
    unit = ", %" if training.share else ""
    return drawing(
        _W,
        _H,
        f"Training: {training.title}",
        f"Training loss and validation {training.metric} over {last} epochs; {training.words}.",
        *_panel(training, training.loss, xs, 0, "training loss", "loss"),
        *_panel(training, training.validation, xs, 1, f"validation {training.metric}{unit}", "metric"),
        *_epochs(xs, last),
        class_="plot curves",
    )


def _panel(
    training: Training, values: Sequence[float], xs: Scale, place: int, title: str, class_: str
) -> Iterator[Markup]:
    top, bottom = _PANELS[place]
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    pad = 0.06 * (high - low) or (0.5 if class_ == "metric" and training.share else abs(high) * 0.05 or 0.05)
    ys = Scale(low=low - pad, high=high + pad, start=bottom, end=top)
    ticks = linear_ticks(ys.low, ys.high, 3)
    for tick, words in zip(ticks, tick_words(ticks), strict=True):
        yield line(_LEFT, ys(tick), _W - _RIGHT, ys(tick), "grid")
        yield label(_LEFT - 6, ys(tick) + 3.5, words, "tick", "end")
    yield label(_LEFT, top - 7, title, "axis-title")
    yield from _best(training, values, xs, ys)
    yield polyline([(xs(e), ys(v)) for e, v in zip(training.epochs, values, strict=True)], f"curve {class_}")


def _best(training: Training, values: Sequence[float], xs: Scale, ys: Scale) -> Iterator[Markup]:
    if training.best_epoch not in training.epochs:
        return
    x = xs(training.best_epoch)
    value = values[training.epochs.index(training.best_epoch)]
    yield line(x, ys.end, x, ys.start, "best-line")
    if math.isfinite(value):
        yield el("circle", cx=x, cy=ys(value), r=3.5, class_="best")


def _epochs(xs: Scale, last: int) -> Iterator[Markup]:
    bottom = _PANELS[1][1]
    yield line(_LEFT, bottom, _W - _RIGHT, bottom, "axis")
    ticks = [t for t in linear_ticks(1, last, 5) if t == int(t) and t > 1] if last > 1 else []
    for tick in [1.0, *ticks]:
        yield label(xs(tick), bottom + 14, f"{tick:.0f}", "tick", "middle")
    yield label(_LEFT - 8, bottom + 14, "epoch", "tick", "end")
