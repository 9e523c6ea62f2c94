"""What is kept of the last requests: times, counts per second, histograms. Quick to add to, O(1) memory.

All belong to the event loop's thread, so none takes a lock.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Final, final

import numpy as np

from pastille.serve.watch.snapshot import Latency

KEPT: Final = 4096  # times of one variant: p99 of so many has 41 above it
HISTORY_S: Final = 60
LATENCY_BUCKETS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)  # seconds; a tiny model answers within the first, a time-out ends the last
_FEWEST: Final = {0.5: 7, 0.95: 90, 0.99: 459}  # as `stats.quantiles.samples_needed`; a test holds them equal


@final
class Ring:
    """The last `KEPT` times, in seconds.

    Example:
        >>> ring = Ring(2)
        >>> for seconds in (1, 2, 3): ring.add(seconds)
        >>> sorted(ring.values().tolist())
        [2.0, 3.0]
    """

    def __init__(self, size: int = KEPT) -> None:
        self._values = np.zeros(size, np.float32)
        self.added = 0

    def add(self, seconds: float) -> None:
        """Keep one more; the oldest goes."""
        self._values[self.added % len(self._values)] = seconds
        self.added += 1

    def values(self) -> np.ndarray:
        """``(N,)`` float32, in no order."""
        return self._values[: self.added]


def latency_of(seconds: np.ndarray) -> Latency:
    """Percentiles, each only where so many times can give it with 99 % confidence.

    Args:
        seconds: ``(N,)``.

    Example:
        >>> latency_of(np.full(100, 0.002)) == Latency(n=100, p50_ms=2.0, p95_ms=2.0, p99_ms=None)
        True

    References:
        MLPerf Inference, LoadGen, "Early stopping"; `pastille.stats.quantiles.samples_needed`.
    """
    p50, p95, p99 = (_percentile_ms(seconds, q) for q in _FEWEST)
    return Latency(n=len(seconds), p50_ms=p50, p95_ms=p95, p99_ms=p99)


def _percentile_ms(seconds: np.ndarray, q: float) -> float | None:
    if len(seconds) < _FEWEST[q]:
        return None
    return round(1000 * float(np.quantile(seconds, q, method="inverted_cdf")), 4)


@final
class Throughput:
    """Answers in each of the last 60 seconds, by a clock that never jumps."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque(maxlen=HISTORY_S + 1)  # second, count; newest last
        self.total = 0

    def add(self, now: float) -> None:
        """Count one answer."""
        second = int(now)
        self.total += 1
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = second, self._seconds[-1][1] + 1
        else:
            self._seconds.append((second, 1))

    def history(self, now: float) -> tuple[float, ...]:
        """Of each of the last 60 whole seconds, the oldest first."""
        counts: dict[int, int] = dict(self._seconds)
        first = int(now) - HISTORY_S
        return tuple(float(counts.get(second, 0)) for second in range(first, int(now)))


@final
class Histogram:
    """Counts of times up to each bound, as Prometheus wants them.

    Example:
        >>> histogram = Histogram((0.1, 1.0))
        >>> for seconds in (0.1, 0.5, 7): histogram.add(seconds)
        >>> histogram.buckets(), histogram.sum
        ([('0.1', 1), ('1.0', 2), ('+Inf', 3)], 7.6)
    """

    def __init__(self, bounds: Sequence[float] = LATENCY_BUCKETS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """How many were at most each bound; the last is all."""
        names, total = _names(tuple(self._bounds)), 0
        return [(name, total := total + count) for name, count in zip(names, self._counts, strict=True)]


@functools.cache
def _names(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(str, bounds), "+Inf")
