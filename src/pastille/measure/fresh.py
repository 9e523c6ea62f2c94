"""What `footprint` starts: a process that loads one file, answers once, and says what that cost.

``python -m pastille.measure.fresh REQUEST`` with REQUEST a JSON object; the answer is a JSON object on
stdout. Everything is imported only when its time is taken.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any


def main(request: str) -> None:
    """Measure this process, and print what was found.

    Args:
        request: JSON with ``file`` and ``inputs`` (an ``.npz``), or null for the import alone, and
            ``threads``.
    """
    start = perf_counter()
    import numpy as np

    from pastille.runtime import ONNXRUNTIME, load

    version = ONNXRUNTIME.version  # imports it
    import_ms = (perf_counter() - start) * 1e3
    asked = json.loads(request)
    found: dict[str, Any] = {"version": version, "import_ms": import_ms, "cold_start_ms": 0.0}
    if asked["file"] is not None:
        with np.load(asked["inputs"], allow_pickle=False) as archive:
            inputs = dict(archive)
        start = perf_counter()
        load(Path(asked["file"]), threads=asked["threads"])(inputs)
        found["cold_start_ms"] = (perf_counter() - start) * 1e3
    sys.stdout.write(json.dumps(found | {"peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Peak resident memory of this process.

    Linux's ``ru_maxrss`` starts from what the parent held when it started us, which may be far more; the
    high-water mark in ``/proc`` is our own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


if __name__ == "__main__":
    main(sys.argv[1])
