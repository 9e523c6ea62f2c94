"""``pastille triton``: a bundle for a fleet that runs NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pastille.cli.console import out, reports_errors, show_json
from pastille.cli.options import AsJson, examples

EPILOG = examples("pastille triton bundle/ models/", "pastille triton bundle/ models/ --version 2")


@reports_errors
def triton(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", show_default=False)],
    repository: Annotated[
        Path, typer.Argument(help="The model repository; other models in it stay.", show_default=False)
    ],
    version: Annotated[int, typer.Option(min=1, help="Folder of the model file.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows that one request may have.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Write a bundle as a model repository of Triton, which then runs it without fallback and alarms."""
    from pastille.bundle.triton import write_triton_repository
    from pastille.cli.shown import as_data

    written = write_triton_repository(bundle, repository, version=version, max_batch=max_batch)
    if as_json:
        show_json([as_data(model) for model in written])
        return
    for model in written:
        out.print(f"{model.folder}: {model.variant}", markup=False)
