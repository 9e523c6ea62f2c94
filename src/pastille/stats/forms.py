"""What a metric is made of: the few forms that every metric of every task takes.

A kind of task says which forms its metrics have (`pastille.stats.metrics`); how one is estimated
(`pastille.stats.estimates`) and how two are compared (`pastille.stats.paired`) depends on the form alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Share:
    """A question with a yes or no for some of the cases; ``hits`` are among ``among``."""

    hits: np.ndarray  # (N,) bool
    among: np.ndarray  # (N,) bool

    @property
    def n(self) -> int:
        """Cases that the question is put to."""
        return int(np.count_nonzero(self.among))

    @property
    def successes(self) -> int:
        """Cases with the answer yes."""
        return int(np.count_nonzero(self.hits))

    @property
    def value(self) -> float:
        """Share of hits; needs ``n > 0``."""
        return self.successes / self.n

    def within(self, rows: np.ndarray) -> Share:
        """The same question, put to fewer cases; ``rows`` is ``(N,)`` bool."""
        return Share(hits=self.hits & rows, among=self.among & rows)


@dataclass(frozen=True, kw_only=True)
class MeanOfShares:
    """The plain mean of several shares, e.g. balanced accuracy; parts that no case is asked are left out."""

    parts: Mapping[str, Share]  # class -> its share

    def within(self, rows: np.ndarray) -> MeanOfShares:
        """The same, of fewer cases."""
        return MeanOfShares(parts={name: part.within(rows) for name, part in self.parts.items()})


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How well scores put positive cases above negative ones: the area under the ROC curve."""

    scores: np.ndarray  # (N,) float64, larger means more positive
    truth: np.ndarray  # (N,) bool
    among: np.ndarray  # (N,) bool

    def within(self, rows: np.ndarray) -> Ranking:
        """The same, of fewer cases."""
        return replace(self, among=self.among & rows)


@dataclass(frozen=True, kw_only=True)
class MeanOfRankings:
    """The plain mean of several areas; parts with one class only are left out."""

    parts: Mapping[str, Ranking]  # class -> one against the rest

    def within(self, rows: np.ndarray) -> MeanOfRankings:
        """The same, of fewer cases."""
        return MeanOfRankings(parts={name: part.within(rows) for name, part in self.parts.items()})


@dataclass(frozen=True, kw_only=True)
class OfSums:
    """A function of column sums, e.g. F1, RMSE or Dice."""

    columns: np.ndarray  # (N, k) float64; rows that are not among count nothing
    among: np.ndarray  # (N,) bool
    statistic: Callable[[np.ndarray], np.ndarray]  # sums (..., k) -> (...,); NaN where undefined
    higher_is_better: bool = True

    def within(self, rows: np.ndarray) -> OfSums:
        """The same, of fewer cases."""
        return replace(self, among=self.among & rows)


@dataclass(frozen=True, kw_only=True)
class OfWeights:
    """A function of how often each case counts, e.g. average precision or a metric of the user's own."""

    statistic: Callable[[np.ndarray], np.ndarray]  # weights (R, N) >= 0 -> (R,); NaN where undefined
    among: np.ndarray  # (N,) bool
    higher_is_better: bool = True

    def within(self, rows: np.ndarray) -> OfWeights:
        """The same, of fewer cases."""
        return replace(self, among=self.among & rows)


Form = Share | MeanOfShares | Ranking | MeanOfRankings | OfSums | OfWeights
