"""Whether running calls together helps a model on this machine, and leaves its answers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np

from pastille.bundle import Manifest, Variant
from pastille.bundle.golden import DECIDING, tolerance_of
from pastille.errors import InferenceError
from pastille.runtime import Session
from pastille.serve.settings import Batching
from pastille.stats.decisions import decisions
from pastille.stats.scale import to_logits

WORTH = 1.15  # times the throughput per case, at least
# Seconds per case, at least: collecting and handing out takes time as well, and one batch holds back what
# would have run in two places. A model of 0.08 ms that gains 1.15 times loses by it as a whole.
WORTH_S = 1e-4
HOPELESS = 1.05  # in a long first round: measuring further would only take time from requests
ROUNDS, MOST_ROUNDS = 3, 25

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class BatchingPlan:
    """What was decided at the start.

    Attributes:
        rows: Cases that may run together; 1 where they may not.
        words: For people: how, or why not.
        speedup: Cases per second together over one by one; None where it was not measured.
    """

    rows: int
    words: str
    speedup: float | None = None


def plan_batching(
    session: Session,
    manifest: Manifest,
    variant: Variant,
    inputs: Inputs,
    batching: Batching,
    *,
    clock: Callable[[], float] = perf_counter,
    budget_s: float = 1.0,
) -> BatchingPlan:
    """Measure whether batches are faster per case, and check that they are answered alike.

    Blocks one thread for about ``budget_s`` seconds: run it where requests do not wait for it.

    Args:
        session: The variant, loaded.
        manifest: Of its bundle.
        variant: That the session runs.
        inputs: Golden cases, ``{name: (N, ...)}``.
        batching: What was asked for.
        clock: Seconds, monotonic.
        budget_s: For the measurement.

    Returns:
        On only where batches of every size are answered alike and, unless it was asked for by setting, where
        they give `WORTH` times the throughput.
    """
    rows = batching.rows
    if batching.use == "off" or rows == 1:
        return BatchingPlan(rows=1, words="off, by setting")
    if session.fixed_batch is not None:
        return BatchingPlan(rows=1, words=f"off: the model takes batches of {session.fixed_batch} alone")
    try:
        return _measured(session, manifest, variant, _tiled(inputs, rows), batching, clock, budget_s)
    except InferenceError as error:
        return BatchingPlan(rows=1, words=f"off: the model fails on a batch: {error}")


def _measured(
    session: Session,
    manifest: Manifest,
    variant: Variant,
    cases: Inputs,
    batching: Batching,
    clock: Callable[[], float],
    budget_s: float,
) -> BatchingPlan:
    rows = batching.rows
    speedup, saved_s = measured_speedup(session, cases, clock=clock, budget_s=budget_s)
    figure = f"{_shown(speedup)} times the throughput here"
    if batching.use == "auto" and (speedup < WORTH or saved_s < WORTH_S):
        asked = f"{WORTH} is asked" if speedup < WORTH else "that is too little time to be worth it"
        return BatchingPlan(rows=1, words=f"off: {rows} together give {figure}, and {asked}", speedup=speedup)
    alike = likeness(session, manifest, variant, cases)
    if alike is None:
        words = "off: cases that run together are answered otherwise than one by one"
        return BatchingPlan(rows=1, words=words, speedup=speedup)
    words = f"up to {rows} within {1000 * batching.wait_s:g} ms: {figure}, answers {alike}"
    return BatchingPlan(rows=rows, words=words, speedup=speedup)


def _shown(speedup: float) -> str:
    """Rounded down, so that what falls short never looks like what is asked."""
    return f"{math.floor(100 * speedup) / 100:.2f}"


def measured_speedup(
    session: Session, cases: Inputs, *, clock: Callable[[], float], budget_s: float
) -> tuple[float, float]:
    """What running all cases together gains over one by one: medians of rounds that time both in turn.

    Args:
        session: To be asked.
        cases: ``{name: (N, ...)}``.
        clock: Seconds, monotonic.
        budget_s: After which no further round begins; `ROUNDS` are made in any case, unless a long first
            one shows that nothing is gained.

    Returns:
        Cases per second together over alone; and seconds saved per case.
    """
    singles = [_rows(cases, i, i + 1) for i in range(_count(cases))]
    session(cases), session(singles[0])  # warm
    rounds: list[tuple[float, float]] = []  # seconds together, and one by one
    start = clock()
    while len(rounds) < ROUNDS or (len(rounds) < MOST_ROUNDS and clock() - start < budget_s):
        rounds.append((_seconds(session, [cases], clock), _seconds(session, singles, clock)))
        if rounds[0][1] < HOPELESS * rounds[0][0] and clock() - start > budget_s / 10:
            break
    speedup = median(alone / max(together, 1e-9) for together, alone in rounds)
    return speedup, median(alone - together for together, alone in rounds) / len(singles)


def _seconds(session: Session, batches: Sequence[Inputs], clock: Callable[[], float]) -> float:
    start = clock()
    for batch in batches:
        session(batch)
    return clock() - start


def likeness(session: Session, manifest: Manifest, variant: Variant, cases: Inputs) -> str | None:
    """How alike cases are answered one by one and in batches of every size up to theirs.

    Args:
        session: To be asked.
        manifest: Says what is decided.
        variant: Whose precision and threshold count.
        cases: ``{name: (N, ...)}``.

    Returns:
        In words; None where a decision differs, or a number by more than the golden cases allow.
    """
    output = manifest.output.name
    alone = np.concatenate([_ask(session, cases, output, i, i + 1) for i in range(_count(cases))])
    exact = True
    for size in range(2, _count(cases) + 1):
        together = _ask(session, cases, output, 0, size)
        if together.shape != alone[:size].shape:
            return None
        exact = exact and together.tobytes() == alone[:size].tobytes()
        if not exact and not _near(together, alone[:size], manifest, variant):
            return None
    return "equal bit for bit" if exact else "within the golden tolerance, with equal decisions"


def _near(together: np.ndarray, alone: np.ndarray, manifest: Manifest, variant: Variant) -> bool:
    difference = np.abs(together.astype(np.float64) - alone)
    if not (difference <= tolerance_of(alone.astype(np.float64), variant.precision)).all():
        return False
    return manifest.kind not in DECIDING or bool(
        (_decided(together, manifest, variant) == _decided(alone, manifest, variant)).all()
    )


def _decided(outputs: np.ndarray, manifest: Manifest, variant: Variant) -> np.ndarray:
    return decisions(
        manifest.kind,
        to_logits(manifest.kind, outputs, manifest.outputs),
        threshold=manifest.threshold_of(variant),
        positive=manifest.positive_class,
    )


def _ask(session: Session, cases: Inputs, output: str, start: int, stop: int) -> np.ndarray:
    return np.asarray(session(_rows(cases, start, stop))[output])


def _rows(cases: Inputs, start: int, stop: int) -> Inputs:
    return {name: array[start:stop] for name, array in cases.items()}


def _count(cases: Inputs) -> int:
    return len(next(iter(cases.values())))


def _tiled(inputs: Inputs, rows: int) -> Inputs:
    """As many cases as a batch may have, from the first on and over again."""
    return {name: array[np.arange(rows) % len(array)] for name, array in inputs.items()}
