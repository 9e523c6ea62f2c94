"""Ask baseline and candidate the same perturbed inputs: does the candidate degrade faster?"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from pastille.data.perturb import Perturbation, PerturbedInputs, choose, material_of
from pastille.data.split import Inputs, Split
from pastille.errors import InferenceError
from pastille.measure.evaluate import answer
from pastille.progress import SILENT, Progress
from pastille.recipe import StressLimits
from pastille.runtime import Session
from pastille.stats.estimates import estimate
from pastille.stats.forms import Form
from pastille.stats.kinds import forms
from pastille.stats.stress import Excess, excess, stressed_metrics, stressed_rows
from pastille.values import Cases, Preprocessing, StressCurve, StressPoint

_BATCH: Final = 32
_NOTHING_FITS: Final = (
    "stress was not measured: no built-in perturbation fits these inputs; name FILE.py:CALLABLE under "
    "requirements.stress.perturbations, or give texts as pastille.data.text.TokenizedText"
)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Metrics of both models on the same inputs."""

    baseline: Mapping[str, Form]
    candidate: Mapping[str, Form]

    def of(self, metric: str) -> tuple[Form, Form]:
        return self.baseline[metric], self.candidate[metric]


def stress(
    baseline: Session,
    candidate: Session,
    split: Split,
    cases: Cases,
    limits: StressLimits,
    *,
    base: Path,
    preprocessing: Preprocessing | None,
    confidence: float,
    seed: int,
    metrics: Collection[str] = (),
    train: Split | None = None,
    progress: Progress = SILENT,
) -> tuple[StressCurve, ...]:
    """Compare how two models degrade under perturbed inputs.

    Args:
        baseline: The loaded file that the candidate is held against.
        candidate: The loaded file that is judged.
        split: Usually validation; never test, which is not for trying things out.
        cases: The right answers of ``split``.
        limits: Which perturbations and severities, and on how many cases; those are drawn at random.
        base: Folder of the recipe, for ``FILE.py:CALLABLE``.
        preprocessing: What prepared the inputs; it is undone before a perturbation and done again after.
        confidence: Of the two-sided intervals, in ``(0, 1)``.
        seed: The same seed gives the same cases and the same perturbed inputs.
        metrics: Those that a limit is set on. Areas under curves, means over classes and what is measured in
            the units of the targets are left out; if nothing is left, accuracy and sensitivity, R² or Dice
            are taken, or the user's own metrics.
        train: The train split: what missing values of a table are filled in from, and the range of images.
        progress: Shown one step per batch, of all that will be asked.

    Returns:
        One curve per perturbation and metric, in that order, each with a point for the untouched inputs and
        one for every severity. None where no built-in perturbation fits the inputs, which is noted.

    Raises:
        UsageError: A perturbation is unknown, fails, or gives what is no such input.
        InferenceError: A file failed on an input.
    """
    material = material_of(split.inputs, preprocessing, train=train.inputs if train else None)
    chosen = choose(limits.perturbations, material, base)
    if not chosen:
        progress.note(_NOTHING_FITS)
        return ()
    severities = sorted(set(limits.severities))
    views = [
        PerturbedInputs(
            inputs=split.inputs, perturbation=one, severity=severity, material=material, seed=seed
        )
        for one, severity in itertools.product(chosen, severities)
    ]
    rows = stressed_rows(split.n, limits.cases, seed)
    held = _within(cases, rows)
    answers = _answers((baseline, candidate), (split.inputs, *views), rows, progress)
    untouched, *perturbed = (_pair(before, after, held, metrics) for before, after in answers)
    found = (
        _curve(one, metric, untouched, dict(zip(severities, pairs, strict=True)), held.subjects, confidence)
        for one, pairs in zip(chosen, _grouped(perturbed, len(severities)), strict=True)
        for metric in untouched.baseline
    )
    return tuple(curve for curve in found if curve is not None)


def _within(cases: Cases, rows: np.ndarray) -> Cases:
    subjects = None if cases.subjects is None else cases.subjects[rows]
    return replace(cases, targets=cases.targets[rows], groups={}, subjects=subjects, strata=None, ids=None)


def _grouped(pairs: Sequence[_Pair], size: int) -> list[Sequence[_Pair]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def _answers(
    sessions: tuple[Session, Session], views: Sequence[Inputs], rows: np.ndarray, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What baseline and candidate say to each view; one view at a time, since masks are large."""
    size = max(_BATCH, *(session.fixed_batch or 1 for session in sessions))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    work = list(itertools.product(range(len(views)), chunks))
    tracked = progress.track(work, what="stressing", total=len(work))
    for number, parts in itertools.groupby(tracked, key=lambda part: part[0]):
        answered = [_both(sessions, views[number], chunk, size) for _, chunk in parts]
        before, after = (np.concatenate(outputs) for outputs in zip(*answered, strict=True))
        yield before, after


def _both(
    sessions: tuple[Session, Session], view: Inputs, chunk: np.ndarray, size: int
) -> tuple[np.ndarray, ...]:
    """Inputs are perturbed once and given to both models."""
    asked = Split(inputs=[view[int(row)] for row in chunk], targets=np.zeros(len(chunk)))
    try:
        return tuple(answer(session, asked, batch_size=size) for session in sessions)
    except InferenceError as error:
        where = "untouched"
        if isinstance(view, PerturbedInputs):
            where = f"{view.perturbation.spoken}, severity {view.severity}"
        raise InferenceError(f"stress ({where}) from input {chunk[0]} on: {error}") from error


def _pair(before: np.ndarray, after: np.ndarray, cases: Cases, metrics: Collection[str]) -> _Pair:
    """The metrics that can be stressed and are asked for, or the usual ones."""
    baseline, candidate = (forms(outputs, cases).overall for outputs in (before, after))
    asked = stressed_metrics(baseline, metrics, {metric.name for metric in cases.metrics})
    return _Pair(
        baseline={name: baseline[name] for name in asked}, candidate={name: candidate[name] for name in asked}
    )


def _curve(
    perturbation: Perturbation,
    metric: str,
    untouched: _Pair,
    perturbed: Mapping[int, _Pair],
    subjects: np.ndarray | None,
    confidence: float,
) -> StressCurve | None:
    """None where the cases cannot define the metric."""
    untouched_forms = untouched.of(metric)
    points, methods = [_point(0, untouched_forms, None, subjects, confidence)], []
    for severity, pair in perturbed.items():
        found = excess(untouched_forms, pair.of(metric), subjects=subjects, confidence=confidence)
        if found is not None:
            points.append(_point(severity, pair.of(metric), found, subjects, confidence))
            methods.append(found.method)
    known = tuple(point for point in points if point is not None)
    if not methods or len(known) < 2:
        return None
    return StressCurve(
        perturbation=perturbation.spoken,
        metric=metric,
        points=known,
        method=methods[0],
        setting=perturbation.setting,
    )


def _point(
    severity: int,
    pair: tuple[Form, Form],
    found: Excess | None,
    subjects: np.ndarray | None,
    confidence: float,
) -> StressPoint | None:
    before, after = (estimate(form, subjects=subjects, confidence=confidence) for form in pair)
    if before is None or after is None:
        return None
    return StressPoint(
        severity=severity,
        baseline=before,
        candidate=after,
        excess=found.value if found else 0.0,
        interval=found.interval if found else None,
    )
