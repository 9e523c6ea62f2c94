"""``pastille ablate``: what each stage of a finished run contributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pastille.cli.console import out, progress, reports_errors, show_json, strangers_aside
from pastille.cli.options import AsJson, Leakage, Overrides, Quiet, RecipePath, examples

if TYPE_CHECKING:
    from pastille.runner.ablation import Ablation
    from pastille.values import LeftOut

EPILOG = examples("pastille ablate recipe.yaml", "pastille ablate recipe.yaml --json")


@reports_errors
def ablate(
    recipe: RecipePath,
    allow_leakage: Leakage = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what each stage of a finished run contributed: its plan without one stage after the other.

    On validation alone; the table is added to the run's report. Killed and started again, it goes on.
    """
    from pastille import policy
    from pastille.recipe import check_files, read_recipe

    asked = read_recipe(recipe, overrides or ())
    policy.check_run(asked)
    check_files(asked, recipe.parent)
    from pastille.runner.ablation import ablate as carry_out

    with strangers_aside():
        found = carry_out(asked, recipe.parent, allow_leakage=allow_leakage, progress=progress(quiet=quiet))
    if as_json:
        show_json(ablation_json(found))
    else:
        show_ablation(found)


def ablation_json(found: Ablation) -> dict[str, Any]:
    """An ablation for a program."""
    from pastille.cli.shown import as_data

    return {
        "directory": str(found.directory),
        "report": str(found.report),
        "rows": [as_data(row) for row in found.rows],
        "impossible": list(found.impossible),
    }


def show_ablation(found: Ablation) -> None:
    """A row for the whole plan and for each stage that was left out."""
    from pastille.vocabulary import spoken

    head = ("without", spoken(found.rows[0].metric), "worse by", "size", "speed", "on validation")
    rows = [head, *(_cells(row) for row in found.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for (
        name,
        *cells,
    ) in rows:  # lines of their own: a table would break its cells where the terminal is narrow
        figures = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        out.print("  ".join([name.ljust(widths[0]), *figures[:-1], cells[-1]]), markup=False)
    for sentence in found.impossible:
        out.print(sentence, markup=False)
    out.print(f"report  {found.report}", markup=False)


def _cells(row: LeftOut) -> tuple[str, ...]:
    from pastille.cli.shown import bytes_text, value_text

    speed = f"{row.speedup.ratio:.2f}×" if row.speedup else "–"
    name = f"{row.index} {row.stage}" if row.index else "(the whole plan)"
    return (
        name,
        value_text(row.metric, row.estimate.value),
        _worse(row),
        bytes_text(row.size_bytes),
        speed,
        row.status,
    )


def _worse(row: LeftOut) -> str:
    """How much worse the result is without the stage, with its interval."""
    from pastille.report.text import drop, drop_span

    span = drop_span(row.metric, row.interval)
    return drop(row.metric, row.worse) + (f" ({span})" if span else "")
