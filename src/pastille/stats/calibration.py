"""Whether probabilities mean what they say: before and after compression, on the same cases.

What is compared, each with an interval of how much worse the candidate is:

* ``ece``, expected calibration error: mean gap between what is stated and what comes true, over bins that
  hold the same number of cases (15, fewer where a bin would hold less than 10). Bins are those of each
  model's own probabilities, fixed from all cases. Noise alone makes it positive: 15 bins of 20 cases show
  some 6 points where there is nothing to find. Judge its growth, whose interval allows for that
  (`pastille.stats.absolute`), not its value.
* ``brier``: mean squared error of the probabilities, of multiclass summed over the classes.
* ``calibration_slope`` and ``calibration_intercept`` (`pastille.stats.recalibration`): ideal at 1 and 0;
  worse by how much further away they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pastille.stats.absolute import AbsoluteSums, aligned, growth_interval, mean_interval
from pastille.stats.bootstrap import ResampledSums, resample_sums
from pastille.stats.clusters import has_repeats
from pastille.stats.forms import Share
from pastille.stats.recalibration import intercept_deviation, slope_deviation
from pastille.stats.shares import estimate_share
from pastille.stats.statements import Statements, stated_of, statements
from pastille.values import Calibration, Cases, Comparison, Estimate, Interval, ReliabilityBin

BINS = 15
SAME = "both state the same probabilities"
_FEWEST_PER_BIN = 10
_FEWEST_UNITS = 20  # cases or subjects below which no interval is given


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What every comparison of one pair of models shares."""

    n: int  # cases
    units: np.ndarray | None  # (M,), what is drawn together; None: each probability stands alone
    confidence: float
    enough: bool

    def sums(self, *columns: np.ndarray) -> ResampledSums:
        """Resampled sums of a table, with a column of ones at its end; the same draws each time."""
        table = np.column_stack([*columns, np.ones(len(columns[0]))])
        return resample_sums(table, clusters=self.units)

    def interval(self, sums: ResampledSums, column: int) -> Interval | None:
        """Of the mean of one column."""
        return mean_interval(sums, column, confidence=self.confidence) if self.enough else None

    def growth(self, sums: ResampledSums, noise: float | None = None) -> Interval | None:
        """Of a sum of absolute means, whose columns follow those of the two models.

        Args:
            sums: Of errors, first those of the baseline and of the candidate.
            noise: The most that it can have added to the candidate's error; None where the first two columns
                are no errors.
        """
        if not self.enough:
            return None
        ends = [mean_interval(sums, column, confidence=(1 + self.confidence) / 2) for column in range(2)]
        before, after = ends
        least = -np.inf
        if noise is not None and before is not None and after is not None:
            least = after.low - noise - before.high
        return growth_interval(sums, 2, confidence=self.confidence, least=least)

    def comparison(
        self,
        metric: str,
        values: Sequence[float | None],
        intervals: Sequence[Interval | None],
        *,
        drop: float | None,
        growth: Interval | None,
        method: str,
        of_growth: str = "paired BCa bootstrap",
    ) -> Comparison:
        """What both models have, and by how much the candidate is worse."""
        by = "" if self.units is None else ", by subject"
        baseline, candidate = (
            None if value is None else Estimate(value=value, interval=interval, n=self.n, method=method + by)
            for value, interval in zip(values, intervals, strict=True)
        )
        return Comparison(
            metric=metric,
            n=self.n,
            baseline=baseline,
            candidate=candidate,
            drop=drop,
            interval=growth,
            method=of_growth + by,
        )


def calibration(
    before_outputs: np.ndarray, after_outputs: np.ndarray, cases: Cases, *, confidence: float
) -> Calibration:
    """Compare the calibration of two models on the same cases.

    Args:
        before_outputs: Logits of the baseline: binary ``(N,)``, ``(N, 1)`` or ``(N, 2)``; multiclass
            ``(N, K)``; multilabel ``(N, L)``, whose labels are pooled.
        after_outputs: The same of the candidate, row by row.
        cases: The right answers. Cases of one subject are drawn together.
        confidence: Of the two-sided intervals, in ``(0, 1)``.

    Returns:
        Comparisons ``ece``, ``brier``, ``calibration_slope`` and, except for multiclass,
        ``calibration_intercept``; and what a reliability diagram shows of both models. ``drop`` is how much
        worse the candidate is: for ``ece`` the difference of the two values, which rests on other bins for
        each model, held within its interval, which does not. With less than 20 cases (or subjects, if they
        repeat) nothing has an interval; a slope or intercept that no fit can find has no value either.

        Where both models state the same probabilities of every case, the growth is 0 without any width, and
        its method says so: that is a fact about these answers, not an estimate.

    Raises:
        ValueError: If the kind has no probabilities, or outputs do not fit, or are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> odds = rng.normal(0, 2, 2000)
        >>> cases = Cases(kind="binary", split="test", labels=("healthy", "ill"),
        ...               targets=(rng.random(2000) < 1 / (1 + np.exp(-odds))).astype(np.int64))
        >>> found = calibration(odds, 1.1 * odds, cases, confidence=0.95)  # a little too sure
        >>> ece, brier, slope, intercept = found.comparisons
        >>> f"{ece.drop:.3f} ({ece.interval.low:.3f} to {ece.interval.high:.3f})"
        '-0.004 (-0.015 to 0.015)'
        >>> f"{slope.baseline.value:.2f} -> {slope.candidate.value:.2f}"
        '1.08 -> 0.98'

    References:
        Guo et al., ICML 2017, arXiv:1706.04599 (ECE); Nixon et al., CVPR workshops 2019, arXiv:1904.01685
        (equal mass); Kumar et al., NeurIPS 2019, arXiv:1909.10155 (its bias); Brier, Monthly Weather Review
        78, 1950; Van Calster et al., BMC Medicine 17, 2019 (slope and intercept).
    """
    before, after = statements(before_outputs, cases), statements(after_outputs, cases)
    asked = statements(before_outputs, cases, about=after.about)
    setting = _setting(cases, len(before.chance), confidence)
    fits: list[tuple[str, float, _Fit]] = [("calibration_slope", 1.0, slope_deviation)]
    if cases.kind != "multiclass":
        fits.append(("calibration_intercept", 0.0, intercept_deviation))
    fitted = (
        _deviation(name, ideal, fit(before_outputs, cases), fit(after_outputs, cases), setting)
        for name, ideal, fit in fits
    )
    found = (_ece(before, after, asked, setting), _brier(before, after, setting), *fitted)
    if _alike(before, after):
        found = tuple(c if c.interval is None else replace(c, method=SAME) for c in found)
    return Calibration(
        comparisons=found,
        baseline_bins=tuple(_reliability(before, setting)),
        candidate_bins=tuple(_reliability(after, setting)),
        of=stated_of(cases),
    )


def _alike(before: Statements, after: Statements) -> bool:
    """Whether both state the same of every case; then nothing can have grown, and no interval has a width."""
    pairs = ((before.chance, after.chance), (before.came, after.came), (before.penalty, after.penalty))
    return all(np.array_equal(*pair) for pair in pairs)


_Fit = Callable[[np.ndarray, Cases], np.ndarray | None]


def _setting(cases: Cases, stated: int, confidence: float) -> _Setting:
    n = len(cases.targets)
    units = cases.subjects if has_repeats(cases.subjects) else None
    if stated != n:  # several labels of a case are stated together
        units = np.repeat(np.arange(n) if units is None else units, stated // n)
    independent = n if units is None else len(np.unique(units))
    return _Setting(n=n, units=units, confidence=confidence, enough=independent >= _FEWEST_UNITS)


def equal_mass_bins(chance: np.ndarray) -> np.ndarray:
    """Bins that hold the same number of probabilities; equal ones stay together.

    Args:
        chance: ``(M,)``.

    Returns:
        ``(M,)`` int64 in ``[0, 15)``; fewer bins where one would hold less than 10.

    Example:
        >>> np.bincount(equal_mass_bins(np.linspace(0, 1, 40)))
        array([10, 10, 10, 10])
    """
    count = int(np.clip(len(chance) // _FEWEST_PER_BIN, 1, BINS))
    inner = np.quantile(chance, np.linspace(0, 1, count + 1)[1:-1])
    return np.asarray(np.searchsorted(inner, chance), np.int64)


def expected_calibration_error(stated: Statements) -> float:
    """Mean gap between what is stated and what comes true, over bins of equal mass; in ``[0, 1]``.

    Example:
        >>> came = np.arange(100) < 80
        >>> ten = Statements(chance=np.full(100, 0.9), came=came, penalty=np.zeros(100))
        >>> round(expected_calibration_error(ten), 6)
        0.1
    """
    return float(aligned(stated.gap, equal_mass_bins(stated.chance)).mean())


def _ece(before: Statements, after: Statements, asked: Statements, setting: _Setting) -> Comparison:
    gaps = [stated.gap for stated in (before, after)]
    bins = [equal_mass_bins(stated.chance) for stated in (before, after)]
    signed = [aligned(*each) for each in zip(gaps, bins, strict=True)]
    pair = AbsoluteSums(
        baseline=gaps[0],
        candidate=gaps[1],
        baseline_bins=bins[0],
        candidate_bins=bins[1],
        baseline_asked=asked.gap,
    )
    sums = setting.sums(*signed, pair.columns())
    values = [float(x.mean()) for x in signed]
    noise = [_noise(*each, setting.units) for each in zip(gaps, bins, strict=True)]
    growth = setting.growth(sums, noise[1])
    return setting.comparison(
        "ece",
        values,
        [_lowered(setting.interval(sums, i), noise[i]) for i in range(2)],
        drop=_held(values[1] - values[0], growth),
        growth=growth,
        method="BCa bootstrap, less what noise may have added",
        of_growth="bound over how far the probabilities moved, paired BCa bootstrap, "
        f"{len(np.unique(bins[1]))} bins of equal mass",
    )


def _held(drop: float, interval: Interval | None) -> float:
    """A plug-in growth that is no further than the probabilities can have taken it: bins differ by chance."""
    return drop if interval is None else float(np.clip(drop, interval.low, interval.high))


def _lowered(interval: Interval | None, noise: float) -> Interval | None:
    """An interval that also holds the value without what noise may have added."""
    return interval and replace(interval, low=max(0.0, interval.low - noise))


def _noise(gaps: np.ndarray, bins: np.ndarray, units: np.ndarray | None) -> float:
    """The most that noise can add to an expected calibration error: what it makes of a perfect one."""
    centered = gaps - (np.bincount(bins, gaps) / np.maximum(np.bincount(bins), 1))[bins]
    width = int(bins.max()) + 1
    unit = np.arange(len(gaps)) if units is None else np.unique(units, return_inverse=True)[1]
    cells, cell = np.unique(unit * width + bins, return_inverse=True)  # each unit's part of each bin
    spread = np.bincount(cells % width, np.bincount(cell, centered) ** 2)
    return float(np.sqrt(2 / np.pi * spread).sum()) / len(gaps)


def _brier(before: Statements, after: Statements, setting: _Setting) -> Comparison:
    sums = setting.sums(before.penalty, after.penalty, after.penalty - before.penalty)
    values = [float(x.mean()) for x in (before.penalty, after.penalty)]
    return setting.comparison(
        "brier",
        values,
        [setting.interval(sums, i) for i in range(2)],
        drop=values[1] - values[0],
        growth=setting.interval(sums, 2),
        method="BCa bootstrap",
    )


def _deviation(
    metric: str, ideal: float, before: np.ndarray | None, after: np.ndarray | None, setting: _Setting
) -> Comparison:
    """Of a fit whose pseudo-values average to the deviation from its ideal; None where there is no fit."""
    values = [None if x is None else ideal + float(x.mean()) for x in (before, after)]
    if before is None or after is None:
        method = "none: no fit is best"
        return setting.comparison(
            metric, values, [None, None], drop=None, growth=None, method=method, of_growth=method
        )
    one = np.zeros(len(before), np.int64)
    pair = AbsoluteSums(
        baseline=before,
        candidate=after,
        baseline_bins=one,
        candidate_bins=one,
        baseline_asked=before,
    )
    sums = setting.sums(before + ideal, after + ideal, pair.columns())
    growth = setting.growth(sums)
    return setting.comparison(
        metric,
        values,
        [setting.interval(sums, i) for i in range(2)],
        drop=_held(abs(float(after.mean())) - abs(float(before.mean())), growth),
        growth=growth,
        method="maximum likelihood, BCa bootstrap of its influence",
        of_growth="bound over how far the fit moved, paired BCa bootstrap of its influence",
    )


def _reliability(stated: Statements, setting: _Setting) -> Iterator[ReliabilityBin]:
    bins = equal_mass_bins(stated.chance)
    for index in np.unique(bins):
        among = bins == index
        share = Share(hits=among & stated.came, among=among)
        observed = estimate_share(share, subjects=setting.units, confidence=setting.confidence)
        assert observed is not None
        yield ReliabilityBin(
            n=observed.n,
            confidence=float(stated.chance[among].mean()),
            observed=observed.value,
            interval=observed.interval,
        )
