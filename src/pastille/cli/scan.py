"""``pastille scan``: its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pastille.cli.console import progress, reports_errors, show_json, strangers_aside
from pastille.cli.options import AsJson, Leakage, Overrides, Quiet, RecipePath, examples

EPILOG = examples(
    "pastille scan recipe.yaml",
    "pastille scan recipe.yaml --technique pruning --levels 0.3,0.6 -o pruning.json",
    "pastille scan recipe.yaml --technique quantization --cases 512",
)


@reports_errors
def scan(
    recipe: RecipePath,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Written as JSON, with a heat map of the same name as HTML."),
    ] = Path("scan.json"),
    technique: Annotated[str, typer.Option(help="pruning, quantization or both.")] = "both",
    levels: Annotated[
        str, typer.Option(metavar="S1,S2", help="Sparsities that each group of channels is tried at.")
    ] = "0.25,0.5,0.75",
    bits: Annotated[
        str, typer.Option(metavar="B1,B2", help="Bits that each layer's weights are tried in.")
    ] = "8,4",
    cases: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Of validation, asked for one change at most.  [default: a seventh of it, from 64 to 512]",
        ),
    ] = None,
    allow_leakage: Leakage = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much each layer minds being pruned or quantized; killed and started again, it goes on."""
    from pastille.cli.scanning import checked_settings, scanned, show_scan
    from pastille.cli.shown import as_data
    from pastille.recipe import read_recipe

    asked = read_recipe(recipe, overrides or ())
    settings = checked_settings(asked, technique=technique, levels=levels, bits=bits, cases=cases)
    with strangers_aside():
        found = scanned(
            asked,
            recipe.parent,
            settings,
            output,
            allow_leakage=allow_leakage,
            progress=progress(quiet=quiet),
        )
    if as_json:
        show_json(as_data(found))
    else:
        show_scan(found, output)
