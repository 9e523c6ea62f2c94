"""``pastille.judge``: the whole judgement for plain arrays of predictions, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeGuard, get_args

import numpy as np

from pastille import policy
from pastille.gates.judge import judge_answers
from pastille.gates.verdict import verdict
from pastille.recipe import Risk, parse_recipe
from pastille.recipe.quantities import parse_share
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
    threshold: float | str = 0.5,
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
        targets: The right answers: class indices or labels ``(N,)``, ``(N, L)`` 0/1 for multilabel,
            numbers ``(N,)`` for regression, masks ``(N, H, W)`` for segmentation.
        kind: ``binary``, ``multiclass``, ``multilabel``, ``regression``, ``segmentation`` or ``custom``.
        labels: Class names in the order of the outputs; ``0``, ``1`` … if left out.
        positive: Labels that must not be missed; the second one of a binary task if left out.
        threshold: Probability from which a case is called positive, e.g. ``0.5`` or ``"50 %"``.
        given: What the predictions are. ``auto`` recognises what is certain and refuses what is not:
            numbers of which some are negative are logits, rows that sum to one are probabilities.
        risk: The tier: ``critical`` 0.5 %, ``high`` 1 %, ``medium`` 2 %, ``low`` 5 % at most.
        max_drop: Metric -> largest absolute drop, e.g. ``{"sensitivity": "0.5 %"}``; the tier sets the rest.
        fairness: As in a recipe, e.g. ``{"by": ["sex"], "max_gap_increase": "2 %"}``.
        calibration: As in a recipe, e.g. ``{"max_ece_increase": "2 %"}``.
        confidence: Of the two-sided intervals.
        groups: Attribute -> ``(N,)``, e.g. ``{"sex": array(["f", "m", …])}``.
        subjects: ``(N,)`` patients, where one has several cases.
        ids: ``(N,)`` what the baseline's rows are called, to make sure of the order.
        candidate_ids: The same of the candidate's rows.
        metrics: Metrics of your own; a limit is set on each: that of ``max_drop``, or the tier's.
        split: What the cases are called in the verdict.

    Returns:
        The verdict; ``verdict.evidence`` has every comparison, fairness, calibration and disagreement.

    Raises:
        RecipeError: A limit is looser than the tier, or names a metric that the task does not have.
        DataError: An attribute of ``fairness`` is not among the groups, or has too many of them.
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
    _check_options(split, metrics)
    answers = [_numbers(x, name) for x, name in ((baseline, "baseline"), (candidate, "candidate"))]
    _same_rows({"baseline": baseline, "candidate": candidate, "targets": targets})
    _check_ids(ids, candidate_ids)
    names = [str(label) for label in labels]
    truth = _truth(targets, kind, names)
    names = names or _counted(kind, answers[0].shape, truth)
    task = {
        "kind": kind,
        "labels": names,
        "positive": [str(label) for label in positive],
        "threshold": threshold,
        "metric": _OWN if kind == "custom" else None,
    }
    asked = dict(max_drop or {})
    own = {metric.name: asked.pop(metric.name, policy.TIERS[risk].max_drop) for metric in metrics}
    recipe = parse_recipe(
        {
            "name": "judge",
            "task": task,
            "data": {"source": "arrays"},
            "requirements": {
                "risk": risk,
                "max_drop": asked,
                "confidence": confidence,
                "fairness": fairness,
                "calibration": calibration,
            },
        }
    )
    policy.check(recipe)
    if not isinstance(recipe.task.threshold, float):
        raise ValueError("threshold must be a number: a goal is met on validation, before anything is judged")
    cases = Cases(
        kind=kind,
        split=split,
        targets=truth,
        labels=tuple(names),
        positive=recipe.task.positive_classes,
        threshold=recipe.task.fixed_threshold,
        groups={str(name): np.asarray(column).astype(str) for name, column in (groups or {}).items()},
        subjects=None if subjects is None else np.asarray(subjects),
        ids=None if ids is None else np.asarray(ids).astype(str),
        metrics=tuple(metrics),
    )
    check_cases(cases)
    before, after = (
        to_logits(kind, x, given, name=name)
        for x, name in zip(answers, ("baseline", "candidate"), strict=True)
    )
    found = judge_answers(before, after, cases=cases, bar=_with_own(policy.bar(recipe), own, risk))
    return verdict(found.checks, split=split, notes=found.notes, evidence=found.evidence)


_OWN = "own:metrics.given"  # a custom task needs a metric; those of the caller are added to the limits


def _with_own(bar: policy.Bar, own: Mapping[str, float | str], risk: Risk) -> policy.Bar:
    """The limits of the caller's own metrics beside the others."""
    limits = {name: parse_share(limit) for name, limit in own.items()}
    most = policy.TIERS[risk].max_drop
    for name, limit in limits.items():
        if limit > most:
            raise ValueError(
                f"max_drop of {name} must be at most {100 * most:g} % at risk tier {risk!r}, got "
                f"{100 * limit:g} %"
            )
    kept = {name: limit for name, limit in bar.max_drop.items() if name != policy.custom_name(_OWN)}
    return replace(bar, max_drop={**kept, **limits})


def _check_options(split: str, metrics: Sequence[CustomMetric]) -> None:
    if split not in get_args(SplitName):
        raise ValueError(f"split must be one of {', '.join(get_args(SplitName))}, got {split!r}")
    for metric in metrics:
        if not isinstance(metric, CustomMetric):
            raise ValueError(f"metrics must be pastille.CustomMetric(name=, function=), got {metric!r}")
        if metric.name in policy.KNOWN_METRICS:
            raise ValueError(f"a metric of your own must not be called {metric.name!r}, which is one of ours")


def _numbers(given: object, name: str) -> np.ndarray:
    if np.ma.isMaskedArray(given) and np.ma.is_masked(given):
        raise ValueError(f"{name} must not be masked: leave such cases out of all arrays")
    try:
        found = np.asarray(given)
        found = found.astype(np.float64) if found.dtype.kind in "biuO" else found
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers, got {type(given).__name__}") from None
    if found.dtype.kind != "f" or found.ndim == 0:
        raise ValueError(f"{name} must be an array of numbers, got {found.dtype} of shape {found.shape}")
    return found


def _same_rows(given: Mapping[str, object]) -> None:
    """What carries an index of its own, as a pandas Series does, must be in the same order."""
    indexed = {name: np.asarray(x.index) for name, x in given.items() if _has_index(x)}
    names = list(indexed)
    for name in names[1:]:
        if not np.array_equal(indexed[names[0]], indexed[name]):
            raise ValueError(f"{name} must have the index of {names[0]}, in the same order; align them first")


def _has_index(x: object) -> TypeGuard[_Indexed]:
    return hasattr(x, "index") and not isinstance(x, list | tuple | np.ndarray)


class _Indexed(Protocol):
    index: Any


def _check_ids(ids: np.ndarray | None, candidate_ids: np.ndarray | None) -> None:
    if ids is None and candidate_ids is not None:
        raise ValueError("ids must be given where candidate_ids is: there is nothing to hold them against")
    if ids is not None:
        check_same_order(ids, ids if candidate_ids is None else candidate_ids)


def _truth(targets: object, kind: Kind, labels: Sequence[str]) -> np.ndarray:
    """Targets as the judges read them: names of labels and whole floats become indices."""
    found = np.asarray(targets)
    if kind in ("regression", "custom"):
        return found
    if kind in ("binary", "multiclass") and found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.dtype.kind in "UO" and labels:
        return _indices(found.astype(str), labels)
    if found.dtype.kind in "fb" and np.isfinite(found).all() and (found == np.round(found)).all():
        return found.astype(np.int64)
    return found


def _indices(found: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    places = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(found.ravel().tolist()) - set(places))
    if unknown:
        raise ValueError(f"targets must be among the labels {', '.join(labels)}, got {unknown[0]!r}")
    return np.array([places[label] for label in found.ravel().tolist()], np.int64).reshape(found.shape)


def _counted(kind: Kind, shape: tuple[int, ...], targets: np.ndarray) -> list[str]:
    """Labels for those who gave none: the classes by number."""
    if kind == "binary":
        return ["0", "1"]
    if kind in ("regression", "custom"):
        return []
    classes = shape[1] if len(shape) > 1 else int(targets.max(initial=0)) + 1
    return [str(k) for k in range(max(2, classes) if kind == "segmentation" else classes)]
