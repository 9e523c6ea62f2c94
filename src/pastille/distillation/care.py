"""Teachers are judged before they teach: what they get wrong, their student will learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from pastille.data.split import Split
from pastille.errors import PreconditionError
from pastille.stats.calibration import calibration
from pastille.stats.estimates import estimate, value
from pastille.stats.forms import Form
from pastille.stats.groups import Group, groups_of, usable_attributes
from pastille.stats.kinds import forms
from pastille.stats.metrics import higher_is_better, selection_metric, selection_value
from pastille.stats.paired import compare
from pastille.stats.statements import PROBABLE_KINDS
from pastille.task.forward import forward
from pastille.train.batches import reader
from pastille.values import Cases, Comparison, Estimate, Interval, TeacherSeen

if TYPE_CHECKING:
    from torch import nn

# Guo et al. (ICML 2017, arXiv:1706.04599) found 1.6 to 19.8 points in networks as training left them, most
# below 10: softening takes care of that. A teacher beyond 15 for certain says little with its probabilities.
MAX_ECE: Final = 0.15
MIN_GROUP: Final = 30
_CONFIDENCE: Final = 0.95
_BATCH: Final = 256
# Metrics that a small group defines too: it may lack a class that others compare with the rest.
_OF_GROUPS: Final = ("accuracy", "r2", "dice")
_COARSE: Final = {"binary": "accuracy", "multiclass": "accuracy", "multilabel": "accuracy"}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A teacher, and what it answers to validation.

    Attributes:
        seen: For the record.
        outputs: ``(N, ...)`` float32.
    """

    seen: TeacherSeen
    outputs: np.ndarray


def answers_to(module: nn.Module, split: Split) -> np.ndarray:
    """What a module answers to every input of a split, ``(N, ...)`` float32.

    Args:
        module: In eval mode.
        split: Its inputs.
    """
    read = reader(split)
    with torch.inference_mode():
        parts = [
            forward(module, read(np.arange(start, min(start + _BATCH, split.n)))).float()
            for start in range(0, split.n, _BATCH)
        ]
    return torch.cat(parts).numpy()


def judged(
    name: str,
    weight: float,
    module: nn.Module,
    split: Split,
    cases: Cases,
    *,
    metric: str | None = None,
    min_group: int = MIN_GROUP,
) -> Judged:
    """Judge a teacher on validation.

    Args:
        name: Of the teacher.
        weight: Its share among all teachers.
        module: In eval mode; not modified.
        split: Validation.
        cases: The right answers.
        metric: What it is judged by; None for what epochs are chosen by.
        min_group: Groups with fewer cases are not looked at.

    Raises:
        PreconditionError: It answers NaN or infinity.
    """
    outputs = answers_to(module, split)
    odd = int((~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)).sum())
    if odd:
        raise PreconditionError(
            f"teacher {name!r} answers NaN or infinity to {odd} of {len(outputs)} cases of validation, and "
            "its student would learn that; mend it, or take another"
        )
    metric = metric or selection_metric(cases, balanced=False)
    seen = TeacherSeen(
        name=name,
        weight=weight,
        parameters=sum(p.numel() for p in module.parameters()),
        metric=metric,
        estimate=estimated(outputs, cases, metric),
        ece=None if (error := calibration_error(outputs, cases)) is None else error.value,
        worse=worse_groups(outputs, cases, metric=metric, min_group=min_group),
    )
    return Judged(seen=seen, outputs=outputs)


def estimated(outputs: np.ndarray, cases: Cases, metric: str) -> Estimate:
    """A metric with its interval; a value alone where the cases are too few for one."""
    form = forms(outputs, cases).overall[metric]
    found = estimate(form, subjects=cases.subjects, confidence=_CONFIDENCE)
    return found or Estimate(value=value(form), interval=None, n=len(cases.targets), method="value alone")


def calibration_error(outputs: np.ndarray, cases: Cases) -> Estimate | None:
    """Expected calibration error, its interval less what noise may have added; None without probabilities."""
    if cases.kind not in PROBABLE_KINDS:
        return None
    ece = next(
        c
        for c in calibration(outputs, outputs, cases, confidence=_CONFIDENCE).comparisons
        if c.metric == "ece"
    )
    return ece.baseline


def gain_over(before: np.ndarray, after: np.ndarray, cases: Cases, metric: str) -> Comparison:
    """Two models on the same cases; its ``drop`` is how much worse the second one is."""
    one, other = (forms(outputs, cases).overall[metric] for outputs in (before, after))
    return compare(one, other, metric=metric, subjects=cases.subjects, confidence=_CONFIDENCE)


def turned(drop: Interval | None) -> Interval | None:
    """The interval of a gain, from that of a drop.

    Example:
        >>> turned(Interval(low=-0.02, high=0.01, confidence=0.95))
        Interval(low=-0.01, high=0.02, confidence=0.95)
    """
    return drop and Interval(low=-drop.high, high=-drop.low, confidence=drop.confidence)


def problems(judged: Judged, cases: Cases, *, start: np.ndarray | None) -> list[str]:
    """Why a teacher should not teach, with the numbers; none for a good one.

    * It is no better than one constant answer.
    * It is worse than the student already is: certainly, by the paired interval of the difference.
    * Its probabilities are off by more than `MAX_ECE`: certainly, by their calibration error's interval.

    Args:
        judged: From `judged`.
        cases: The right answers.
        start: What the student answers before it is taught, ``(N, ...)``; None where that is not finite.
    """
    found = [*_no_better_than_constant(judged, cases)]
    if not found and start is not None:
        found = [*_worse_than_start(judged, cases, start)]
    found += _badly_calibrated(judged, cases)
    return [f"teacher {judged.seen.name!r} {problem}" for problem in found]


def _no_better_than_constant(judged: Judged, cases: Cases) -> Iterator[str]:
    metric, teacher = judged.seen.metric, judged.seen.estimate
    constant = constant_value(cases, metric)
    ahead = teacher.value - constant if higher_is_better(metric, cases) else constant - teacher.value
    if ahead <= 0:
        yield (
            f"is no better than one constant answer: {_spoken(metric)} {_with_interval(teacher)} on "
            f"validation, against {constant:.4f}"
        )


def _worse_than_start(judged: Judged, cases: Cases, start: np.ndarray) -> Iterator[str]:
    metric = judged.seen.metric
    found = gain_over(start, judged.outputs, cases, metric)
    if found.interval is not None and found.interval.low > 0 and found.baseline is not None:
        yield (
            f"is worse than its student already is: {_spoken(metric)} {_with_interval(judged.seen.estimate)} "
            f"on validation against {found.baseline.value:.4f}, worse by {found.drop:.4f} "
            f"(95 % CI {found.interval.low:.4f} to {found.interval.high:.4f}, paired)"
        )


def _spoken(metric: str) -> str:
    return metric.replace("_", " ")


def _badly_calibrated(judged: Judged, cases: Cases) -> Iterator[str]:
    error = calibration_error(judged.outputs, cases)
    if error is not None and error.interval is not None and error.interval.low > MAX_ECE:
        yield (
            f"is badly calibrated: expected calibration error {_with_interval(error)} on validation, above "
            f"{MAX_ECE:g}"
        )


def _with_interval(found: Estimate) -> str:
    if found.interval is None:
        return f"{found.value:.4f}"
    return f"{found.value:.4f} (95 % CI {found.interval.low:.4f} to {found.interval.high:.4f})"


def constant_value(cases: Cases, metric: str) -> float:
    """The metric of whoever answers every case alike: with each class's share, or the mean.

    Example:
        >>> cases = Cases(kind="multiclass", split="validation", targets=np.array([0, 0, 1, 2]),
        ...               labels=("a", "b", "c"))
        >>> constant_value(cases, "accuracy")
        0.5
    """
    found = selection_value(_constant(cases), cases, metric=metric)
    return found if higher_is_better(metric, cases) else -found


def _constant(cases: Cases) -> np.ndarray:
    targets, n = cases.targets, len(cases.targets)
    match cases.kind:
        case "regression":
            return np.full(n, targets.mean(), np.float64)
        case "multilabel":
            shares = np.clip(targets.mean(axis=0), 1e-6, 1 - 1e-6)
            return np.tile(np.log(shares / (1 - shares)), (n, 1))
        case _:
            counts = np.bincount(targets.reshape(-1), minlength=len(cases.labels))
            logs = np.log(np.clip(counts / counts.sum(), 1e-6, 1))
            return np.broadcast_to(
                logs.reshape(1, -1, *[1] * (targets.ndim - 1)), (n, len(logs), *targets.shape[1:])
            ).copy()


def worse_groups(
    outputs: np.ndarray, cases: Cases, *, metric: str, min_group: int = MIN_GROUP
) -> dict[str, float]:
    """Groups where a model is certainly worse than for everyone else, which its student will inherit.

    A group is compared with all other cases. The interval of the difference of two independent estimates is
    made of theirs (MOVER); groups share the error allowed (Bonferroni).

    Args:
        outputs: ``(N, ...)``.
        cases: The right answers; their groups.
        metric: That the model is judged by. Where one group may lack a class that it needs, accuracy in its
            place.
        min_group: Groups with fewer cases, or with fewer others, are not looked at.

    Returns:
        "sex = F" -> how much worse the metric is there than for the others. Of another metric than that, its
        name follows: "sex = F, accuracy", and for one that misses more positive cases "sex = F, sensitivity".

    References:
        Zou and Donner, Statistics in Medicine 27, 2008 (MOVER).
    """
    groups = [
        (attribute, group)
        for attribute, of_attribute in groups_of(cases, usable_attributes(cases), intersections=False).items()
        for group in of_attribute
        if min(len(group.rows), len(cases.targets) - len(group.rows)) >= min_group
    ]
    overall = forms(outputs, cases).overall
    asked = {name: overall[name] for name in _metrics_of_groups(cases, metric) if name in overall}
    confidence = 1 - (1 - _CONFIDENCE) / max(1, len(groups) * len(asked))
    found = {}
    for attribute, group in groups:
        for name, form in asked.items():
            lost = _certainly_lost(form, group, cases, confidence)
            if lost is not None:
                suffix = "" if name == metric else f", {name}"
                found[f"{attribute} = {group.name}{suffix}"] = lost
    return found


def _metrics_of_groups(cases: Cases, metric: str) -> tuple[str, ...]:
    main = metric if metric in _OF_GROUPS else _COARSE.get(cases.kind, metric)
    return (main, "sensitivity") if cases.positive and cases.kind in PROBABLE_KINDS else (main,)


def _certainly_lost(form: Form, group: Group, cases: Cases, confidence: float) -> float | None:
    """How much worse a group does than the others, if that is certain."""
    inside = np.zeros(len(cases.targets), bool)
    inside[group.rows] = True
    here, others = (
        estimate(form.within(rows), subjects=cases.subjects, confidence=confidence)
        for rows in (inside, ~inside)
    )
    if here is None or others is None or here.interval is None or others.interval is None:
        return None
    gap = others.value - here.value
    reach = np.hypot(others.value - others.interval.low, here.interval.high - here.value)
    return float(gap) if gap - reach > 0 else None


def inherited(seen: TeacherSeen) -> Iterator[str]:
    """What a student will inherit, in sentences."""
    for where, lost in seen.worse.items():
        group, metric = _of_group(where, seen.metric)
        what = "misses more" if metric == "sensitivity" else f"has a lower {_spoken(metric)}"
        by = f"{lost:.3f}" if metric == "r2" else f"{100 * lost:.1f} points"
        yield (
            f"teacher {seen.name!r} {what} where {group} ({by} against the others on validation): "
            "the student will inherit it"
        )


def _of_group(where: str, metric: str) -> tuple[str, str]:
    """A group, whose name may hold commas, and the metric that it is worse by."""
    named = next((m for m in (*_OF_GROUPS, "sensitivity") if where.endswith(f", {m}")), None)
    return (where, metric) if named is None else (where.removesuffix(f", {named}"), named)
