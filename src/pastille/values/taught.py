"""What a distillation came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pastille.values.measured import Estimate, Interval, Speedup


@dataclass(frozen=True, kw_only=True)
class TeacherSeen:
    """A teacher, and how it did on validation before it taught."""

    name: str  # e.g. "baseline"
    weight: float  # among all teachers; they sum to 1
    parameters: int
    metric: str  # the task's own, e.g. "accuracy"
    estimate: Estimate
    ece: float | None  # expected calibration error; None where there are no probabilities
    # "sex = F" -> how much worse the metric is there than for all others, of groups where that is certain;
    # "sex = F, accuracy" where it is another metric
    worse: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudentTaught:
    """One student, and what it learned; a progressive distillation has several."""

    name: str  # e.g. "width 0.5"
    parameters: int
    teachers: tuple[TeacherSeen, ...]
    metric: str
    estimate: Estimate  # of the module after training, on validation
    asked: str  # how its teachers were asked, e.g. "cached, 4 views, 12 MB"
    scratch: Estimate | None = None  # the same student, trained on the labels alone
    gain: Interval | None = None  # of the taught one over that one, paired, on validation

    @property
    def share(self) -> float:
        """Of the parameters of its largest teacher."""
        return self.parameters / max(teacher.parameters for teacher in self.teachers)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The plan without one of its stages, carried out on validation alone."""

    stage: str  # as in the plan, e.g. "distill" or "prune and finetune"; "" is the whole plan
    index: int  # in the plan, from 1; 0 is the whole plan
    metric: str
    estimate: Estimate
    worse: float | None = None  # than the whole plan, whichever way the metric points; None: not to be told
    interval: Interval | None = None  # of that, paired over the cases of validation
    size_bytes: int  # as a bundle stores it
    latency_ms: float | None  # median at batch 1, on this machine
    speedup: Speedup | None = None  # over the baseline, in alternation with it
    status: str  # of the gate on validation: approved, rejected or inconclusive
