"""Wall-clock times that survive a machine which others use too.

Garbage collection is paused, warm-up is thrown away, and two files are compared by timing them in
alternation, so that whatever slows the machine down for a while slows both.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from time import perf_counter_ns
from typing import Final

import numpy as np

from pastille.data.images import Images, PixelCache
from pastille.data.split import Inputs, Split, named
from pastille.runtime import Session
from pastille.stats.quantiles import latency_quantiles
from pastille.values import Conditions, Interval, Latency, Speedup

MAX_SAMPLES: Final = 2000
MIN_SAMPLES: Final = 500  # p99 needs 459
_FEWEST_SAMPLES: Final = 5  # taken whatever they cost
_MAX_PAIRS: Final = 200
_BLOCK_MS: Final = 2.0  # a block of calls lasts about this long: timer and scheduler noise are below it
_MAX_BLOCK: Final = 20

Batch = Mapping[str, np.ndarray]


def time_calls(
    session: Session,
    batch: Batch,
    *,
    conditions: Conditions,
    min_samples: int = MIN_SAMPLES,
    budget_s: float = 3.0,
    warmup: int = 10,
) -> Latency:
    """Time one file on one batch, call by call.

    Args:
        session: The loaded file.
        batch: ``{name: (N, ...)}``; every call is given this one.
        conditions: What it runs on.
        min_samples: Calls to time where the budget allows, at most 2000. A quick file is timed on for
            a quarter of the budget.
        budget_s: Seconds to spend; five calls are timed even if they take longer.
        warmup: Calls that are not counted, fewer where they alone would use up the budget.

    Returns:
        The latency; its p99 is absent below 459 samples.

    Raises:
        InferenceError: A call failed.
        ValueError: ``min_samples`` is not in [1, 2000], or ``budget_s`` is not positive.
    """
    if not 1 <= min_samples <= MAX_SAMPLES:
        raise ValueError(f"min_samples must be in [1, {MAX_SAMPLES}], got {min_samples}")
    if budget_s <= 0:
        raise ValueError(f"budget_s must be positive, got {budget_s}")
    with _gc_paused():
        warm = _warm_up(lambda: session(batch), calls=warmup, budget_s=budget_s / 4)
        samples_ms = _sample(lambda: session(batch), at_least=min_samples, budget_s=budget_s)
    rows = len(next(iter(batch.values())))
    return _latency(samples_ms, batch=rows, warmup=warm, conditions=conditions)


def compare(
    baseline: Session,
    candidate: Session,
    batch: Batch,
    *,
    conditions: Conditions,
    confidence: float = 0.95,
    max_pairs: int = _MAX_PAIRS,
    budget_s: float = 2.0,
) -> Speedup:
    """How many times faster ``candidate`` answers, timed in alternation with ``baseline``.

    One pair is a block of calls of each, in the order A B, then B A, and so on, so that a drift of the
    machine cancels. Each block opens with a call that is not counted, since the other file has just had
    the caches. A pair's ratio is that of the two median times; the result is the median ratio, and its
    interval is that of order statistics, which assumes nothing about how times are distributed.

    The interval holds the noise of this comparison. Where two sessions happen to lie in memory can alone
    move the ratio by a percent: do not read a difference into less.

    Args:
        baseline: The file that is compared with.
        candidate: The file in question.
        batch: ``{name: (N, ...)}``; every call is given this one.
        conditions: What both run on.
        confidence: Of the interval, in (0, 1).
        max_pairs: Pairs to time at most.
        budget_s: Seconds to spend; as many pairs as the interval needs are timed even if they take longer.

    Raises:
        InferenceError: A call failed.
        ValueError: ``confidence`` is not in (0, 1).
    """
    fewest = _fewest_for_median(confidence)
    with _gc_paused():
        times_ms = _paired_times(
            lambda: baseline(batch), lambda: candidate(batch), (fewest, max_pairs), budget_s
        )  # (pairs, 2)
    ratios = times_ms[:, 0] / times_ms[:, 1]
    return Speedup(
        ratio=float(np.median(ratios)),
        interval=median_interval(ratios, confidence=confidence),
        pairs=len(ratios),
        batch=len(next(iter(batch.values()))),
        conditions=conditions,
        baseline_ms=float(np.median(times_ms[:, 0])),
        candidate_ms=float(np.median(times_ms[:, 1])),
    )


def time_preprocessing(
    split: Split, *, conditions: Conditions, max_samples: int = MIN_SAMPLES, budget_s: float = 1.0
) -> Latency:
    """Time reading and preparing one input, the model apart.

    What is timed is ``split.inputs[i]``: reading the file, decoding, resizing, normalizing. Image files
    are decoded anew, past the cache that training uses. Of anything else each input is read at most once,
    spread evenly over the split, so that a cache of its own answers only for what was read before. The
    system's file cache is left as it is: what is timed is the work, not the disk.

    Args:
        split: Its inputs are read.
        conditions: The machine; threads and runtime are replaced by Pastille's own.
        max_samples: Inputs to read at most, fewer where the split holds fewer.
        budget_s: Seconds to spend; five inputs are read even if they take longer.

    Raises:
        ValueError: The split is empty.
    """
    count = min(split.n, max_samples, MAX_SAMPLES)
    if count < 1:
        raise ValueError(f"split must hold at least one input and max_samples be positive, got {count}")
    inputs = _uncached(split.inputs)
    order = iter(np.linspace(0, split.n - 1, count).astype(int).tolist())
    with _gc_paused():
        samples_ms = _sample(
            lambda: named(inputs[next(order)]), at_least=count, at_most=count, budget_s=budget_s
        )
    here = replace(conditions, threads=1, runtime="pastille", runtime_version=version("pastille"))
    return _latency(samples_ms, batch=1, warmup=0, conditions=here)


def _uncached(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Images):
        none = PixelCache(limit_bytes=0)
        return Images(inputs.paths, inputs.decoding, inputs.normalization, cache=none)
    return inputs


def median_interval(values: np.ndarray, *, confidence: float) -> Interval:
    """A distribution-free interval of the median: two order statistics.

    Args:
        values: Independent samples, shape ``(N,)``.
        confidence: At least this, in (0, 1).

    Returns:
        The narrowest symmetric pair of order statistics that covers the median with at least
        ``confidence``; the whole range where there are too few samples for that.

    Example:
        >>> found = median_interval(np.arange(1.0, 11.0), confidence=0.95)
        >>> found.low, found.high
        (2.0, 9.0)

    References:
        David & Nagaraja, Order Statistics, 3rd edition, 2003, section 7.1.
    """
    ordered = np.sort(values)
    n = len(ordered)
    rank, below = 0, 1  # below / 2**n: chance that at most ``rank`` samples lie below the median
    while rank + 1 < n / 2 and 2 * (below + math.comb(n, rank + 1)) / 2**n <= 1 - confidence:
        rank += 1
        below += math.comb(n, rank)
    return Interval(low=float(ordered[rank]), high=float(ordered[n - 1 - rank]), confidence=confidence)


def _fewest_for_median(confidence: float) -> int:
    """Samples from which the whole range covers the median with this confidence."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return math.ceil(1 - math.log2(1 - confidence))


@contextmanager
def _gc_paused() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()  # without collecting first: with torch imported that takes longer than many a timing
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _warm_up(call: Callable[[], object], *, calls: int, budget_s: float) -> int:
    """Call until warm; how many calls that were."""
    end = perf_counter_ns() + int(budget_s * 1e9)
    for done in range(1, calls + 1):
        call()
        if perf_counter_ns() > end:
            return done
    return calls


def _sample(
    call: Callable[[], object], *, at_least: int, budget_s: float, at_most: int = MAX_SAMPLES
) -> np.ndarray:
    """Milliseconds of single calls, shape ``(samples,)``."""
    times_ns: list[int] = []
    begun = perf_counter_ns()
    enough, end = begun + int(budget_s * 0.25e9), begun + int(budget_s * 1e9)
    while len(times_ns) < at_most:
        start = perf_counter_ns()
        call()
        now = perf_counter_ns()
        times_ns.append(now - start)
        n = len(times_ns)
        if (n >= at_least and now > enough) or (n >= _FEWEST_SAMPLES and now > end):
            break
    return np.asarray(times_ns) / 1e6


def _latency(samples_ms: np.ndarray, *, batch: int, warmup: int, conditions: Conditions) -> Latency:
    mean_ms = float(samples_ms.mean())
    return Latency(
        batch=batch,
        samples=len(samples_ms),
        warmup=warmup,
        mean_ms=mean_ms,
        quantiles=latency_quantiles(samples_ms),
        throughput_per_s=batch * 1000 / mean_ms,
        conditions=conditions,
    )


def _paired_times(
    baseline: Callable[[], object], candidate: Callable[[], object], pairs: tuple[int, int], budget_s: float
) -> np.ndarray:
    """Milliseconds of the baseline and of the candidate, pair by pair, shape ``(pairs, 2)``."""
    sizes = [_block_size(baseline), _block_size(candidate)]
    calls = [baseline, candidate]
    fewest, most = pairs
    times: list[list[float]] = []
    end = perf_counter_ns() + int(budget_s * 1e9)
    while len(times) < most and (len(times) < fewest or perf_counter_ns() < end):
        times_ns = [0.0, 0.0]
        for which in (0, 1) if len(times) % 2 == 0 else (1, 0):
            times_ns[which] = _block(calls[which], sizes[which])
        times.append(times_ns)
    return np.asarray(times) / 1e6


def _block_size(call: Callable[[], object]) -> int:
    """Calls that fill a block, judged by the quicker of two after a first one."""
    call()
    quickest_ms = min(_block(call, 1), _block(call, 1)) / 1e6
    return max(1, min(_MAX_BLOCK, math.ceil(_BLOCK_MS / max(quickest_ms, 1e-6))))


def _block(call: Callable[[], object], size: int) -> float:
    """Median nanoseconds of ``size`` calls, after one that is not counted."""
    call()
    times_ns = np.empty(size)
    for i in range(size):
        start = perf_counter_ns()
        call()
        times_ns[i] = perf_counter_ns() - start
    return float(np.median(times_ns))
