"""What a gate says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pastille.values.cases import SplitName
from pastille.values.evidence import Evidence
from pastille.values.measured import Interval


class Status(StrEnum):
    """The three things a gate can say."""

    APPROVED = "approved"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit, held against what was measured."""

    metric: str  # "accuracy", "r2", "equalized odds difference", "size", "latency p95", "int8 share"
    status: Status
    limit: float  # largest drop (absolute), bytes, or ms
    baseline: float | None
    candidate: float | None  # None where the split holds no case to measure it on
    drop: float | None  # baseline - candidate for metrics; positive is worse
    interval: Interval | None  # of the drop
    n: int | None
    method: str
    more_cases: int | None  # how many more would probably decide; None unless inconclusive
    reason: str  # one sentence, with the numbers
    where: Mapping[str, str] = field(default_factory=dict)  # as `Comparison.where`; empty: all cases
    adjusted_p: float | None = None  # of groups: Holm-adjusted p-value of "the loss is within the limit"
    mcnemar: float | None = None  # as `Comparison.mcnemar`


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate says, with the numbers and the reason."""

    status: Status
    reason: str
    checks: tuple[Check, ...]
    split: SplitName
    notes: tuple[str, ...] = ()  # what qualifies it: an override, an earlier look at the test split
    evidence: Evidence | None = None  # None in a bundle's manifest; the record has it

    def __str__(self) -> str:
        return self.reason
