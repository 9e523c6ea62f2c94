"""Watching confidences for drift without an alarm for every look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from pastille.stats.drift import bin_counts, ks_distance, ks_limit, psi, psi_limit, reference_counts
from pastille.values.reference import VariantReference

_LOOK = 0.01  # significance of the limits that are shown beside the window


@dataclass(frozen=True, kw_only=True)
class DriftFinding:
    """What a `DriftCheck` says now.

    The distances and their limits are those of the last cases, as one look at them: by chance alone 1 % of
    looks exceed each limit. The alarm is another matter, see `DriftCheck`.
    """

    n: int  # cases in the window
    minimum: int
    psi: float | None  # None below the minimum, and where all confidences fall into one bin
    psi_limit: float | None
    ks: float | None
    ks_limit: float | None
    edges: tuple[float, ...]  # (B + 1,)
    reference: tuple[float, ...]  # (B,) shares
    now: tuple[float, ...]  # (B,) shares; empty below the minimum
    blocks: int  # that were tested so far
    alarm: bool
    state: Literal["not_enough_data", "ok", "alarm"]
    words: str


@final
class DriftCheck:
    """Compares the last confidences of one variant with those of validation.

    A window that slides is looked at again and again, and some look exceeds any limit. So the alarm is
    decided on blocks of ``window`` cases that do not overlap, each tested by PSI and by KS at
    ``significance / (2 looks)``: while nothing drifts, there is an alarm among any ``looks`` blocks in a row
    with a chance of at most ``significance``, whatever they have in common (they share one reference). It
    ends with the first block that passes.

    Args:
        reference: What validation gave.
        window: Cases of a block, and those that are shown. Below 200 PSI's limit for so small a
            significance is too low: with 100, false alarms are about twice as frequent as said.
        minimum: Cases below which nothing is shown.
        looks: Blocks over which the chance of a false alarm is held.
        significance: That chance, in ``(0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from pastille.stats.confidence import quantile_bins, quantile_grid
        >>> seen = np.linspace(0.5, 1, 1000)
        >>> edges, shares = quantile_bins(seen)
        >>> check = DriftCheck(VariantReference(variant="int8", cases=1000, edges=tuple(edges),
        ...     shares=tuple(shares), grid=tuple(quantile_grid(seen)), sensitivity=()))
        >>> check.update(seen[::2])
        >>> check.finding().state
        'ok'
        >>> check.update(np.full(500, 0.55))
        >>> check.finding().state
        'alarm'
    """

    def __init__(
        self,
        reference: VariantReference,
        *,
        window: int = 500,
        minimum: int = 50,
        looks: int = 30,
        significance: float = 0.01,
    ) -> None:
        if not 1 <= minimum <= window:
            raise ValueError(f"minimum must be in [1, window], got {minimum} with a window of {window}")
        if looks < 1 or not 0 < significance < 1:
            raise ValueError(
                f"looks must be at least 1 and significance in (0, 1), got {looks}, {significance}"
            )
        self._reference = _Held(reference)
        self._recent = np.zeros(window)  # a ring
        self._minimum, self._level = minimum, significance / (2 * looks)
        self._n = 0
        self.alarm = False

    def update(self, confidences: Iterable[float] | np.ndarray) -> None:
        """Look at more cases.

        Args:
            confidences: ``(N,)``; what is not finite is left out.
        """
        values = np.atleast_1d(np.asarray(confidences, np.float64))
        values, window = values[np.isfinite(values)], len(self._recent)
        while len(values):
            at = self._n % window
            part = values[: window - at]
            self._recent[at : at + len(part)] = part
            self._n += len(part)
            values = values[len(part) :]
            if self._n % window == 0:
                self.alarm = self._reference.looked_at(self._recent, self._level).beyond

    def finding(self) -> DriftFinding:
        """Look at the last cases."""
        window = len(self._recent)
        n, enough = min(self._n, window), self._n >= self._minimum
        look = self._reference.looked_at(self._recent[:n], _LOOK) if enough else _Look()
        blocks = self._n // window
        return DriftFinding(
            n=n,
            minimum=self._minimum,
            psi=look.psi,
            psi_limit=look.psi_limit,
            ks=look.ks,
            ks_limit=look.ks_limit,
            edges=tuple(self._reference.edges.tolist()),
            reference=self._reference.shares,
            now=look.shares,
            blocks=blocks,
            alarm=self.alarm,
            state="alarm" if self.alarm else "ok" if blocks else "not_enough_data",
            words=_words(n, self._minimum, blocks, window, self.alarm),
        )


@dataclass(frozen=True, kw_only=True)
class _Look:
    psi: float | None = None
    psi_limit: float | None = None
    ks: float | None = None
    ks_limit: float | None = None
    shares: tuple[float, ...] = ()

    @property
    def beyond(self) -> bool:
        return any(
            found is not None and limit is not None and found > limit
            for found, limit in ((self.psi, self.psi_limit), (self.ks, self.ks_limit))
        )


class _Held:
    """The reference as arrays."""

    def __init__(self, reference: VariantReference) -> None:
        self.edges = np.asarray(reference.edges, np.float64)
        self.shares = reference.shares
        self.cases = reference.cases
        self._counts, self._grid = reference_counts(reference), np.asarray(reference.grid, np.float64)

    def looked_at(self, values: np.ndarray, significance: float) -> _Look:
        counts, n, bins = bin_counts(values, self.edges), len(values), len(self.shares)
        binned = bins > 1
        return _Look(
            psi=float(psi(counts, self._counts)) if binned else None,
            psi_limit=psi_limit(n, self.cases, bins, significance) if binned else None,
            ks=ks_distance(values, self._grid, self.cases),
            ks_limit=ks_limit(n, self.cases, significance),
            shares=tuple((counts / n).tolist()),
        )


def _words(n: int, minimum: int, blocks: int, window: int, alarm: bool) -> str:
    if alarm:
        return f"The last {window} complete answers are spread otherwise than in validation."
    if n < minimum:
        return f"Not enough data: {n} of {minimum} answers."
    if not blocks:
        return f"Decided for the first time after {window} answers; {n} so far."
    return f"Spread as in validation, as far as {window} answers can tell."
