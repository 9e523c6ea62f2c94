"""How often the monitor's alarms are false, and how soon they come: simulated.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/alarms.py           # minutes; writes benchmarks/alarms.csv
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/alarms.py --quick   # seconds; prints, writes nothing

The full run also fills the tables of docs/explain/monitoring.md. What a server would do is done with the
functions that it uses; beside it stands what is done elsewhere, for comparison. A seed per cell.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from alarms_cells import MOST, Setting, Simulate, as_csv, filled
from scipy.special import betaln, xlog1py, xlogy

from pastille.stats.confidence import quantile_bins, quantile_grid
from pastille.stats.drift import bin_counts, ks_distance, ks_limit, psi, psi_limit
from pastille.stats.drift_check import DriftCheck
from pastille.stats.eprocess import HELD_BACK, HORIZON, bets_beyond, held_back, played
from pastille.stats.normal import critical_value
from pastille.stats.sensitivity_check import holm_limits
from pastille.stats.sequential import Side, Tally, after_block, labels_per_block
from pastille.values.reference import VariantReference

ROOT = Path(__file__).resolve().parents[1]
CSV, PAGE = ROOT / "benchmarks/alarms.csv", ROOT / "docs/explain/monitoring.md"
LIMIT, LEVEL = 0.05, 0.01


# --- A rate that may not exceed its limit


def delays(
    rng: np.random.Generator,
    runs: int,
    rate: float,
    *,
    calm: int = 0,
    fresh: float = HELD_BACK / HORIZON,
    most: int = HORIZON,
) -> np.ndarray:
    """Cases until the alarm, ``(runs,)``; infinite where there is none. ``calm`` cases at 1 % come before."""
    bets, kept = bets_beyond(LIMIT), HELD_BACK if fresh else 0.0
    stakes = np.tile(bets.weights * (1 - kept), (runs, 1))
    for _ in range(calm // 100):
        stakes = played(stakes, bets, rng.binomial(100, 0.01, runs), 100, fresh=fresh)
    found, going = np.full(runs, np.inf), np.arange(runs)
    for n in range(1, most + 1):
        stakes = played(stakes, bets, (rng.random(len(going)) < rate).astype(int), 1, fresh=fresh)
        over = stakes.sum(axis=1) + (held_back(calm + n) if fresh else 0.0) >= 1 / LEVEL
        found[going[over]] = n
        going, stakes = going[~over], stakes[~over]
    return found


def window_fires(rng: np.random.Generator, runs: int, rate: float) -> float:
    """More than 5 % of the last 100, looked at after each of 5,000 cases."""
    total = (rng.random((runs, HORIZON)) < rate).cumsum(axis=1)
    last = total[:, 99:] - np.pad(total[:, :-100], ((0, 0), (1, 0)))
    return float((last > LIMIT * 100).any(axis=1).mean())


def rate_settings(runs: int) -> Iterator[Setting]:
    """False alarms and delays of the disagreement alarm."""
    for rate in (0.01, 0.03, 0.05):
        row, promised = f"{100 * rate:g} %", LEVEL
        yield Setting(
            table="rate",
            row=row,
            column="alarm within 5,000, %",
            runs=runs,
            simulate=lambda rng, n, rate=rate: float(np.isfinite(delays(rng, n, rate)).mean()),
            promised=promised,
        )
        yield Setting(
            table="rate",
            row=row,
            column="more than 5 of the last 100, %",
            runs=min(runs, 1000),
            simulate=lambda rng, n, rate=rate: window_fires(rng, n, rate),
        )
    for rate in (0.07, 0.1, 0.2, 0.5):
        for column, calm, fresh in (
            ("from the start, cases", 0, HELD_BACK / HORIZON),
            ("after 100,000 calm ones, cases", 100_000, HELD_BACK / HORIZON),
            ("after those, without fresh stakes, cases", 100_000, 0.0),
        ):
            yield Setting(
                table="delay",
                row=f"{100 * rate:g} %",
                column=column,
                runs=min(runs, 1000),
                simulate=lambda rng, n, rate=rate, calm=calm, fresh=fresh: float(
                    np.median(delays(rng, n, rate, calm=calm, fresh=fresh, most=MOST))
                ),
            )


# --- The interval of a rate


def missed(rng: np.random.Generator, runs: int, rate: float) -> float:
    """Share of runs in which the confidence sequence ever leaves the true rate out, in 5,000 looks."""
    n = np.arange(1, HORIZON + 1)
    k = (rng.random((runs, HORIZON)) < rate).cumsum(axis=1)
    return float(refuted(k, n, rate, 0.95).any(axis=1).mean())


def refuted(k: np.ndarray, n: np.ndarray, rate: float, confidence: float) -> np.ndarray:
    """Whether `rate_sequence` leaves a rate out, for many counts at once."""
    mixed = betaln(0.5 + k, 0.5 + n - k) - betaln(0.5, 0.5)
    return np.asarray(xlogy(k, rate) + xlog1py(n - k, -rate) < mixed + math.log1p(-confidence))


def missed_by_wilson(rng: np.random.Generator, runs: int, rate: float) -> float:
    """The same of Wilson's interval, looked at after every case from the 30th on."""
    n = np.arange(1, HORIZON + 1)
    off = np.abs((rng.random((runs, HORIZON)) < rate).cumsum(axis=1) - n * rate)
    outside = off > critical_value(0.95) * np.sqrt(n * rate * (1 - rate))
    return float(outside[:, 29:].any(axis=1).mean())


def sequence_settings(runs: int) -> Iterator[Setting]:
    """How often an interval is wrong at some look."""
    for rate in (0.01, 0.05, 0.3):
        given = {"table": "sequence", "row": f"{100 * rate:g} %", "runs": min(runs, 2000)}
        yield Setting(
            **given,
            column="confidence sequence, %",
            simulate=lambda rng, n, rate=rate: missed(rng, n, rate),
            promised=0.05,
        )
        yield Setting(
            **given,
            column="Wilson's interval, %",
            simulate=lambda rng, n, rate=rate: missed_by_wilson(rng, n, rate),
        )


# --- Drift of confidences

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: Mapping[str, Draw] = {
    "spread": lambda rng, n: rng.beta(8, 2, n),
    "a third saturated at 1": lambda rng, n: np.minimum(rng.beta(8, 2, n) * 1.18, 1.0),
    "rounded to 0.01": lambda rng, n: rng.beta(8, 2, n).round(2),
}


def reference_of(values: np.ndarray) -> VariantReference:
    """What a bundle keeps of the confidences of validation."""
    edges, shares = quantile_bins(values)
    return VariantReference(
        variant="int8",
        cases=len(values),
        edges=tuple(edges.tolist()),
        shares=tuple(shares.tolist()),
        grid=tuple(quantile_grid(values).tolist()),
        sensitivity=(),
    )


def look_fires(draw: Draw, n: int, m: int, kind: str) -> Simulate:
    """How often one look exceeds its limit though nothing drifts."""

    def one(rng: np.random.Generator) -> bool:
        values, seen = draw(rng, n), draw(rng, m)
        if kind == "ks":
            return ks_distance(values, quantile_grid(seen), m) > ks_limit(n, m, LEVEL)
        edges, shares = quantile_bins(seen)
        found = float(psi(bin_counts(values, edges), shares * m))
        return found > (psi_limit(n, m, len(shares), LEVEL) if kind == "psi" else 0.1)

    return lambda rng, runs: sum(one(rng) for _ in range(runs)) / runs


def watch_fires(draw: Draw, m: int, *, sliding: bool) -> Simulate:
    """How often 30 blocks of 500 raise an alarm though nothing drifts; or some look, every 100 cases."""

    def one(rng: np.random.Generator) -> bool:
        check = DriftCheck(reference_of(draw(rng, m)))
        for _ in range(150):
            check.update(draw(rng, 100))
            look = check.finding() if sliding and check.alarm is False else None
            over = look is not None and look.psi is not None and look.psi > (look.psi_limit or 0.0)
            if check.alarm or over:
                return True
        return False

    return lambda rng, runs: sum(one(rng) for _ in range(runs)) / runs


def drift_settings(runs: int) -> Iterator[Setting]:
    """One look, and many."""
    for shape, draw in SHAPES.items():
        for n in (50, 100, 500, 2000):
            for kind, column, promised in (
                ("psi", "PSI above its limit, %", 0.015),
                ("ks", "KS above its limit, %", LEVEL),
                ("0.1", "PSI above 0.1, %", None),
            ):
                yield Setting(
                    table="look",
                    row=f"{shape} | {n:,}",
                    column=column,
                    runs=runs,
                    simulate=look_fires(draw, n, 1000, kind),
                    promised=promised,
                )
        for m in (500, 5000):
            given = {"table": "watch", "row": f"{shape} | {m:,}"}
            yield Setting(
                **given,
                column="alarm in 30 blocks, %",
                runs=runs // 2,
                simulate=watch_fires(draw, m, sliding=False),
                promised=LEVEL,
            )
            yield Setting(
                **given,
                column="some look at a sliding window above its 1 % limit, %",
                runs=max(20, runs // 40),
                simulate=watch_fires(draw, m, sliding=True),
            )


# --- A/B


def compared(a: float, b: float, *, share_b: float, side: Side, daily: int = 40, days: int = 30) -> Simulate:
    """How often two bundles with these accuracies are told apart in 30 days, at 5 %."""
    n_a, n_b = labels_per_block(share_b)
    blocks = daily * days // (n_a + n_b)

    def simulate(rng: np.random.Generator, runs: int) -> float:
        tally, most = Tally(), np.zeros(runs)
        for _ in range(blocks):
            yes = rng.binomial(n_a, a, runs), rng.binomial(n_b, b, runs)
            tally = after_block(tally, *yes, per_block=(n_a, n_b), side=side)
            most = np.maximum(most, tally.log_evidence)
        return float((most >= math.log(20)).mean())

    return simulate


def compared_daily(rate: float, *, daily: int = 40, days: int = 30) -> Simulate:
    """How often the usual test of two proportions, made every day, finds a difference that is not there."""

    def simulate(rng: np.random.Generator, runs: int) -> float:
        n = daily // 2 * np.arange(1, days + 1)
        a, b = (rng.binomial(daily // 2, rate, (runs, days)).cumsum(axis=1) for _ in "ab")
        mean = (a + b) / (2 * n)
        with np.errstate(invalid="ignore"):
            score = np.abs(a - b) / np.sqrt(2 * n * mean * (1 - mean))
        return float((score > critical_value(0.95)).any(axis=1).mean())

    return simulate


def ab_settings(runs: int) -> Iterator[Setting]:
    """Forty labels a day for thirty days."""
    for rate in (0.5, 0.9, 0.98):
        for share in (0.5, 0.1):
            row = f"{100 * rate:g} % | {100 * share:g} %"
            for column, b, side, promised in (
                ("no difference: alarm, %", rate, "different", 0.05),
                ("no difference: alarm that b is worse, %", rate, "b_worse", 0.05),
                ("b 2 points better: alarm that b is worse, %", rate + 0.02, "b_worse", 0.05),
                ("b 10 points worse: alarm that b is worse, %", rate - 0.1, "b_worse", None),
            ):
                yield Setting(
                    table="ab",
                    row=row,
                    column=column,
                    runs=runs,
                    simulate=compared(rate, b, share_b=share, side=side),  # type: ignore[arg-type]
                    promised=promised,
                )
        yield Setting(
            table="ab",
            row=f"{100 * rate:g} % | 50 %",
            column="no difference: found by a test every day, %",
            runs=runs,
            simulate=compared_daily(rate),
        )


# --- Sensitivity of groups


def harmed(rates: tuple[float, ...], *, positives: int, corrected: bool, first: bool) -> Simulate:
    """How often some group (or the first) raises an alarm; ``rates`` are the shares that are missed."""
    bets, groups = bets_beyond(0.1), len(rates)

    def simulate(rng: np.random.Generator, runs: int) -> float:
        stakes, most = np.tile(bets.weights * (1 - HELD_BACK), (runs, groups, 1)), np.ones((runs, groups))
        for n in range(1, positives + 1):
            stakes = played(stakes, bets, (rng.random((runs, groups)) < rates).astype(int), 1)
            most = np.maximum(most, stakes.sum(axis=2) + held_back(n))
        limits = np.array([holm_limits(row, LEVEL) for row in most]) if corrected else 1 / LEVEL
        return float((most >= limits)[:, : 1 if first else None].any(axis=1).mean())

    return simulate


def group_settings(runs: int, sizes: tuple[int, ...]) -> Iterator[Setting]:
    """Floor 90 %: all groups there, or one of them well below."""
    for groups in (1, 4, 10):
        for positives in sizes:
            at_floor, one_below = (0.1,) * groups, (0.3, *(0.05,) * (groups - 1))
            for column, rates, corrected, promised in (
                ("all at the floor: an alarm, %", at_floor, True, LEVEL),
                ("all at the floor: an alarm without Holm, %", at_floor, False, None),
                ("one at 70 %: its alarm, %", one_below, True, None),
            ):
                yield Setting(
                    table="groups",
                    row=f"{groups} | {positives}",
                    column=column,
                    runs=runs,
                    simulate=harmed(
                        rates, positives=positives, corrected=corrected, first=rates is one_below
                    ),
                    promised=promised,
                )


# --- All of it


def settings(*, quick: bool) -> list[Setting]:
    """Every cell, with as many runs as there is time for."""
    runs = 100 if quick else 4000
    return [
        *rate_settings(runs),
        *sequence_settings(runs),
        *drift_settings(runs),
        *ab_settings(5 * runs),
        *group_settings(runs // 4, (30, 100) if quick else (30, 100, 1000)),
    ]


def main() -> None:
    """Simulate all cells, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    cells = []
    for setting in settings(quick=quick):
        cells.append(setting.cell())
        print(*(cells[-1].table, cells[-1].row, cells[-1].column, cells[-1].found), sep=" | ", flush=True)
    if not quick:
        CSV.write_text(as_csv(cells))
        PAGE.write_text(filled(PAGE.read_text(), cells))


if __name__ == "__main__":
    main()
