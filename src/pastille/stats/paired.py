"""By how much a candidate is worse than its baseline on the same cases, whatever the metric is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pastille.stats.auroc import placements
from pastille.stats.bounded import Part, losses, score_interval
from pastille.stats.clusters import effective_cases, has_repeats
from pastille.stats.forms import Form, MeanOfRankings, MeanOfShares, OfSums, OfWeights, Ranking, Share
from pastille.stats.paired_bootstrap import drop_of_sums, drop_of_weights
from pastille.stats.proportions import mcnemar_exact, tango
from pastille.stats.resampled import value_of
from pastille.stats.shares import subject_method
from pastille.values import Comparison, Estimate, Interval


def compare(
    before: Form,
    after: Form,
    *,
    metric: str,
    where: Mapping[str, str] | None = None,
    subjects: np.ndarray | None,
    confidence: float,
    baseline: Estimate | None = None,
    candidate: Estimate | None = None,
) -> Comparison:
    """Compare two models that answered the same cases.

    ============================== ==================================================================
    form                           interval of the drop
    ============================== ==================================================================
    `Share`                        Tango's, on the independent cases that the cases are worth
    `MeanOfShares`                 score interval of bounded losses (`pastille.stats.bounded`)
    `Ranking`, `MeanOfRankings`    the same, with DeLong's variance (Obuchowski's by subject)
    `OfSums`, `OfWeights`          paired BCa bootstrap, by subject where one has several cases,
                                   moved out by what unseen cases may add; None below 20 of them
    ============================== ==================================================================

    Every interval has a width, also where the models never disagree. At a true drop equal to a limit its
    upper end is within the limit in at most half of ``1 - confidence`` of repeats, however the loss is
    spread over cases; `tests/stats/test_stats_paired_errors.py` counts them.

    Args:
        before: Of the baseline.
        after: Of the candidate; the same form of the same cases.
        metric: What it is called.
        where: Which cases they are, as in `Comparison.where`.
        subjects: ``(N,)``, or None if every case is a subject of its own.
        confidence: Of the two-sided interval, in ``(0, 1)``.
        baseline: The metric of the baseline with its interval, if the caller has it.
        candidate: The metric of the candidate with its interval, if the caller has it.

    Returns:
        The comparison. Without estimates from the caller it holds the values alone. Where the cases cannot
        define the metric, estimates, drop and interval are None. Shares and areas are taken to be better
        when higher; hand over the complement of a share that is not.

    Raises:
        ValueError: If the two are not the same form of the same cases.

    Example:
        >>> asked = np.ones(200, bool)
        >>> right, worse = np.arange(200) >= 10, np.arange(200) >= 12
        >>> found = compare(Share(hits=right, among=asked), Share(hits=worse, among=asked),
        ...                 metric="accuracy", subjects=None, confidence=0.95)
        >>> found.drop, found.newly_wrong, found.interval
        (0.01..., 2, Interval(low=-0.009..., high=0.035..., confidence=0.95))

    References:
        Tango, Statistics in Medicine 17, 1998; DeLong et al., Biometrics 44, 1988; Sun and Xu, IEEE Signal
        Processing Letters 21, 2014; Obuchowski, Biometrics 53, 1997; Efron, JASA 82, 1987.
    """
    _refuse_different(before, after)
    asked = _asked(before)
    n = int(np.count_nonzero(asked))
    found = _drop(before, after, _repeated(subjects, asked), confidence) if n else None
    known = found is not None and math.isfinite(found.before) and math.isfinite(found.after)
    if found is None or not known:
        return Comparison(
            metric=metric,
            where=where or {},
            n=n,
            baseline=None,
            candidate=None,
            drop=None,
            interval=None,
            method="none",
        )
    return Comparison(
        metric=metric,
        where=where or {},
        n=n,
        baseline=baseline or _plain(found.before, n),
        candidate=candidate or _plain(found.after, n),
        drop=found.before - found.after if found.higher_is_better else found.after - found.before,
        interval=found.interval,
        method=found.method,
        newly_wrong=found.newly_wrong,
        newly_right=found.newly_right,
        mcnemar=found.mcnemar,
        worth=found.worth,
    )


def _plain(value: float, n: int) -> Estimate:
    return Estimate(value=value, interval=None, n=n, method="without an interval")


def _refuse_different(before: Form, after: Form) -> None:
    if type(before) is not type(after):
        kinds = f"{type(before).__name__} and {type(after).__name__}"
        raise ValueError(f"before and after must be the same form of the same cases, got {kinds}")
    ours, theirs = _made_of(before), _made_of(after)
    if ours.keys() != theirs.keys() or not all(np.array_equal(ours[key], theirs[key]) for key in ours):
        differ = sorted(ours.keys() ^ theirs.keys()) or [
            key for key in ours if not np.array_equal(ours[key], theirs[key])
        ]
        raise ValueError(
            f"before and after must be made of the same cases, but they differ in {', '.join(differ)}"
        )


def _made_of(form: Form) -> dict[str, np.ndarray]:
    """What two forms of the same cases have in common."""
    match form:
        case MeanOfShares() | MeanOfRankings():
            return {
                f"{key} of {name}": value
                for name, part in form.parts.items()
                for key, value in _made_of(part).items()
            }
        case Share():
            return {"among": form.among}
        case Ranking():
            return {"among": form.among, "truth": form.truth}
        case OfSums():
            shape = np.array(form.columns.shape)
            return {"among": form.among, "columns": shape, "direction": np.array(form.higher_is_better)}
        case OfWeights():
            return {"among": form.among, "direction": np.array(form.higher_is_better)}


def _asked(form: Form) -> np.ndarray:
    """Which cases the metric rests on, ``(N,)`` bool; a part that they cannot define is left out."""
    match form:
        case MeanOfShares() | MeanOfRankings():
            masks = [_asked(part) for part in form.parts.values()]
            return np.logical_or.reduce(masks) if masks else np.zeros(0, bool)
        case Ranking():
            return form.among if _has_both(form) else np.zeros(len(form.among), bool)
        case _:
            return form.among


def _has_both(ranking: Ranking) -> bool:
    positive = int(np.count_nonzero(ranking.truth & ranking.among))
    return 0 < positive < int(np.count_nonzero(ranking.among))


def _repeated(subjects: np.ndarray | None, asked: np.ndarray) -> np.ndarray | None:
    """The subjects where one has several of the cases, else None."""
    if subjects is not None and len(subjects) != len(asked):
        raise ValueError(f"subjects must have one entry per case, got {len(subjects)} for {len(asked)}")
    return subjects if subjects is not None and has_repeats(subjects[asked]) else None


@dataclass(frozen=True, kw_only=True)
class _Drop:
    """What a form says of the two models."""

    before: float
    after: float
    interval: Interval | None
    method: str
    higher_is_better: bool = True
    newly_wrong: int | None = None
    newly_right: int | None = None
    mcnemar: float | None = None
    worth: float | None = None


def _drop(before: Form, after: Form, subjects: np.ndarray | None, confidence: float) -> _Drop | None:
    """Compare by what the metric is made of; ``subjects`` is None unless they repeat."""
    match before, after:
        case Share(), Share():
            return _of_shares(before, after, subjects, confidence)
        case MeanOfShares(), MeanOfShares():
            return _of_mean_shares(before, after, subjects, confidence)
        case Ranking(), Ranking():
            return _of_rankings({"": before}, {"": after}, subjects, confidence)
        case MeanOfRankings(), MeanOfRankings():
            return _of_rankings(before.parts, after.parts, subjects, confidence)
        case OfSums(), OfSums():
            interval = drop_of_sums(before, after, subjects=subjects, confidence=confidence)
            return _resampled(before, after, interval, subjects)
        case OfWeights(), OfWeights():
            weighed = drop_of_weights(before, after, subjects=subjects, confidence=confidence)
            return _resampled(before, after, weighed, subjects)
    raise AssertionError("forms of different types were refused before")


def _of_shares(before: Share, after: Share, subjects: np.ndarray | None, confidence: float) -> _Drop:
    rows = before.among
    change = before.hits[rows].astype(np.int64) - after.hits[rows]  # 1: newly wrong, -1: newly right
    wrong, right = int((change == 1).sum()), int((change == -1).sum())
    worth, method = None, "Tango score interval"
    if subjects is not None:
        worth = effective_cases(change, subjects[rows], rare=change != 0, confidence=confidence)
        method = subject_method(method, subjects[rows], worth)
    shrink = (worth or before.n) / before.n
    return _Drop(
        before=before.value,
        after=after.value,
        interval=tango(wrong * shrink, right * shrink, before.n * shrink, confidence),
        method=method,
        newly_wrong=wrong,
        newly_right=right,
        mcnemar=mcnemar_exact(wrong, right),
        worth=worth,
    )


def _of_mean_shares(
    before: MeanOfShares, after: MeanOfShares, subjects: np.ndarray | None, confidence: float
) -> _Drop | None:
    pairs = [(share, after.parts[name]) for name, share in before.parts.items() if share.n]
    parts = [
        Part(rows=one.among, change=one.hits.astype(np.float64) - other.hits, weight=1 / len(pairs))
        for one, other in pairs
    ]
    values = [(one.value, other.value) for one, other in pairs]
    return _bounded(values, parts, "score interval of bounded losses", subjects, confidence)


def _of_rankings(
    before: Mapping[str, Ranking],
    after: Mapping[str, Ranking],
    subjects: np.ndarray | None,
    confidence: float,
) -> _Drop | None:
    pairs = [(ranking, after[name]) for name, ranking in before.items() if _has_both(ranking)]
    placed = [(_placed(one), _placed(other)) for one, other in pairs]
    values = [
        (float(p[one.truth & one.among].mean()), float(q[one.truth & one.among].mean()))
        for (one, _), (p, q) in zip(pairs, placed, strict=True)
    ]
    parts = [
        Part(rows=rows, change=p - q, weight=1 / len(pairs))
        for (one, _), (p, q) in zip(pairs, placed, strict=True)
        for rows in (one.truth & one.among, ~one.truth & one.among)
    ]
    return _bounded(values, parts, "paired DeLong, score interval", subjects, confidence)


def _placed(ranking: Ranking) -> np.ndarray:
    """Placements among the cases asked, 0 for others; ``(N,)``."""
    found = np.zeros(len(ranking.among))
    found[ranking.among] = placements(ranking.scores[ranking.among], ranking.truth[ranking.among])
    return found


def _bounded(
    values: Sequence[tuple[float, float]],
    parts: Sequence[Part],
    method: str,
    subjects: np.ndarray | None,
    confidence: float,
) -> _Drop | None:
    if not values:
        return None
    before, after = (float(x) for x in np.mean(values, axis=0))
    found = losses(before - after, parts, subjects=subjects)
    return _Drop(
        before=before,
        after=after,
        interval=score_interval(found, confidence),
        method=method + ("" if subjects is None else " by subject"),
    )


def _resampled(
    before: OfSums | OfWeights,
    after: OfSums | OfWeights,
    interval: Interval | None,
    subjects: np.ndarray | None,
) -> _Drop:
    return _Drop(
        before=value_of(before),
        after=value_of(after),
        interval=interval,
        method="paired BCa bootstrap" + ("" if subjects is None else " by subject"),
        higher_is_better=before.higher_is_better,
    )
