"""The command line: the only place that prints, parses arguments and exits."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``pastille`` command."""
    from pastille.cli.app import app

    app()
