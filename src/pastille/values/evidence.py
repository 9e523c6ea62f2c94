"""What two models answered to the same cases, side by side: the numbers behind a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pastille.values.measured import Estimate, Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of both models on the same cases.

    ``where`` says which cases: empty for all of them, ``{"class": "melanoma"}`` for one class,
    ``{"sex": "female"}`` for a group, ``{"sex": "female", "age_band": "65+"}`` for an intersection.
    """

    metric: str
    where: Mapping[str, str] = field(default_factory=dict)
    n: int  # cases it rests on
    baseline: Estimate | None  # None: these cases cannot define the metric
    candidate: Estimate | None
    drop: float | None  # how much worse the candidate is, whichever way the metric points
    interval: Interval | None  # of the drop; None: the cases cannot tell
    method: str
    newly_wrong: int | None = None  # of shares: cases that only the baseline gets right
    newly_right: int | None = None
    mcnemar: float | None = None  # exact p-value of "wrong equally often"; side information, decides nothing
    worth: float | None = None  # independent cases that n cases are worth, where subjects repeat
    subjects: int | None = None  # of the n cases, where subjects repeat


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far the groups of one attribute lie apart, before and after."""

    attribute: str  # "sex", or "sex × age_band"
    name: str  # "equalized odds difference", "equal opportunity gap", "accuracy gap"
    baseline: float
    candidate: float
    growth: float  # candidate - baseline; positive is worse
    interval: Interval | None  # of the growth
    method: str
    worst_before: str  # the group that fares worst; empty where none does
    worst_after: str
    left_out: Mapping[str, int] = field(default_factory=dict)  # groups too small to be counted -> cases


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """One attribute, or an intersection of two."""

    attribute: str
    groups: tuple[Comparison, ...]  # every metric of every group, underdiagnosis rate included
    gaps: tuple[Gap, ...]
    too_small: Mapping[str, int] = field(default_factory=dict)  # group -> cases, below min_group
    worst: str = ""  # the group that loses most sensitivity (else accuracy); empty where none loses


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Cases of similar confidence."""

    n: int
    confidence: float  # mean predicted probability
    observed: float  # share that it came true for
    interval: Interval | None  # of the share


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether the probabilities of both models mean what they say."""

    comparisons: tuple[Comparison, ...]  # "ece", "brier", "calibration_slope", "calibration_intercept"
    baseline_bins: tuple[ReliabilityBin, ...]
    candidate_bins: tuple[ReliabilityBin, ...]
    of: str  # what the probability is of, e.g. "malignant", "the decided class"


@dataclass(frozen=True, kw_only=True)
class Concentration:
    """Whether changed decisions pile up in one part of the cases."""

    attribute: str  # "class", a group attribute, "stratum", "confidence"
    value: str
    n: int
    changed: int
    elsewhere_n: int
    elsewhere_changed: int
    p_value: float
    adjusted_p: float  # Holm over everything that was looked at
    sentence: str
    outcome: str = "changed"  # or "newly wrong": what piles up


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """The cases that the two models decide differently."""

    n: int
    changed: int
    positive_to_negative: int | None  # the clinically worse direction; None without positive classes
    negative_to_positive: int | None
    newly_wrong: int
    newly_right: int
    transitions: tuple[tuple[str, str, int], ...]  # (baseline, candidate, cases), most frequent first
    concentrations: tuple[Concentration, ...]  # smallest p-value first
    summary: str  # in words
    file: str = ""  # the list, CSV, relative to the run directory


@dataclass(frozen=True, kw_only=True)
class StressPoint:
    """Both models at one severity of one perturbation."""

    severity: int  # 0 is untouched
    baseline: Estimate
    candidate: Estimate
    excess: float  # how much more the candidate has lost since severity 0 than the baseline
    interval: Interval | None  # of the excess


@dataclass(frozen=True, kw_only=True)
class StressCurve:
    """One metric under one perturbation."""

    perturbation: str
    metric: str
    points: tuple[StressPoint, ...]  # by severity
    method: str
    setting: str = ""  # what the severities mean, e.g. "standard deviation 0.02, 0.05, 0.1"


@dataclass(frozen=True, kw_only=True)
class Invariance:
    """Whether a file decides the same however it is asked."""

    cases: int
    batch_sizes: tuple[int, ...]
    threads: tuple[int, ...]
    changed: Mapping[str, int]  # "batch 8", "2 threads" -> cases decided differently than alone
    max_abs_error: float  # largest difference of any number
    batch_statistics: tuple[str, ...]  # nodes that normalize over the batch axis


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that was compared before a verdict was given."""

    comparisons: tuple[Comparison, ...] = ()  # overall and per class
    fairness: tuple[Fairness, ...] = ()
    calibration: Calibration | None = None
    disagreement: Disagreement | None = None
    stress: tuple[StressCurve, ...] = ()
    invariance: Invariance | None = None
