"""Judge two model files, wherever they come from: the whole judgement, without PyTorch."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import logit

from pastille import policy
from pastille.bundle import Manifest, Variant, onnx_file
from pastille.bundle import verify as verify_bundle
from pastille.bundle.manifest import MANIFEST, read_manifest
from pastille.data.attributes import check_attributes
from pastille.data.cases import cases as cases_of
from pastille.data.cases import own_metrics
from pastille.data.checks import check_targets, describe
from pastille.data.leakage import Inspection, check_leaks, inspect
from pastille.data.load import load_splits
from pastille.data.split import Split, Splits, collate
from pastille.devices import this_machine
from pastille.errors import RecipeError, UsageError
from pastille.files import sha256_file, write_atomic
from pastille.gates import judge_int8_share, judge_latency, judge_size, verdict
from pastille.gates.findings import Findings
from pastille.gates.judge import judge_answers
from pastille.gates.stress import invariance_check, stress_checks
from pastille.measure.adapted import open_adapted, refuse_unsaid_probabilities
from pastille.measure.changed import FILE, list_changed
from pastille.measure.evaluate import answer
from pastille.measure.invariance import invariance
from pastille.measure.latency import time_calls
from pastille.measure.profile import kernels_if_possible
from pastille.measure.stress import stress
from pastille.openings import LEDGER, Opening, earlier_looks, record_opening, sketch
from pastille.progress import SILENT, Progress
from pastille.recipe import Recipe, TaskSection, recipe_hash
from pastille.record import (
    FinalJudged,
    Record,
    SplitSummary,
    Started,
    TaskLoaded,
    environment,
    now,
    write_record,
)
from pastille.report import write_report
from pastille.runtime import ONNXRUNTIME, Session, load
from pastille.runtime.onnx_graph import read_graph
from pastille.runtime.packed import stored_size
from pastille.stats.metrics import score
from pastille.stats.threshold import choose_threshold
from pastille.values import Cases, Check, CustomMetric, Evidence, Status, TensorSpec, Verdict, to_json

VERDICT = "verdict.json"
_QUANTIZED = ("QuantizeLinear", "QLinear", "Integer", "NBits")  # in the names of operators
_INVARIANCE_CASES = 64
JudgedSplit = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What came of judging one file against another.

    Attributes:
        record: What was asked, looked at and found; what the report is made from.
        verdict: With its evidence.
        cases: What both were held against.
        answers: Logits or predictions of baseline and candidate, ``(N, ...)`` each.
    """

    record: Record
    verdict: Verdict
    cases: Cases
    answers: tuple[np.ndarray, np.ndarray]


def validate(
    candidate: Path,
    baseline: Path,
    recipe: Recipe,
    base: Path,
    *,
    split: JudgedSplit = "validation",
    allow_leakage: bool = False,
    progress: Progress = SILENT,
) -> Validation:
    """Hold a model file against a baseline, on a recipe's data and by its limits.

    Args:
        candidate: An ONNX file, or a bundle, whose compressed variant is meant.
        baseline: An ONNX file, or a bundle, whose fp32 variant is meant.
        recipe: Data, task and limits; its model and plan are not looked at.
        base: The recipe's folder.
        split: Which split to judge on. Looks at ``test`` are written to the ledger beside the runs.
        allow_leakage: Judge although a case is in two splits.
        progress: Shown while it works.

    Raises:
        UsageError: The recipe, the data or a file cannot be used.
        IntegrityError: A file is not a self-contained ONNX model, or a bundle was changed.
    """
    policy.check(recipe)
    with ExitStack() as held:
        files = _Files(
            baseline=held.enter_context(model_file(baseline, "fp32")),
            candidate=held.enter_context(model_file(candidate, "compressed")),
            factor=own_factor(candidate),
        )
        given = _material(files, recipe, base, allow_leakage=allow_leakage, progress=progress)
        return _judged(given, candidate, recipe, base, split, progress)


def _judged(
    given: _Material, candidate: Path, recipe: Recipe, base: Path, split: JudgedSplit, progress: Progress
) -> Validation:
    threshold, chosen = _threshold(given, recipe, progress)
    cases = given.cases(split, recipe, threshold)
    earlier = _opened(given.splits.test, candidate, recipe, base) if split == "test" else None
    before, after = (
        read_answers(
            session,
            getattr(given.splits, split),
            recipe.task,
            name=given.files[name].name,
            progress=progress,
        )
        for name, session in given.sessions.items()
    )
    for _ in progress.track(range(1), what="judging"):
        found = judge_answers(before, after, cases=cases, bar=policy.bar(recipe), stated=after / given.factor)
    found += _beside(given, given.cases("validation", recipe, threshold), recipe, base, progress)
    notes = (*found.notes, *(n for n in (policy.override_note(recipe), chosen, earlier) if n))
    said = verdict(found.checks, split=split, notes=notes, evidence=found.evidence)
    return Validation(
        record=_record(said, given, (before, after), cases, recipe),
        verdict=said,
        cases=cases,
        answers=(before, after),
    )


@dataclass(frozen=True, kw_only=True)
class _Material:
    """Two files and the data, opened."""

    splits: Splits
    inspection: Inspection
    files: Mapping[str, Path]  # "baseline" and "candidate", as are the sessions
    sessions: Mapping[str, Session]
    factor: float  # of the candidate's answers, see `own_factor`
    metrics: tuple[CustomMetric, ...]

    def cases(self, split: JudgedSplit, recipe: Recipe, threshold: float) -> Cases:
        """The right answers of a split, decided at a threshold."""
        held = cases_of(getattr(self.splits, split), split, recipe.task, metrics=self.metrics)
        return replace(held, threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Two ONNX files, and the factor of the candidate's answers."""

    baseline: Path
    candidate: Path
    factor: float


def _material(
    given: _Files, recipe: Recipe, base: Path, *, allow_leakage: bool, progress: Progress
) -> _Material:
    files = {"baseline": given.baseline, "candidate": given.candidate}
    factors = {"baseline": 1.0, "candidate": given.factor}
    metrics = own_metrics(recipe.task, base)
    splits = load_splits(recipe.data, recipe.task, base=base, seed=recipe.seed, progress=progress)
    check_targets(splits, recipe.task)
    check_attributes(splits, recipe.requirements.fairness)
    inspection = inspect(splits, progress=progress)
    check_leaks(inspection.leaks, allow=allow_leakage)
    threads = recipe.measure.threads
    return _Material(
        splits=splits,
        inspection=inspection,
        files=files,
        sessions={
            name: open_adapted(file, inspection.inputs, recipe.task, threads=threads, factor=factors[name])
            for name, file in files.items()
        },
        factor=factors["candidate"],
        metrics=metrics,
    )


def _beside(given: _Material, cases: Cases, recipe: Recipe, base: Path, progress: Progress) -> Findings:
    """What is judged beside the answers: size, latency, invariance, stress."""
    splits, sessions = given.splits, given.sessions
    checks = (
        *size_checks(given.files, recipe),
        *latency_checks(sessions, splits, recipe, progress),
        *int8_checks(given.files["candidate"], splits, recipe),
        *technique_checks(given.files["candidate"], recipe),
    )
    file, specs = given.files["candidate"], given.inspection.inputs
    return (
        Findings(checks=checks)
        + invariance_findings(file, specs, splits.validation, cases, recipe, factor=given.factor)
        + stress_findings(sessions["baseline"], sessions["candidate"], splits, cases, recipe, base, progress)
    )


def _record(
    said: Verdict,
    given: _Material,
    answers: tuple[np.ndarray, np.ndarray],
    cases: Cases,
    recipe: Recipe,
) -> Record:
    files, inspection, splits = given.files, given.inspection, given.splits
    threads, confidence = recipe.measure.threads, recipe.requirements.confidence
    here = this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    before, after = (score(x, cases, confidence=confidence) for x in answers)
    candidate = files["candidate"].name
    chosen = "the candidate" if said.status is Status.APPROVED else "the baseline"
    events = (
        Started(
            recipe=recipe.model_dump(mode="json"),
            recipe_hash=recipe_hash(recipe),
            environment=environment(here),
        ),
        TaskLoaded(
            splits={name: split_summary(part, recipe.task.labels) for name, part in splits},
            inputs=inspection.inputs,
            preprocessing=splits.preprocessing,
            data_digest=inspection.digest,
            model_digest=sha256_file(files["baseline"]),
        ),
        FinalJudged(
            candidate=candidate,
            baseline_metrics=before,
            candidate_metrics=after,
            verdict=said,
            speedups=(),
            selected=chosen,
            selection_reason=f"{candidate} against {files['baseline'].name}: {said.status}",
        ),
    )
    return Record(name=recipe.name, events=events)


def write_validation(found: Validation, folder: Path) -> Validation:
    """Write ``run.json``, ``verdict.json``, ``report.html`` and the list of changed cases.

    Returns:
        The same, with the list of changed cases named in the evidence.

    Raises:
        UsageError: The folder holds a verdict already: evidence is not overwritten.
        OutputError: The folder cannot be written.
    """
    if (folder / VERDICT).exists():
        raise UsageError(f"{folder} holds a verdict already; name another folder, or move it away")
    said, evidence = found.verdict, found.verdict.evidence
    counted = evidence.disagreement if evidence else None
    if evidence and counted and list_changed(folder / FILE, *found.answers, found.cases):
        said = replace(said, evidence=replace(evidence, disagreement=replace(counted, file=FILE)))
    events = tuple(
        replace(event, verdict=said) if isinstance(event, FinalJudged) else event
        for event in found.record.events
    )
    record = replace(found.record, events=events)
    write_record(record, folder / "run.json")
    write_atomic(folder / VERDICT, to_json(said) + b"\n")
    write_report(record, folder / "report.html")
    return replace(found, record=record, verdict=said)


def split_summary(split: Split, labels: Sequence[str]) -> SplitSummary:
    """One split as the record describes it."""
    found = describe(split, labels)
    return SplitSummary(n=found.n, subjects=found.subjects, classes=found.classes, groups=found.groups)


@contextmanager
def model_file(path: Path, wanted: Literal["fp32", "compressed"]) -> Iterator[Path]:
    """The ONNX file that is meant, while it is used: the path itself, or a variant of the bundle that it is.

    Raises:
        UsageError: There is no such file or bundle.
        IntegrityError: The bundle is not what was written.
    """
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise UsageError(f"there is no file {path}; an ONNX file or a bundle's directory is wanted")
    manifest = verify_bundle(path, replay=False).manifest
    with onnx_file(path, _meant(manifest, wanted)) as file:
        yield file


def _meant(manifest: Manifest, wanted: Literal["fp32", "compressed"]) -> Variant:
    names = [v.name for v in manifest.variants if v.name != "fp32"]
    return manifest.variant(names[0] if wanted == "compressed" and names else "fp32")


def own_factor(bundle: Path) -> float:
    """The temperature of a bundle's compressed variant if it has a threshold of its own, else 1.

    Its answers times the temperature are decided by the bundle's threshold as they are by its own.
    """
    if not bundle.is_dir():
        return 1.0
    manifest = read_manifest(bundle / MANIFEST)
    variant = _meant(manifest, "compressed")
    if variant.threshold is None:
        return 1.0
    return float(logit(manifest.threshold) / logit(variant.threshold))


def read_answers(
    session: Session, split: Split, section: TaskSection, *, name: str, progress: Progress
) -> np.ndarray:
    """What an adapted file answers to a split, as logits where the task has classes.

    Raises:
        UsageError: The answers do not fit the task, or seem to be probabilities though nobody said so.
    """
    found = answer(session, split, progress=progress, what=f"evaluating {name}")
    refuse_unsaid_probabilities(found, section, file=name)
    return found


def _threshold(given: _Material, recipe: Recipe, progress: Progress) -> tuple[float, str | None]:
    """The operating threshold: as asked, or chosen on validation from the baseline's answers."""
    goal = recipe.task.threshold
    if isinstance(goal, float):
        return goal, None
    found = read_answers(
        given.sessions["baseline"],
        given.splits.validation,
        recipe.task,
        name=given.files["baseline"].name,
        progress=progress,
    )
    try:
        chosen = choose_threshold(found, given.cases("validation", recipe, 0.5), goal)
    except ValueError as error:
        raise RecipeError(f"task.threshold: {error}", key="task.threshold") from None
    return chosen.threshold, chosen.sentence


def _opened(test: Split, candidate: Path, recipe: Recipe, base: Path) -> str | None:
    """Write the look into the ledger, before it is taken; what to say of earlier ones."""
    opening = Opening(
        at=now(),
        purpose="validate",
        by=f"{candidate.name} ({secrets.token_hex(4)})",  # each look is one of its own
        cases=test.n,
        sketch=sketch(test),
    )
    earlier = record_opening(base / recipe.output / LEDGER, opening)
    return earlier_looks(earlier, opening.sketch)


def size_checks(files: Mapping[str, Path], recipe: Recipe) -> Iterator[Check]:
    """Hold the candidate's size, as a bundle stores it, against the limit if there is one."""
    limit = recipe.requirements.max_size
    if limit is not None:
        before, after = (stored_size(files[name]) for name in ("baseline", "candidate"))
        yield judge_size(after, limit, baseline_bytes=before)


def int8_checks(file: Path, splits: Splits, recipe: Recipe) -> Iterator[Check]:
    """Hold what the candidate runs in int8 against the least that was asked, if anything was."""
    limit = recipe.requirements.min_int8_share
    if limit is None:
        return
    threads, session, inputs = recipe.measure.threads, load(file), splits.validation.inputs
    one = collate([inputs[i % len(inputs)] for i in range(session.fixed_batch or 1)])
    if len(session.inputs) == len(one) == 1:  # by whatever name
        one = {session.inputs[0].name: next(iter(one.values()))}
    yield judge_int8_share(kernels_if_possible(file, one, threads=threads), limit)


def technique_checks(file: Path, recipe: Recipe) -> Iterator[Check]:
    """At a tier where post-training quantization alone is never approved, a file must not look like it.

    How a file was quantized cannot be read from it, so a quantized one is not approved there; only a run
    knows what it did.
    """
    tier = policy.TIERS[recipe.requirements.risk]
    quantized = [node for node in read_graph(file).nodes if any(mark in node.op for mark in _QUANTIZED)]
    if tier.post_training_quantization or not quantized:
        return
    yield Check(
        metric="technique",
        status=Status.INCONCLUSIVE,
        limit=0.0,
        baseline=None,
        candidate=float(len(quantized)),
        drop=None,
        interval=None,
        n=None,
        method="operators of the file",
        more_cases=None,
        reason=f"{file.name} is quantized ({len(quantized)} operators), and at risk tier {tier.risk!r} "
        "post-training quantization alone is never approved; a file does not show how it was quantized",
    )


def latency_checks(
    sessions: Mapping[str, Session], splits: Splits, recipe: Recipe, progress: Progress
) -> Iterator[Check]:
    """Hold the candidate's latency against the limits, if there are any."""
    limits = list(recipe.requirements.max_latency.limits())
    if not limits:
        return
    threads, seconds = recipe.measure.threads, recipe.measure.seconds
    here = this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    one = collate([splits.validation.inputs[0]])
    names = progress.track(("baseline", "candidate"), what="timing")
    before, after = (time_calls(sessions[n], one, conditions=here, budget_s=seconds) for n in names)
    for q, limit in limits:
        yield judge_latency(after, q, limit, baseline=before)


def stress_findings(
    baseline: Session,
    candidate: Session,
    splits: Splits,
    cases: Cases,
    recipe: Recipe,
    base: Path,
    progress: Progress,
) -> Findings:
    """The same comparison under perturbed inputs of validation, if the recipe asks for it.

    Args:
        baseline: The loaded file.
        candidate: The loaded file that is judged.
        splits: The data; test is not touched.
        cases: Of validation.
        recipe: Its ``requirements.stress``.
        base: The recipe's folder.
        progress: Shown while it works.
    """
    asked = recipe.requirements.stress
    if asked is None:
        return Findings()
    confidence = recipe.requirements.confidence
    curves = stress(
        baseline,
        candidate,
        splits.validation,
        cases,
        asked,
        base=base,
        preprocessing=splits.preprocessing,
        confidence=confidence,
        seed=recipe.seed,
        metrics=policy.limits(recipe),
        train=splits.train,
        progress=progress,
    )
    checks = stress_checks(curves, asked, confidence)
    return Findings(checks=checks, evidence=Evidence(stress=curves))


def invariance_findings(
    file: Path,
    specs: tuple[TensorSpec, ...],
    split: Split,
    cases: Cases,
    recipe: Recipe,
    *,
    factor: float = 1.0,
) -> Findings:
    """Promise 5: does a file decide the same, whatever the batch size and the number of threads?"""
    found = invariance(
        file,
        split,
        cases,
        batch_sizes=recipe.measure.batch_sizes,
        cases_limit=_INVARIANCE_CASES,
        opened=lambda path, threads: open_adapted(path, specs, recipe.task, threads=threads, factor=factor),
    )
    return Findings(checks=(invariance_check(found),), evidence=Evidence(invariance=found))
