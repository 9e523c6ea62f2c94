"""Several files of one model, each measured here: the best that passes on validation goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from pastille.data.split import batches
from pastille.errors import InferenceError, StageError, UsageError
from pastille.files import sha256_file
from pastille.measure.adapted import open_adapted
from pastille.measure.invariance import invariance
from pastille.progress import Progress
from pastille.recipe import (
    AutoCandidate,
    AutoQuantize,
    DynamicQuantize,
    Goal,
    HalfPrecision,
    MixedQuantize,
    Quantize,
)
from pastille.record import StageDetails, Tried
from pastille.runtime import kernels
from pastille.runtime.packed import stored_size
from pastille.stages.calibration import require_calibration
from pastille.stages.contract import Artifact, StageResult
from pastille.stages.convert import ConvertStage
from pastille.stages.looking import Looking, looking
from pastille.stages.mixed import MixedStage
from pastille.stages.quantize import MODEL, QuantizeStage
from pastille.task import Task
from pastille.values import NOTICEABLE, ModelPrecision, Speedup

_Maker = QuantizeStage | MixedStage | ConvertStage

_TIMING = 0.67  # of the recipe's time for one measurement


@dataclass(frozen=True, kw_only=True)
class _Made:
    """One candidate: its file, and what is known of it."""

    tried: Tried
    file: Path
    precision: ModelPrecision
    details: StageDetails


@final
@dataclass(frozen=True, kw_only=True)
class AutoStage:
    """Make each candidate, measure all, keep one; the float file itself is always among them."""

    settings: AutoQuantize
    name: str = field(default="quantize", init=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe."""
        return self.settings.model_dump(mode="json")

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Layers that are there, and enough samples to calibrate on."""
        require_calibration(artifact.module, task, self.settings)

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Try everything, then keep the best file under the usual name."""
        seen = looking(artifact, task, progress)
        made, passed_over = [_unchanged(artifact, seen)], []
        for name, stage in _stages(self.settings):
            scratch = folder / name
            scratch.mkdir()
            try:
                result = _applied(stage, artifact, task, scratch, progress)
                made.append(_measured(name, result, made, seen, progress))
            except (UsageError, InferenceError) as error:
                shutil.rmtree(scratch)
                passed_over.append(f"{name} was passed over: {error}")
                progress.note(passed_over[-1])
                continue
            progress.note(f"{name}: {_words(made[-1].tried)}")
        return _kept(artifact, made, self.settings.goal, folder, tuple(passed_over))

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """One candidate was chosen, and it passes where any does."""
        tried = result.details.tried
        best = [each for each in tried if each.chosen]
        if len(best) != 1 or best[0].passes < any(each.passes for each in tried):
            raise StageError("stage 'quantize' must choose one candidate that passes")


def _stages(
    settings: AutoQuantize,
) -> Iterator[tuple[AutoCandidate, _Maker]]:
    shared = settings.model_dump(exclude={"method", "goal", "candidates"})
    makers: Mapping[str, Callable[[], _Maker]] = {
        "bf16": lambda: ConvertStage(settings=HalfPrecision(method="bf16")),
        "int8": lambda: QuantizeStage(settings=Quantize(**shared, draws=1)),
        "mixed": lambda: MixedStage(settings=MixedQuantize(**shared, method="mixed", goal=settings.goal)),
        "dynamic": lambda: ConvertStage(
            settings=DynamicQuantize(method="dynamic", keep_float=settings.keep_float)
        ),
    }
    for name in settings.candidates:
        if name in makers:
            yield name, makers[name]()


def _unchanged(artifact: Artifact, seen: Looking) -> _Made:
    """What went in: nothing more is lost by it."""
    problem = _unmet(artifact.file, None, seen.task)
    tried = Tried(
        name=artifact.precision,
        size_bytes=stored_size(artifact.file),
        speedup=None,
        spent=seen.start.spent,
        passes=not problem,
        chosen=False,
        note=problem or "as it was",
    )
    details = StageDetails()
    return _Made(tried=tried, file=artifact.file, precision=artifact.precision, details=details)


def _unmet(file: Path, speedup: Speedup | None, task: Task) -> str:
    """Which other requirement a file cannot meet, in a few words; "" where that is not known.

    A median above the limit of a percentile settles that limit; below it, the final gate measures.
    """
    asked = task.recipe.requirements
    if asked.max_size is not None and file.stat().st_size > asked.max_size:
        return "larger than max_size"
    median = speedup.candidate_ms if speedup is not None else None
    if median is not None and any(median > limit for q, limit in asked.max_latency.limits() if q >= 0.5):
        return "slower than max_latency"
    if asked.min_int8_share is not None:
        (batch,) = batches(task.splits.validation.inputs, [0], 1)
        share = kernels(file, batch, calls=1).int8_macs
        if share is not None and share < asked.min_int8_share:
            return "less in int8 than min_int8_share"
    return ""


def _applied(stage: _Maker, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
    stage.requires(artifact, task)
    result = stage.apply(artifact, task, folder, progress)
    stage.ensures(artifact, result)
    return result


def _measured(
    name: str, result: StageResult, made: Sequence[_Made], seen: Looking, progress: Progress
) -> _Made:
    """Ask one candidate validation and time it against what went in; a file that is known already is not."""
    assert result.quantized is not None
    digest = sha256_file(result.quantized)
    twin = next((each for each in made if sha256_file(each.file) == digest), None)
    if twin is not None:
        tried = replace(twin.tried, name=name, note=f"the same file as {twin.tried.name}")
    else:
        look = seen.at(result.quantized)
        (speedup,) = (
            seen.speed(result.quantized, share=_TIMING)
            for _ in progress.track(range(1), what=f"timing {name}")
        )
        problem = _unmet(result.quantized, speedup, seen.task) or _unsteady(result.quantized, seen.task)
        tried = Tried(
            name=name,
            size_bytes=stored_size(result.quantized),
            speedup=speedup,
            spent=look.spent,
            passes=seen.passes(look) and not problem,
            chosen=False,
            note=problem,
        )
    return _Made(tried=tried, file=result.quantized, precision=result.precision, details=result.details)


def _unsteady(file: Path, task: Task) -> str:
    """Whether decisions hang on how a file is asked, which the gate would not pass; "" if not."""
    section, threads = task.recipe.task, task.recipe.measure.threads
    found = invariance(
        file,
        task.splits.validation,
        task.cases["validation"],
        batch_sizes=task.recipe.measure.batch_sizes,
        threads=max(2, threads),
        opened=lambda path, count: open_adapted(path, task.inputs, section, threads=count),
    )
    return "decides otherwise in other batches or threads" if any(found.changed.values()) else ""


def _kept(
    artifact: Artifact, made: Sequence[_Made], goal: Goal, folder: Path, passed_over: tuple[str, ...]
) -> StageResult:
    """The best candidate under the usual name, with what is known of the others."""
    best = chosen([each.tried for each in made], goal)
    kept = made[best]
    shutil.copyfile(kept.file, folder / MODEL)
    for each in made[1:]:
        shutil.rmtree(each.file.parent)
    details = replace(
        kept.details,
        tried=tuple(replace(each.tried, chosen=i == best) for i, each in enumerate(made)),
        notes=(*kept.details.notes, *_slower(made), *passed_over),
    )
    return StageResult(
        module=artifact.module, quantized=folder / MODEL, precision=kept.precision, details=details
    )


def chosen(tried: Sequence[Tried], goal: Goal) -> int:
    """Which candidate is best for a goal.

    Faster counts only where the interval of the ratio says so, so what is not clearly faster than the
    float file counts as equally fast. Among equals the other quantity decides, then the order.

    Args:
        tried: The file that went in first.
        goal: ``fastest`` or ``smallest``.

    Returns:
        Its index; 0 where none passes.
    """
    fit = [i for i, each in enumerate(tried) if each.passes] or [0]
    speeds = {i: _speed(tried[i]) for i in fit}
    if goal == "smallest":
        return min(fit, key=lambda i: (tried[i].size_bytes, -speeds[i], i))
    fastest = max(speeds.values())
    alike = [i for i in fit if speeds[i] >= fastest * (1 - NOTICEABLE)]
    return min(alike, key=lambda i: (tried[i].size_bytes, i))


def _speed(tried: Tried) -> float:
    found = tried.speedup
    return found.ratio if found is not None and (found.faster or found.slower) else 1.0


def _words(tried: Tried) -> str:
    speed = "" if tried.speedup is None else f"{tried.speedup.ratio:.2f} times as fast, "
    spent = 0.0 if tried.spent is None else tried.spent
    verdict = "passes" if tried.passes else "does not pass"
    return f"{speed}{tried.size_bytes / 1e6:.2f} MB, {spent:.0%} of a limit lost on validation: {verdict}"


def _slower(made: Sequence[_Made]) -> Iterator[str]:
    for each in made:
        found = each.tried.speedup
        if found is not None and found.slower:
            yield (
                f"{each.tried.name} is slower than what it replaces: {found.ratio:.2f} times its speed at "
                f"batch {found.batch}"
            )
