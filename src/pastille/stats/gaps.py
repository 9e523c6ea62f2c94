"""How far the groups of an attribute lie apart, and by how much more after compression.

A gap is the largest difference between two groups, so its growth is a maximum less a maximum: not
smooth, and where groups are alike a bootstrap of it is biased. The interval here needs no resampling.
With ``(a, b)`` the groups furthest apart after and ``(c, d)`` before, the growth is

* at most ``drop_b - drop_a``, since before, those two lay at most a gap apart;
* at least ``drop_d - drop_c``, since after, those two lie at most a gap apart;
* exactly ``(after_a - after_b) - (before_c - before_d)``.

Which groups these are is not known: simultaneous intervals of the differences of all pairs say which may
be, at a tenth of the error allowed, and the bound is the widest over those pairs (intersection-union, so
it needs no correction for their number). It holds whichever they are, so where groups were alike it reaches
about as far below 0 as above, wherever the growth itself lies. A harm that widens the gap of clearly
unequal groups is measured by the paired differences alone, which are narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pastille.stats.normal import critical_value
from pastille.values import Comparison, Estimate, Gap, Interval

METHOD = "bound over all pairs of groups that may lie furthest apart, MOVER"
_SHARE_FOR_PAIRS = 0.1  # of the error allowed, spent on which pairs these may be


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One figure of each group: value, and how far its interval reaches down and up; ``(k,)`` each."""

    value: np.ndarray
    down: np.ndarray
    up: np.ndarray

    def stretched(self, factor: float) -> _Measured:
        """With an interval of another confidence, by the normal's ratio."""
        return _Measured(value=self.value, down=self.down * factor, up=self.up * factor)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One metric of all groups; larger is better."""

    groups: tuple[str, ...]
    before: _Measured
    after: _Measured
    drop: _Measured


def group_name(found: Comparison) -> str:
    """What the group of a comparison is called.

    Example:
        >>> group_name(Comparison(metric="auroc", where={"sex": "female", "age": "65+"}, n=0, baseline=None,
        ...                       candidate=None, drop=None, interval=None, method="none"))
        'female × 65+'
    """
    return " × ".join(found.where.values())


def gap(
    name: str,
    attribute: str,
    metrics: Sequence[Sequence[Comparison]],
    *,
    min_group: int,
    confidence: float,
    higher_is_better: bool = True,
) -> Gap | None:
    """The largest difference between two groups in any of some metrics, before and after.

    The equalized odds difference is that of sensitivity and specificity, as fairlearn defines it.

    Args:
        name: Of the gap.
        attribute: Whose groups they are.
        metrics: For each metric, its comparison in each group.
        min_group: A group with fewer cases of a metric is left out of it.
        confidence: Of the comparisons' intervals, and of the one that is returned. At most half of
            ``1 - confidence`` of repeats have an upper end below the true growth, and as many a lower end
            above it (`tests/stats/test_stats_gaps.py` counts them).
        higher_is_better: Of the metrics.

    Returns:
        The gap, or None where a metric has fewer than two groups to compare.

    Example:
        >>> from pastille.stats.proportions import tango, wilson
        >>> def measured(sex: str, n: int, before: int, after: int) -> Comparison:
        ...     estimates = [Estimate(value=x / n, interval=wilson(x, n, 0.95), n=n, method="Wilson")
        ...                  for x in (before, after)]
        ...     return Comparison(metric="sensitivity", where={"sex": sex}, n=n, baseline=estimates[0],
        ...         candidate=estimates[1], drop=(before - after) / n, method="Tango",
        ...         interval=tango(before - after, 0, n, 0.95))
        >>> found = gap("equal opportunity gap", "sex", [[measured("f", 400, 340, 300),
        ...             measured("m", 600, 540, 534)]], min_group=30, confidence=0.95)
        >>> print(f"{found.baseline:.3f} {found.candidate:.3f} {found.growth:.3f} {found.worst_after}")
        0.050 0.140 0.090 f
        >>> found.interval
        Interval(low=0.0..., high=0.1..., confidence=0.95)

    References:
        Hardt, Price and Srebro, "Equality of opportunity in supervised learning", NeurIPS 2016;
        Zou and Donner, "Construction of confidence limits about effect measures: a general approach",
        Statistics in Medicine 27, 2008 (MOVER); Berger and Boos, "P values maximized over a confidence
        set for the nuisance parameter", JASA 89, 1994; Berger and Hsu, Statistical Science 11, 1996.
    """
    kept = [[c for c in of_groups if _counts(c, min_group)] for of_groups in metrics]
    if any(len(of_groups) < 2 for of_groups in kept):
        return None
    parts = [_part(of_groups, 1.0 if higher_is_better else -1.0) for of_groups in kept]
    before, worst_before = _widest([(part.groups, part.before.value) for part in parts])
    after, worst_after = _widest([(part.groups, part.after.value) for part in parts])
    return Gap(
        attribute=attribute,
        name=name,
        baseline=before,
        candidate=after,
        growth=after - before,
        interval=_growth_interval(parts, confidence),
        method=METHOD,
        worst_before=worst_before,
        worst_after=worst_after,
        left_out=_left_out(metrics, min_group),
    )


def _counts(found: Comparison, min_group: int) -> bool:
    """Whether a group is large enough to be compared with others."""
    return found.n >= min_group and found.baseline is not None and found.candidate is not None


def _left_out(metrics: Sequence[Sequence[Comparison]], min_group: int) -> dict[str, int]:
    """Groups that are missing from one of the metrics, with their fewest cases."""
    small: dict[str, int] = {}
    for found in (c for of_groups in metrics for c in of_groups if not _counts(c, min_group)):
        small[group_name(found)] = min(found.n, small.get(group_name(found), found.n))
    return small


def _part(found: Sequence[Comparison], sign: float) -> _Part:
    return _Part(
        groups=tuple(group_name(c) for c in found),
        before=_estimates([c.baseline for c in found], sign),
        after=_estimates([c.candidate for c in found], sign),
        drop=_drops(found),
    )


def _estimates(found: Sequence[Estimate | None], sign: float) -> _Measured:
    assert all(e is not None for e in found)
    return _measured([(e.value, e.interval) for e in found if e is not None], sign)


def _drops(found: Sequence[Comparison]) -> _Measured:
    return _measured([(np.nan if c.drop is None else c.drop, c.interval) for c in found], 1.0)


def _measured(found: Sequence[tuple[float, Interval | None]], sign: float) -> _Measured:
    """NaN stands for an interval that there is not."""
    rows = [(v, np.nan, np.nan) if i is None else (v, v - i.low, i.high - v) for v, i in found]
    value, down, up = np.array(rows, np.float64).T
    return _Measured(value=sign * value, down=down if sign > 0 else up, up=up if sign > 0 else down)


def _widest(parts: Sequence[tuple[tuple[str, ...], np.ndarray]]) -> tuple[float, str]:
    """The largest difference, and the group at its worse end; nobody where there is none."""
    groups, values = max(parts, key=lambda part: float(np.ptp(part[1])))
    width = float(np.ptp(values))
    return width, groups[int(values.argmin())] if width > 0 else ""


def _growth_interval(parts: Sequence[_Part], confidence: float) -> Interval | None:
    """See the head of this file; None where a group has no interval."""
    cells = [cell for part in parts for cell in (part.before, part.after, part.drop)]
    if not all(np.isfinite([cell.value, cell.down, cell.up]).all() for cell in cells):
        return None
    error = 1 - confidence
    pairs = sum(len(part.groups) * (len(part.groups) - 1) // 2 for part in parts)
    wide = critical_value(1 - error * _SHARE_FOR_PAIRS / 4 / pairs) / critical_value(confidence)
    after, surely = _may_be_widest([part.after.stretched(wide) for part in parts])
    before, _ = _may_be_widest([part.before.stretched(wide) for part in parts])
    slightly = critical_value(1 - error * (1 - _SHARE_FOR_PAIRS)) / critical_value(confidence)
    low = _lower(parts, before, after, slightly, surely)
    return Interval(low=low, high=_upper(parts, after, slightly), confidence=confidence)


def _may_be_widest(parts: Sequence[_Measured]) -> tuple[list[np.ndarray], float]:
    """For each metric, which (better, worse) pairs may be those furthest apart, ``(k, k)`` bool.

    And how far apart those are at least.
    """
    lows, highs = [_low(part) for part in parts], [_high(part) for part in parts]
    surely = max(0.0, *(float(low.max()) for low in lows))
    may_be = [
        np.logical_and.outer((high >= 0).all(axis=1), (low <= 0).all(axis=1))
        & (high >= surely)
        & ~np.eye(len(low), dtype=bool)
        for low, high in zip(lows, highs, strict=True)
    ]
    return may_be, surely


def _upper(parts: Sequence[_Part], after: Sequence[np.ndarray], stretch: float) -> float:
    """The largest growth that any pair that may be furthest apart after allows."""
    drops = [part.drop.stretched(stretch) for part in parts]
    return max(
        float(_high(_turned(d))[pairs].max()) for d, pairs in zip(drops, after, strict=True) if pairs.any()
    )


def _lower(
    parts: Sequence[_Part],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    stretch: float,
    surely: float,
) -> float:
    """The least growth over the pairs that may be furthest apart before.

    A pair that may be so after as well is followed through, paired; of another, only its gap before counts,
    against the least gap after. Adding the two reaches holds however the two models hang together.
    """
    least = [
        float(_low(part.after.stretched(stretch))[pairs].min())
        for part, pairs in zip(parts, after, strict=True)
        if pairs.any()
    ]
    still = max(surely, min(least))
    bounds = [
        np.where(
            may_be_after,
            _low(_turned(part.drop.stretched(stretch))),
            still - _high(part.before.stretched(stretch)),
        )[may_be_before]
        for part, may_be_before, may_be_after in zip(parts, before, after, strict=True)
    ]
    return float(np.concatenate(bounds).min())


def _turned(drop: _Measured) -> _Measured:
    """Minus the drop: a pair's growth is the drop of the second less that of the first."""
    return _Measured(value=-drop.value, down=drop.up, up=drop.down)


def _low(of: _Measured) -> np.ndarray:
    """Lower end of the first less the second, for every two groups, ``(k, k)``."""
    ends: np.ndarray = np.subtract.outer(of.value, of.value) - np.hypot.outer(of.down, of.up)
    return ends


def _high(of: _Measured) -> np.ndarray:
    """Upper end of the first less the second."""
    ends: np.ndarray = np.subtract.outer(of.value, of.value) + np.hypot.outer(of.up, of.down)
    return ends
