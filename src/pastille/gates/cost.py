"""Size, latency and what runs in int8, held against their limits."""

from __future__ import annotations

from collections.abc import Iterator

from pastille.stats.quantiles import CONFIDENCE as LATENCY_CONFIDENCE
from pastille.stats.quantiles import samples_needed
from pastille.values import Check, KernelProof, Latency, Quantile, Status


def judge_size(size_bytes: int, limit: float, *, baseline_bytes: int) -> Check:
    """Hold a file's size against a limit.

    Args:
        size_bytes: Of the candidate's file as it is stored on the device, see `Profile.bytes_on_disk`.
        limit: Bytes.
        baseline_bytes: Likewise, of the baseline's file.

    Example:
        >>> judge_size(1_200_000, 2e6, baseline_bytes=4_800_000).reason
        'the file has 1.2 MB (baseline 4.8 MB), within the limit of 2 MB'
    """
    fits = size_bytes <= limit
    relation = "within" if fits else "beyond"
    shown, before = (_size(x, limit) for x in (size_bytes, baseline_bytes))
    unit, factor = _size_unit(limit)
    bound = f"the limit of {limit / factor:.6g} {unit}"
    return Check(
        metric="size",
        status=Status.APPROVED if fits else Status.REJECTED,
        limit=limit,
        baseline=float(baseline_bytes),
        candidate=float(size_bytes),
        drop=None,
        interval=None,
        n=None,
        method="file size",
        more_cases=None,
        reason=f"the file has {shown} (baseline {before}), {relation} {bound}",
    )


def _size(value: float, limit: float) -> str:
    """In the unit of the limit, so that figures can be compared; in bytes where rounding would hide one."""
    unit, factor = _size_unit(limit)
    rounded = round(value / factor, 2)
    if (rounded > limit / factor) != (value > limit):
        return f"{value:.0f} bytes"
    return f"{rounded:.6g} {unit}"


def _size_unit(limit: float) -> tuple[str, float]:
    return ("MB", 1e6) if limit >= 1e6 else ("kB", 1e3) if limit >= 1e3 else ("bytes", 1.0)


def judge_latency(latency: Latency, q: float, limit_ms: float, *, baseline: Latency | None) -> Check:
    """Hold a percentile of the latency against a limit.

    The bound that the true percentile stays below with 99 % confidence decides: within the limit it
    approves; an empirical percentile beyond the limit rejects; anything else is inconclusive.

    Args:
        latency: Of the candidate.
        q: Percentile, e.g. 0.95.
        limit_ms: Milliseconds.
        baseline: Of the baseline, for the record; None if it was not measured.

    Returns:
        The check; where the percentile was not measured for want of samples it is inconclusive, and
        ``candidate`` is the highest percentile that was.

    References:
        MLPerf Inference, LoadGen, "Early stopping".
    """
    found = next((x for x in latency.quantiles if x.q == q), None)
    before = baseline.ms(q) if baseline else None
    status = _latency_status(found, limit_ms)
    undecided = status is Status.INCONCLUSIVE and (found is None or found.upper_ms is None)
    return Check(
        metric=f"latency p{100 * q:g}",
        status=status,
        limit=limit_ms,
        baseline=before,
        candidate=found.value_ms if found else _slowest_known(latency),
        drop=None,
        interval=None,
        n=latency.samples,
        method=f"early stopping, {100 * LATENCY_CONFIDENCE:g} % confidence",
        more_cases=max(1, samples_needed(q) - latency.samples) if undecided else None,
        reason=_latency_reason(latency, q, limit_ms, before),
    )


def _slowest_known(latency: Latency) -> float:
    return max((x.value_ms for x in latency.quantiles), default=latency.mean_ms)


def _latency_status(found: Quantile | None, limit_ms: float) -> Status:
    if found is None:
        return Status.INCONCLUSIVE
    if found.value_ms > limit_ms:
        return Status.REJECTED
    bounded = found.upper_ms is not None and found.upper_ms <= limit_ms
    return Status.APPROVED if bounded else Status.INCONCLUSIVE


def _latency_reason(latency: Latency, q: float, limit_ms: float, before: float | None) -> str:
    found = next((x for x in latency.quantiles if x.q == q), None)
    limit, name = f"the limit of {limit_ms:.6g} ms", f"latency p{100 * q:g}"
    unproven = f"so {limit} is not shown to hold"
    if found is None:
        return (
            f"{name} was not measured, {unproven}: it needs {samples_needed(q)} samples, "
            f"got {latency.samples}"
        )
    known = f"{name} is {found.value_ms:.4g} ms"
    basis = f"({latency.samples} samples" + (f", baseline {before:.4g} ms)" if before is not None else ")")
    if found.value_ms > limit_ms:
        return f"{known} {basis}, beyond {limit}"
    if found.upper_ms is None:
        return f"{known} {basis}, but a bound on it needs {samples_needed(q)} samples, {unproven}"
    bound = f"below {found.upper_ms:.4g} ms with {100 * LATENCY_CONFIDENCE:g} % confidence"
    return f"{known} and {bound} {basis}, " + (f"within {limit}" if found.upper_ms <= limit_ms else unproven)


def judge_int8_share(kernels: KernelProof | None, limit: float) -> Check:
    """Hold the share of the multiply-accumulates that run in int8 against the least that was asked.

    Multiply-accumulates are counted in the graph that the runtime executes, so the same file on the same
    CPU always gets the same answer; the share of the time, which does not, is only told beside it.

    Args:
        kernels: Of the candidate; None where they were not looked at.
        limit: Least share, in (0, 1].

    Returns:
        The check; where not all multiply-accumulates can be counted it is inconclusive.

    Example:
        >>> judge_int8_share(None, 0.9).reason
        'what runs in int8 was not measured, so at least 90 % in int8 is not shown'
    """
    share = kernels.int8_macs if kernels else None
    status = Status.INCONCLUSIVE if share is None else Status.APPROVED if share >= limit else Status.REJECTED
    return Check(
        metric="int8 share",
        status=status,
        limit=limit,
        baseline=None,
        candidate=share,
        drop=None,
        interval=None,
        n=None,
        method="multiply-accumulates of the graph that is executed",
        more_cases=None,
        reason=_int8_reason(kernels, share, limit),
    )


def _int8_reason(kernels: KernelProof | None, share: float | None, limit: float) -> str:
    asked = f"at least {100 * limit:.6g} %"
    if kernels is None:
        return f"what runs in int8 was not measured, so {asked} in int8 is not shown"
    if share is None:
        return f"{_uncounted(kernels)}, so {asked} in int8 is not shown"
    basis = ", ".join((*_families(kernels), *_time(kernels)))
    return f"{_percent(share, limit)} of the multiply-accumulates run in int8 ({basis}), {asked} asked"


def _uncounted(kernels: KernelProof) -> str:
    unknown = sorted({use.operator for use in kernels.uses if use.macs is None})
    if unknown:
        return f"the multiply-accumulates of {', '.join(unknown)} cannot be counted"
    return "the file multiplies no matrices"


def _families(kernels: KernelProof) -> Iterator[str]:
    """E.g. ``"conv 52 of 53"``."""
    for family in sorted({use.family for use in kernels.uses if use.family}):
        of = [use for use in kernels.uses if use.family == family]
        eight = sum(use.count for use in of if use.precision == "int8")
        yield f"{family} {eight} of {sum(use.count for use in of)}"


def _time(kernels: KernelProof) -> Iterator[str]:
    time = kernels.time("int8")
    if time is not None:
        yield f"{100 * time:.0f} % of the time"


def _percent(share: float, limit: float) -> str:
    """With as many decimals as show on which side of the limit it lies."""
    fits = (d for d in range(1, 8) if (round(100 * share, d) >= round(100 * limit, 8)) == (share >= limit))
    return f"{100 * share:.{next(fits, 8)}f} %"
