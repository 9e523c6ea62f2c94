"""Size and latency, held against their limits."""

from __future__ import annotations

from pastille.stats.quantiles import CONFIDENCE as LATENCY_CONFIDENCE
from pastille.stats.quantiles import samples_needed
from pastille.values import Check, Latency, Quantile, Status


def judge_size(size_bytes: int, limit: float, *, baseline_bytes: int) -> Check:
    """Hold a file's size against a limit.

    Args:
        size_bytes: Of the candidate's file.
        limit: Bytes.
        baseline_bytes: Of the baseline's file.

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
