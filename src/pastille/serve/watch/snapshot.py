"""``/monitor.json``: what the page shows, as frozen values. No field holds anything of a patient.

Shares and rates are in [0, 1], times in milliseconds, ``at`` in Unix seconds. None stands for "not enough
data" or "does not apply"; ``words`` says which, for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pastille.serve.values import BreakerState, EngineStatus

State = Literal["not_enough_data", "ok", "alarm"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of the last requests of one variant; a percentile that so few cannot give is None."""

    n: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, kw_only=True)
class VariantView:
    """One variant, since the start."""

    name: str
    usable: bool
    reason: str
    breaker: BreakerState
    requests: int
    latency: Latency  # total: from the whole request to the encoded answer
    compute: Latency  # in the runtime alone


@dataclass(frozen=True, kw_only=True)
class DisagreementView:
    """Two variants on the same cases, with the evidence of the sequential test."""

    served: str
    other: str
    n: int
    disagreed: int
    lost: int  # positive -> negative
    gained: int  # negative -> positive
    low: float | None  # confidence sequence of the rate, valid at every look
    high: float | None
    limit: float  # that the rate may have
    evidence: float  # the e-process, 1 at the start
    alarm_at: float  # e.g. 100
    state: State
    words: str


@dataclass(frozen=True, kw_only=True)
class DriftView:
    """Confidences of the last requests against those of validation."""

    variant: str
    n: int
    minimum: int
    psi: float | None
    psi_limit: float | None
    ks: float | None
    ks_limit: float | None
    edges: tuple[float, ...]  # B + 1
    reference: tuple[float, ...]  # B shares
    now: tuple[float, ...]  # B shares; empty below the minimum
    state: State
    words: str


@dataclass(frozen=True, kw_only=True)
class SensitivityView:
    """Labels that arrived later: how many of the positives of one group were found."""

    group: str  # "everyone", or "sex=female"
    positives: int
    found: int
    low: float | None
    high: float | None
    expected: float | None  # what validation gave
    state: State
    words: str


@dataclass(frozen=True, kw_only=True)
class ComparisonView:
    """An A/B test: who was asked how often, and what the sequential comparison says."""

    a: str
    b: str
    requests_a: int
    requests_b: int
    labelled_a: int
    labelled_b: int
    correct_a: int
    correct_b: int
    evidence: float
    alarm_at: float
    state: State
    words: str


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How often something happened: fallbacks by reason, refusals by cause."""

    what: str
    why: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Recent:
    """One of the last requests; its id is a short hash, for a client may send anything as one."""

    at: float
    id: str
    route: str
    variant: str
    rows: int
    decision: str  # of its first case, "" where nothing is decided
    confidence: float | None
    total_ms: float
    fallback: str  # "" where the preferred variant answered
    cached: bool
    warnings: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All of it, for one bundle."""

    at: float
    uptime_s: float
    engine: EngineStatus
    requests: int
    answered: int
    per_second: float  # over the last 10 seconds
    history: tuple[float, ...]  # answers per second, of each of the last 60 seconds, oldest first
    in_flight: int
    cache_hits: int
    cache_misses: int
    cache_bytes: int
    shadow_dropped: int
    variants: tuple[VariantView, ...]
    fallbacks: tuple[Counted, ...]
    refusals: tuple[Counted, ...]
    disagreements: tuple[DisagreementView, ...]
    drift: tuple[DriftView, ...]
    sensitivity: tuple[SensitivityView, ...]
    comparison: ComparisonView | None
    recent: tuple[Recent, ...]  # the newest first, at most 50
