"""What each stage did to the model, beside what was measured of the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pastille.report.text as text
from pastille.record import Curve, StageDetails, WidthChange
from pastille.report.account import Account
from pastille.report.budget import BudgetRow, budget_rows
from pastille.report.comparison import stage_label
from pastille.report.kernels import Kernels, kernels
from pastille.report.layers import Layers
from pastille.report.layers import layers as layer_table
from pastille.report.options import options_line
from pastille.report.steps import Steps, steps
from pastille.report.students import Students, students
from pastille.report.tried import TriedRow, tried_rows
from pastille.values import Profile

# The page stays small however long the plan is: what all stages together may show is shared out.
_MAX_STAGES = 12
_LAYERS = (120, 120)  # on the page, in one stage
_CURVES = (24, 6)
_MAX_EPOCHS = 120
_MAX_NOTES = 12
_MAX_OPERATORS = 24
_FLOATS = (96, 24)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training; epochs are thinned out where there are very many."""

    title: str
    metric: str
    share: bool
    epochs: tuple[int, ...]  # counted from 1
    loss: tuple[float, ...]
    validation: tuple[float, ...]  # in the metric's printed unit
    best_epoch: int
    words: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """One stage."""

    name: str
    options: str
    facts: tuple[tuple[str, str], ...]
    students: Students | None  # of a distillation
    budget: tuple[BudgetRow, ...]  # of a prune that was given one
    steps: Steps | None  # of iterative pruning
    layers: Layers | None  # where something was removed
    tried: tuple[TriedRow, ...]
    left_title: str
    left_whole: tuple[tuple[str, str], ...]  # where the layers do not say it
    more_left_whole: int
    int8_operators: tuple[tuple[str, str], ...]
    float_operators: tuple[tuple[str, str], ...]
    kernels: Kernels | None  # where the file was looked into, and something of it is quantized
    trainings: tuple[Training, ...]
    more_trainings: int
    notes: tuple[str, ...]


def changes(run: Account) -> tuple[Change, ...]:
    """The baseline's export, then every stage of the plan."""
    return tuple(_changes(run))[:_MAX_STAGES]


def _changes(run: Account) -> Iterator[Change]:
    listing = sum(bool(stage.details.widths or stage.details.left_whole) for stage in run.stages)
    layers, curves = _each(_LAYERS, listing), _each(_CURVES, len(run.stages))
    if run.baseline:
        profile = run.baseline.profile
        yield _change("baseline", "", run.baseline.details, profile, None, layers, curves)
    before = run.before
    for stage in run.stages:
        name, options = stage_label(stage), options_line(stage.options)
        change = _change(name, options, stage.details, stage.profile, stage.seconds, layers, curves)
        yield replace(
            change,
            kernels=_kernels(stage.profile, _each(_FLOATS, len(run.stages))),
            steps=steps(stage.details, before, stage.profile),
            layers=layer_table(stage.details, before, stage.profile, layers),
        )
        before = stage.profile if stage.kept else before


def _each(limits: tuple[int, int], stages: int) -> int:
    page, one = limits
    return max(1, min(one, page // max(1, stages)))


def _change(
    name: str,
    options: str,
    details: StageDetails,
    profile: Profile,
    seconds: float | None,
    layers: int,
    curves: int,
) -> Change:
    left = {} if details.widths else details.left_whole
    whole = [(text.clean(m, 80), text.clean(why, 160)) for m, why in left.items()]
    return Change(
        name=name,
        options=options,
        facts=tuple(_facts(details, profile.sha256, seconds)),
        students=students(details.students),
        budget=budget_rows(details.budget),
        steps=None,
        layers=None,
        tried=tried_rows(details.tried),
        left_title="Left whole" if details.widths or "prune" in name else "Left in float",
        left_whole=tuple(whole[:layers]),
        more_left_whole=max(0, len(whole) - layers),
        int8_operators=_operators(details.int8_operators),
        float_operators=_operators(details.float_operators),
        kernels=None,
        trainings=tuple(_training(curve) for curve in details.curves[-curves:]),
        more_trainings=max(0, len(details.curves) - curves),
        notes=tuple(text.sentence(note, 400) for note in _notes(details)[:_MAX_NOTES]),
    )


def _notes(details: StageDetails) -> list[str]:
    """Without those that put a student's row in words, for readers of the command line."""
    rows = tuple(f"student {student.name}: " for student in details.students)
    return [note for note in details.notes if not (rows and note.startswith(rows))]


def _kernels(profile: Profile, most: int) -> Kernels | None:
    """Of a file in which nothing is quantized there is nothing to prove."""
    proof = profile.kernels
    return kernels(proof, most) if proof is not None and proof.count("int8", "conversion") else None


def _facts(details: StageDetails, digest: str, seconds: float | None) -> Iterator[tuple[str, str]]:
    if seconds is not None:
        yield "took", text.duration(seconds)
    yield from _removed(details.widths)
    if details.zeros is not None:
        yield "zeros", f"{text.fixed(100 * details.zeros, 1)}{text.UNIT_SPACE}% of the weights"
    if details.stored_bytes is not None:
        yield "stored", f"{text.size(details.stored_bytes)} in a bundle"
    if details.calibration_samples is not None:
        yield "calibrated on", text.plural(details.calibration_samples, "training sample")
    if details.temperature is not None:
        yield "temperature", f"answers are divided by {text.significant(details.temperature)}"
    if details.threshold is not None:
        yield "operating threshold of this file", text.significant(details.threshold)
    if details.parity_max_abs_error is not None:
        yield (
            "parity",
            f"largest error of the exported file {details.parity_max_abs_error:.2g}",
        )
    yield "file SHA-256", text.clean(digest, 64)


def _removed(widths: Sequence[WidthChange]) -> Iterator[tuple[str, str]]:
    for kind in dict.fromkeys(change.kind for change in widths):
        found = [change for change in widths if change.kind == kind]
        before, after = sum(w.before for w in found), sum(w.after for w in found)
        if kind == "blocks":
            yield kind, f"{text.count(before - after)} left out"
        else:
            yield kind, f"{text.count(before)} → {text.count(after)} in {text.plural(len(found), 'layer')}"


def _operators(counts: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_OPERATORS]
    return tuple((text.clean(name, 60), text.count(n)) for name, n in most)


def _training(curve: Curve) -> Training:
    kept = thinned(max(len(curve.loss), len(curve.validation)), curve.best_epoch)
    factor = text.scale(curve.metric)
    return Training(
        title=text.clean(curve.stage, 60),
        metric=text.metric_name(curve.metric),
        share=text.is_share(curve.metric),
        epochs=kept,
        loss=tuple(curve.loss[e - 1] if e <= len(curve.loss) else float("nan") for e in kept),
        validation=tuple(
            curve.validation[e - 1] * factor if e <= len(curve.validation) else float("nan") for e in kept
        ),
        best_epoch=curve.best_epoch,
        words=_training_words(curve),
    )


def _training_words(curve: Curve) -> str:
    if not 1 <= curve.best_epoch <= len(curve.validation):
        return text.plural(len(curve.loss), "epoch")
    best = text.metric(curve.metric, curve.validation[curve.best_epoch - 1])
    kept = f"epoch {curve.best_epoch} of {len(curve.validation)} was kept"
    return f"{kept}: {text.metric_name(curve.metric)} {best}"


def thinned(epochs: int, best: int, most: int = _MAX_EPOCHS) -> tuple[int, ...]:
    """The epochs that a curve is drawn through: evenly spread, with the first, the best and the last.

    Example:
        >>> thinned(5, best=2)
        (1, 2, 3, 4, 5)
        >>> thinned(1000, best=500, most=4)
        (1, 334, 500, 667, 1000)
    """
    if epochs <= most:
        return tuple(range(1, epochs + 1))
    spread = {1 + round(i * (epochs - 1) / (most - 1)) for i in range(most)}
    return tuple(sorted(spread | ({best} if 1 <= best <= epochs else set())))
