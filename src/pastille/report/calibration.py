"""Whether the probabilities of both models mean what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pastille.report.text as text
from pastille.values import Calibration, Comparison, ReliabilityBin

_MAX_BINS = 20
_IDEAL = {"calibration_slope": "1", "calibration_intercept": "0", "ece": "0", "brier": "0"}


@dataclass(frozen=True, kw_only=True)
class BinMark:
    """Cases of similar confidence, in shares of one."""

    n: int
    confidence: float
    observed: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """The reliability diagram of one model."""

    model: str
    after: bool
    of: str
    bins: tuple[BinMark, ...]


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One measure of calibration."""

    name: str
    ideal: str
    before: str
    before_span: str
    after: str
    after_span: str
    worse: str
    interval: str
    method: str


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Both diagrams and the table below them."""

    of: str
    diagrams: tuple[Reliability, ...]
    rows: tuple[CalibrationRow, ...]


def calibrated(found: Calibration) -> Calibrated:
    """Arrange what was measured of the probabilities."""
    of = text.clean(found.of, 80) or "the decision"
    sides = (("baseline", False, found.baseline_bins), ("compressed", True, found.candidate_bins))
    return Calibrated(
        of=of,
        diagrams=tuple(
            Reliability(model=model, after=after, of=of, bins=tuple(_marks(bins)))
            for model, after, bins in sides
            if bins
        ),
        rows=tuple(_row(comparison) for comparison in found.comparisons[:8]),
    )


def _marks(bins: tuple[ReliabilityBin, ...]) -> Iterator[BinMark]:
    for each in bins[:_MAX_BINS]:
        if each.n > 0 and math.isfinite(each.confidence) and math.isfinite(each.observed):
            yield BinMark(
                n=each.n,
                confidence=each.confidence,
                observed=each.observed,
                low=each.interval.low if each.interval else None,
                high=each.interval.high if each.interval else None,
            )


def _row(found: Comparison) -> CalibrationRow:
    before, before_span = text.estimate(found.metric, found.baseline)
    after, after_span = text.estimate(found.metric, found.candidate)
    sure = text.confidence(found.interval.confidence) if found.interval else ""
    span = text.drop_span(found.metric, found.interval)
    return CalibrationRow(
        name=text.metric_name(found.metric),
        ideal=_IDEAL.get(found.metric, text.ABSENT),
        before=before,
        before_span=before_span,
        after=after,
        after_span=after_span,
        worse=text.drop(found.metric, found.drop),
        interval=f"{sure} CI {span}" if span else "",
        method=text.clean(found.method, 120),
    )
