"""What a file costs to start: memory and time of fresh processes that load it and answer once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pastille.devices import this_machine
from pastille.errors import InferenceError
from pastille.runtime import ONNXRUNTIME
from pastille.values import Footprint


def footprint(
    path: Path,
    batch: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    repeats: int = 3,
    timeout_s: float = 120.0,
) -> Footprint:
    """Start fresh processes that load a file and answer one batch.

    Args:
        path: The ONNX file.
        batch: ``{name: (N, ...)}``, the only thing asked.
        threads: That the runtime may use.
        repeats: Processes to start; each figure is the median of theirs.
        timeout_s: Seconds that one process may take.

    Returns:
        Peak memory, cold start and import; ``runtime_bytes`` is that of one more process, which
        imports the runtime and loads nothing.

    Raises:
        InferenceError: A process failed, was killed, or took longer than ``timeout_s``.
    """
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **batch)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for any key
        request = {"file": str(path.resolve()), "inputs": str(inputs), "threads": threads}
        runs = [_run(path.name, request, timeout_s) for _ in range(repeats)]
        bare = _run(path.name, request | {"file": None}, timeout_s)
    return Footprint(
        peak_bytes=int(median(run["peak_bytes"] for run in runs)),
        runtime_bytes=int(bare["peak_bytes"]),
        cold_start_ms=median(run["cold_start_ms"] for run in runs),
        import_ms=median(run["import_ms"] for run in [*runs, bare]),
        conditions=this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=bare["version"]),
    )


def _run(name: str, request: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
    # -P: what lies in the current folder must not shadow what is installed.
    command = [sys.executable, "-P", "-m", "pastille.measure.fresh", json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise InferenceError(f"{name}: a fresh process gave no answer within {timeout_s:g} s") from None
    if done.returncode:
        raise InferenceError(f"{name}: a fresh process failed: {_reason(done)}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {done.returncode}"
