"""What `emulated` starts, on another CPU too: a process that answers cases with numpy and ONNX Runtime alone.

``python -I answering.py REQUEST`` with REQUEST a JSON file: ``jobs``, each with a ``model``, an npz of its
``inputs``, where to write its ``answers`` and how many cases to ask at once (``batch``), ``threads``, and the
``seconds`` after which no further batch is begun (null: all are). What was found is printed as a JSON object.
Pastille itself is not imported: the other CPU's Python need not have it.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime


def main(request: str) -> None:
    """Do every job of a request, and print what was found.

    Args:
        request: Path of the JSON file.
    """
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    start = perf_counter()
    for job in asked["jobs"]:
        with np.load(job["inputs"], allow_pickle=False) as archive:
            inputs = dict(archive)
        np.savez(job["answers"], **_answers(job, inputs, asked["threads"], asked["seconds"]))
    found = {
        "seconds": perf_counter() - start,
        "version": onnxruntime.__version__,
        "machine": platform.machine(),
    }
    sys.stdout.write(json.dumps(found))


def _answers(
    job: dict[str, Any], inputs: dict[str, np.ndarray], threads: int, seconds: float | None
) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(
        job["model"], _options(threads), providers=["CPUExecutionProvider"]
    )
    cases, batch = len(next(iter(inputs.values()))), job["batch"]
    parts: list[Any] = []
    start = perf_counter()
    for at in range(0, cases, batch):
        if parts and seconds is not None and perf_counter() - start > seconds:
            break
        parts.append(session.run(None, {name: _rows(x, at, batch) for name, x in inputs.items()}))
    outputs = [np.concatenate(column)[:cases] for column in zip(*parts, strict=True)]
    return {node.name: array for node, array in zip(session.get_outputs(), outputs, strict=True)}


def _rows(array: np.ndarray, at: int, batch: int) -> np.ndarray:
    """A batch of cases, filled up with the last one: a file may take no smaller batch."""
    return array[np.minimum(np.arange(at, at + batch), len(array) - 1)]


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # ONNX Runtime's errors share no other base, and have several lines
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
