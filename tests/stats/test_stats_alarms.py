"""benchmarks/alarms.py in reduced form, and that docs/explain/monitoring.md shows what it found."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pastille.stats.confidence_sequence import rate_sequence
from pastille.stats.eprocess import RateAlarm

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/explain/monitoring.md"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("alarms")


@pytest.fixture(scope="module")
def cells(script: ModuleType) -> list[Any]:
    found: list[Any] = importlib.import_module("alarms_cells").from_csv(
        (ROOT / "benchmarks/alarms.csv").read_text()
    )
    return found


def test_false_alarms_are_as_rare_as_promised_and_true_ones_come_soon(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    at_limit = np.isfinite(script.delays(rng, 400, 0.05)).mean()
    assert at_limit <= 0.01 + 2.6 * np.sqrt(0.01 * 0.99 / 400)
    assert script.window_fires(rng, 100, 0.03) > 0.95  # what is done elsewhere
    assert 180 < np.median(script.delays(rng, 300, 0.1, most=2000)) < 260
    assert 30 < np.median(script.delays(rng, 300, 0.2, most=2000)) < 43


def test_a_change_after_a_long_calm_is_noticed(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    assert np.median(script.delays(rng, 100, 0.2, calm=100_000, most=400)) < 130
    assert not np.isfinite(script.delays(rng, 20, 0.2, calm=100_000, fresh=0.0, most=1000)).any()


def test_the_script_counts_what_the_class_does(script: ModuleType) -> None:
    (expected,) = script.delays(np.random.default_rng(5), 1, 0.2)
    alarm, rng = RateAlarm(0.05), np.random.default_rng(5)
    while not alarm.alarm:
        alarm.update(int(rng.random(1)[0] < 0.2))
    assert alarm.n == expected


def test_the_sequence_covers_at_every_look(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    assert script.missed(rng, 300, 0.05) <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 300)
    assert script.missed_by_wilson(rng, 100, 0.05) > 0.3
    for k, n in ((3, 100), (30, 100), (0, 50), (50, 50)):
        for rate in (0.02, 0.1, 0.3, 0.9):
            held = rate_sequence(k, n).low <= rate <= rate_sequence(k, n).high
            assert held != script.refuted(np.array(k), np.array(n), rate, 0.95)


def test_peeking_at_two_bundles_every_day_keeps_the_error(script: ModuleType) -> None:
    rng, reach = np.random.default_rng(0), 2.6 * np.sqrt(0.05 * 0.95 / 2000)
    for share in (0.5, 0.1):
        assert script.compared(0.9, 0.9, share_b=share, side="different")(rng, 2000) <= 0.05 + reach
        assert script.compared(0.9, 0.92, share_b=share, side="b_worse")(rng, 2000) <= 0.05
    assert script.compared(0.9, 0.8, share_b=0.5, side="b_worse")(rng, 300) > 0.9
    assert script.compared_daily(0.9)(rng, 500) > 0.2


def test_watching_thirty_blocks_keeps_the_error(script: ModuleType) -> None:
    rng, draw = np.random.default_rng(0), script.SHAPES["a third saturated at 1"]
    assert script.watch_fires(draw, 1000, sliding=False)(rng, 60) <= 1 / 60
    assert script.watch_fires(draw, 5000, sliding=True)(rng, 5) > 0.1


def test_looking_at_ten_groups_keeps_the_error(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    at_floor = script.harmed((0.1,) * 10, positives=200, corrected=True, first=False)
    assert at_floor(rng, 100) <= 0.01 + 2.6 * np.sqrt(0.01 * 0.99 / 100)
    assert script.harmed((0.4, *(0.05,) * 9), positives=100, corrected=True, first=True)(rng, 30) > 0.9


def test_what_was_found_in_full_is_as_promised(cells: list[Any]) -> None:
    promised = [cell for cell in cells if cell.promised is not None]
    assert len(promised) > 50
    assert [(cell.row, cell.column, cell.found) for cell in promised if not cell.holds] == []


def test_the_figures_of_the_issue_are_reached(cells: list[Any]) -> None:
    found = {(cell.table, cell.row, cell.column): cell for cell in cells}
    at_limit = found["rate", "5 %", "alarm within 5,000, %"]
    assert at_limit.found <= 0.01
    assert at_limit.runs >= 4000
    assert found["delay", "10 %", "from the start, cases"].found <= 235
    assert found["delay", "20 %", "from the start, cases"].found <= 38
    assert all(0.005 <= cell.found <= 0.015 for cell in cells if cell.column == "PSI above its limit, %")


def test_the_page_shows_what_the_csv_holds(script: ModuleType, cells: list[Any]) -> None:
    """If this fails, run benchmarks/alarms.py and commit what it wrote."""
    page = PAGE.read_text()
    assert script.filled(page, cells) == page
    assert set(re.findall(r"<!-- table (\w+) -->", page)) == {cell.table for cell in cells}
    for name in re.findall(r"(?:tests|benchmarks)/\S+?\.(?:py|csv)", page):
        assert (ROOT / name).exists()


def test_the_csv_is_of_the_cells_that_the_script_has(script: ModuleType, cells: list[Any]) -> None:
    asked = script.settings(quick=False)
    assert [(c.table, c.row, c.column, c.runs) for c in cells] == [
        (s.table, s.row, s.column, s.runs) for s in asked
    ]
