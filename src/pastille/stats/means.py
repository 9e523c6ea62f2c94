"""The mean of several estimates of the same cases: balanced accuracy, macro AUROC."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pastille.stats.auroc import auroc, placements
from pastille.stats.clusters import has_repeats
from pastille.stats.forms import MeanOfRankings, MeanOfShares, Ranking, Share
from pastille.stats.shares import estimate_share
from pastille.values import Estimate, Interval


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the estimates, and how much each case moves it."""

    estimate: Estimate
    influence: np.ndarray  # (N,), up to a common factor; 0 for cases that it does not rest on


def mean_of_shares(form: MeanOfShares, *, subjects: np.ndarray | None, confidence: float) -> Estimate | None:
    """Estimate the plain mean of shares; None where no case is asked of any.

    See `_mean` for the interval.

    Example:
        >>> asked = np.arange(200) < 100
        >>> one = Share(hits=np.arange(200) < 80, among=asked)
        >>> other = Share(hits=~asked, among=~asked)
        >>> found = mean_of_shares(MeanOfShares(parts={"a": one, "b": other}), subjects=None, confidence=0.95)
        >>> found.value, found.method
        (0.9, "MOVER of each class's interval")
    """
    shares = [share for share in form.parts.values() if share.n]
    rows = _union(share.among for share in shares)
    theirs = subjects[rows] if subjects is not None and shares else None
    narrowed = (Share(hits=share.hits[rows], among=share.among[rows]) for share in shares)
    return _mean((_share_part(share, theirs, confidence) for share in narrowed), theirs, confidence)


def mean_of_rankings(
    form: MeanOfRankings, *, subjects: np.ndarray | None, confidence: float
) -> Estimate | None:
    """Estimate the plain mean of areas under the ROC curve; None where every part has one class only.

    See `_mean` for the interval.
    """
    rankings = [ranking for ranking in form.parts.values() if has_both(ranking)]
    rows = _union(ranking.among for ranking in rankings)
    theirs = subjects[rows] if subjects is not None and rankings else None
    narrowed = (
        Ranking(scores=one.scores[rows], truth=one.truth[rows], among=one.among[rows]) for one in rankings
    )
    return _mean((_ranking_part(ranking, theirs, confidence) for ranking in narrowed), theirs, confidence)


def has_both(ranking: Ranking) -> bool:
    """Whether there are cases to put above, and cases to put below."""
    positive = np.count_nonzero(ranking.truth & ranking.among)
    return bool(0 < positive < np.count_nonzero(ranking.among))


def ranked_area(ranking: Ranking, *, subjects: np.ndarray | None, confidence: float) -> Estimate | None:
    """Estimate the area under one ROC curve; None where there is one class only."""
    if not has_both(ranking):
        return None
    rows = ranking.among
    return auroc(
        ranking.scores[rows],
        ranking.truth[rows],
        confidence=confidence,
        clusters=None if subjects is None else subjects[rows],
    )


def area(ranking: Ranking) -> float:
    """The area under one ROC curve, without an interval; NaN where there is one class only."""
    rows = ranking.among
    truth = ranking.truth[rows]
    return float(placements(ranking.scores[rows], truth)[truth].mean()) if has_both(ranking) else math.nan


def _union(masks: Iterable[np.ndarray]) -> np.ndarray:
    union = np.zeros(0, bool)
    for mask in masks:
        union = mask if union.size == 0 else union | mask
    return union


def _mean(parts: Iterable[Part], subjects: np.ndarray | None, confidence: float) -> Estimate | None:
    """Combine the intervals of the parts into that of their mean (MOVER, variance estimates recovery).

    Each part's own interval says how far it reaches to either side, which holds near 0 and 1 too; how
    each case moves it (summed by subject, where one has several) says how the parts vary together. Parts
    of different cases come out independent.

    The square of the mean's reach is the sum of ``r_ij d_i d_j`` over all pairs. With ``r_ij`` the product
    of two directions of length 1, that is the length of the sum of ``d_i`` times direction ``i``: no table
    of all pairs is needed, and it cannot be negative.

    References:
        Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine
        27, 2008; Zou, "Toward using confidence intervals to compare correlations", Psychological Methods
        12, 2007, for correlated estimates.
    """
    repeated = subjects if has_repeats(subjects) else None
    units = None if repeated is None else np.unique(repeated, return_inverse=True)[1]
    reach, value, count, n = np.zeros((2, 1)), 0.0, 0, 0
    for part in parts:
        found, interval = part.estimate, part.estimate.interval
        assert interval is not None, "shares and areas always have one"
        direction = part.influence if units is None else _by_unit(part.influence, units)
        sides = np.array([[found.value - interval.low], [interval.high - found.value]])
        reach = reach + sides * (direction / np.linalg.norm(direction))  # (2, units)
        value, count, n = value + found.value, count + 1, len(part.influence)
    if count == 0:
        return None
    value /= count
    down, up = np.linalg.norm(reach, axis=1) / count
    return Estimate(
        value=value,
        interval=Interval(low=max(0.0, value - down), high=min(1.0, value + up), confidence=confidence),
        n=n,
        method="MOVER of each class's interval" + ("" if units is None else ", by subject"),
    )


def _by_unit(influence: np.ndarray, units: np.ndarray) -> np.ndarray:
    summed = np.bincount(units, weights=influence)
    # Cases of one subject may cancel out altogether; how parts vary together is then as for cases alike.
    cancelled = np.linalg.norm(summed) <= 1e-9 * np.linalg.norm(influence)
    return np.bincount(units, weights=np.abs(influence)) if cancelled else summed


def _share_part(share: Share, subjects: np.ndarray | None, confidence: float) -> Part:
    found = estimate_share(share, subjects=subjects, confidence=confidence)
    assert found is not None, "some case is asked"
    if 0 < found.value < 1:
        return Part(estimate=found, influence=(share.hits - found.value) * share.among)
    # All alike: any of them could have been the one that differs.
    return Part(estimate=found, influence=share.among.astype(np.float64))


def _ranking_part(ranking: Ranking, subjects: np.ndarray | None, confidence: float) -> Part:
    found = ranked_area(ranking, subjects=subjects, confidence=confidence)
    assert found is not None, "both classes are there"
    rows = ranking.among
    truth = ranking.truth[rows]
    sizes = np.where(truth, np.count_nonzero(truth), np.count_nonzero(~truth))
    deviations = placements(ranking.scores[rows], truth) - found.value
    influence = np.zeros(len(rows))
    # All in order: any of them could have been the one that is not.
    influence[rows] = (deviations if np.abs(deviations).max() > 1e-12 else 1.0) / sizes
    return Part(estimate=found, influence=influence)
