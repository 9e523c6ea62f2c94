"""What benchmarks/alarms.py simulates, as a table of a page and as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

MOST = 20_000  # cases after which no alarm is waited for

Simulate = Callable[[np.random.Generator, int], float]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One simulated setting: a share of the runs, or a median number of cases."""

    table: str
    row: str
    column: str
    runs: int
    found: float
    promised: float | None  # the largest share that is promised

    @property
    def holds(self) -> bool:
        """Within 2.6 standard errors of the promise, which 1 in 200 cells exceeds by chance."""
        if self.promised is None:
            return True
        return self.found <= self.promised + 2.6 * math.sqrt(self.promised * (1 - self.promised) / self.runs)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A cell before it is simulated."""

    table: str
    row: str
    column: str
    runs: int
    simulate: Simulate
    promised: float | None = None

    def cell(self) -> Cell:
        """Simulate it; the same seed in any order."""
        rng = np.random.default_rng(zlib.crc32(f"{self.table}|{self.row}|{self.column}".encode()))
        found = self.simulate(rng, self.runs)
        given = {name: getattr(self, name) for name in ("table", "row", "column", "runs", "promised")}
        return Cell(found=found, **given)


HEADS: Mapping[str, str] = {
    "rate": "true rate",
    "delay": "true rate",
    "sequence": "true rate",
    "look": "confidences | cases in the window",
    "watch": "confidences | cases of validation",
    "ab": "accuracy of a | labels of b",
    "groups": "groups | labelled positives in each",
}


def table(cells: list[Cell], name: str) -> str:
    """One table in Markdown; **bold** where more was found than promised."""
    held = [cell for cell in cells if cell.table == name]
    columns = list(dict.fromkeys(cell.column for cell in held))
    found = {(cell.row, cell.column): cell for cell in held}
    head = [*HEADS[name].split(" | "), *columns]
    rows = (
        [*row.split(" | "), *(shown(found.get((row, column))) for column in columns)]
        for row in dict.fromkeys(cell.row for cell in held)
    )
    lines = [head, ["--:"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(cell: Cell | None) -> str:
    """A share in per cent, or a number of cases."""
    if cell is None:
        return ""
    if cell.column.endswith("cases"):
        return f"{cell.found:,.0f}" if math.isfinite(cell.found) else f"over {MOST:,}"
    text = f"{100 * cell.found:.1f}"
    return text if cell.holds else f"**{text}**"


def filled(page: str, cells: list[Cell]) -> str:
    """The page with every table anew."""
    for name in HEADS:
        lines = f"<!-- table {name} -->\n{table(cells, name)}\n"
        page = re.sub(rf"<!-- table {name} -->\n(\|[^\n]*\n)*", lines.replace("\\", r"\\"), page)
    return page


def as_csv(cells: list[Cell]) -> str:
    """Every cell, one line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "runs", "found", "promised"])
    for cell in cells:
        promised = "" if cell.promised is None else f"{cell.promised:g}"
        writer.writerow([cell.table, cell.row, cell.column, cell.runs, f"{cell.found:.6g}", promised])
    return text.getvalue()


def from_csv(text: str) -> list[Cell]:
    """What `as_csv` wrote."""
    return [
        Cell(
            table=row["table"],
            row=row["row"],
            column=row["column"],
            runs=int(row["runs"]),
            found=float(row["found"]),
            promised=float(row["promised"]) if row["promised"] else None,
        )
        for row in csv.DictReader(io.StringIO(text))
    ]
