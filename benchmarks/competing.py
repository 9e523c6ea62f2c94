"""Competitors that have environments of their own: what quantizes there, and what is timed there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, perf_counter_ns

import numpy as np
import torch

from pastille.measure.latency import median_interval
from pastille.runtime import Session
from pastille.values import Interval

SCRIPTS = Path(__file__).parent / "competitors"
FEWEST, MOST = 9, 200  # pairs
BLOCK_MS, MOST_CALLS = 2.0, 20

Method = Callable[[Path, Path, np.ndarray], None]


def quantizer(python: Path, script: str, *first: str) -> Method:
    """One of the scripts in `competitors`, as a method.

    Args:
        python: Of the competitor's environment.
        script: Its name without the ending.
        *first: Arguments in place of the float file.
    """

    def method(source: Path, target: Path, samples: np.ndarray) -> None:
        cases = target.with_suffix(".npz")
        np.savez(cases, input=samples)
        asked = [
            str(python),
            str(SCRIPTS / f"{script}.py"),
            *(first or (str(source),)),
            str(cases),
            str(target),
        ]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])

    return method


def fasterai(python: Path, name: str, model: torch.nn.Module, folder: Path) -> Method:
    """Fasterai takes a PyTorch model: the architecture's name and its weights.

    Args:
        python: Of its environment.
        name: Of the architecture.
        model: Its weights are used.
        folder: Where those are put.
    """
    weights = folder / f"{name}.pt"
    torch.save(model.state_dict(), weights)
    return quantizer(python, "quantize_fasterai", name, str(weights))


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A model in OpenVINO, in a process of its own."""

    process: subprocess.Popen[str]
    version: str
    precision: str  # that OpenVINO computes in what is not int8

    def block_ns(self, calls: int) -> float:
        """Median time of that many calls, after one that is not counted."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@contextmanager
def openvino(python: Path, path: Path, batch: np.ndarray, threads: int) -> Iterator[Elsewhere]:
    """Load a file in OpenVINO, with the shape of one batch.

    Args:
        python: Of its environment.
        path: An ONNX file or OpenVINO's own.
        batch: ``(N, ...)``, what it is asked.
        threads: That one call may use.
    """
    inputs = path.with_suffix(".batch.npz")
    np.savez(inputs, input=batch)
    asked = [str(python), str(SCRIPTS / "time_openvino.py"), str(path), str(inputs), str(threads)]
    pipe = subprocess.PIPE
    with subprocess.Popen(asked, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        line = process.stdout.readline().split() if process.stdout else []
        if len(line) != 2:
            raise RuntimeError(f"OpenVINO does not take {path.name}")
        try:
            yield Elsewhere(process=process, version=line[0], precision=line[1])
        finally:
            process.kill()


def compare_elsewhere(
    baseline: Session, other: Elsewhere, batch: dict[str, np.ndarray], *, seconds: float
) -> tuple[float, Interval, int]:
    """How many times faster than a file in this process; as `pastille.measure.latency.compare`.

    Each process times its own calls, so that the way between them does not count; they take turns, and the
    one that waits does not run.

    Args:
        baseline: In this process.
        other: In its own.
        batch: Every call is given this one.
        seconds: To spend; `FEWEST` pairs are timed even if they take longer.

    Returns:
        The median ratio, its interval, and the number of pairs.
    """
    calls = [_calls(lambda n: _block_ns(baseline, batch, n)), _calls(other.block_ns)]
    ratios: list[float] = []
    end = perf_counter() + seconds
    while len(ratios) < MOST and (len(ratios) < FEWEST or perf_counter() < end):
        took = [0.0, 0.0]
        for which in (0, 1) if len(ratios) % 2 == 0 else (1, 0):
            took[which] = other.block_ns(calls[1]) if which else _block_ns(baseline, batch, calls[0])
        ratios.append(took[0] / took[1])
    found = np.array(ratios)
    return float(np.median(found)), median_interval(found, confidence=0.95), len(found)


def _calls(block_ns: Callable[[int], float]) -> int:
    quickest_ms = min(block_ns(1), block_ns(1)) / 1e6
    return int(np.clip(np.ceil(BLOCK_MS / max(quickest_ms, 1e-6)), 1, MOST_CALLS))


def _block_ns(session: Session, batch: dict[str, np.ndarray], calls: int) -> float:
    session(batch)
    times = []
    for _ in range(calls):
        begun = perf_counter_ns()
        session(batch)
        times.append(perf_counter_ns() - begun)
    return float(np.median(times))
