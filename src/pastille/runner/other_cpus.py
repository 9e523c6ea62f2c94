"""Whether a run's files decide the same on the CPUs that the recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, cast

import numpy as np

from pastille.bundle import VariantName
from pastille.bundle.golden import DECIDING
from pastille.data.split import collate
from pastille.elsewhere import CaseFile, decider, replay_on
from pastille.errors import InferenceError
from pastille.export.onnx import OUTPUT
from pastille.progress import Progress
from pastille.runner.candidate import Candidate
from pastille.runtime import load
from pastille.runtime.emulated import Isa, is_emulated
from pastille.task import Task
from pastille.values import Validation, Verdict

CASES: Final = 100
SECONDS: Final = 120.0  # of answering, per file and CPU; at least one case is asked
ENOUGH: Final = 20  # cases: fewer validate nothing
# Share of decisions that must be those of this machine. ARM's kernels round ties otherwise, also in fp32.
LEAST: Final[Mapping[str, float]] = MappingProxyType({"avx2": 1.0, "sse4": 1.0, "aarch64": 0.99})

Validated = Mapping[str, tuple[Validation, ...]]  # variant -> its CPUs, the machine that judged it first


def validated(
    candidates: Mapping[VariantName, Candidate],
    task: Task,
    progress: Progress,
    *,
    cases: int = CASES,
    seconds: float = SECONDS,
) -> tuple[Validated, tuple[str, ...]]:
    """Ask every file cases of validation on each CPU that the recipe names.

    Args:
        candidates: By the name that each will have in the bundle.
        task: What the recipe asks, and the data.
        progress: Shows one step per file and CPU.
        cases: At most, spread evenly over validation.
        seconds: Of answering, per file and CPU.

    Returns:
        What was found, this machine first; and a sentence per CPU that could not be asked.
    """
    asked = [(name, isa) for name in candidates for isa in task.recipe.measure.isas]
    found = {str(name): [_here(candidate, task)] for name, candidate in candidates.items()}
    failed = []
    for name, isa in progress.track(asked, what="asking other CPUs"):
        try:
            seen = _there(candidates[name], task, isa, cases=cases, seconds=seconds)
            found[name].append(seen)
            if seen.cases < min(ENOUGH, cases, len(task.splits.validation.inputs)):
                failed.append(f"{name} is not validated on {isa}: {seen.cases} cases took {seconds:g} s")
        except InferenceError as error:  # at the end of a run: what was found before must not be lost
            failed.append(f"{name} is not validated on {isa}: {error}")
    return {name: tuple(seen) for name, seen in found.items()}, tuple(failed)


def _here(candidate: Candidate, task: Task) -> Validation:
    conditions, n = candidate.profile.latency[0].conditions, task.splits.test.n
    return Validation(
        isa=conditions.isa,
        emulated=False,
        cases=n,
        equal_decisions=n,
        identical=n,
        runtime_version=conditions.runtime_version,
    )


def _there(candidate: Candidate, task: Task, isa: Isa, *, cases: int, seconds: float) -> Validation:
    section, inputs, file = task.recipe.task, task.splits.validation.inputs, candidate.artifact.file
    rows = np.linspace(0, len(inputs) - 1, min(cases, len(inputs))).astype(int)
    batch = collate([inputs[int(i)] for i in rows])
    positive = section.positive_classes[0] if section.kind == "binary" else 1
    threshold = task.cases["validation"].threshold if candidate.threshold is None else candidate.threshold
    found = replay_on(
        isa,
        file,
        CaseFile(inputs=batch),
        output=OUTPUT,
        decide=decider(
            section.kind,
            section.outputs,
            threshold=threshold,
            positive=positive,
            near=np.empty(0) if section.kind in DECIDING else np.asarray(load(file)(batch)[OUTPUT]),
            precision=candidate.profile.precision,
        ),
        budget_s=seconds,
    )
    return Validation(
        isa=isa,
        emulated=is_emulated(isa),
        cases=found.cases,
        equal_decisions=found.equal_decisions,
        identical=found.identical,
        runtime_version=found.runtime_version,
    )


def differences(found: Validated) -> Iterator[tuple[str, str]]:
    """Variants that decide otherwise on a CPU more often than may be, each with a sentence.

    Args:
        found: By `validated`.

    Example:
        >>> seen = Validation(isa="avx2", emulated=True, cases=100, equal_decisions=97, identical=50,
        ...                   runtime_version="1")
        >>> list(differences({"int8": (seen,)}))
        [('int8', 'int8 decides otherwise on avx2: 3 of 100 validation cases')]
    """
    for name, seen in found.items():
        for one in seen:
            if one.equal_decisions < LEAST.get(one.isa, 0.0) * one.cases:
                wrong = one.cases - one.equal_decisions
                yield name, f"{name} decides otherwise on {one.isa}: {wrong} of {one.cases} validation cases"


def noted(said: Verdict, found: Validated, failed: tuple[str, ...]) -> Verdict:
    """The verdict, with what was found on other CPUs among its notes.

    Args:
        said: On the test split and on this machine; its status stays.
        found: By `validated`.
        failed: By `validated`.
    """
    notes = (*(sentence for _, sentence in differences(found)), *failed)
    return replace(said, reason="; ".join((said.reason, *notes)), notes=(*said.notes, *notes))


def portable(
    selected: str, reason: str, found: Validated, failed: tuple[str, ...] = ()
) -> tuple[VariantName, str]:
    """Select fp32 in place of a variant that decides otherwise, or was not validated, on a CPU asked for.

    Args:
        selected: Variant that was selected on this machine.
        reason: Why.
        found: By `validated`.
        failed: By `validated`.
    """
    said = (*differences(found), *((sentence.split(" ", 1)[0], sentence) for sentence in failed))
    why = [sentence for name, sentence in said if name == selected != "fp32"]
    if why:
        return "fp32", "; ".join(why)
    return cast("VariantName", selected), reason
