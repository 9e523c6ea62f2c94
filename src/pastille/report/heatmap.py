"""The page of a sensitivity scan: layers by levels, the darker the more the loss rises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from jinja2 import Template
from markupsafe import Markup

import pastille.report.text as text
from pastille.files import write_atomic
from pastille.report.pages import page_environment
from pastille.values.scanned import Effect, Scan, Technique

_MAX_ROWS: Final = 600
_STEPS: Final = 10  # of colour
_FAINTEST: Final = 1e-3  # nats: below that, a rise has the first colour


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one layer loses at one level.

    Attributes:
        heat: From 0, no rise that the cases show, to 10, the largest of the page.
        rise: Of the loss.
        span: Its interval.
        metric: Drop of the metric.
        group: The patient group that loses most, how much and how much at least; empty where there are none.
    """

    heat: int
    rise: str
    span: str
    metric: str
    group: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer; None where a level was not tried."""

    layer: str
    parameters: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One technique."""

    title: str
    lead: str
    levels: tuple[str, ...]
    rows: tuple[Row, ...]
    more_rows: int
    most: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that is shown, formatted."""

    name: str
    facts: tuple[tuple[str, str], ...]
    maps: tuple[HeatMap, ...]
    legend: tuple[tuple[int, str], ...]
    metric: str
    skipped: tuple[tuple[str, str], ...]
    stopped: tuple[tuple[str, str], ...]


_TITLES: Final[Mapping[Technique, tuple[str, str]]] = {
    "pruning": (
        "Pruning",
        "The least important channels of one group of layers are not read, all else is as it was: the same "
        "answers as if they had been removed, except where a LayerNorm, a GroupNorm or a mean is taken over "
        "them, which still counts them in. No fine-tuning follows.",
    ),
    "quantization": (
        "Quantization",
        "The weights of one layer are rounded per channel, and what it reads and answers to 8 bits; all else "
        "is as it was. Simulated in PyTorch.",
    ),
}


def heat_page(scan: Scan, *, name: str) -> Page:
    """Arrange and format a scan.

    Args:
        scan: Its text is not trusted.
        name: Of the recipe.
    """
    top = max((effect.loss for effect in scan.effects), default=0.0)
    return Page(
        name=text.clean(name, 80),
        facts=tuple(_facts(scan)),
        maps=tuple(_map(scan, technique, top) for technique in _TITLES if scan.levels(technique)),
        legend=tuple(_legend(top)),
        metric=text.metric_name(scan.metric),
        skipped=_listed(scan.skipped),
        stopped=_listed(scan.stopped),
    )


def _listed(reasons: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((text.clean(k, 200), text.clean(v, 300)) for k, v in list(reasons.items())[:_MAX_ROWS])


def _facts(scan: Scan) -> Iterator[tuple[str, str]]:
    cases = [effect.cases for effect in scan.effects]
    seen = f"{min(cases)} to {max(cases)}" if cases else text.ABSENT
    yield "loss of the model as it is", text.significant(scan.baseline_loss)
    yield text.metric_name(scan.metric), text.metric(scan.metric, scan.baseline_metric)
    yield "changes tried", text.count(len(scan.effects))
    if scan.criterion:
        yield "least important by", text.clean(scan.criterion, 40)
    yield "cases of validation asked per change", seen
    yield "intervals", f"{text.confidence(scan.confidence)}, over cases"
    yield "took", text.duration(scan.seconds)
    yield "model digest (SHA-256 over every tensor)", text.clean(scan.model_digest, 80)
    yield "data digest", text.clean(scan.data_digest, 80)


def _map(scan: Scan, technique: Technique, top: float) -> HeatMap:
    levels = scan.levels(technique)
    known = {(e.layer, e.level): e for e in scan.effects if e.technique == technique}
    layers = [name for name in scan.layers if any((name, level) in known for level in levels)]
    title, lead = _TITLES[technique]
    return HeatMap(
        title=title,
        lead=lead,
        levels=tuple(_level(technique, level) for level in levels),
        rows=tuple(
            Row(
                layer=text.clean(layer or "(model)", 120),
                parameters=text.amount(scan.layers[layer]),
                cells=tuple(_cell(known.get((layer, level)), scan.metric, top) for level in levels),
            )
            for layer in layers[:_MAX_ROWS]
        ),
        more_rows=max(0, len(layers) - _MAX_ROWS),
        most=tuple(text.clean(layer or "(model)", 120) for layer in scan.ranking(technique)[:5]),
    )


def _level(technique: Technique, level: float) -> str:
    return f"{100 * level:g} % of channels" if technique == "pruning" else f"{level:g}-bit weights"


def _cell(effect: Effect | None, metric: str, top: float) -> Cell | None:
    if effect is None:
        return None
    return Cell(
        heat=heat(effect, top),
        rise=signed(effect.loss),
        span=_span(effect),
        metric=f"{text.drop(metric, effect.metric)}",
        group=_group(effect),
    )


def _span(effect: Effect) -> str:
    if effect.loss_low is None or effect.loss_high is None:
        return "too few cases for an interval"
    return f"{signed(effect.loss_low)} to {signed(effect.loss_high)}"


def _group(effect: Effect) -> str:
    if effect.group is None or effect.group_loss is None:
        return ""
    least = "" if effect.group_low is None else f", at least {signed(effect.group_low)}"
    return f"{text.clean(effect.group, 60)} {signed(effect.group_loss)}{least}"


def heat(effect: Effect, top: float) -> int:
    """How dark a cell is: by the logarithm of the rise; 0 where its interval holds 0.

    Example:
        >>> rise = dict(technique="pruning", layer="a", level=0.5, loss_high=2.0, metric=0.1, cases=64)
        >>> [heat(Effect(loss=1.0, loss_low=low, **rise), 1.0) for low in (0.5, -0.1)]
        [10, 0]
    """
    if effect.loss_low is None or effect.loss_low <= 0 or effect.loss <= 0:
        return 0
    whole = math.log(max(top, 2 * _FAINTEST) / _FAINTEST)
    share = math.log(max(effect.loss, _FAINTEST) / _FAINTEST) / whole
    return max(1, min(_STEPS, math.ceil(share * _STEPS)))


def _legend(top: float) -> Iterator[tuple[int, str]]:
    yield 0, "no rise shown"
    whole = math.log(max(top, 2 * _FAINTEST) / _FAINTEST)
    for step in (1, 4, 7, 10):
        yield step, f"up to {text.significant(_FAINTEST * math.exp(whole * step / _STEPS), 2)}"


def signed(value: float) -> str:
    """A rise with its sign.

    Example:
        >>> signed(0.1234), signed(-0.00002), signed(12.34)
        ('+0.123', '0.000', '+12.3')
    """
    if not math.isfinite(value):
        return text.ABSENT
    words = f"{value:+.3f}" if abs(value) < 10 else f"{value:+.1f}"
    return "0.000" if float(words) == 0 else words.replace("-", "−")


def render_heat_map(scan: Scan, *, name: str) -> str:
    """One HTML document: no script, no address, nothing outside of it; all text is escaped."""
    return _template().render(page=heat_page(scan, name=name), css=_style_sheet())


def write_heat_map(scan: Scan, path: Path, *, name: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    write_atomic(path, render_heat_map(scan, name=name).encode())


@cache
def _template() -> Template:
    return page_environment().get_template("heatmap.html.j2")


@cache
def _style_sheet() -> Markup:
    files = resources.files("pastille.report")
    sheets = (files.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "heatmap.css"))
    return Markup("\n".join(sheets))  # noqa: S704 - ours, and no word of the scan is in it
