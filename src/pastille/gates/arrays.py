"""``pastille.judge``: the whole judgement for plain arrays of predictions, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pastille import policy
from pastille.gates.judge import judge_answers
from pastille.gates.verdict import verdict
from pastille.recipe import Risk, parse_recipe
from pastille.stats.alignment import check_same_order
from pastille.stats.scale import to_logits
from pastille.stats.validity import check_cases
from pastille.values import Cases, CustomMetric, Kind, SplitName, Verdict

Scale = Literal["auto", "logits", "probabilities"]


def judge(
    baseline: np.ndarray,
    candidate: np.ndarray,
    targets: np.ndarray,
    *,
    kind: Kind = "binary",
    labels: Sequence[str] = (),
    positive: Sequence[str] = (),
    threshold: float = 0.5,
    given: Scale = "auto",
    risk: Risk = "high",
    max_drop: Mapping[str, float | str] | None = None,
    fairness: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    confidence: float = 0.95,
    groups: Mapping[str, np.ndarray] | None = None,
    subjects: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    candidate_ids: np.ndarray | None = None,
    metrics: Sequence[CustomMetric] = (),
    split: SplitName = "test",
) -> Verdict:
    """Judge a compressed model by its predictions: is it not worse than the baseline, for anybody?

    Args:
        baseline: Predictions of the model before: logits or probabilities, ``(N,)`` or ``(N, K)``;
            numbers ``(N,)`` for regression; ``(N, K, H, W)`` for segmentation.
        candidate: Predictions of the model after, row by row of the same cases.
        targets: The right answers: class indices ``(N,)``, ``(N, L)`` 0/1 for multilabel, numbers ``(N,)``
            for regression, masks ``(N, H, W)`` for segmentation.
        kind: ``binary``, ``multiclass``, ``multilabel``, ``regression``, ``segmentation`` or ``custom``.
        labels: Class names in the order of the outputs; ``0``, ``1`` … if left out.
        positive: Labels that must not be missed; the second one of a binary task if left out.
        threshold: Probability from which a case is called positive.
        given: What the predictions are. ``auto`` recognises what is certain and refuses what is not:
            numbers outside [0, 1] are logits, rows that sum to one are probabilities.
        risk: The tier: ``critical`` 0.5 %, ``high`` 1 %, ``medium`` 2 %, ``low`` 5 % at most.
        max_drop: Metric -> largest absolute drop, e.g. ``{"sensitivity": "0.5 %"}``; the tier sets the rest.
        fairness: As in a recipe, e.g. ``{"by": ["sex"], "max_gap_increase": "2 %"}``.
        calibration: As in a recipe, e.g. ``{"max_ece_increase": "2 %"}``.
        confidence: Of the two-sided intervals.
        groups: Attribute -> ``(N,)``, e.g. ``{"sex": array(["f", "m", …])}``.
        subjects: ``(N,)`` patients, where one has several cases.
        ids: ``(N,)`` what the baseline's rows are called, to make sure of the order.
        candidate_ids: The same of the candidate's rows.
        metrics: Metrics of your own; a limit is set on each.
        split: What the cases are called in the verdict.

    Returns:
        The verdict; ``verdict.evidence`` has every comparison, fairness, calibration and disagreement.

    Raises:
        RecipeError: A limit is looser than the tier, or names a metric that the task does not have.
        ValueError: The arrays do not fit each other or the task, hold NaN, or may be logits or
            probabilities; in one line.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.integers(0, 2, 2000)
        >>> before = np.where(rng.random(2000) < 0.95, truth, 1 - truth) * 0.8 + 0.1
        >>> after = np.where(rng.random(2000) < 0.99, before, 1 - before)
        >>> judge(before, after, truth, given="probabilities", risk="low").status
        <Status.APPROVED: 'approved'>
    """
    if ids is not None and candidate_ids is not None:
        check_same_order(ids, candidate_ids)
    truth = np.asarray(targets)
    names = [str(label) for label in labels] or _counted(kind, np.shape(baseline), truth)
    task = {
        "kind": kind,
        "labels": names,
        "positive": [str(label) for label in positive],
        "threshold": threshold,
        "metric": f"own:own.{metrics[0].name}" if metrics else None,
    }
    bar = _bar(
        task,
        risk=risk,
        max_drop=dict(max_drop or {}),
        confidence=confidence,
        fairness=fairness,
        calibration=calibration,
    )
    cases = Cases(
        kind=kind,
        split=split,
        targets=truth,
        labels=tuple(names),
        positive=_positive(kind, names, positive),
        threshold=threshold,
        groups={str(name): np.asarray(column).astype(str) for name, column in (groups or {}).items()},
        subjects=None if subjects is None else np.asarray(subjects),
        ids=None if ids is None else np.asarray(ids).astype(str),
        metrics=tuple(metrics),
    )
    check_cases(cases)
    before = to_logits(kind, np.asarray(baseline), given, name="baseline")
    after = to_logits(kind, np.asarray(candidate), given, name="candidate")
    found = judge_answers(before, after, cases=cases, bar=bar)
    return verdict(found.checks, split=split, notes=found.notes, evidence=found.evidence)


def _bar(task: Mapping[str, Any], **requirements: Any) -> policy.Bar:
    """The limits, checked as those of a recipe are."""
    recipe = parse_recipe(
        {"name": "judge", "task": task, "data": {"source": "arrays"}, "requirements": requirements}
    )
    policy.check(recipe)
    return policy.bar(recipe)


def _counted(kind: Kind, shape: tuple[int, ...], targets: np.ndarray) -> list[str]:
    """Labels for those who gave none: the classes by number."""
    if kind == "binary":
        return ["0", "1"]
    if kind in ("regression", "custom"):
        return []
    classes = shape[1] if len(shape) > 1 else int(targets.max(initial=0)) + 1
    return [str(k) for k in range(max(2, classes) if kind == "segmentation" else classes)]


def _positive(kind: Kind, labels: list[str], positive: Sequence[str]) -> tuple[int, ...]:
    named = [str(label) for label in positive] or (labels[1:] if kind == "binary" else [])
    return tuple(labels.index(label) for label in named)
