"""Judge: hold what was measured against its limits. Pure; the interval decides, not the number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pastille.stats.bootstrap import bca_of_sums, resample_sums
from pastille.stats.clusters import effective_cases, has_repeats
from pastille.stats.decisions import decide, predict
from pastille.stats.forms import Share
from pastille.stats.metrics import error_columns, total_squares
from pastille.stats.power import cases_by_width, cases_needed
from pastille.stats.proportions import tango, wilson
from pastille.stats.shares import class_shares, subject_method
from pastille.values import Cases, Check, Interval, Status

# Below this, a bootstrap's interval is far too narrow to approve anything.
_FEWEST_FOR_BOOTSTRAP = 20
# Discordance is planned with the upper end of this interval: the observed one is often 0.
_DISCORDANCE_CONFIDENCE = 0.8
_WORST_FIRST = (Status.REJECTED, Status.INCONCLUSIVE, Status.APPROVED)
_NEEDED_CASES = {
    "accuracy": "cases",
    "sensitivity": "cases of a positive class",
    "specificity": "cases of no positive class",
    "r2": "cases",
}


def judge_metrics(
    baseline_outputs: np.ndarray,
    candidate_outputs: np.ndarray,
    *,
    cases: Cases,
    limits: Mapping[str, float],
    confidence: float,
) -> tuple[Check, ...]:
    """Test for each metric that the candidate is not worse than the baseline by more than a limit.

    Both models answer the same cases, so the test is paired: Tango's score interval for shares, on the
    number of independent cases that they are worth if one subject has several; a paired BCa bootstrap, by
    subject, for R². The upper end of the interval of the drop within the limit approves, the lower end
    beyond it rejects, and anything else is inconclusive.

    Args:
        baseline_outputs: Logits or predictions, ``(N, ...)``, as in `pastille.stats.decisions`.
        candidate_outputs: The same, row by row, of the model that is judged.
        cases: The right answers.
        limits: Metric -> largest absolute drop; metrics are ``accuracy``, ``sensitivity`` and
            ``specificity``, or ``r2`` for regression.
        confidence: Of the two-sided interval, in ``(0, 1)``.

    Returns:
        One check per limit, in its order.

    Raises:
        ValueError: If a metric does not fit the task, or outputs do not fit or are not finite.

    Example:
        >>> truth = np.arange(400) % 2
        >>> cases = Cases(kind="binary", split="test", targets=truth, labels=("healthy", "ill"))
        >>> logits = np.where(truth == 1, 2.0, -2.0)
        >>> worse = np.where(np.arange(400) == 7, -2.0, logits)  # one case newly wrong
        >>> (check,) = judge_metrics(logits, worse, cases=cases, limits={"accuracy": 0.02}, confidence=0.95)
        >>> print(check.reason)
        accuracy fell by 0.2 points (95 % CI −0.7 to 1.4, 400 cases: 1 newly wrong, 0 newly right),
        within the limit of 2 points

    References:
        Tango, Statistics in Medicine 17, 1998; Rao and Scott, Biometrics 48, 1992;
        Efron, JASA 82, 1987.
    """
    if cases.kind == "regression":
        pairs = (predict(baseline_outputs, cases), predict(candidate_outputs, cases))
        _refuse_unknown(limits, {"r2"}, cases)
        return tuple(_judge(_r2_drop(*pairs, cases, confidence), limit) for limit in limits.values())
    before = class_shares(decide(baseline_outputs, cases), cases)
    after = class_shares(decide(candidate_outputs, cases), cases)
    _refuse_unknown(limits, before.keys(), cases)
    return tuple(
        _judge(_share_drop(name, before[name], after[name], cases.subjects, confidence), limit)
        for name, limit in limits.items()
    )


def _refuse_unknown(limits: Mapping[str, float], known: Iterable[str], cases: Cases) -> None:
    unknown = sorted(set(limits) - set(known))
    if unknown:
        raise ValueError(
            f"limits must name metrics of this {cases.kind} task, {sorted(known)}, got {', '.join(unknown)}"
        )


@dataclass(frozen=True, kw_only=True)
class _Drop:
    """How much worse the candidate is, before it is held against a limit."""

    metric: str
    baseline: float
    candidate: float
    n: int
    interval: Interval | None  # None: the cases cannot tell
    method: str
    counts: str = ""  # what the cases showed, for the reason
    worth: float = 0.0  # independent cases that n cases are worth
    discordance: float | None = None  # of shares: how often the two may disagree, cautiously

    @property
    def value(self) -> float:
        """The drop itself, positive is worse."""
        return self.baseline - self.candidate


def _share_drop(
    metric: str, before: Share, after: Share, subjects: np.ndarray | None, confidence: float
) -> _Drop:
    n = before.n
    if n == 0:
        return _Drop(metric=metric, baseline=0.0, candidate=0.0, n=0, interval=None, method="none")
    rows = before.among
    change = before.hits[rows].astype(np.int64) - after.hits[rows]  # 1: newly wrong, -1: newly right
    wrong, right = int((change == 1).sum()), int((change == -1).sum())
    worth, method = float(n), "Tango score interval"
    if subjects is not None and has_repeats(subjects[rows]):
        worth = effective_cases(change, subjects[rows], rare=change != 0, confidence=confidence)
        method = subject_method(method, subjects[rows], worth)
    shrink = worth / n
    spread = wilson((wrong + right) * shrink, worth, _DISCORDANCE_CONFIDENCE)
    return _Drop(
        metric=metric,
        baseline=before.value,
        candidate=after.value,
        n=n,
        interval=tango(wrong * shrink, right * shrink, worth, confidence),
        method=method,
        counts=f": {wrong} newly wrong, {right} newly right",
        worth=worth,
        discordance=spread.high,
    )


def _r2_drop(baseline: np.ndarray, candidate: np.ndarray, cases: Cases, confidence: float) -> _Drop:
    before, after = (error_columns(predicted, cases.targets) for predicted in (baseline, candidate))
    columns = np.column_stack([before, after[:, 3]])  # (N, 7): the candidate's squared error comes last
    clusters = cases.subjects if has_repeats(cases.subjects) else None
    sums = resample_sums(columns, clusters=clusters)
    scale = float(total_squares(sums.observed))
    enough = len(sums.jackknife) >= _FEWEST_FOR_BOOTSTRAP
    interval = bca_of_sums(sums, lambda s: (s[..., 6] - s[..., 3]) / total_squares(s), confidence=confidence)
    if not math.isfinite(scale):
        return _Drop(metric="r2", baseline=0.0, candidate=0.0, n=0, interval=None, method="none")
    return _Drop(
        metric="r2",
        baseline=1.0 - float(sums.observed[3]) / scale,
        candidate=1.0 - float(sums.observed[6]) / scale,
        n=len(columns),
        interval=interval if enough else None,
        method="paired BCa bootstrap" + ("" if clusters is None else " by subject"),
        counts="" if clusters is None else f" of {len(sums.jackknife)} subjects",
    )


def _judge(drop: _Drop, limit: float) -> Check:
    status = _status(drop.interval, limit)
    more = _more_cases(drop, limit) if status is Status.INCONCLUSIVE else None
    return Check(
        metric=drop.metric,
        status=status,
        limit=limit,
        baseline=drop.baseline if drop.n else None,
        candidate=drop.candidate if drop.n else None,
        drop=drop.value if drop.n else None,
        interval=drop.interval,
        n=drop.n,
        method=drop.method,
        more_cases=more,
        reason=_reason(drop, limit, status, more),
    )


def _status(interval: Interval | None, limit: float) -> Status:
    if interval is None:
        return Status.INCONCLUSIVE
    if interval.high <= limit:
        return Status.APPROVED
    return Status.REJECTED if interval.low > limit else Status.INCONCLUSIVE


def _more_cases(drop: _Drop, limit: float) -> int | None:
    """How many more would probably decide, if the drop stays what it is; None if they would hardly help."""
    if drop.interval is None or drop.value >= limit:
        return None
    confidence = drop.interval.confidence
    if drop.discordance is None:
        reach, room = max(0.0, drop.interval.high - drop.value), limit - drop.value
        needed = cases_by_width(drop.n, reach, room, confidence=confidence)
    else:
        assumed = max(0.0, drop.value)
        independent = cases_needed(drop.discordance, limit, confidence=confidence, drop=assumed)
        needed = math.ceil(independent * drop.n / drop.worth)
    return max(1, needed - drop.n)


def _reason(drop: _Drop, limit: float, status: Status, more: int | None) -> str:
    name = "R²" if drop.metric == "r2" else drop.metric
    if drop.interval is None:
        return f"{name} cannot be judged: {_why_not(drop)}"
    factor, digits = (1.0, 3) if drop.metric == "r2" else (100.0, 1)
    value, low, high, bound = (factor * x for x in (drop.value, drop.interval.low, drop.interval.high, limit))
    digits = _digits(digits, value, low, high, bound)
    unit = "" if drop.metric == "r2" else " points"
    shown = f"{bound:.6g}" + ("" if not unit else " point" if bound == 1 else " points")
    moved = "fell" if value > 0 else "rose"
    change = f"{moved} by {_number(abs(value), digits)}{unit}" if value else "did not change"
    what = "CI" if value > 0 else "CI of the drop"
    found = (
        f"{name} {change} ({100 * drop.interval.confidence:.6g} % {what} {_number(low, digits)} to "
        f"{_number(high, digits)}, {drop.n} {_NEEDED_CASES[drop.metric]}{drop.counts})"
    )
    return f"{found}, {_conclusion(drop, shown, status, more)}"


def _why_not(drop: _Drop) -> str:
    if drop.n:
        return f"{drop.n} {_NEEDED_CASES[drop.metric]}{drop.counts} are too few for an interval"
    if drop.metric == "r2":
        return "all targets of the split are equal"
    return f"the split has no {_NEEDED_CASES[drop.metric]}"


def _conclusion(drop: _Drop, limit: str, status: Status, more: int | None) -> str:
    if status is Status.APPROVED:
        return f"within the limit of {limit}"
    if status is Status.REJECTED:
        return f"beyond the limit of {limit} even at the lower end of the interval"
    if more is None:
        return (
            f"so the limit of {limit} is not shown to hold; the drop itself is not below it, and more cases "
            "would hardly help"
        )
    cases = _NEEDED_CASES[drop.metric]
    return f"so the limit of {limit} is not shown to hold; about {more} more {cases} would probably decide"


def _digits(least: int, value: float, low: float, high: float, limit: float) -> int:
    """Fewest decimals at which the numbers shown stand to the limit, and to 0, as the true ones do."""

    def faithful(digits: int) -> bool:
        same = ((round(x, digits) > limit) == (x > limit) for x in (low, high))
        return all(same) and (round(value, digits) != 0 or value == 0)

    return next((digits for digits in range(least, 8) if faithful(digits)), 8)


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
