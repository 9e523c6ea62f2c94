"""What happened: the append-only account of one run, and the only thing a report may read.

A `Record` is a tuple of events, each frozen and dated. `run.json` is rewritten whole and atomically
after each event, so a killed run leaves the account of everything that was finished.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from pastille.errors import IntegrityError
from pastille.files import read_bounded, write_atomic
from pastille.openings import Opening
from pastille.values import (
    Conditions,
    LeftOut,
    Metrics,
    Preprocessing,
    Profile,
    Speedup,
    StudentTaught,
    TensorSpec,
    Validation,
    Verdict,
    from_json,
    to_json,
)

SCHEMA = 1
MAX_RECORD_BYTES = 64 << 20

E = TypeVar("E")


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The software and the machine that a run was carried out with."""

    pastille: str
    python: str
    platform: str
    packages: Mapping[str, str]  # those that can change a result
    machine: Conditions


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training, epoch by epoch."""

    stage: str
    metric: str  # validation metric, e.g. "accuracy"
    loss: tuple[float, ...]  # mean training loss per epoch
    validation: tuple[float, ...]  # metric per epoch
    best_epoch: int  # counted from 1: the one that was kept


@dataclass(frozen=True, kw_only=True)
class WidthChange:
    """One layer that was narrowed, or a residual block that was left out: then one became none."""

    module: str
    before: int
    after: int
    kind: Literal["channels", "heads", "blocks"] = "channels"  # what is counted
    note: str = ""  # e.g. why the width is not rounded as asked


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One file that a search made, as it did on validation and on this machine."""

    name: str  # e.g. "int8", "mixed"
    size_bytes: int  # as a bundle stores it
    speedup: Speedup | None  # over the file that the search began with; None where it was not timed
    spent: float | None  # largest share of any limit that the loss on validation takes
    passes: bool  # whether it may be chosen
    chosen: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PrunedStep:
    """One removal with the fine-tuning after it, exported and looked at on validation."""

    number: int  # from 1
    removed: float  # share of all parameters that has gone since the stage began
    sparsity: float  # likewise, of the channels that could be pruned; 0 where only heads went
    parameters: int
    macs: int | None  # for one input; None where they were not counted
    metric: float | None  # on validation after fine-tuning, as the curve says; None if no epoch was kept
    spent: float | None  # largest share of any limit that the loss takes; None if the file was not looked at
    rejected: bool  # a limit is exceeded for certain
    note: str = ""  # the limit that is exceeded


@dataclass(frozen=True, kw_only=True)
class BudgetLimit:
    """One limit of a pruning budget, and what the file that the stage gave back came to."""

    name: str  # as in the recipe, e.g. "max_latency.p95"
    asked: float  # milliseconds, bytes or multiply-accumulates
    reached: float | None  # by the file itself; None of a percentile that too few calls were made for
    by_ratio: float | None  # of a latency: the earlier file's, over how many times faster this one is

    @property
    def spent(self) -> float | None:
        """Share of the limit; above 1 it is broken. None where nothing was measured."""
        found = self.by_ratio if self.reached is None else self.reached
        return None if found is None else found / self.asked


@dataclass(frozen=True, kw_only=True)
class StageDetails:
    """What a stage did, beside what was measured of its result."""

    curves: tuple[Curve, ...] = ()
    widths: tuple[WidthChange, ...] = ()
    left_whole: Mapping[str, str] = field(default_factory=dict)  # module -> why it was not pruned
    calibration_samples: int | None = None
    int8_operators: Mapping[str, int] = field(default_factory=dict)  # operator -> how many run in int8
    float_operators: Mapping[str, int] = field(default_factory=dict)  # operator -> how many stayed float
    tried: tuple[Tried, ...] = ()
    steps: tuple[PrunedStep, ...] = ()
    budget: tuple[BudgetLimit, ...] = ()  # that pruning was given in place of a sparsity
    students: tuple[StudentTaught, ...] = ()  # of a distillation, in the order they were taught
    zeros: float | None = None  # share of the weights that a sparse stage set to zero
    stored_bytes: int | None = None  # of the sparse file as a bundle stores it
    parity_max_abs_error: float | None = None
    temperature: float | None = None  # that the file's answers are divided by
    threshold: float | None = None  # of this file's probabilities, where it is not the task's
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One split, described without its rows."""

    n: int
    subjects: int | None
    classes: Mapping[str, int]  # label -> cases; empty for regression
    groups: Mapping[str, Mapping[str, int]]  # attribute -> group -> cases


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run was begun."""

    event: Literal["started"] = "started"
    at: str = field(default_factory=now)
    recipe: Mapping[str, Any]
    recipe_hash: str
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A run that had been interrupted was taken up again."""

    event: Literal["resumed"] = "resumed"
    at: str = field(default_factory=now)
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class TaskLoaded:
    """The model and the data were loaded and checked."""

    event: Literal["task_loaded"] = "task_loaded"
    at: str = field(default_factory=now)
    splits: Mapping[str, SplitSummary]
    inputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None
    data_digest: str  # SHA-256 over every input and target, in order
    model_digest: str = ""  # SHA-256 over every tensor of the model as it was brought
    leakage: tuple[str, ...] = ()  # what --allow-leakage let pass


@dataclass(frozen=True, kw_only=True)
class ThresholdChosen:
    """The operating threshold was chosen on validation from the baseline's answers; it stays fixed."""

    event: Literal["threshold_chosen"] = "threshold_chosen"
    at: str = field(default_factory=now)
    threshold: float
    reason: str  # the goal and what it reaches, one sentence


@dataclass(frozen=True, kw_only=True)
class BaselineProfiled:
    """The model as it was brought was exported and measured."""

    event: Literal["baseline_profiled"] = "baseline_profiled"
    at: str = field(default_factory=now)
    profile: Profile
    details: StageDetails


@dataclass(frozen=True, kw_only=True)
class StageFinished:
    """A stage of the plan was carried out, measured and judged on validation."""

    event: Literal["stage_finished"] = "stage_finished"
    at: str = field(default_factory=now)
    index: int  # from 1, the plan's order
    name: str  # "prune"
    options: Mapping[str, Any]
    profile: Profile
    verdict: Verdict
    kept: bool  # False: the run went on from the model before this stage
    consequence: str  # why it was kept or dropped, one sentence
    details: StageDetails
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TestOpened:
    """The test split was read; a run does this once."""

    event: Literal["test_opened"] = "test_opened"
    at: str = field(default_factory=now)
    reason: str
    earlier: tuple[Opening, ...] = ()  # of the same cases by other runs, as the ledger remembers


@dataclass(frozen=True, kw_only=True)
class FinalJudged:
    """The candidate was judged against the baseline on the test split."""

    event: Literal["final_judged"] = "final_judged"
    at: str = field(default_factory=now)
    candidate: str  # name of the stage whose file was judged
    baseline_metrics: Metrics
    candidate_metrics: Metrics
    verdict: Verdict
    speedups: tuple[Speedup, ...]  # one per batch size
    selected: str  # variant that the bundle will serve: as `pastille.bundle.VariantName`
    selection_reason: str
    validated: Mapping[str, tuple[Validation, ...]] = field(default_factory=dict)  # variant -> its CPUs


@dataclass(frozen=True, kw_only=True)
class BundleWritten:
    """The sealed product was written; the run is complete."""

    event: Literal["bundle_written"] = "bundle_written"
    at: str = field(default_factory=now)
    path: str  # relative to the run directory
    content: str  # SHA-256 of what the bundle answers with: models, golden cases, preprocessing


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """After the run: its plan was carried out without one of its stages, on validation alone."""

    event: Literal["ablated"] = "ablated"
    at: str = field(default_factory=now)
    left_out: LeftOut
    seconds: float


Event = Annotated[
    Started
    | Resumed
    | TaskLoaded
    | ThresholdChosen
    | BaselineProfiled
    | StageFinished
    | TestOpened
    | FinalJudged
    | BundleWritten
    | Ablated,
    Field(discriminator="event"),
]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The account of one run, oldest event first."""

    schema: int = SCHEMA
    name: str
    events: tuple[Event, ...] = ()

    def all(self, kind: type[E]) -> tuple[E, ...]:
        """Every event of one kind, oldest first."""
        return tuple(e for e in self.events if isinstance(e, kind))

    def last(self, kind: type[E]) -> E | None:
        """The newest event of one kind, or None."""
        return next((e for e in reversed(self.events) if isinstance(e, kind)), None)


def appended(record: Record, event: Event) -> Record:
    """A record with one more event."""
    return Record(schema=record.schema, name=record.name, events=(*record.events, event))


def write_record(record: Record, path: Path) -> None:
    """Write ``run.json`` atomically.

    Raises:
        OutputError: It cannot be written; the account on disk is as it was.
    """
    write_atomic(path, to_json(record))


def read_record(path: Path) -> Record:
    """Read ``run.json``.

    Raises:
        IntegrityError: It is missing, too large, not a record, or of a newer schema.
    """
    data = read_bounded(path, MAX_RECORD_BYTES, what="record")
    try:
        record = from_json(Record, data)
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{path} is not a record of a Pastille run: {problem}") from None
    if record.schema != SCHEMA:
        raise IntegrityError(f"{path} has record schema {record.schema}; this Pastille reads {SCHEMA}")
    return record


_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch", "torchvision", "timm")


def environment(machine: Conditions) -> Environment:
    """Describe the software that this process runs with."""
    installed = {d.metadata["Name"].lower() for d in metadata.distributions() if d.metadata["Name"]}
    return Environment(
        pastille=metadata.version("pastille"),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: metadata.version(name) for name in _PACKAGES if name in installed},
        machine=machine,
    )
