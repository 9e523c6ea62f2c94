"""Both models' answers to the same cases, held against everything that was asked of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pastille.gates.calibration import calibration_checks
from pastille.gates.drops import check_drop
from pastille.gates.findings import Findings
from pastille.gates.groups import Settled, gap_checks, group_checks, settled, unasked_harm
from pastille.policy import IN_DEVIATIONS, Bar
from pastille.stats.calibration import calibration
from pastille.stats.catalogue import MetricForms
from pastille.stats.clusters import has_repeats
from pastille.stats.decisions import decide, predict, probabilities
from pastille.stats.disagreement import disagreement
from pastille.stats.estimates import estimate
from pastille.stats.fairness import fairness
from pastille.stats.forms import Form, OfSums, OfWeights
from pastille.stats.groups import usable_attributes
from pastille.stats.kinds import forms
from pastille.stats.margins import decision_margins
from pastille.stats.paired import compare
from pastille.stats.statements import PROBABLE_KINDS
from pastille.values import (
    Calibration,
    Cases,
    Check,
    Comparison,
    Disagreement,
    Evidence,
    Fairness,
)

_MAIN_OF_A_CLASS = ("recall", "sensitivity", "dice")
_MAX_RESAMPLED = 20_000  # cases; beyond them, resampling what nobody asked for takes half a minute
_MAX_CLASSES = 200  # compared where no limit asks for all of them
_MIN_GROUP = 30  # of attributes that no limit is set on


def judge_answers(
    baseline: np.ndarray,
    candidate: np.ndarray,
    *,
    cases: Cases,
    bar: Bar,
    thorough: bool = True,
    stated: np.ndarray | None = None,
) -> Findings:
    """Compare two models' answers to the same cases, and hold the drops against their limits.

    Both models answer the same cases, so every test is paired. The upper end of the interval of a drop
    within its limit approves, the lower end beyond it rejects, and anything else is inconclusive.

    Args:
        baseline: Logits or predictions ``(N, ...)``, as in `pastille.stats.decisions`.
        candidate: The same, row by row, of the model that is judged.
        cases: The right answers, whom they belong to, and the threshold.
        bar: The limits.
        thorough: Also compare what no limit is set on, with resampling where it takes that; of more than
            20,000 cases only what has a limit is resampled.
        stated: The candidate's logits as it gives them, where ``candidate`` is what they are decided by:
            a calibrated file with a threshold of its own. None: the same.

    Returns:
        Checks of metrics, classes, groups and calibration, and the evidence behind them.

    Raises:
        ValueError: A limit names a metric that the task does not have, an attribute is not among the
            cases' groups, or outputs do not fit or are not finite.

    Example:
        >>> truth = np.arange(400) % 2
        >>> cases = Cases(kind="binary", split="test", targets=truth, labels=("healthy", "ill"))
        >>> logits = np.where(truth == 1, 2.0, -2.0)
        >>> worse = np.where(np.arange(400) == 7, -2.0, logits)  # one case newly wrong
        >>> bar = Bar(max_drop={"accuracy": 0.02}, confidence=0.95)
        >>> print(judge_answers(logits, worse, cases=cases, bar=bar).checks[0].reason)
        accuracy fell by 0.2 points (95 % CI −0.7 to 1.4, 400 cases: 1 newly wrong, 0 newly right),
        within the limit of 2 points

    References:
        Tango, Statistics in Medicine 17, 1998; DeLong et al., Biometrics 44, 1988; Rao and Scott,
        Biometrics 48, 1992; Efron, JASA 82, 1987; Berger and Hsu, Statistical Science 11, 1996.
    """
    before, after = forms(baseline, cases), forms(candidate, cases)
    unknown = sorted(set(bar.max_drop) - set(before.overall))
    if unknown:
        raise ValueError(
            f"limits must name metrics of this {cases.kind} task, {sorted(before.overall)}, got "
            f"{', '.join(unknown)}"
        )
    found = tuple(_comparisons(before, after, cases, bar, thorough=thorough))
    groups = _fairness(before, after, cases, bar)
    said = _group_checks(groups, cases, bar)
    meant = _calibration(baseline, candidate if stated is None else stated, cases, bar, thorough=thorough)
    return Findings(
        checks=(*_metric_checks(found, cases, bar), *said.checks, *_calibration_checks(meant, bar)),
        notes=(*_decided_alike(baseline, candidate, cases), *said.notes),
        evidence=Evidence(
            comparisons=found,
            fairness=groups,
            calibration=meant,
            disagreement=_disagreement(baseline, candidate, cases),
        ),
    )


def _decided_alike(baseline: np.ndarray, candidate: np.ndarray, cases: Cases) -> Iterator[str]:
    """A model that calls every case by one name is broken, or its answers are not what they were said."""
    if cases.kind not in ("binary", "multiclass"):
        return
    for name, answers in (("baseline", baseline), ("candidate", candidate)):
        decided = np.unique(decide(answers, cases))
        if len(decided) == 1 and len(np.unique(cases.targets)) > 1:
            label = cases.labels[int(decided[0])]
            yield f"the {name} decides every case as {label!r}: are its answers what they are said to be?"


def _comparisons(
    before: MetricForms, after: MetricForms, cases: Cases, bar: Bar, *, thorough: bool
) -> Iterator[Comparison]:
    """Overall and by class: what a limit is set on, what needs no resampling, and all if thorough."""
    resampled = thorough and len(cases.targets) <= _MAX_RESAMPLED
    for metric, form in before.overall.items():
        if resampled or metric in bar.max_drop or not isinstance(form, OfSums | OfWeights):
            yield _compared(form, after.overall[metric], metric, {}, cases, bar)
    shown = bar.max_class_drop or _MAIN_OF_A_CLASS
    for label in itertools.islice(before.classes, None if bar.max_class_drop else _MAX_CLASSES):
        metrics, later = before.classes[label], after.classes[label]
        for metric in (name for name in shown if name in metrics):
            yield _compared(metrics[metric], later[metric], metric, {"class": label}, cases, bar)


def _compared(
    before: Form, after: Form, metric: str, where: Mapping[str, str], cases: Cases, bar: Bar
) -> Comparison:
    found = compare(
        before,
        after,
        metric=metric,
        where=where,
        subjects=cases.subjects,
        confidence=bar.confidence,
        baseline=estimate(before, subjects=cases.subjects, confidence=bar.confidence),
        candidate=estimate(after, subjects=cases.subjects, confidence=bar.confidence),
    )
    if where or found.worth is not None or cases.subjects is None or not has_repeats(cases.subjects):
        return found
    return replace(found, subjects=len(np.unique(cases.subjects)))


def _metric_checks(found: Sequence[Comparison], cases: Cases, bar: Bar) -> Iterator[Check]:
    """One check per limit, in the order of the limits; then one per class."""
    overall = {c.metric: c for c in found if not c.where}
    for metric, limit in bar.max_drop.items():
        yield check_drop(overall[metric], limit * _unit(metric, cases))
    for metric, limit in bar.max_class_drop.items():
        yield from (check_drop(c, limit) for c in found if "class" in c.where and c.metric == metric)


def _unit(metric: str, cases: Cases) -> float:
    return float(np.std(cases.targets)) if metric in IN_DEVIATIONS else 1.0


def _fairness(before: MetricForms, after: MetricForms, cases: Cases, bar: Bar) -> tuple[Fairness, ...]:
    """Groups that a limit is set on; without one, every attribute is measured all the same."""
    asked = bar.fairness
    by = asked.by if asked else usable_attributes(cases)
    return fairness(
        before.overall,
        after.overall,
        cases,
        by=by,
        intersections=asked.intersections if asked else False,
        min_group=asked.min_group if asked else _MIN_GROUP,
        confidence=bar.confidence,
        also=asked.max_drop if asked else (),
    )


def _group_checks(found: tuple[Fairness, ...], cases: Cases, bar: Bar) -> Settled:
    asked = bar.fairness
    if asked is None:
        limits = {metric: limit * _unit(metric, cases) for metric, limit in bar.max_drop.items()}
        harm = unasked_harm(found, limits=limits, min_group=_MIN_GROUP, confidence=bar.confidence)
        return Settled(checks=(), notes=harm)
    limits = {metric: limit * _unit(metric, cases) for metric, limit in asked.max_drop.items()}
    gap = asked.max_gap_increase * (_unit("rmse", cases) if cases.kind == "regression" else 1.0)
    checks = (
        *group_checks(found, limits=limits, min_group=asked.min_group, confidence=bar.confidence),
        *gap_checks(found, limit=gap, min_group=asked.min_group),
    )
    return settled(checks, undecided=asked.undecided)


def _calibration(
    baseline: np.ndarray, candidate: np.ndarray, cases: Cases, bar: Bar, *, thorough: bool
) -> Calibration | None:
    if cases.kind not in PROBABLE_KINDS or not (thorough or bar.calibration):
        return None
    return calibration(baseline, candidate, cases, confidence=bar.confidence)


def _calibration_checks(found: Calibration | None, bar: Bar) -> tuple[Check, ...]:
    if found is None or bar.calibration is None:
        return ()
    return calibration_checks(found, bar.calibration)


def _disagreement(baseline: np.ndarray, candidate: np.ndarray, cases: Cases) -> Disagreement | None:
    if cases.kind == "custom":
        return None
    if cases.kind == "regression":
        return disagreement(predict(baseline, cases), predict(candidate, cases), cases)
    margins = None
    if cases.kind in PROBABLE_KINDS:
        margins = decision_margins(probabilities(cases.kind, baseline), cases)
    return disagreement(
        decide(baseline, cases), decide(candidate, cases), cases, confidence_of_baseline=margins
    )
