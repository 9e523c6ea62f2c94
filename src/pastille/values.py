"""What was measured: frozen values, each carrying the conditions that it depends on.

Nothing here computes; nothing here imports more than numpy. `to_json` and `from_json` write and read
every value of this module, and every record that is built from them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

Kind = Literal["binary", "multiclass", "regression"]
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided confidence interval, in the units of what it bounds."""

    low: float
    high: float
    confidence: float  # in (0, 1), e.g. 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One metric on one split, with its interval and how that was found."""

    value: float
    interval: Interval | None  # None: the split cannot tell (one class absent, one case)
    n: int  # cases it rests on
    method: str  # e.g. "Wilson", "DeLong", "BCa bootstrap"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a time or a memory figure depends on; no figure exists without them."""

    device: str  # e.g. "AMD EPYC 9V74"
    isa: str  # widest int8 path of the CPU, e.g. "avx512-vnni", "avx2", "neon-dotprod"
    cores: int  # that this process may use (affinity and cgroup quota)
    threads: int  # that the runtime was told to use
    runtime: str  # e.g. "onnxruntime"
    runtime_version: str
    os: str  # e.g. "Linux 6.1 x86_64"


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """One percentile of a latency.

    ``upper_ms`` is the order statistic below which the true percentile lies with 99 % confidence
    (MLPerf LoadGen's early stopping); None where the samples are too few to give one.
    """

    q: float  # e.g. 0.95
    value_ms: float
    upper_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock time of one call with ``batch`` inputs, after warm-up."""

    batch: int
    samples: int
    warmup: int
    mean_ms: float
    quantiles: tuple[Quantile, ...]  # p99 is absent below 459 samples
    throughput_per_s: float  # inputs, not calls, per second
    conditions: Conditions

    def ms(self, q: float) -> float | None:
        """The percentile ``q`` in milliseconds, or None where it was not measured."""
        return next((x.value_ms for x in self.quantiles if x.q == q), None)


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster than the baseline, measured in alternation on the same machine."""

    ratio: float  # median over pairs of baseline time / candidate time; above 1 is faster
    interval: Interval
    pairs: int
    batch: int
    conditions: Conditions
    baseline_ms: float | None = None  # median over pairs, of the same calls that the ratio is from
    candidate_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A fresh process that imports the runtime, loads the file and answers once."""

    peak_bytes: int  # peak resident memory of that process
    runtime_bytes: int  # the same for a process that only imports the runtime
    cold_start_ms: float  # load and first answer, imports apart
    import_ms: float  # importing the runtime
    conditions: Conditions


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of (true label, decision)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # counts[true][decided]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What one model answers on one split."""

    split: SplitName
    n: int
    overall: Mapping[str, Estimate]  # e.g. accuracy, sensitivity, specificity, auroc | r2, rmse, mae
    per_class: Mapping[str, Estimate] = field(default_factory=dict)  # recall of each label
    groups: Mapping[str, Mapping[str, Mapping[str, Estimate]]] = field(
        default_factory=dict
    )  # attribute -> group -> metric
    confusion: Confusion | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was measured of one exported model."""

    name: str  # "baseline", or the stage's name
    file: str  # relative to the run directory
    sha256: str
    size_bytes: int
    precision: Literal["fp32", "int8"]
    parameters: int
    macs: int  # multiply-accumulates of one input
    metrics: Metrics
    latency: tuple[Latency, ...]  # one per batch size
    speedup: Speedup | None  # None for the baseline itself
    footprint: Footprint | None
    preprocessing: Latency | None  # reading and preparing one input, the model apart


class Status(StrEnum):
    """The three things a gate can say."""

    APPROVED = "approved"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit, held against what was measured."""

    metric: str  # "accuracy", "sensitivity", "r2", "size", "latency p95"
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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate says, with the numbers and the reason."""

    status: Status
    reason: str
    checks: tuple[Check, ...]
    split: SplitName


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a model; the batch axis is left out."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # numpy name: "float32", "int64"


@dataclass(frozen=True, kw_only=True)
class ImageDecoding:
    """How an image file becomes an array (C, H, W), float32 in [0, 1]."""

    height: int
    width: int
    channels: Literal[1, 3]
    resize: Literal["bilinear"] = "bilinear"


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """``(x - mean) / std`` per channel, over axis 0 of an input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns a raw input into what the model is fed; the server does the same."""

    image: ImageDecoding | None = None
    normalization: Normalization | None = None


@dataclass(frozen=True, kw_only=True)
class Cases:
    """What a model's outputs are held against: the right answers and who they belong to."""

    kind: Kind
    split: SplitName
    targets: np.ndarray  # (N,) int64 classes | (N,) float64 for regression
    labels: tuple[str, ...]  # index -> name; empty for regression
    positive: tuple[int, ...] = ()  # class indices that must not be missed
    threshold: float = 0.5  # binary: probability from which a case is called positive
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)  # attribute -> (N,) str
    subjects: np.ndarray | None = None  # (N,)


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # 0.1 s: only when something is read or written

    return TypeAdapter(cast("Any", kind))


def to_json(value: object, *, indent: int | None = 2) -> bytes:
    """Write a value of this module as JSON.

    Args:
        value: A frozen dataclass made of numbers, strings, mappings and other such values.
        indent: Spaces per level; None writes one line.

    Returns:
        UTF-8 JSON. Floats are written so that they read back bit-equal; NaN becomes ``null``.

    Example:
        >>> to_json(Interval(low=0.0, high=0.5, confidence=0.95), indent=None)
        b'{"low":0.0,"high":0.5,"confidence":0.95}'
    """
    return _adapter(cast("Hashable", type(value))).dump_json(value, indent=indent)


def from_json(kind: type[T], data: bytes | str) -> T:
    """Read a value that `to_json` wrote.

    Raises:
        pydantic.ValidationError: The JSON does not describe a ``kind`` (a ``ValueError``).

    Example:
        >>> from_json(Interval, '{"low": 0, "high": 0.5, "confidence": 0.95}').high
        0.5
    """
    value: T = _adapter(cast("Hashable", kind)).validate_json(data)
    return value
