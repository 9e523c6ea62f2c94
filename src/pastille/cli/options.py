"""Arguments that several commands take, and how their help ends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_CODES = (
    "Exit codes: 0 done or approved, 1 failure, 2 usage, 3 rejected, 4 inconclusive, "
    "5 integrity, 130 interrupted."
)

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key: --set requirements.risk=low"),
]
Leakage = Annotated[
    bool, typer.Option("--allow-leakage", help="Record a case found in two splits instead of stopping.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads that the runtime may use.")]


def examples(*lines: str) -> str:
    """What a command's help ends with."""
    shown = "\n\n".join(f"  $ {line}" for line in lines)
    return f"Examples:\n\n{shown}\n\n{EXIT_CODES}"
