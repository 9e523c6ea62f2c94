"""The figures of docs/explain/gates.md that are not simulated; test_stats_simulation.py has those."""

from __future__ import annotations

import re
from pathlib import Path

from pastille import policy
from pastille.stats.power import cases_needed, exact_cases_needed
from pastille.stats.proportions import tango

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/explain/gates.md").read_text()


def test_the_cases_needed_are_those_that_pastille_power_prints() -> None:
    limits = [tier.max_drop for tier in policy.TIERS.values()]
    rows = re.findall(r"^\| (\d+) % \| (.+) \|$", PAGE, re.MULTILINE)
    assert [int(percent) for percent, _ in rows] == [0, 1, 2, 5, 10]
    for percent, cells in rows:
        expected = [exact_cases_needed(int(percent) / 100, limit, confidence=0.95) for limit in limits]
        assert [int(cell.replace(",", "")) for cell in cells.split(" | ")] == expected


def test_the_smallest_sizes_are_those_without_a_change() -> None:
    fewest = [cases_needed(0.0, limit, confidence=0.95) for limit in (0.005, 0.01, 0.02, 0.05)]
    assert f"points of a share | {', '.join(map(str, fewest))} |" in PAGE


def test_the_formula_is_compared_rightly() -> None:
    said = re.search(r"([\d,]+) instead of ([\d,]+), and ([\d,]+) instead of ([\d,]+)", PAGE)
    assert said is not None
    found = [int(number.replace(",", "")) for number in said.groups()]
    for discordance, (formula, exact) in zip((0.02, 0.01), (found[:2], found[2:]), strict=True):
        assert formula == cases_needed(discordance, 0.01, confidence=0.95)
        assert exact == exact_cases_needed(discordance, 0.01, confidence=0.95)


def test_100_unchanged_cases_allow_what_is_said() -> None:
    assert f"up to {100 * tango(0, 0, 100, 0.95).high:.1f} points" in PAGE


def test_every_command_that_is_shown_exists() -> None:
    for test in re.findall(r"tests/\S+\.py", PAGE):
        assert (ROOT / test).exists()
    for script in re.findall(r"\.venv/bin/python (scripts/\w+)", PAGE):
        assert (ROOT / script).exists()
