"""A stage of a plan: what it requires, what it does, what it ensures; and who checks that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from pastille.data.split import Split
from pastille.errors import StageError
from pastille.files import sha256_file
from pastille.progress import Progress
from pastille.record import StageDetails
from pastille.task.digest import state_digest as state_digest
from pastille.values import ModelPrecision

if TYPE_CHECKING:
    from torch import nn

    from pastille.task import Task
    from pastille.task.factory import Factory

STEPS: Final = "steps"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model on its way through the plan: the module, and the file exported from it.

    Attributes:
        module: With the weights of the file, unless a stage worked on the file alone.
        file: What was exported, or made from that.
        precision: Of the file.
        baseline: The file of the model as it was brought, which gates compare with; None: ``file`` is it.
        sparse: Whether an earlier stage set weights to zero on purpose: what trains on must keep them so.
        build: What the module is rebuilt from, untrained; None: the task's own factory.
    """

    module: nn.Module
    file: Path
    precision: ModelPrecision = "fp32"
    baseline: Path | None = None
    sparse: bool = False
    build: Factory | None = None


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage gives back.

    Attributes:
        module: The new module; the one that was given if the stage works on the file alone.
        quantized: The new file, if the stage made one itself; None leaves the export to the runner.
        precision: Of the new file, whoever makes it.
        details: What the stage did, for the record.
        build: What the new module is rebuilt from, untrained; None: what the given one was.
    """

    module: nn.Module
    quantized: Path | None = None
    precision: ModelPrecision = "fp32"
    details: StageDetails
    build: Factory | None = None


class Stage(Protocol):
    """One step of a plan."""

    @property
    def name(self) -> str:
        """As in the recipe, e.g. ``"prune"``."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """As asked in the recipe, defaults included."""
        ...

    def requires(self, artifact: Artifact, task: Task) -> None:
        """Check that the model and the data suit the stage.

        Raises:
            UsageError: They do not; the user's to mend.
        """
        ...

    def apply(self, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
        """Do the work. Leaves ``artifact`` as it is; may write into ``folder``."""
        ...

    def ensures(self, before: Artifact, result: StageResult) -> None:
        """Check the stage's own promise.

        Raises:
            StageError: It is broken; the stage's author's to mend.
        """
        ...


def run_stage(stage: Stage, artifact: Artifact, task: Task, folder: Path, progress: Progress) -> StageResult:
    """Run one stage and hold it to what it promises.

    Args:
        stage: From `stage_for`.
        artifact: What the stage starts from; not changed.
        task: The user's model and data.
        folder: Exists, and is empty but for the folder `STEPS`, where a stage may keep what it has finished
            of itself and find it again after a kill; what the stage writes goes here.
        progress: Shown while it works.

    Raises:
        UsageError: The model or the data does not suit the stage.
        StageError: The stage changed its input or broke its promise.
    """
    task = with_factory(without_test(task), artifact.build)
    stage.requires(artifact, task)
    before = _looks(artifact)
    result = stage.apply(artifact, task, folder, progress)
    changed = [what for what, digest in _looks(artifact).items() if digest != before[what]]
    if changed:
        raise StageError(
            f"stage {stage.name!r} must leave its input alone, but changed its {' and '.join(changed)}; "
            "report this to the stage's author"
        )
    stage.ensures(artifact, result)
    return result


class _Sealed:
    """Inputs that nobody may read."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int, /) -> Any:
        raise StageError("the test split is for the final gate alone; a stage or search must not reach it")

    def __iter__(self) -> Iterator[Any]:
        return iter([self[0]])


def without_test(task: Task) -> Task:
    """The task as stages and searches see it: neither inputs nor targets of the test split are in it."""
    sealed = Split(inputs=_Sealed(), targets=np.empty(0, np.int64))
    cases = {name: held for name, held in task.cases.items() if name != "test"}
    return replace(task, splits=replace(task.splits, test=sealed), cases=cases)


def with_factory(task: Task, build: Factory | None) -> Task:
    """The task as the keeper of a module sees it, which is rebuilt from a factory of its own.

    Args:
        task: The user's.
        build: Builds the untrained module; None: the task's own factory does.
    """
    return task if build is None else replace(task, build=build)


def _looks(artifact: Artifact) -> dict[str, str]:
    return {
        "weights": state_digest(artifact.module),
        "architecture": f"{artifact.module!r} {artifact.module.training}",
        "file": sha256_file(artifact.file),
    }
