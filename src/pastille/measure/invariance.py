"""Whether a file decides the same however it is asked: alone or in company, with one thread or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from pastille.data.split import Split
from pastille.devices import usable_cores
from pastille.measure.evaluate import answer
from pastille.progress import SILENT, Progress
from pastille.runtime import Session, load
from pastille.runtime.batch_statistics import batch_statistic_nodes
from pastille.stats.decisions import decide
from pastille.values import Cases, Invariance

_ALWAYS: Final = (1, 2, 4)  # batch sizes that are asked beside the benchmarked ones
# Of answers that are no decisions: a change this small, next to how far answers lie apart, is rounding.
_TOLERANCE: Final = 1e-3
_DECIDING: Final = frozenset({"binary", "multiclass", "multilabel", "segmentation"})


def invariance(
    path: Path,
    split: Split,
    cases: Cases,
    *,
    batch_sizes: Iterable[int] = (),
    threads: int | None = None,
    cases_limit: int = 256,
    opened: Callable[[Path, int], Session] | None = None,
    progress: Progress = SILENT,
) -> Invariance:
    """Ask a file the same cases in batches of several sizes and with several threads.

    What is compared with is each case alone on one thread. Every changed decision counts, those that rounding
    tips at a tie as well: whoever asks gets one answer or the other. Of a regression and a custom task, an
    answer counts as changed beyond a thousandth of the standard deviation of all answers.

    Args:
        path: The file.
        split: Where the cases are from.
        cases: Of ``split``.
        batch_sizes: Those that are benchmarked; 1, 2, 4 and the largest of these are asked. A file that takes
            one size only is asked in that alone.
        threads: More than one; by default as many as this process may use, and at least 2.
        cases_limit: How many cases are asked, spread evenly over the split.
        opened: Loads the file for a number of threads; by default as it is.
        progress: Shows every pass over the cases.

    Raises:
        IntegrityError: The file is not what it should be.
        InferenceError: A call failed.
        ValueError: ``threads`` is below 2, ``cases_limit`` below 1, or there are no cases.
    """
    many = max(2, usable_cores()) if threads is None else threads
    if many < 2 or cases_limit < 1 or split.n == 0:
        raise ValueError(
            "threads must be at least 2, and cases_limit and the number of cases at least 1, got "
            f"threads={many}, cases_limit={cases_limit}, {split.n} cases"
        )
    rows = np.unique(np.linspace(0, split.n - 1, min(cases_limit, split.n)).round().astype(np.int64))
    asked = Split(inputs=[split.inputs[int(row)] for row in rows], targets=np.zeros(len(rows)))
    held = _within(cases, rows)
    opening = opened or _load
    sessions = {count: opening(path, count) for count in (1, many)}
    sizes = _sizes(sessions[1].fixed_batch, batch_sizes, len(rows))
    alone = answer(
        sessions[1], asked, batch_size=sizes[0], progress=progress, what=f"asking with batch {sizes[0]}"
    )
    changed, largest = {}, 0.0
    for name, size, count in _ways(sizes, many):
        found = answer(sessions[count], asked, batch_size=size, progress=progress, what=f"asking with {name}")
        changed[name] = int(np.count_nonzero(_changes(alone, found, held)))
        largest = max(largest, float(np.abs(found - alone).max(initial=0.0)))
    return Invariance(
        cases=len(rows),
        batch_sizes=sizes,
        threads=(1, many),
        changed=changed,
        max_abs_error=largest,
        batch_statistics=batch_statistic_nodes(path),
    )


def _load(path: Path, threads: int) -> Session:
    return load(path, threads=threads)


def _within(cases: Cases, rows: np.ndarray) -> Cases:
    return replace(cases, targets=cases.targets[rows], groups={}, subjects=None, strata=None, ids=None)


def _sizes(fixed: int | None, benchmarked: Iterable[int], n: int) -> tuple[int, ...]:
    """Ascending batch sizes that the cases can fill; a file that takes one only has one."""
    if fixed:
        return (fixed,)
    return tuple(sorted({min(size, n) for size in (*_ALWAYS, max(benchmarked, default=1))}))


def _ways(sizes: tuple[int, ...], many: int) -> Iterator[tuple[str, int, int]]:
    """What is compared with the first size on one thread: name, batch size, threads."""
    yield from ((f"batch {size}", size, 1) for size in sizes[1:])
    yield f"{many} threads", sizes[0], many
    if len(sizes) > 1:
        yield f"batch {sizes[-1]}, {many} threads", sizes[-1], many


def _changes(alone: np.ndarray, found: np.ndarray, cases: Cases) -> np.ndarray:
    """Which cases are decided differently, ``(N,)`` bool."""
    if cases.kind in _DECIDING:
        differs = decide(alone, cases) != decide(found, cases)
    else:
        spread = float(alone.std()) or float(np.abs(alone).max(initial=0.0))
        differs = np.abs(found - alone) > _TOLERANCE * spread
    return np.asarray(differs.reshape(len(alone), -1).any(axis=1))
