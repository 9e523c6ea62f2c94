"""What a split can prove, before any model has answered: which limits, and at what price."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby

import numpy as np

from pastille.recipe import CalibrationLimits, FairnessLimits
from pastille.stats.clusters import effective_cases, has_repeats
from pastille.stats.forms import Form, Share
from pastille.stats.groups import groups_of
from pastille.stats.power import (
    bearable_discordance,
    cases_needed,
    exact_cases_needed,
    power_of,
)
from pastille.stats.unchanged import (
    CLASSIFIES,
    Stressed,
    Unchanged,
    hopeless_sentence,
    not_foretold,
    points,
    questions,
    unchanged,
)
from pastille.values import Cases, SplitName
from pastille.vocabulary import counted, many, place, spoken

DISCORDANCE = 0.02  # assumed: how often a candidate and its baseline disagree on who is right
POWER = 0.8  # wanted: the chance that a candidate as good as the baseline is approved


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One limit on a share of cases, and the cases that there are for it."""

    split: SplitName
    metric: str
    where: Mapping[str, str] = field(default_factory=dict)  # as `Comparison.where`
    limit: float
    cases: int
    subjects: int | None = None  # where they repeat
    worth: int  # independent cases that they are worth at least
    fewest: int | None  # cases that prove the limit if no decision changes; None: no number does, of 0
    least: int = 1  # fewer are inconclusive whatever the models answer: fairness.min_group

    @property
    def hopeless(self) -> bool:
        """Whether the verdict cannot be approved, even if no decision changes."""
        return self.fewest is None or self.cases < max(self.least, self.fewest)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What can be proven of one limit, if the candidate is truly as good as the baseline."""

    asked: Asked
    discordance: float  # assumed
    power: float  # chance of approval at that discordance
    needed: int | None  # cases for the power wanted, at that discordance; None: no number, of a limit of 0
    bearable: float | None  # largest discordance with the power wanted; None: cannot be approved

    @property
    def sure(self) -> bool:
        """Whether the power wanted is reached at the discordance assumed."""
        return self.bearable is not None and self.bearable >= self.discordance


def outlooks(
    cases: Cases,
    *,
    max_drop: Mapping[str, float],
    max_class_drop: Mapping[str, float] | None = None,
    fairness: FairnessLimits | None = None,
    confidence: float,
    discordance: float = DISCORDANCE,
    power: float = POWER,
) -> tuple[Outlook, ...]:
    """Say of each limit on a share of cases what a split can prove of it.

    Where a subject has several cases, they are counted at the least that they can be worth, which is one
    per subject if all have equally many: how alike they are is not known before models have answered.

    Args:
        cases: The right answers of the split.
        max_drop: Metric -> limit. Metrics that are not shares of cases are left out: `unforeseeable`.
        max_class_drop: Metric -> limit of every class.
        fairness: Limits of every group; its ``max_drop`` must be complete, as that of `pastille.policy.bar`.
        confidence: Of the two-sided intervals.
        discordance: Share of cases that one model gets right and the other wrong.
        power: Chance of approval that is wanted, in ``[0.5, 1)``.

    Returns:
        Overall, then by class, then by group. No number of cases proves a limit of 0 of a candidate that is
        only as good as the baseline.

    Raises:
        DataError: An attribute of ``fairness.by`` does not exist.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.arange(900) % 3 % 2, positive=(1,),
        ...               labels=("healthy", "ill"))
        >>> for each in outlooks(cases, max_drop={"accuracy": 0.02, "sensitivity": 0.01}, confidence=0.95):
        ...     print(sentence(each))
        accuracy: 900 cases can show a loss of at most 2 points, if no more than 4.2 % of the decisions change
        sensitivity: 300 cases of a positive class cannot show a loss of at most 1 point, even if no decision
        changes; that takes 381
    """
    return tuple(
        _outlook(each, confidence, discordance, power)
        for each in _asked(cases, max_drop, max_class_drop or {}, fairness, confidence)
    )


def _outlook(asked: Asked, confidence: float, discordance: float, power: float) -> Outlook:
    effect = asked.cases / asked.worth if asked.worth else 1.0
    alone = _independent_needed(discordance, asked.limit, confidence, power) if asked.limit else None
    needed = None if alone is None else math.ceil(alone * effect)
    found = Outlook(asked=asked, discordance=discordance, power=0.0, needed=needed, bearable=None)
    if asked.hopeless:
        return found
    return replace(
        found,
        power=power_of(asked.worth, discordance, asked.limit, confidence=confidence),
        bearable=bearable_discordance(asked.worth, asked.limit, confidence=confidence, power=power),
    )


@cache
def _independent_needed(discordance: float, limit: float, confidence: float, power: float) -> int:
    """The same for every class and group of one limit."""
    return exact_cases_needed(discordance, limit, confidence=confidence, power=power)


def _asked(
    cases: Cases,
    max_drop: Mapping[str, float],
    max_class_drop: Mapping[str, float],
    fairness: FairnessLimits | None,
    confidence: float,
) -> Iterator[Asked]:
    if cases.kind not in CLASSIFIES:
        return
    asked_of = _AskedOf(cases=cases, confidence=confidence, repeats=has_repeats(cases.subjects))
    known = questions(cases)
    yield from asked_of.shares(known.overall, max_drop)
    if max_class_drop:
        for label, of_class in known.classes.items():
            yield from asked_of.shares(of_class, max_class_drop, {"class": label})
    if fairness is not None:
        groups = groups_of(cases, fairness.by, intersections=fairness.intersections)
        for group in (group for found in groups.values() for group in found):
            rows = np.zeros(len(cases.targets), bool)
            rows[group.rows] = True
            within = {name: form.within(rows) for name, form in known.overall.items()}
            yield from asked_of.shares(within, fairness.max_drop, group.where, fairness.min_group)


@dataclass(frozen=True, kw_only=True)
class _AskedOf:
    """Counts the cases that a question is put to."""

    cases: Cases
    confidence: float
    repeats: bool

    def shares(
        self,
        known: Mapping[str, Form],
        limits: Mapping[str, float],
        where: Mapping[str, str] | None = None,
        least: int = 1,
    ) -> Iterator[Asked]:
        for metric, limit in limits.items():
            share = known.get(metric)
            if isinstance(share, Share):
                yield self._asked(metric, limit, share, where or {}, least)

    def _asked(self, metric: str, limit: float, share: Share, where: Mapping[str, str], least: int) -> Asked:
        subjects, worth = None, share.n
        if self.repeats and self.cases.subjects is not None and share.n:
            concerned = self.cases.subjects[share.among]
            subjects, worth = len(np.unique(concerned)), math.floor(_least_worth(concerned))
        return Asked(
            split=self.cases.split,
            metric=metric,
            where=where,
            limit=limit,
            cases=share.n,
            subjects=subjects,
            worth=worth,
            fewest=self._fewest(limit, share.n / worth if worth else 1.0),
            least=least,
        )

    def _fewest(self, limit: float, effect: float) -> int | None:
        if limit == 0:
            return None
        return math.ceil(cases_needed(0.0, limit, confidence=self.confidence) * effect)


def _least_worth(subjects: np.ndarray) -> float:
    """What cases are worth if all of a subject are one, as `effective_cases` takes it where none changes."""
    same = np.zeros(len(subjects))
    return effective_cases(same, subjects, rare=same > 0, confidence=0.95)


def unforeseeable(
    cases: Cases,
    metrics: Mapping[str, float],
    *,
    max_class_drop: Mapping[str, float] | None = None,
    fairness: FairnessLimits | None = None,
    calibration: CalibrationLimits | None = None,
    stress: Stressed | None = None,
    confidence: float = 0.95,
) -> tuple[str, ...]:
    """Of what has a limit, that which no formula foretells: what can be proven of it depends on the answers.

    Args:
        cases: The right answers of the split.
        metrics: Metric -> limit; as in `outlooks`.
        max_class_drop: As in `outlooks`.
        fairness: As in `outlooks`.
        calibration: Limits of how much less the probabilities may mean.
        stress: What is asked under perturbed inputs.
        confidence: Of the two-sided intervals.

    Returns:
        Names of metrics, and other checks in words.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 1]), labels=("a", "b"))
        >>> unforeseeable(cases, {"accuracy": 0.01, "auroc": 0.01}, calibration=CalibrationLimits())
        ('auroc', 'expected calibration error')
    """
    known = questions(cases) if cases.kind in CLASSIFIES else None
    overall = known.overall if known else {}
    of_class: Mapping[str, Form] = next(iter(known.classes.values()), {}) if known else {}
    of_group = fairness.max_drop if fairness else {}
    return (
        *_no_shares(overall, metrics),
        *(f"{spoken(name)} of every class" for name in _no_shares(of_class, max_class_drop or {})),
        *(f"{spoken(name)} of every group" for name in _no_shares(overall, of_group)),
        *not_foretold(
            cases, fairness=fairness, calibration=calibration, stress=stress, confidence=confidence
        ),
    )


def _no_shares(known: Mapping[str, Form], limits: Mapping[str, float]) -> Iterator[str]:
    return (name for name in limits if not isinstance(known.get(name), Share))


def provable(
    cases: Cases,
    *,
    max_drop: Mapping[str, float],
    max_class_drop: Mapping[str, float] | None = None,
    fairness: FairnessLimits | None = None,
    stress: Stressed | None = None,
    confidence: float,
) -> tuple[str, ...]:
    """Cautions for the start of a run: limits that the split cannot prove, even if no decision changes.

    Args:
        cases: As in `outlooks`, as are the others.
        max_drop: Metric -> limit.
        max_class_drop: Metric -> limit of every class.
        fairness: Limits of every group, and of the gaps between them.
        stress: What is asked under perturbed inputs.
        confidence: Of the two-sided intervals.

    Returns:
        One sentence for each limit overall, one for all classes or groups of a metric, and one for each gap
        and stressed metric; none where every limit that can be foretold could be proven.

    Raises:
        DataError: An attribute does not exist.

    Example:
        >>> cases = Cases(kind="multiclass", split="test", targets=np.arange(50) % 2, labels=("a", "b"))
        >>> print(*provable(cases, max_drop={"accuracy": 0.05}, confidence=0.95))
        caution: the test split has 50 cases for accuracy, but to show that no more than 5 points are lost
        takes at least 73, even if no decision changes: the verdict cannot be approved
    """
    asked = tuple(_asked(cases, max_drop, max_class_drop or {}, fairness, confidence))
    reported = fairness is not None and fairness.undecided == "report"
    parts = sorted((each for each in asked if each.where), key=_family)
    return (
        *(_caution(each) for each in asked if each.hopeless and not each.where),
        *(
            text
            for _, same in groupby(parts, key=_family)
            for text in _caution_of_parts(tuple(same), reported=reported)
        ),
        *_cautions_of_unchanged(unchanged(cases, fairness=fairness, confidence=confidence), reported),
        *_cautions_of_unchanged(unchanged(cases, stress=stress, confidence=confidence), reported=False),
    )


def _cautions_of_unchanged(found: Iterable[Unchanged], reported: bool) -> Iterator[str]:
    for each in found:
        if each.hopeless:
            yield f"caution: {hopeless_sentence(each)}{'; it is only reported' if reported else ''}"


def _family(asked: Asked) -> tuple[bool, str, float]:
    """Classes before groups; those of one metric and limit are spoken of together."""
    return "class" not in asked.where, asked.metric, asked.limit


def _caution(asked: Asked) -> str:
    if asked.fewest is None:
        return f"caution: {_nothing_lost(spoken(asked.metric))}: the verdict can hardly be approved"
    return (
        f"caution: the {asked.split} split has {_counted(asked)} for {spoken(asked.metric)}, but to show "
        f"that no more than {_points_are(asked.limit)} lost takes at least {many(asked.fewest)}, even if no "
        "decision changes: the verdict cannot be approved"
    )


def _nothing_lost(what: str) -> str:
    as_good = "of a candidate that is only as good as the baseline"
    return f"{what}: no number of cases can show a loss of at most 0 points {as_good}"


def _caution_of_parts(same: tuple[Asked, ...], *, reported: bool) -> Iterator[str]:
    short = [each for each in same if each.hopeless]
    if not short:
        return
    smallest = min(short, key=lambda each: each.cases)
    of_class = "class" in smallest.where
    kind = "classes" if of_class else "groups"
    outcome = "they are only reported" if reported and not of_class else "the verdict cannot be approved"
    if smallest.fewest is None:
        hardly = outcome.replace("cannot", "can hardly")
        yield f"caution: {_nothing_lost(f'{spoken(smallest.metric)} of {kind}')}: {hardly}"
        return
    takes = max(smallest.fewest, smallest.least)
    yield (
        f"caution: {len(short)} of {len(same)} {kind} of the {smallest.split} "
        f"split {'has' if len(short) == 1 else 'have'} too few cases to show that no more than "
        f"{_points_are(smallest.limit)} lost of {spoken(smallest.metric)}, even if no decision changes "
        f"({place(smallest.where)} has {_counted(smallest)}, and it takes at least {many(takes)}): {outcome}"
    )


def subject(outlook: Outlook) -> str:
    """Which metric it is, and of whom."""
    asked = outlook.asked
    return spoken(asked.metric) + (f" of {place(asked.where)}" if asked.where else "")


def sentence(outlook: Outlook) -> str:
    """What can be proven, in words."""
    asked = outlook.asked
    what = subject(outlook)
    bound = f"show a loss of at most {points(asked.limit)}"
    if asked.fewest is None:
        return _nothing_lost(what)
    if 0 < asked.cases < asked.least:
        asks = f"fairness.min_group asks for {many(asked.least)}"
        verb = "is" if asked.cases == 1 else "are"
        return f"{what}: {_counted(asked)} {verb} too few to be judged; {asks}"
    if outlook.bearable is None:
        takes = f"that takes {many(max(asked.fewest, asked.least))}"
        return f"{what}: {_counted(asked)} cannot {bound}, even if no decision changes; {takes}"
    if outlook.bearable >= 1:
        return f"{what}: {_counted(asked)} can {bound}, however many decisions change"
    share = f"no more than {_percent_below(outlook.bearable)} of the decisions change"
    return f"{what}: {_counted(asked)} can {bound}, if {share}"


def _counted(asked: Asked) -> str:
    cases = counted(asked.cases, asked.metric)
    if asked.subjects is None:
        return cases
    subjects = f"{many(asked.subjects)} subject{'' if asked.subjects == 1 else 's'}"
    return f"{cases} (of {subjects}, worth {many(asked.worth)})"


def _points_are(limit: float) -> str:
    return f"{points(limit)} {'is' if limit == 0.01 else 'are'}"


def _percent_below(share: float) -> str:
    """Two digits, rounded down: no more is promised than holds."""
    if share == 0.0:
        return "0 %"
    step = 10.0 ** (math.floor(math.log10(100 * share)) - 1)
    return f"{math.floor(100 * share / step) * step:.2g} %"
