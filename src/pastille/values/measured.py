"""What was measured of one model: figures that carry the conditions they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pastille.values.cases import SplitName


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


NOTICEABLE = 0.01  # two sessions of one file may differ by this share of their time


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

    @property
    def faster(self) -> bool:
        """Beyond the noise of the comparison, and beyond what the place of a session in memory may do."""
        return self.interval.low > 1 and self.ratio > 1 + NOTICEABLE

    @property
    def slower(self) -> bool:
        """Likewise."""
        return self.interval.high < 1 and self.ratio < 1 - NOTICEABLE


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


# What a file's weights are stored in; "int8" also of files that keep some layers float.
ModelPrecision = Literal["fp32", "fp16", "bf16", "int8", "int4"]

Precision = Literal["int8", "float", "conversion", "other"]  # other: arithmetic on shapes and indices


@dataclass(frozen=True, kw_only=True)
class KernelUse:
    """All nodes of one operator that compute in the same numbers, in the graph that is executed."""

    operator: str  # as the runtime calls it, e.g. "QLinearConv"
    precision: Precision
    count: int
    macs: int | None  # multiply-accumulates of one batch; None where they cannot be counted
    share: float | None  # of the time of one call; None where it was not measured
    family: str = ""  # of what multiplies matrices: "conv", "linear", "matmul", "attention" …


@dataclass(frozen=True, kw_only=True)
class FloatKernel:
    """One node that is executed in floating point, and what that costs."""

    operator: str  # as the runtime calls it
    name: str  # in the file, e.g. "HardSwish node_hardswish"
    reason: str  # why it does not run in int8
    macs: int | None
    share: float | None  # of the time of one call
    conversions: float | None  # the same, of the quantizations and dequantizations around it


@dataclass(frozen=True, kw_only=True)
class KernelProof:
    """What the runtime executes of a file once it has optimised the graph, and how long each part takes."""

    uses: tuple[KernelUse, ...]  # all of it
    floats: tuple[FloatKernel, ...]  # the dearest first, bounded
    more_floats: int  # that are not listed
    batch: int
    calls: int  # that the shares of the time rest on
    conditions: Conditions
    note: str = ""  # why there are no times

    def count(self, *precisions: Precision) -> int:
        """How many operators compute in these numbers."""
        return sum(use.count for use in self.uses if use.precision in precisions)

    def time(self, *precisions: Precision) -> float | None:
        """The share of the time that goes to these numbers."""
        if not self.calls:
            return None
        return sum((use.share or 0.0 for use in self.uses if use.precision in precisions), 0.0)

    @property
    def int8_count(self) -> float | None:
        """Share of the operators that run in int8, of those that compute in int8 or float."""
        of = self.count("int8", "float")
        return self.count("int8") / of if of else None

    @property
    def int8_macs(self) -> float | None:
        """Share of the multiply-accumulates that run in int8; None where they cannot all be counted."""
        counted = [use.macs for use in self.uses]
        total = sum(macs or 0 for macs in counted)
        if None in counted or not total:
            return None
        return sum(use.macs or 0 for use in self.uses if use.precision == "int8") / total


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one layer of a file holds and multiplies."""

    name: str  # of the module that it was exported from; "" for all that belongs to no layer by name
    macs: int  # of one input
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was measured of one exported model."""

    name: str  # "baseline", or the stage's name
    file: str  # relative to the run directory
    sha256: str
    size_bytes: int
    precision: ModelPrecision
    parameters: int
    macs: int  # multiply-accumulates of one input
    metrics: Metrics
    latency: tuple[Latency, ...]  # one per batch size
    speedup: Speedup | None  # None for the baseline itself
    footprint: Footprint | None
    preprocessing: Latency | None  # reading and preparing one input, the model apart
    kernels: KernelProof | None = None  # what runs in int8; None where it was not looked at
    stored_bytes: int | None = None  # of the file as a bundle stores it, where that is smaller
    layers: tuple[LayerCost, ...] = ()  # in the order of the file, bounded; empty where it was not looked at

    @property
    def bytes_on_disk(self) -> int:
        """What the file takes on a device that has the bundle: what a limit on size is held against."""
        return self.size_bytes if self.stored_bytes is None else self.stored_bytes
