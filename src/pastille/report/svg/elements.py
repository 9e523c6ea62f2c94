"""SVG elements, scales and ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pastille.report.text import clean

GLYPH_WIDTH = 0.62  # of the font size: a wide sans serif, so that an estimate errs to the safe side


def el(name: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """One element, everything in it escaped.

    Args:
        name: The tag.
        children: `Markup` goes in as it is, text is escaped.
        attributes: A trailing underscore is dropped, others become hyphens; None leaves one out.

    Example:
        >>> el("text", "<b>", x=1.25, class_="tick")
        Markup('<text x="1.2" class="tick">&lt;b&gt;</text>')
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(str(c) if isinstance(c, Markup) else str(escape(clean(c))) for c in children)
    return Markup(f"<{name}{given}>{inner}</{name}>" if children else f"<{name}{given}/>")  # noqa: S704


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return str(escape(clean(value)))
    return f"{value:.1f}".removesuffix(".0")


def drawing(
    width: float,
    height: float,
    title: str,
    description: str,
    *children: Markup,
    class_: str,
    stretched: bool = False,
) -> Markup:
    """A whole plot: scales with the page, and reads itself aloud as its title and description."""
    return el(
        "svg",
        el("title", title),
        el("desc", description),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        preserveAspectRatio="none" if stretched else None,
        role="img",
        class_=class_,
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return el("path", d=f"M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}", class_=class_)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points; where a coordinate is not finite, the line is interrupted."""
    parts, pen = [], "M"
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{pen}{_n(x)} {_n(y)}")
            pen = "L"
        else:
            pen = "M"
    return el("path", d="".join(parts) or "M0 0", class_=class_)


def label(x: float, y: float, words: str, class_: str | None = None, anchor: str | None = None) -> Markup:
    """Text; ``anchor`` is ``"middle"``, ``"end"`` or None for start; the style sheet knows it as a class."""
    return el("text", words, x=x, y=y, class_=" ".join(filter(None, (class_, anchor))) or None)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def text_width(words: str, font_size: float) -> float:
    """About how wide a line of text is, rather over than under."""
    return len(words) * font_size * GLYPH_WIDTH


def shortened(words: str, most: int) -> str:
    """Words that fit, with an ellipsis where they were cut."""
    return words if len(words) <= most else words[: max(1, most - 1)].rstrip() + "…"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From a value to a place on the page, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value, kept within a tenth of the axis around it."""
        f: Callable[[float], float] = math.log if self.log else float
        share = (f(value) - f(self.low)) / ((f(self.high) - f(self.low)) or 1.0)
        return self.start + min(1.1, max(-0.1, share)) * (self.end - self.start)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within ``[low, high]``.

    Example:
        >>> linear_ticks(0.0, 10.0)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within ``[low, high]`` for a logarithmic axis.

    Example:
        >>> log_ticks(30.0, 25000.0)
        [30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]
        >>> log_ticks(80.0, 900.0)
        [100.0, 200.0, 500.0]
        >>> log_ticks(6.0, 14.0)
        [6.0, 8.0, 10.0, 12.0, 14.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if 2 <= len(ticks) <= most:
            return ticks
    if len(ticks) < 2:  # too short an axis for powers
        return linear_ticks(low, high, most)
    return ticks[:: max(1, math.ceil(len(ticks) / most))]


def tick_words(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, all with the same decimals.

    Example:
        >>> tick_words([-0.5, 0.0, 0.5])
        ['−0.5', '0.0', '0.5']
    """
    decimals = next((d for d in range(5) if all(abs(round(t, d) - t) < 1e-9 for t in ticks)), None)
    if decimals is None:
        return [f"{t:.2g}".replace("-", "−") for t in ticks]
    return [f"{t + 0.0:.{decimals}f}".replace("-", "−") for t in ticks]
