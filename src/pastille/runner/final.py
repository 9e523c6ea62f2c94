"""The end of a run: the test split is opened once, then the bundle is sealed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pastille import policy
from pastille.bundle import (
    BundleParts,
    Golden,
    VariantName,
    VariantPart,
    answer_cases,
    choose_cases,
    write_bundle,
)
from pastille.data.split import Inputs, collate
from pastille.distillation.care import MIN_GROUP
from pastille.errors import StageError
from pastille.export.onnx import OUTPUT
from pastille.gates import judge_int8_share, judge_latency, judge_size, verdict
from pastille.gates.findings import Findings
from pastille.gates.judge import judge_answers
from pastille.measure.latency import compare
from pastille.measure.reference import input_reference, looked_at, variant_reference
from pastille.openings import LEDGER, Opening, earlier_looks, record_opening, sketch
from pastille.progress import Progress
from pastille.recipe import step_name
from pastille.record import BundleWritten, FinalJudged, TestOpened, now
from pastille.report import render
from pastille.report.view import view
from pastille.runner.candidate import Candidate, invariance_of, listed, opened, stress_of
from pastille.runner.journal import Journal, load_array, save_array
from pastille.runner.other_cpus import noted, portable, validated
from pastille.runtime import Session, load
from pastille.stats.metrics import score
from pastille.stats.scale import to_logits
from pastille.task import Task
from pastille.validation import read_answers
from pastille.values import Check, Profile, Reference, Speedup, Status, TensorSpec, Verdict, to_json

FINAL, BUNDLE = "final", "bundle"


def judge_on_test(
    kept: Candidate, baseline: Candidate, task: Task, base: Path, journal: Journal, progress: Progress
) -> FinalJudged:
    """Hold the candidate against the baseline on the test split, once.

    The answers are on disk before they are judged, so a run that is killed while it judges does
    not open the split again.
    """
    done = journal.record.last(FinalJudged)
    if done is not None:
        return done
    cases = task.cases["test"]
    before, after = _test_answers(kept, baseline, task, journal, progress)
    compressed = kept.profile.sha256 != baseline.profile.sha256
    said = _nothing_kept() if kept is baseline else _unchanged(kept.profile, baseline.profile, task)
    if compressed:
        said = _verdict(before, after, (baseline, kept), task, base, journal, progress)
    speedups = _speedups(kept, baseline, task, progress) if compressed else ()
    found, failed = validated(_variants(kept, baseline), task, progress)
    said = noted(said, found, failed)
    selected, reason = select(said, kept.profile, baseline.profile, speedups, task)
    selected, reason = portable(selected, reason, found, failed)
    confidence = task.recipe.requirements.confidence
    event = FinalJudged(
        candidate=kept.profile.name,
        baseline_metrics=score(before, cases, confidence=confidence),
        candidate_metrics=score(after, cases, confidence=confidence),
        verdict=said,
        speedups=speedups,
        selected=selected,
        selection_reason=reason,
        validated=found,
    )
    journal.append(event)
    progress.note(f"final gate: {said.status}")
    return event


def _verdict(
    before: np.ndarray,
    after: np.ndarray,
    candidates: tuple[Candidate, Candidate],
    task: Task,
    base: Path,
    journal: Journal,
    progress: Progress,
) -> Verdict:
    """Everything that was asked, held against the answers on test and against the file itself."""
    baseline, kept = candidates
    cases = task.cases["test"]
    bar, stated = policy.bar(task.recipe), after / kept.factor
    for _ in progress.track(range(1), what="judging"):
        found = judge_answers(before, after, cases=cases, bar=bar, stated=stated)
    found = listed(found, before, after, cases, journal.directory / FINAL, journal)
    found += Findings(checks=tuple(_other_checks(kept.profile, baseline.profile, task)))
    found += invariance_of(kept, task) + stress_of(kept, baseline, task, base, progress)
    opened = journal.record.all(TestOpened)
    earlier = opened[0].earlier if opened else ()
    sketched = sketch(task.splits.test) if earlier else ()
    notes = (policy.override_note(task.recipe), earlier_looks(earlier, sketched))
    return verdict(
        found.checks,
        split="test",
        notes=(*found.notes, *(note for note in notes if note)),
        evidence=found.evidence,
    )


def _test_answers(
    kept: Candidate, baseline: Candidate, task: Task, journal: Journal, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    folder = journal.directory / FINAL
    files = [folder / f"{i}-{c.profile.name}.npy" for i, c in enumerate((baseline, kept))]
    if not all(file.is_file() for file in files):
        _open_test(task, journal)
        for file, candidate in zip(files, (baseline, kept), strict=True):
            name, test = f"{candidate.profile.name} on test", task.splits.test
            session = opened(candidate.artifact.file, task, factor=candidate.factor)
            found = read_answers(session, test, task.recipe.task, name=name, progress=progress)
            save_array(file, found)
    before, after = (load_array(file) for file in files)
    return before, after


def _open_test(task: Task, journal: Journal) -> None:
    """Write down that the test split is opened, in the record and in the ledger of all runs, before it is."""
    again = journal.record.last(TestOpened) is not None
    reason = "final gate, interrupted before its answers were on disk" if again else "final gate"
    home = journal.directory.parent.parent
    test = task.splits.test
    opening = Opening(
        at=now(),
        purpose="final gate",
        by=journal.directory.relative_to(home).as_posix(),
        cases=test.n,
        sketch=sketch(test),
    )
    earlier = record_opening(home / LEDGER, opening)
    journal.append(TestOpened(reason=reason, earlier=earlier))


def _other_checks(kept: Profile, baseline: Profile, task: Task) -> list[Check]:
    requirements = task.recipe.requirements
    checks = []
    if requirements.max_size is not None:
        before, after = baseline.bytes_on_disk, kept.bytes_on_disk
        checks.append(judge_size(after, requirements.max_size, baseline_bytes=before))
    checks += [
        judge_latency(kept.latency[0], q, limit, baseline=baseline.latency[0])
        for q, limit in requirements.max_latency.limits()
    ]
    if requirements.min_int8_share is not None:
        checks.append(judge_int8_share(kept.kernels, requirements.min_int8_share))
    return checks


def _nothing_kept() -> Verdict:
    return Verdict(
        status=Status.REJECTED,
        reason="No stage of the plan passed its gate on validation, so nothing was compressed.",
        checks=(),
        split="test",
    )


def _unchanged(kept: Profile, baseline: Profile, task: Task) -> Verdict:
    """Of a plan that ends with the very file that it began with: what is not changed loses nothing."""
    reason = "Nothing was compressed: no stage found a file that is better than the model as it was brought."
    plain = Verdict(status=Status.APPROVED, reason=reason, checks=(), split="test")
    checks = _other_checks(kept, baseline, task)
    if not checks:
        return plain
    said = verdict(checks, split="test")
    return replace(said, reason=f"{reason} It is {said.reason}")


def _speedups(kept: Candidate, baseline: Candidate, task: Task, progress: Progress) -> tuple[Speedup, ...]:
    measure, inputs = task.recipe.measure, task.splits.validation.inputs
    old, new = (load(c.artifact.file, threads=measure.threads) for c in (baseline, kept))
    return tuple(
        compare(
            old,
            new,
            collate([inputs[i % len(inputs)] for i in range(size)]),
            conditions=kept.profile.latency[0].conditions,
            confidence=task.recipe.requirements.confidence,
            budget_s=measure.seconds * 2 / 3,
        )
        for size in progress.track(measure.batch_sizes, what="comparing speed")
    )


def select(
    said: Verdict, kept: Profile, baseline: Profile, speedups: Sequence[Speedup], task: Task
) -> tuple[VariantName, str]:
    """Which variant the bundle serves, and why.

    The compressed one only if it is approved; and if it is slower than what it replaces, only where the
    baseline would break what was asked.
    """
    if kept.sha256 == baseline.sha256:
        return "fp32", "nothing that was tried is better than the model as it was brought"
    if said.status is not Status.APPROVED:
        failing = [c.reason for c in said.checks if c.status is said.status]
        more = f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
        return "fp32", f"the compressed model is {said.status}: {next(iter(failing), said.reason)}{more}"
    name = variant_name(kept)
    slower = [s for s in speedups if s.batch == 1 and s.slower]
    if not slower:
        return name, "it passes every limit" + _faster(speedups)
    ratio = f"it is slower than the baseline ({slower[0].ratio:.2f} times its speed at batch 1)"
    why = _needed(baseline, task)
    if why:
        return name, f"it passes every limit and {why}, although {ratio}"
    return "fp32", f"the compressed model passes every limit, but {ratio}"


def _needed(baseline: Profile, task: Task) -> str:
    """What the baseline would break, so that a slower model is served all the same; "" if nothing."""
    asked = task.recipe.requirements
    if asked.max_size is not None and baseline.bytes_on_disk > asked.max_size:
        return "the baseline is too large"
    if asked.min_int8_share is not None:
        return "the baseline runs nothing in int8"
    if [step_name(step) for step in task.recipe.plan] == ["calibrate"]:
        return "calibrated probabilities are all that was asked"
    return ""


def _faster(speedups: Sequence[Speedup]) -> str:
    first = next((s for s in speedups if s.batch == 1), None)
    if first is None or not first.faster:
        return ""
    return f" and is {first.ratio:.2f} times as fast at batch 1"


def variant_name(profile: Profile) -> VariantName:
    """What a candidate is called in the bundle."""
    return "compressed" if profile.precision == "fp32" else profile.precision


def seal(
    kept: Candidate, baseline: Candidate, final: FinalJudged, task: Task, journal: Journal, progress: Progress
) -> None:
    """Write the bundle with its evidence, and say so in the record."""
    directory = journal.directory / BUNDLE
    candidates = _variants(kept, baseline)
    evidence = {"run.json": to_json(journal.record), "report.html": render(view(journal.record)).encode()}
    section = task.recipe.task
    parts = BundleParts(
        name=task.recipe.name,
        kind=section.kind,
        labels=tuple(section.labels),
        positive=tuple(section.labels[i] for i in section.positive_classes),
        threshold=task.cases["validation"].threshold,
        outputs=section.outputs,
        inputs=task.inputs,
        output=TensorSpec(name=OUTPUT, shape=tuple(kept.outputs.shape[1:]), dtype="float32"),
        preprocessing=task.splits.preprocessing,
        requirements={
            **task.recipe.requirements.model_dump(mode="json"),
            "max_drop": policy.limits(task.recipe),
        },
        verdict=replace(final.verdict, evidence=None),  # the record has it
        selected=final.selected,  # type: ignore[arg-type]
        selection_reason=final.selection_reason,
        variants=tuple(_part(name, candidate, final) for name, candidate in candidates.items()),
        golden=_golden(candidates, task),
        golden_source=task.recipe.golden,
        evidence=evidence,
        reference=_reference(candidates, task),
        preparation={name: path.read_bytes() for name, path in task.splits.files.items()},
    )
    for _ in progress.track(range(1), what="sealing the bundle"):
        manifest = write_bundle(directory, parts)
    journal.append(BundleWritten(path=BUNDLE, content=manifest.content))


def _reference(candidates: Mapping[VariantName, Candidate], task: Task) -> Reference:
    """From validation, which every choice was made on; the test split is not opened for it."""
    split, cases, asked = task.splits.validation, task.cases["validation"], task.recipe.requirements.fairness
    found = (
        variant_reference(
            name,
            candidate.stated,
            cases,
            threshold=cases.threshold if candidate.threshold is None else candidate.threshold,
            min_group=MIN_GROUP if asked is None else asked.min_group,
        )
        for name, candidate in candidates.items()
    )
    return Reference(
        cases=len(looked_at(split.n)),
        inputs=input_reference(split.inputs),
        variants=tuple(variant for variant in found if variant is not None),
    )


def _variants(kept: Candidate, baseline: Candidate) -> dict[VariantName, Candidate]:
    """What the bundle will hold."""
    candidates: dict[VariantName, Candidate] = {"fp32": baseline}
    if kept.profile.sha256 != baseline.profile.sha256:
        candidates = {variant_name(kept.profile): kept, **candidates}
    return candidates


def _part(name: VariantName, candidate: Candidate, final: FinalJudged) -> VariantPart:
    profile = candidate.profile
    return VariantPart(
        name=name,
        path=candidate.artifact.file,
        precision=profile.precision,
        validated=final.validated[name],
        latency=profile.latency,
        status=None if name == "fp32" else final.verdict.status,
        parameters=profile.parameters,
        macs=profile.macs,
        threshold=candidate.threshold,
    )


def _golden(candidates: dict[VariantName, Candidate], task: Task) -> Golden:
    sessions: dict[str, Session] = {name: load(c.artifact.file) for name, c in candidates.items()}
    inputs = task.splits.validation.inputs
    if task.recipe.golden == "synthetic":
        made_up = synthetic(inputs, seed=task.recipe.seed)
        section = task.recipe.task
        raw = [session(made_up)[OUTPUT] for session in sessions.values()]
        logits = (to_logits(section.kind, answers, section.outputs) for answers in raw)
        outputs = [x * c.factor for x, c in zip(logits, candidates.values(), strict=True)]
        rows = _typical(outputs, task)
        return answer_cases({name: x[rows] for name, x in made_up.items()}, sessions, output=OUTPUT)
    rows = _typical([c.outputs for c in candidates.values()], task)
    return answer_cases(collate([inputs[int(i)] for i in rows]), sessions, output=OUTPUT)


def _typical(outputs: Sequence[np.ndarray], task: Task) -> np.ndarray:
    """Rows that every variant decides alike, away from the border between two classes."""
    section = task.recipe.task
    positive = section.positive_classes[0] if section.kind == "binary" else 1
    threshold = task.cases["validation"].threshold
    for considered in (outputs, outputs[-1:]):  # if the variants agree on no case, the baseline alone
        with contextlib.suppress(ValueError):
            return choose_cases(considered, kind=section.kind, threshold=threshold, positive=positive)
    raise StageError("the baseline decides no case, so there is none to ship as golden")


def synthetic(inputs: Inputs, *, seed: int, n: int = 64) -> dict[str, np.ndarray]:
    """Made-up inputs with the range of real ones, which no real one can be read from.

    Args:
        inputs: Real inputs; the range of each over the first ``n`` is taken.
        seed: Of the numbers.
        n: How many to make.

    Returns:
        ``{name: (n, ...)}``: floats normal with the real mean and deviation, integers uniform between
        the real smallest and largest.
    """
    rng = np.random.default_rng(seed)
    real = collate([inputs[i] for i in range(min(n, len(inputs)))])
    return {name: _like(rng, x, (n, *x.shape[1:])) for name, x in real.items()}


def _like(rng: np.random.Generator, real: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.issubdtype(real.dtype, np.integer):
        return rng.integers(real.min(), real.max(), shape, dtype=real.dtype, endpoint=True)
    return rng.normal(real.mean(), real.std(), shape).astype(real.dtype)
