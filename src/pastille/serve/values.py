"""What a request becomes, what answers it, and what happened on the way: frozen, and free of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pastille.bundle import Answer, VariantName

Why = Literal[
    "load",  # the file could not be loaded, or there was no memory for it
    "golden",  # it answers its golden cases otherwise than where it was validated
    "exception",
    "non_finite",
    "shape",
    "timeout",
    "disagreement",  # validate mode: fp32's answer wins
    "alarm",  # the disagreement alarm took the variant out of service
    "breaker",  # open: failed lately, not asked
    "rejected",  # its verdict is not approved
]
Route = Literal["infer", "predict"]
BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One request, checked and prepared: what the engine is asked.

    Attributes:
        inputs: ``{name: (N, ...)}``, finite, in the model's types.
        request_id: The client's own, or one made up; at most 128 printable characters.
        route: Which kind of endpoint it came through.
        deadline: `time.monotonic` seconds after which an answer is worth nothing.
        subject: Key of the sticky A/B assignment. It is hashed with a salt at once and is never logged.
        warnings: What the preparation found, e.g. an input far outside the reference statistics.
    """

    inputs: Mapping[str, np.ndarray]
    request_id: str
    route: Route = "infer"
    deadline: float
    subject: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many cases it asks about: N."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """Why another variant answered than the preferred one."""

    preferred: VariantName
    why: Why
    detail: str  # one sentence, nothing of the request in it


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """What the engine answers.

    Attributes:
        answer: Raw outputs, probabilities, decisions, and the variant that gave them.
        model: Name of the bundle.
        version: Of the bundle, as served: ``"1"``, ``"2"`` ….
        model_sha256: Of the ONNX file that answered.
        threshold: From which a case is called positive; None where the task has none.
        confidence: ``(N,)`` probability of what was decided; None where there are none.
        fallback: None where the preferred variant answered.
        disagreement: ``(N,)`` bool, whether the variants decided differently; None where one was asked.
        cached: Whether no model ran for it.
        arm: ``"a"`` or ``"b"`` in an A/B test; else None.
        queue_s: Seconds that it waited for a free place.
        compute_s: Seconds in the runtime.
        batch: Cases that ran together with it, itself included.
        warnings: Those of the call, and the engine's own.
    """

    answer: Answer
    model: str
    version: str
    model_sha256: str
    threshold: float | None
    confidence: np.ndarray | None = None
    fallback: Fallback | None = None
    disagreement: np.ndarray | None = None
    cached: bool = False
    arm: Literal["a", "b"] | None = None
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VariantStatus:
    """One variant on this machine."""

    name: VariantName
    sha256: str
    usable: bool
    reason: str  # why it is used, or is not
    why: Why | None = None  # why it is not usable
    breaker: BreakerState = "closed"
    latency_ms: float | None = None  # median of the warm-up here, batch 1
    memory_bytes: int | None = None  # about what loading it took


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """One bundle being served."""

    model: str
    version: str
    content: str  # digest of the bundle
    mode: str
    ready: bool
    reason: str  # why this variant is preferred, or why it is not ready
    preferred: VariantName | None
    degraded: bool  # a fault lets another variant answer than the wanted one, or none may; speed is no fault
    threads: int  # of one call
    places: int  # calls that run at once
    batching: str  # "off", or how: "up to 8 within 2 ms: 1.4 times the throughput here"
    variants: tuple[VariantStatus, ...]
    in_flight: int = 0  # calls that run or wait now
    queued: int = 0  # of them, those that wait for a place
    cache_hits: int = 0
    cache_misses: int = 0
    cache_bytes: int = 0
    degraded_since: float | None = None  # Unix seconds
    answering: VariantName | None = None  # who is asked first now: not the preferred one while that is out
    hung: bool = False  # every place is lost to a model that hangs: only a restart helps


# What happened, in the order in which it happened. The engine and the application give each to one observer
# on the event loop's thread, so that an observer needs no lock. None holds inputs or outputs of a patient.


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """A request was answered."""

    call: Call
    reply: Reply
    at: float  # Unix time, seconds
    total_s: float  # from the whole request being read to the answer being encoded


@dataclass(frozen=True, kw_only=True)
class Turned:
    """A request was refused, or failed."""

    cause: str  # a `Cause`
    status: int
    route: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Faulted:
    """A variant failed on a request, at start or in its breaker."""

    variant: VariantName
    why: Why
    detail: str
    at: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """Two variants, or two bundles, answered the same cases.

    Attributes:
        served: Who answered the client, e.g. ``"int8"`` or ``"digits:2/int8"``.
        other: Whom it was held against.
        disagree: ``(N,)`` bool.
        lost: ``(N,)`` bool: ``served`` calls negative what ``other`` calls positive.
        gained: ``(N,)`` bool: the other way round.
    """

    served: str
    other: str
    disagree: np.ndarray
    lost: np.ndarray
    gained: np.ndarray
    at: float


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A breaker changed its state."""

    variant: VariantName
    state: BreakerState
    at: float


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A shadow comparison was not made: its queue was full, it waited too long, or the other failed."""

    at: float


Event = Answered | Turned | Faulted | Compared | Moved | Dropped


@dataclass(frozen=True, kw_only=True)
class Label:
    """What turned out to be right for an earlier request: ``POST /feedback``.

    Attributes:
        request_id: Of the answer that it belongs to; the server still knows its decision, or says that it
            does not.
        row: Which case of that request.
        label: One of the bundle's labels (multilabel: several).
        groups: Demographic attributes, e.g. ``{"sex": "female"}``.
    """

    request_id: str
    label: str | tuple[str, ...]
    row: int = 0
    groups: Mapping[str, str] = field(default_factory=dict)
