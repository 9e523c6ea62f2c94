"""The command line: the only place that prints, parses arguments and exits."""

from __future__ import annotations

import os


def main() -> None:
    """Entry point of the ``pastille`` command."""
    # Read once, when torch loads its OpenMP. Threads that wait by spinning take the core from the
    # thread that works as soon as the machine does anything else: up to five times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Torch would warn in every training that it looks for parameters that were not used.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pastille.cli.app import app

    app()
