"""How often the interval of a gap's growth misses the truth, beside a percentile bootstrap.

    python benchmarks/gap_growth.py [REPEATS]

Prints one row per scenario: the share of repeats in which the upper end lies below the true growth (what
approves wrongly), in which the lower end lies above it (what rejects wrongly), and the mean width, of the
interval of `pastille.stats.gaps` and of a bootstrap of 500 resamples in the first 1,000 repeats. Nominal is
2.5 % at either end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pastille.stats.gaps import gap
from pastille.stats.proportions import tango, wilson
from pastille.values import Comparison, Estimate, Interval

CONFIDENCE = 0.95
BOOTSTRAPPED = 1000
Rates = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Groups, and their rates in each metric."""

    name: str
    sizes: tuple[tuple[int, ...], ...]  # metric, group
    rates: tuple[tuple[Rates, Rates], ...]  # metric, before and after, group
    extra: float = 0.01  # share of cases that change in either direction beside the drop

    @property
    def truth(self) -> float:
        """The true growth."""
        widths = [[max(rates) - min(rates) for rates in of_metric] for of_metric in self.rates]
        return max(after for _, after in widths) - max(before for before, _ in widths)

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Tables of right with both, only the baseline, only the candidate, none; ``(groups, 4)`` each."""
        return [
            np.array(
                [
                    rng.multinomial(n, _chances(before, after, self.extra))
                    for n, before, after in zip(sizes, *rates, strict=True)
                ]
            )
            for sizes, rates in zip(self.sizes, self.rates, strict=True)
        ]


def _chances(before: float, after: float, extra: float) -> list[float]:
    b, c = max(before - after, 0.0) + extra, max(after - before, 0.0) + extra
    return [before - b, b, c, 1 - before - c]


SCENARIOS = (
    Scenario(name="two groups far apart", sizes=((600, 600),), rates=(((0.95, 0.75), (0.95, 0.73)),)),
    Scenario(name="two groups, small gap", sizes=((300, 300),), rates=(((0.9, 0.87), (0.9, 0.85)),)),
    Scenario(name="two groups, true gap zero", sizes=((300, 300),), rates=(((0.9, 0.9), (0.9, 0.88)),)),
    Scenario(name="two groups, sign change", sizes=((300, 300),), rates=(((0.9, 0.87), (0.85, 0.9)),)),
    Scenario(name="two groups, shrinking gap", sizes=((600, 600),), rates=(((0.95, 0.75), (0.95, 0.78)),)),
    Scenario(name="two groups, no change", sizes=((300, 300),), rates=(((0.9, 0.9), (0.9, 0.9)),)),
    Scenario(
        name="five unequal groups",
        sizes=((800, 400, 200, 100, 50),),
        rates=(((0.9, 0.88, 0.92, 0.85, 0.8), (0.9, 0.88, 0.92, 0.85, 0.78)),),
    ),
    Scenario(
        name="five equal groups", sizes=((1000,) * 5,), rates=(((0.9,) * 5, (0.9, 0.9, 0.9, 0.9, 0.88)),)
    ),
    Scenario(name="planted 15, true gap zero", sizes=((800, 200),), rates=(((0.9, 0.9), (0.9, 0.75)),)),
    Scenario(name="planted 15, gap of 5", sizes=((800, 200),), rates=(((0.9, 0.85), (0.9, 0.7)),)),
    Scenario(name="better becomes worse", sizes=((800, 400),), rates=(((0.87, 0.9), (0.87, 0.75)),)),
    Scenario(
        name="equalized odds, three groups",
        sizes=((300, 200, 100), (900, 600, 300)),
        rates=(((0.9, 0.88, 0.85), (0.9, 0.88, 0.83)), ((0.85, 0.82, 0.84), (0.85, 0.82, 0.83))),
    ),
    Scenario(
        name="equalized odds, other metric",
        sizes=((300, 300), (900, 900)),
        rates=(((0.9, 0.86), (0.9, 0.86)), ((0.9, 0.87), (0.9, 0.84))),
    ),
)


@cache
def _estimate(hits: int, n: int) -> Estimate:
    return Estimate(value=hits / n, interval=wilson(hits, n, CONFIDENCE), n=n, method="Wilson")


@cache
def _drop(b: int, c: int, n: int) -> Interval:
    return tango(b, c, n, CONFIDENCE)


def _comparison(metric: int, group: int, table: Sequence[int]) -> Comparison:
    (both, b, c, _), n = table, sum(table)
    return Comparison(
        metric=str(metric),
        where={"group": str(group)},
        n=n,
        baseline=_estimate(both + b, n),
        candidate=_estimate(both + c, n),
        drop=(b - c) / n,
        interval=_drop(b, c, n),
        method="Tango score interval",
    )


def _closed(tables: Sequence[np.ndarray]) -> Interval:
    found = [
        [_comparison(metric, group, table) for group, table in enumerate(of_metric.tolist())]
        for metric, of_metric in enumerate(tables)
    ]
    measured = gap("gap", "group", found, min_group=2, confidence=CONFIDENCE)
    assert measured is not None
    assert measured.interval is not None
    return measured.interval


def _bootstrapped(tables: Sequence[np.ndarray], rng: np.random.Generator) -> Interval:
    before, after = [], []
    for table in tables:
        n = table.sum(axis=1)
        drawn = np.stack([rng.multinomial(k, row / k, size=500) / k for k, row in zip(n, table, strict=True)])
        before.append(np.ptp(drawn[..., 0] + drawn[..., 1], axis=0))
        after.append(np.ptp(drawn[..., 0] + drawn[..., 2], axis=0))
    growth = np.max(after, axis=0) - np.max(before, axis=0)
    low, high = np.quantile(growth, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(low=float(low), high=float(high), confidence=CONFIDENCE)


def _row(found: Sequence[Interval], truth: float) -> str:
    below = np.mean([interval.high < truth - 1e-9 for interval in found])
    above = np.mean([interval.low > truth + 1e-9 for interval in found])
    width = np.mean([interval.high - interval.low for interval in found])
    return f"{100 * below:6.2f} {100 * above:6.2f} {100 * width:6.1f}"


def main(repeats: int) -> None:
    print(f"{'scenario':30} growth |  closed: U<G    L>G  width | bootstrap: U<G    L>G  width")
    for scenario in SCENARIOS:
        rng = np.random.default_rng(0)
        drawn = [scenario.draw(rng) for _ in range(repeats)]
        closed = [_closed(tables) for tables in drawn]
        resampled = [_bootstrapped(tables, rng) for tables in drawn[:BOOTSTRAPPED]]
        rows = " | ".join(f"{_row(found, scenario.truth):>24}" for found in (closed, resampled))
        print(f"{scenario.name:30} {100 * scenario.truth:6.1f} | {rows}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
