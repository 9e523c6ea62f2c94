"""`pastille` on a machine whose clock can be put: ``jumping.py FILE serve …``; FILE holds seconds to add.

Only `time.time` moves, as when somebody sets the wall clock: `time.monotonic` goes on as it did.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def jump(offset: Path) -> None:
    """Put the clock as the file says, read at each look."""
    true = time.time

    def shown() -> float:
        text = offset.read_text()
        return true() + float(text or 0)

    time.time = shown


if __name__ == "__main__":
    where = sys.argv.pop(1)
    jump(Path(where))
    from pastille.cli import main

    main()
