from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.gates import judge_latency, judge_size, verdict
from pastille.gates.judge import judge_answers
from pastille.policy import Bar
from pastille.stats.power import exact_cases_needed
from pastille.stats.proportions import tango, tango_upper, wilson
from pastille.stats.quantiles import latency_quantiles
from pastille.values import Cases, Check, Conditions, Latency, Status, from_json, to_json

CONDITIONS = Conditions(
    device="test", isa="avx2", cores=2, threads=1, runtime="none", runtime_version="0", os="none"
)


def judge_metrics(
    before: np.ndarray, after: np.ndarray, *, cases: Cases, limits: dict[str, float], confidence: float
) -> tuple[Check, ...]:
    bar = Bar(max_drop=limits, confidence=confidence)
    return judge_answers(before, after, cases=cases, bar=bar, thorough=False).checks


def _logits(right: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Binary logits that decide rightly where ``right`` says so."""
    return np.where(right == (targets == 1), 2.0, -2.0)


def _judge(
    wrong: int,
    right: int,
    n: int,
    limit: float,
    *,
    metric: str = "accuracy",
    subjects: np.ndarray | None = None,
    targets: np.ndarray | None = None,
) -> Check:
    """Judge a pair of models: the first ``wrong`` cases newly wrong, the next ``right`` newly right."""
    place = np.arange(n)
    targets = np.ones(n, np.int64) if targets is None else targets
    cases = Cases(
        kind="binary",
        split="test",
        targets=targets,
        labels=("healthy", "ill"),
        positive=(1,),
        subjects=subjects,
    )
    before = _logits((place < wrong) | (place >= wrong + right), targets)
    after = _logits(place >= wrong, targets)
    (check,) = judge_metrics(before, after, cases=cases, limits={metric: limit}, confidence=0.95)
    return check


def _latency(samples: np.ndarray) -> Latency:
    return Latency(
        batch=1,
        samples=len(samples),
        warmup=5,
        mean_ms=float(samples.mean()),
        quantiles=latency_quantiles(samples),
        throughput_per_s=1.0,
        conditions=CONDITIONS,
    )


class TestShares:
    def test_within_the_limit(self) -> None:
        check = _judge(5, 2, 540, 0.02)
        expected = tango(5, 2, 540, 0.95)
        assert check.status is Status.APPROVED
        assert check.interval == expected
        assert check.drop == pytest.approx(3 / 540)
        assert (check.n, check.method, check.more_cases) == (540, "Tango score interval", None)
        assert check.reason == (
            "accuracy fell by 0.6 points (95 % CI −0.5 to 1.8, 540 cases: 5 newly wrong, 2 newly right), "
            "within the limit of 2 points"
        )

    def test_beyond_the_limit(self) -> None:
        check = _judge(40, 5, 500, 0.02)
        assert check.status is Status.REJECTED
        assert check.interval is not None
        assert check.interval.low > 0.02
        assert check.reason.startswith("accuracy fell by 7.0 points (95 % CI ")
        assert check.reason.endswith("beyond the limit of 2 points even at the lower end of the interval")

    def test_100_cases_cannot_prove_a_limit_of_1_percent(self) -> None:
        check = _judge(0, 0, 100, 0.01)
        assert check.status is Status.INCONCLUSIVE
        assert check.more_cases is not None
        assert check.more_cases >= 281  # 381 are needed even if they never disagree
        assert check.reason == (
            "accuracy did not change (95 % CI of the drop −3.7 to 3.7, 100 cases: 0 newly wrong, 0 newly "
            f"right), so the limit of 1 point is not shown to hold; about {check.more_cases} more cases "
            "would probably decide"
        )

    def test_381_cases_without_disagreement_can(self) -> None:
        almost = _judge(0, 0, 380, 0.01)
        assert almost.status is Status.INCONCLUSIVE
        assert "−1.001 to 1.001" in almost.reason  # as many decimals as show which side of the limit
        assert _judge(0, 0, 381, 0.01).status is Status.APPROVED

    def test_more_cases_would_sooner_reject_a_drop_that_reaches_the_limit(self) -> None:
        check = _judge(2, 0, 100, 0.02)
        assert (check.status, check.more_cases) == (Status.INCONCLUSIVE, None)
        assert check.reason.endswith(
            "the drop itself is not below it, so more cases would sooner reject than approve"
        )

    def test_an_improvement_is_said_to_be_one(self) -> None:
        check = _judge(1, 6, 800, 0.02)
        assert check.drop == pytest.approx(-5 / 800)
        assert check.reason.startswith(
            "accuracy rose by 0.6 points (95 % CI of the drop −1.5 to 0.0, 800 cases"
        )

    def test_sensitivity_looks_at_positive_cases_only(self) -> None:
        targets = (np.arange(1000) < 100).astype(np.int64)  # the newly wrong are all positive
        check = _judge(8, 0, 1000, 0.02, metric="sensitivity", targets=targets)
        assert (check.n, check.baseline) == (100, 1.0)
        assert check.drop == pytest.approx(0.08)
        assert check.status is Status.REJECTED
        assert "100 cases of a positive class: 8 newly wrong" in check.reason
        untouched = _judge(8, 0, 1000, 0.02, metric="specificity", targets=targets)
        assert (untouched.n, untouched.drop, untouched.status) == (900, 0.0, Status.APPROVED)

    def test_another_positive_class_is_not_a_miss(self) -> None:
        targets = np.arange(600) % 3
        cases = Cases(
            kind="multiclass", split="test", targets=targets, labels=("a", "b", "none"), positive=(0, 1)
        )
        swapped = np.where(targets == 2, 2, 1 - targets)
        accuracy, sensitivity = judge_metrics(
            np.eye(3)[targets],
            np.eye(3)[swapped],
            cases=cases,
            limits={"accuracy": 0.02, "sensitivity": 0.02},
            confidence=0.95,
        )
        assert (accuracy.status, sensitivity.status) == (Status.REJECTED, Status.APPROVED)

    def test_a_split_without_positive_cases_says_so(self) -> None:
        check = _judge(0, 0, 500, 0.02, metric="sensitivity", targets=np.zeros(500, np.int64))
        assert (check.status, check.n, check.baseline, check.interval) == (Status.INCONCLUSIVE, 0, None, None)
        assert check.reason == "sensitivity cannot be judged: the split has no cases of a positive class"
        assert from_json(Check, to_json(check)) == check

    @given(st.data())
    def test_the_reason_never_contradicts_the_status(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(20, 3000))
        wrong = data.draw(st.integers(0, n // 10))
        right = data.draw(st.integers(0, n // 10))
        check = _judge(wrong, right, n, data.draw(st.sampled_from([0.005, 0.01, 0.02, 0.05])))
        shown = check.reason.split(" CI ")[1].removeprefix("of the drop ").replace("−", "-")
        low, high = (float(shown.split()[i].rstrip(",")) for i in (0, 2))
        limit = 100 * check.limit
        assert (high <= limit + 1e-9) == (check.status is Status.APPROVED)
        assert (low > limit + 1e-9) == (check.status is Status.REJECTED)
        assert (check.more_cases is None) or check.more_cases > 0

    def test_more_cases_decide_as_often_as_they_promise(self) -> None:
        """With the cases that an inconclusive check asks for, about 80 % of new splits approve."""
        check = _judge(4, 4, 400, 0.01)
        assert check.more_cases is not None
        n = 400 + check.more_cases
        draws = np.random.default_rng(40).multinomial(n, [0.01, 0.01, 0.98], size=1000)
        approved = np.mean(tango_upper(draws[:, 0], draws[:, 1], np.array(n), 0.95) <= 0.01)
        assert 0.75 <= approved <= 0.97


@pytest.mark.parametrize(("n", "limit", "extra"), [(400, 0.02, 0.02), (900, 0.01, 0.005), (2000, 0.01, 0.02)])
def test_a_true_drop_equal_to_the_limit_is_seldom_approved(n: int, limit: float, extra: float) -> None:
    draws = np.random.default_rng(41).multinomial(n, [limit + extra, extra, 1 - limit - 2 * extra], size=4000)
    tables, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    uppers = tango_upper(tables[:, 0], tables[:, 1], np.array(n), 0.95)
    # A gate decides as the interval does: the tables closest to the limit on either side, and any others.
    order = np.argsort(uppers)
    border = int(np.searchsorted(uppers[order], limit, side="right"))
    looked_at = {
        *order[max(0, border - 15) : border + 15].tolist(),
        *order[:: max(1, len(order) // 20)].tolist(),
    }
    approved = {
        at: _judge(int(tables[at, 0]), int(tables[at, 1]), n, limit).status is Status.APPROVED
        for at in looked_at
    }
    assert approved == {at: bool(uppers[at] <= limit) for at in looked_at}
    assert 10 <= sum(approved.values()) <= len(approved) - 10
    assert times[uppers <= limit].sum() / 4000 <= 0.025 + 2.6 * np.sqrt(0.025 * 0.975 / 4000)


class TestSubjects:
    def test_cases_of_one_subject_are_not_independent(self) -> None:
        """540 cases would do; 54 patients with ten identical cases each do not."""
        alone = _judge(10, 0, 540, 0.05)
        clustered = _judge(10, 0, 540, 0.05, subjects=np.arange(540) // 10)
        assert alone.status is Status.APPROVED
        assert clustered.status is Status.INCONCLUSIVE
        assert (
            clustered.method == "Tango score interval, 540 cases of 54 subjects worth 54.0 independent ones"
        )
        assert clustered.interval == tango(1, 0, 54, 0.95)
        assert alone.more_cases is None
        patients = exact_cases_needed(wilson(1, 54, 0.8).high, 0.05, confidence=0.95, drop=10 / 540)
        assert clustered.more_cases == 10 * patients - 540  # of which ten are worth one

    def test_no_disagreement_among_few_subjects_proves_little(self) -> None:
        assert _judge(0, 0, 1000, 0.01).status is Status.APPROVED
        assert _judge(0, 0, 1000, 0.01, subjects=np.arange(1000) // 100).status is Status.INCONCLUSIVE

    def test_subjects_with_one_case_each_change_nothing(self) -> None:
        assert _judge(3, 1, 300, 0.02, subjects=np.arange(300)) == _judge(3, 1, 300, 0.02)

    def test_only_repeats_among_the_cases_asked_count(self) -> None:
        targets = (np.arange(400) < 200).astype(np.int64)
        subjects = np.where(targets == 1, np.arange(400), 1000)  # all negatives are one subject
        check = _judge(1, 0, 400, 0.05, metric="sensitivity", targets=targets, subjects=subjects)
        assert check.method == "Tango score interval"


class TestRegression:
    @staticmethod
    def _judge(noise: float, n: int, *, limit: float = 0.02, subjects: np.ndarray | None = None) -> Check:
        rng = np.random.default_rng(42)
        targets = rng.normal(100, 20, n)
        before = targets + rng.normal(0, 10, n)
        cases = Cases(kind="regression", split="test", targets=targets, labels=(), subjects=subjects)
        after = before + noise * rng.normal(0, 10, n)
        (check,) = judge_metrics(before, after[:, None], cases=cases, limits={"r2": limit}, confidence=0.95)
        return check

    def test_three_verdicts(self) -> None:
        assert self._judge(0.05, 500).status is Status.APPROVED
        assert self._judge(0.9, 500).status is Status.REJECTED
        assert self._judge(0.2, 60).status is Status.INCONCLUSIVE

    def test_the_numbers(self) -> None:
        check = self._judge(0.05, 500)
        assert check.baseline is not None
        assert check.drop is not None
        assert check.interval is not None
        assert check.candidate is not None
        assert check.drop == pytest.approx(check.baseline - check.candidate)
        assert check.interval.low < check.drop < check.interval.high
        assert check.reason.startswith("R² ")
        assert check.reason.endswith("500 cases), within the limit of 0.02")
        assert "point" not in check.reason

    def test_more_cases_are_asked_for(self) -> None:
        check = self._judge(0.15, 60)
        assert check.status is Status.INCONCLUSIVE
        assert check.more_cases is not None
        assert self._judge(0.15, 60 + 2 * check.more_cases).status is Status.APPROVED

    def test_no_change_at_all_still_leaves_unseen_cases_to_fear(self) -> None:
        """As with shares: what 100 cases do not show, the 101st may."""
        check = self._judge(0.0, 100)
        assert (check.status, check.drop) == (Status.INCONCLUSIVE, 0.0)
        assert check.interval is not None
        assert -check.interval.low == check.interval.high > 0.02
        assert check.reason.startswith("R² did not change (95 % CI of the drop −")

    def test_small_changes_everywhere_are_shown_to_be_small(self) -> None:
        """What int8 does to a regression: every answer moves a little."""
        check = self._judge(0.02, 400)
        assert check.status is Status.APPROVED, check.reason

    def test_few_cases_or_subjects_are_too_few(self) -> None:
        assert self._judge(0.0, 19).reason == "R² cannot be judged: 19 cases are too few for an interval"
        few = self._judge(0.0, 190, subjects=np.arange(190) // 10)
        assert few.status is Status.INCONCLUSIVE
        assert few.reason == "R² cannot be judged: 190 cases of 19 subjects are too few for an interval"

    def test_by_subject(self) -> None:
        check = self._judge(0.05, 500, subjects=np.arange(500) // 2)
        assert check.method == "paired BCa bootstrap by subject"
        assert "500 cases of 250 subjects" in check.reason

    def test_equal_targets(self) -> None:
        cases = Cases(kind="regression", split="test", targets=np.full(50, 0.1), labels=())
        (check,) = judge_metrics(np.ones(50), np.ones(50), cases=cases, limits={"r2": 0.1}, confidence=0.95)
        assert check.reason == "R² cannot be judged: all targets of the split are equal"

    def test_a_true_drop_equal_to_the_limit_is_seldom_approved(self) -> None:
        """R² falls by Var(noise) / Var(target) = 0.04; the bootstrap is known to be a little narrow."""
        rng = np.random.default_rng(43)
        runs, approved = 250, 0
        for _ in range(runs):
            targets = rng.normal(0, 2, 300)
            before = targets + rng.normal(size=300)
            cases = Cases(kind="regression", split="test", targets=targets, labels=())
            after = before + rng.normal(0, 0.4, 300)
            (check,) = judge_metrics(before, after, cases=cases, limits={"r2": 0.04}, confidence=0.95)
            approved += check.status is Status.APPROVED
        assert approved / runs <= 0.035 + 2.6 * np.sqrt(0.025 * 0.975 / runs)


def test_metrics_that_do_not_fit_are_refused() -> None:
    cases = Cases(kind="multiclass", split="test", targets=np.arange(3), labels=("a", "b", "c"))
    outputs = np.eye(3)
    with pytest.raises(
        ValueError,
        match=r"limits must name metrics of this multiclass task, \['accuracy', .*\], got sensitivity",
    ):
        judge_metrics(outputs, outputs, cases=cases, limits={"sensitivity": 0.01}, confidence=0.95)
    numbers = Cases(kind="regression", split="test", targets=np.arange(3.0), labels=())
    with pytest.raises(
        ValueError, match=r"limits must name metrics of this regression task, .* got accuracy"
    ):
        judge_metrics(np.ones(3), np.ones(3), cases=numbers, limits={"accuracy": 0.01}, confidence=0.95)
    with pytest.raises(ValueError, match="one row per case"):
        judge_metrics(outputs, outputs[:2], cases=cases, limits={"accuracy": 0.01}, confidence=0.95)


class TestSize:
    @pytest.mark.parametrize(
        ("size", "status"),
        [(2_000_000, Status.APPROVED), (2_000_001, Status.REJECTED), (10, Status.APPROVED)],
    )
    def test_the_limit_is_included(self, size: int, status: Status) -> None:
        assert judge_size(size, 2e6, baseline_bytes=5_000_000).status is status

    def test_a_byte_too_many_is_shown(self) -> None:
        reason = judge_size(2_000_001, 2e6, baseline_bytes=5_000_000).reason
        assert reason == "the file has 2000001 bytes (baseline 5 MB), beyond the limit of 2 MB"

    def test_small_limits(self) -> None:
        reason = judge_size(1_240, 2048, baseline_bytes=9_900).reason
        assert reason == "the file has 1.24 kB (baseline 9.9 kB), within the limit of 2.048 kB"


class TestLatency:
    def test_the_bound_decides(self) -> None:
        latency = _latency(np.arange(1.0, 501.0))  # p95: 475, its bound 487
        bound = next(x for x in latency.quantiles if x.q == 0.95).upper_ms
        assert bound is not None
        statuses = [
            judge_latency(latency, 0.95, ms, baseline=None).status for ms in (bound, bound - 1, 475, 474)
        ]
        assert statuses == [Status.APPROVED, Status.INCONCLUSIVE, Status.INCONCLUSIVE, Status.REJECTED]

    def test_reasons(self) -> None:
        latency, baseline = _latency(np.arange(1.0, 501.0)), _latency(np.arange(1.0, 1001.0))
        reasons = [
            judge_latency(latency, 0.95, ms, baseline=other).reason
            for ms, other in ((500, baseline), (480, None), (400, None))
        ]
        assert reasons == [
            "latency p95 is 475 ms and below 487 ms with 99 % confidence (500 samples, baseline 950 ms), "
            "within the limit of 500 ms",
            "latency p95 is 475 ms and below 487 ms with 99 % confidence (500 samples), so the limit of 480 "
            "ms is not shown to hold",
            "latency p95 is 475 ms (500 samples), beyond the limit of 400 ms",
        ]

    def test_too_few_samples_for_a_bound(self) -> None:
        check = judge_latency(_latency(np.ones(60)), 0.95, 50, baseline=None)
        assert (check.status, check.more_cases, check.n) == (Status.INCONCLUSIVE, 30, 60)
        assert check.reason == (
            "latency p95 is 1 ms (60 samples), but a bound on it needs 90 samples, so the limit of 50 ms is "
            "not shown to hold"
        )

    def test_a_percentile_that_was_not_measured(self) -> None:
        check = judge_latency(_latency(np.ones(200)), 0.99, 50, baseline=_latency(np.ones(500)))
        assert (check.status, check.more_cases, check.baseline) == (Status.INCONCLUSIVE, 259, 1.0)
        assert check.metric == "latency p99"
        assert check.reason == (
            "latency p99 was not measured, so the limit of 50 ms is not shown to hold: it needs 459 samples, "
            "got 200"
        )


class TestVerdict:
    APPROVED = judge_size(1, 2, baseline_bytes=3)
    REJECTED = judge_size(3, 2, baseline_bytes=3)
    INCONCLUSIVE = _judge(0, 0, 100, 0.01)

    @pytest.mark.parametrize("length", [1, 2, 3])
    def test_every_check_must_pass(self, length: int) -> None:
        kinds = (self.APPROVED, self.REJECTED, self.INCONCLUSIVE)
        for checks in itertools.product(kinds, repeat=length):
            held = {check.status for check in checks}
            worst = next(s for s in (Status.REJECTED, Status.INCONCLUSIVE, Status.APPROVED) if s in held)
            assert verdict(checks, split="test").status is worst

    def test_names_what_failed_first_and_keeps_the_order_of_the_checks(self) -> None:
        checks = (self.APPROVED, self.INCONCLUSIVE, self.REJECTED)
        found = verdict(checks, split="validation")
        assert found.checks == checks
        reasons = [self.REJECTED.reason, self.INCONCLUSIVE.reason, self.APPROVED.reason]
        assert found.reason == f"rejected on the validation split: {'; '.join(reasons)}"

    def test_nothing_checked_is_nothing_approved(self) -> None:
        with pytest.raises(ValueError, match="checks must hold at least one check, got none"):
            verdict([], split="test")
