"""By how much a sum of absolute means grew from one model to another: an interval that errs on the safe side.

A calibration error is ``sum |gap|`` over bins, and so are ``|slope - 1|`` and ``|intercept|`` with one bin.
Noise makes an absolute value larger, most where there is nothing to find; so the difference of two plug-in
values is drawn towards 0, a bootstrap of it even more, and a candidate at the limit would be approved far
too often. No estimator mends this: ``|x|`` has no unbiased one.

What can be had is a bound. In the candidate's bins, with ``a`` the baseline's gap, ``c`` the candidate's and
``s`` the sign of ``c - a``, the growth is at most each of

* the shift, ``sum |c - a|`` (triangle inequality): how far the probabilities moved. Both models answer the
  same cases, so what came true cancels from ``c - a``, and with it nearly all noise;
* the direct term, ``sum |c| + sum s a``, since ``|a| >= -s a``: it is small where the candidate moved towards
  what came true. Noise can only raise its ``|c|``.

Both are means over cases once the signs are given, so each has a bootstrap interval; the smaller upper end
of the two, each at half the error, bounds the growth from above. From below, the growth is at least
``sum s c - sum |a|`` with ``a`` in the baseline's own bins, which noise can only lower, and about minus the
shift, in the bins of either model; the latter is never above 0, so it rejects nothing.

The two from above speak of the baseline in the candidate's bins. A candidate that is made of the baseline
knows nothing that the baseline does not, and there the baseline looks no worse than it is, by Jensen's
inequality. One that was trained on may know more: its bins then tell the baseline's right answers from its
wrong ones, and a baseline without fault looks bad in them. So what it looks worse by there than in its own
bins, ``sum |a|`` in the one less ``sum |a|`` in the other, is added where it is above 0 for certain. And from
below the growth is at least the candidate's own error, less what noise may have added, over the baseline's.

What comes true cancels only if both models speak of the same thing. Of a multiclass case the candidate may
decide another class; then the baseline is asked for its probability of the candidate's class. This takes
the baseline's probabilities of the two classes to be equally well calibrated in those cases.

Simulated with candidates whose binary ECE truly grew by the limit of 2 points (five baselines, calibrated
and not; too sure, too timid, shifted, noisy and flipped candidates; n = 300 and 1000; 200 to 1,000 runs
each): at most 2.0 % are approved at 95 %, also with four cases per subject, and at most 0.7 % rejected; a
plain bootstrap approves more than 10 %. Of five classes and n up to 5000: at most 2.0 % and 2.5 %. A
candidate that is 5 % too sure (0.7 points worse) is approved in all runs at n = 300. The price is paid where
probabilities moved far: a candidate that is 9 points worse is rejected in half of the runs at n = 1000, and
inconclusive in the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pastille.stats.bootstrap import ResampledSums, bca_of_sums
from pastille.values import Interval


@dataclass(frozen=True, kw_only=True)
class AbsoluteSums:
    """Sums of absolute means of two models: each value is in one bin; means are over all ``M`` values.

    Each model's own values and bins, and what the baseline's values are in the candidate's question.
    """

    baseline: np.ndarray  # (M,) float64
    candidate: np.ndarray  # (M,) float64
    baseline_bins: np.ndarray  # (M,) int64
    candidate_bins: np.ndarray  # (M,) int64
    baseline_asked: np.ndarray  # (M,) float64

    def columns(self) -> np.ndarray:
        """Columns ``(M, 7)`` whose means bound the growth.

        The direct terms from above and below, and the shift in the candidate's and in the baseline's bins;
        then what the baseline looks worse by in the candidate's bins, and the direct term from above and the
        shift with that added.
        """
        change = self.candidate - self.baseline_asked
        moved = np.sign(np.bincount(self.candidate_bins, change))[self.candidate_bins]
        above = aligned(self.candidate, self.candidate_bins) + moved * self.baseline_asked
        below = moved * self.candidate - aligned(self.baseline, self.baseline_bins)
        shift, other_shift = moved * change, aligned(change, self.baseline_bins)
        own = aligned(self.baseline, self.baseline_bins)
        looks = aligned(self.baseline_asked, self.candidate_bins) - own
        return np.column_stack([above, below, shift, other_shift, looks, above + looks, shift + looks])


def aligned(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Values with the sign of their bin: the mean of the result is the sum of absolute means.

    Args:
        values: ``(M,)``.
        bins: ``(M,)`` int64.

    Example:
        >>> aligned(np.array([1.0, -3.0, 2.0]), np.array([0, 0, 1]))
        array([-1.,  3.,  2.])
    """
    signed: np.ndarray = values * np.sign(np.bincount(bins, values))[bins]
    return signed


def mean_interval(sums: ResampledSums, column: int, *, confidence: float) -> Interval | None:
    """Interval of the mean of one column; the last column of the sums counts the rows."""
    return bca_of_sums(sums, lambda s: s[..., column] / s[..., -1], confidence=confidence)


def growth_interval(
    sums: ResampledSums, first: int, *, confidence: float, least: float = -np.inf
) -> Interval | None:
    """Interval of the growth of a sum of absolute means.

    Args:
        sums: Of a table that holds `AbsoluteSums.columns` from column ``first`` on, and ones in its last.
        first: Where they begin.
        confidence: In ``(0, 1)``. The true growth is above the interval in at most half of the rest, and
            below it in at most half.
        least: What the growth is at least, as is known from elsewhere.

    Returns:
        The interval, or None where the rows cannot tell.
    """
    each = (1 + confidence) / 2
    ends = [mean_interval(sums, first + column, confidence=each) for column in range(7)]
    if any(end is None for end in ends):
        return None
    above, below, shift, other_shift, looks, *knowing = (end for end in ends if end is not None)
    low = max(below.low, -max(shift.high, other_shift.high), least)
    high = min(end.high for end in (knowing if looks.low > 0 else (above, shift)))
    # Each model has bins of its own, so the two could cross.
    return Interval(low=min(low, high), high=max(low, high), confidence=confidence)
