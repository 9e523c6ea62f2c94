"""Which checks a candidate fails that decides exactly as its baseline: known before any model has answered.

Where no decision changes, the interval of an excess under perturbed inputs, and of the growth of a gap
between two groups, is made of the number of cases alone. Which two groups of several lie furthest apart
depends on the baseline, but no two are closer known than the two largest, nor less than the two smallest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pastille.recipe import CalibrationLimits, FairnessLimits, Recipe, StressLimits
from pastille.stats.catalogue import MetricForms
from pastille.stats.fairness import fairness as fairness_of
from pastille.stats.fairness import gated_gaps
from pastille.stats.forms import Share
from pastille.stats.gaps import gap
from pastille.stats.kinds import forms
from pastille.stats.normal import critical_value
from pastille.stats.statements import PROBABLE_KINDS
from pastille.stats.stress import excess, stressed_metrics, stressed_rows
from pastille.values import Cases, Comparison, SplitName
from pastille.vocabulary import counted, many, spoken

CLASSIFIES = ("binary", "multiclass", "multilabel")
_SURE = 40.0  # log-odds that any threshold takes for an answer


@dataclass(frozen=True, kw_only=True)
class Stressed:
    """What is asked under perturbed inputs: ``requirements.stress``, and the cases of validation."""

    limits: StressLimits
    cases: Cases
    seed: int  # of the recipe, which draws them
    metrics: tuple[str, ...] = ()  # that a limit is set on


def stressed_by(recipe: Recipe, cases: Cases, metrics: Collection[str]) -> Stressed | None:
    """What a recipe asks under perturbed inputs, if anything.

    Args:
        recipe: Its ``requirements.stress`` and seed.
        cases: Of validation.
        metrics: Those that a limit is set on.
    """
    limits = recipe.requirements.stress
    if limits is None:
        return None
    return Stressed(limits=limits, cases=cases, seed=recipe.seed, metrics=tuple(metrics))


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """One check of a candidate that decides exactly as its baseline."""

    split: SplitName
    subject: str  # e.g. "accuracy under perturbed inputs"
    doubt: str  # in words: which cases leave what open, or why nothing can be judged
    limit: float
    least: float | None  # upper end of the interval if the baseline's answers help; None: there is none
    most: float | None  # and if they do not
    needed: int | None  # about so many cases would do; None: no number does, or it is not theirs to do
    advice: str = ""  # what else must be changed

    @property
    def hopeless(self) -> bool:
        """Whether it cannot be approved, even if no decision changes."""
        return self.least is None or self.least > self.limit

    @property
    def foretold(self) -> bool:
        """Whether it is known, whatever the baseline answers."""
        return self.hopeless or (self.most is not None and self.most <= self.limit)


def questions(cases: Cases) -> MetricForms:
    """The questions that are put to the cases: those of a model that is always right."""
    one_of_several = cases.kind == "multiclass"
    right = cases.targets[:, None] == np.arange(len(cases.labels)) if one_of_several else cases.targets > 0
    return forms(np.where(right, _SURE, -_SURE), replace(cases, metrics=()))


def unchanged(
    cases: Cases,
    *,
    fairness: FairnessLimits | None = None,
    stress: Stressed | None = None,
    confidence: float,
) -> tuple[Unchanged, ...]:
    """Judge a candidate that decides exactly as its baseline by what is known without either.

    Args:
        cases: The right answers of the split, whose groups are compared.
        fairness: Its ``by``, ``max_gap_increase`` and ``min_group``.
        stress: What is asked under perturbed inputs.
        confidence: Of the two-sided intervals.

    Returns:
        One for each gap of each attribute and intersection, then one for each share that is stressed.

    Raises:
        DataError: An attribute of ``fairness.by`` does not exist.

    Example:
        >>> cases = Cases(kind="multiclass", split="test", targets=np.arange(200) % 2, labels=("a", "b"),
        ...               groups={"sex": np.repeat(["f", "m"], 100)})
        >>> asked = FairnessLimits(by=["sex"], max_gap_increase=0.02)
        >>> print(*map(hopeless_sentence, unchanged(cases, fairness=asked, confidence=0.95)))
        accuracy gap between groups of sex cannot be approved even if no decision changes: with 200 cases in
        the two largest groups it may still have grown by 5.4 points, and the limit is 2 points; it takes
        about 548
    """
    gaps = () if fairness is None else tuple(_gaps(cases, fairness, confidence))
    return (*gaps, *(() if stress is None else _stressed(stress, confidence)))


def not_foretold(
    cases: Cases,
    *,
    fairness: FairnessLimits | None = None,
    calibration: CalibrationLimits | None = None,
    stress: Stressed | None = None,
    confidence: float,
) -> tuple[str, ...]:
    """Checks beside those of metrics that depend on the answers, and so are not foretold; in words.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 1]), labels=("a", "b"))
        >>> not_foretold(cases, calibration=CalibrationLimits(), confidence=0.95)
        ('expected calibration error',)
    """
    known = unchanged(cases, fairness=fairness, stress=stress, confidence=confidence)
    return (
        *(each.subject for each in known if not each.foretold),
        *(_other_gaps(cases, fairness)),
        *(_other_stress(stress)),
        *(_calibration(cases, calibration)),
    )


def hopeless_sentence(found: Unchanged) -> str:
    """Why it cannot be approved, and how many cases it takes."""
    said = f"{found.subject} cannot be approved even if no decision changes: {found.doubt}"
    if found.least is None:
        return said
    limit = f"{_points_up(found.least)}, and the limit is {points(found.limit)}"
    takes = "no number of cases is enough" if found.needed is None else f"it takes about {many(found.needed)}"
    return f"{said} {limit}; {takes}{found.advice}"


def points(limit: float) -> str:
    """A limit in words.

    Example:
        >>> points(0.01), points(0.005)
        ('1 point', '0.5 points')
    """
    return f"{100 * limit:.6g} point{'' if limit == 0.01 else 's'}"


def _points_up(share: float) -> str:
    """Two digits, rounded up: it is said to lie above a limit."""
    step = 10.0 ** min(-1, math.floor(math.log10(100 * share)) - 1)
    return f"{math.ceil(100 * share / step - 1e-9) * step:.6g} points"


def _gap_shares(cases: Cases) -> dict[str, dict[str, Share]]:
    """The gaps that have a limit, and the shares that each is taken of; none where they are no shares."""
    if cases.kind not in CLASSIFIES:
        return {}
    known = questions(cases).overall
    return {
        name: {metric: form for metric in metrics if isinstance(form := known[metric], Share)}
        for name, metrics in gated_gaps(known).items()
        if all(isinstance(known[metric], Share) for metric in metrics)
    }


def _other_gaps(cases: Cases, asked: FairnessLimits | None) -> Iterator[str]:
    if asked is not None and not _gap_shares(cases):
        yield "gaps between groups"


def _gaps(cases: Cases, asked: FairnessLimits, confidence: float) -> Iterator[Unchanged]:
    gaps = _gap_shares(cases)
    if not gaps:
        return
    shares = {metric: share for of_gap in gaps.values() for metric, share in of_gap.items()}
    compared = fairness_of(
        shares,
        shares,
        cases,
        by=asked.by,
        intersections=asked.intersections,
        min_group=asked.min_group,
        confidence=confidence,
    )
    for found in compared:
        for name, of_gap in gaps.items():
            groups = {metric: [c for c in found.groups if c.metric == metric] for metric in of_gap}
            subject = f"{name} between groups of {found.attribute.replace('_', ' ')}"
            yield _gap(subject, cases.split, groups, asked, confidence)


def _gap(
    subject: str,
    split: SplitName,
    groups: Mapping[str, Sequence[Comparison]],
    asked: FairnessLimits,
    confidence: float,
) -> Unchanged:
    limit = asked.max_gap_increase
    by_size = [sorted((c for c in of if c.n >= asked.min_group), key=_reach) for of in groups.values()]
    short = [metric for metric, kept in zip(groups, by_size, strict=True) if len(kept) < 2]
    if short:
        why = f"fewer than two groups of the {split} split have {counted(asked.min_group, short[0])}"
        return Unchanged(
            split=split, subject=subject, doubt=why, limit=limit, least=None, most=None, needed=None
        )
    ends = [(_pair_end(kept[:2], confidence), _pair_end(kept[-2:], confidence)) for kept in by_size]
    at = min(range(len(ends)), key=lambda i: ends[i][0])
    largest, least = by_size[at][:2], ends[at][0]
    n = sum(c.n for c in largest)
    times = [(least / limit - _reach(c)) / (1 - _reach(c)) for c in largest] if limit else []
    return Unchanged(
        split=split,
        subject=subject,
        doubt=f"with {counted(n, largest[0].metric)} in the two largest groups it may still have grown by",
        limit=limit,
        least=least,
        most=max(most for _, most in ends),
        needed=math.ceil(n * max(times)) if times else None,
    )


def _reach(found: Comparison) -> float:
    """How far the interval of an unchanged group reaches up: ``z^2 / (n + z^2)``."""
    return math.inf if found.interval is None else found.interval.high


def _pair_end(pair: Sequence[Comparison], confidence: float) -> float:
    """Upper end of the growth, if these two groups lie furthest apart."""
    found = gap("", "", [pair], min_group=1, confidence=confidence)
    return math.inf if found is None or found.interval is None else found.interval.high


def _asked_under_stress(stress: Stressed) -> tuple[Cases, MetricForms | None, list[str]]:
    rows = stressed_rows(len(stress.cases.targets), stress.limits.cases, stress.seed)
    held = stress.cases
    subjects = None if held.subjects is None else held.subjects[rows]
    drawn = replace(held, targets=held.targets[rows], groups={}, subjects=subjects, strata=None, ids=None)
    if held.kind not in CLASSIFIES:
        return drawn, None, []
    known = questions(drawn)
    return drawn, known, stressed_metrics(known.overall, stress.metrics, ())


def _other_stress(stress: Stressed | None) -> Iterator[str]:
    if stress is None:
        return
    _, known, metrics = _asked_under_stress(stress)
    if known is None:
        yield "the metrics under perturbed inputs"
        return
    for metric in metrics:
        if not isinstance(known.overall[metric], Share):
            yield f"{spoken(metric)} under perturbed inputs"


def _stressed(stress: Stressed, confidence: float) -> Iterator[Unchanged]:
    drawn, known, metrics = _asked_under_stress(stress)
    for metric in metrics:
        share = known.overall[metric] if known else None
        if not isinstance(share, Share):
            continue
        found = excess((share, share), (share, share), subjects=drawn.subjects, confidence=confidence)
        if found is None or found.interval is None:
            continue
        high, limit, asked = found.interval.high, stress.limits.max_extra_drop, stress.limits.cases
        z = critical_value(confidence)
        worth = z**2 * (2 / high - 1)  # the reach of so many independent cases
        needed = math.ceil(found.n * z**2 * (2 / limit - 1) / worth) if limit else None
        yield Unchanged(
            split=drawn.split,
            subject=f"{spoken(metric)} under perturbed inputs",
            doubt=f"with {counted(found.n, metric)} of the {drawn.split} split the extra loss may still be",
            limit=limit,
            least=high,
            most=high,
            needed=needed,
            advice=f" (requirements.stress.cases is {many(asked)})" if needed else "",
        )


def _calibration(cases: Cases, asked: CalibrationLimits | None) -> Iterator[str]:
    if asked is None or cases.kind not in PROBABLE_KINDS:
        return
    yield spoken("ece")
    if asked.max_brier_increase is not None:
        yield spoken("brier")
