"""Do probabilities mean what they say, and does the interval of their decline hold?"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from pastille.gates.calibration import calibration_checks
from pastille.recipe.sections import CalibrationLimits
from pastille.stats.absolute import AbsoluteSums, growth_interval
from pastille.stats.bootstrap import bca_of_sums, resample_sums
from pastille.stats.calibration import calibration, equal_mass_bins, expected_calibration_error
from pastille.stats.proportions import wilson
from pastille.stats.recalibration import intercept_deviation, slope_deviation
from pastille.stats.statements import Statements, statements
from pastille.values import Cases, Comparison, Status

ProbableKind = Literal["binary", "multiclass", "multilabel"]
KINDS: tuple[ProbableKind, ...] = ("binary", "multiclass", "multilabel")


def drawn(kind: ProbableKind = "binary", *, n: int = 600, seed: int = 0) -> tuple[np.ndarray, Cases]:
    """Outputs that are calibrated, and cases drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n,) if kind == "binary" else (n, 3))
    targets = (rng.random(logits.shape) < expit(logits)).astype(np.int64)
    if kind == "multiclass":
        targets = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    labels = ("healthy", "ill") if kind == "binary" else ("a", "b", "c")
    return logits, Cases(kind=kind, split="test", targets=targets, labels=labels)


def compared(
    before: np.ndarray, after: np.ndarray, cases: Cases, *, confidence: float = 0.95
) -> dict[str, Comparison]:
    found = calibration(before, after, cases, confidence=confidence)
    return {comparison.metric: comparison for comparison in found.comparisons}


def values(comparison: Comparison) -> tuple[float, float]:
    assert comparison.baseline is not None
    assert comparison.candidate is not None
    return comparison.baseline.value, comparison.candidate.value


def ends(comparison: Comparison) -> tuple[float, float]:
    assert comparison.interval is not None
    return comparison.interval.low, comparison.interval.high


class TestValues:
    @pytest.mark.parametrize("n", [77, 149, 600])
    def test_reliability_diagram_and_ece_as_scikit_learn_bins(self, n: int) -> None:
        outputs, cases = drawn(n=n)
        found = calibration(outputs, 2 * outputs, cases, confidence=0.9)
        assert found.of == "ill"
        for scale, bins, value in zip((1, 2), (found.baseline_bins, found.candidate_bins),
                                      values(found.comparisons[0]), strict=True):  # fmt: skip
            observed, stated = calibration_curve(
                cases.targets, expit(scale * outputs), n_bins=min(15, n // 10), strategy="quantile"
            )
            assert [b.observed for b in bins] == pytest.approx(observed.tolist())
            assert [b.confidence for b in bins] == pytest.approx(stated.tolist())
            assert sum(b.n for b in bins) == n
            assert min(b.n for b in bins) >= 10
            gap = sum(b.n / n * abs(b.observed - b.confidence) for b in bins)
            assert value == pytest.approx(gap, abs=1e-12)
            assert bins[0].interval == wilson(round(bins[0].observed * bins[0].n), bins[0].n, 0.9)

    @pytest.mark.parametrize("kind", KINDS)
    def test_brier_score_as_scikit_learn(self, kind: ProbableKind) -> None:
        outputs, cases = drawn(kind)
        softmax = np.exp(log_softmax(outputs, axis=1)) if kind == "multiclass" else expit(outputs)
        oracle = (
            np.mean([brier_score_loss(cases.targets[:, k], softmax[:, k]) for k in range(3)])
            if kind == "multilabel"
            else brier_score_loss(
                cases.targets, softmax, scale_by_half=kind == "binary", labels=list(range(len(cases.labels)))
            )
        )
        assert values(compared(outputs, outputs, cases)["brier"]) == pytest.approx((oracle, oracle))

    def test_slope_as_scikit_learn_and_intercept_as_statsmodels(self) -> None:
        outputs, cases = drawn()
        worse = 1.7 * outputs - 0.6
        found = compared(outputs, worse, cases)
        for x, at in ((outputs, 0), (worse, 1)):
            fit = LogisticRegression(C=np.inf, tol=1e-10).fit(x[:, None], cases.targets)
            assert values(found["calibration_slope"])[at] == pytest.approx(fit.coef_[0, 0], rel=1e-4)
            shift = sm.GLM(cases.targets, np.ones(len(x)), family=sm.families.Binomial(), offset=x).fit()
            assert values(found["calibration_intercept"])[at] == pytest.approx(shift.params[0], rel=1e-6)
        slopes = values(found["calibration_slope"])
        assert found["calibration_slope"].drop == pytest.approx(abs(slopes[1] - 1) - abs(slopes[0] - 1))

    @pytest.mark.parametrize("clustered", [False, True])
    def test_influence_gives_the_sandwich_error_of_statsmodels(self, clustered: bool) -> None:
        outputs, cases = drawn()
        worse, subject = 1.7 * outputs - 0.6, np.arange(600) // 3
        robust = {"cov_type": "cluster", "cov_kwds": {"groups": subject, "use_correction": False}}
        options = robust if clustered else {"cov_type": "HC0"}
        slope = sm.Logit(cases.targets, sm.add_constant(worse)).fit(disp=0, **options)
        family = sm.families.Binomial()
        shift = sm.GLM(cases.targets, np.ones(600), family=family, offset=worse).fit(**options)
        for pseudo, oracle in (
            (slope_deviation(worse, cases), slope.bse[1]),
            (intercept_deviation(worse, cases), shift.bse[0]),
        ):
            assert pseudo is not None
            influence = pseudo - pseudo.mean()
            parts = np.bincount(subject, influence) if clustered else influence
            assert np.sqrt((parts**2).sum()) / 600 == pytest.approx(oracle, rel=1e-4)

    def test_multiclass_slope_is_the_most_likely_factor(self) -> None:
        outputs, cases = drawn("multiclass")
        rows = np.arange(600)
        oracle = minimize_scalar(
            lambda b: -log_softmax(2 * b * outputs, axis=1)[rows, cases.targets].mean(), bracket=(0.2, 1)
        ).x
        found = compared(outputs, 2 * outputs, cases)
        assert values(found["calibration_slope"])[1] == pytest.approx(oracle, rel=1e-5)
        assert "calibration_intercept" not in found

    def test_closed_case(self) -> None:
        """Says 90 % and is right in 80 %, says 10 % and is right in 20 %: 10 points off everywhere."""
        odds = np.repeat([2.1972245773362196, -2.1972245773362196], 100)
        truth = np.tile(np.repeat([1, 0], [80, 20]), 2)
        truth[100:] = 1 - truth[100:]
        cases = Cases(kind="binary", split="test", targets=truth, labels=("a", "b"))
        found = compared(odds, odds, cases)
        assert values(found["ece"])[0] == pytest.approx(0.1)
        assert values(found["brier"])[0] == pytest.approx(0.17)
        assert values(found["calibration_slope"])[0] == pytest.approx(np.log(4) / np.log(9))
        assert values(found["calibration_intercept"])[0] == pytest.approx(0, abs=1e-9)

    def test_pooled_labels_are_binary_statements_of_one_subject(self) -> None:
        outputs, cases = drawn("multilabel", n=120)
        worse = 1.5 * outputs
        flat = Cases(
            kind="binary",
            split="test",
            targets=cases.targets.ravel(),
            labels=("absent", "present"),
            subjects=np.repeat(np.arange(120), 3),
        )
        pooled = compared(outputs, worse, cases)
        for name, single in compared(outputs.ravel(), worse.ravel(), flat).items():
            assert values(pooled[name]) == pytest.approx(values(single))
            assert pooled[name].interval == single.interval
            assert (pooled[name].n, single.n) == (120, 360)

    def test_the_other_label_may_be_the_positive_one(self) -> None:
        outputs, cases = drawn()
        mirrored = replace(cases, positive=(0,))
        one, other = (calibration(outputs, 2 * outputs, c, confidence=0.95) for c in (cases, mirrored))
        assert other.of == "healthy"
        assert values(other.comparisons[1]) == pytest.approx(values(one.comparisons[1]))
        assert values(other.comparisons[2]) == pytest.approx(values(one.comparisons[2]))
        assert values(other.comparisons[3])[1] == pytest.approx(-values(one.comparisons[3])[1])


class TestGrowth:
    def test_the_same_model_has_not_grown_worse(self) -> None:
        for kind in KINDS:
            outputs, cases = drawn(kind)
            for comparison in compared(outputs, outputs, cases).values():
                assert comparison.drop == 0
                assert ends(comparison) == (0, 0)

    def test_exchanging_the_models_turns_the_interval_over(self) -> None:
        outputs, cases = drawn()
        worse = 1.4 * outputs + 0.2
        there, back = compared(outputs, worse, cases), compared(worse, outputs, cases)
        for name in ("calibration_slope", "calibration_intercept"):
            low, high = ends(there[name])
            assert ends(back[name]) == pytest.approx((-high, -low))

    @given(seed=st.integers(0, 1000), scale=st.floats(0.3, 3), shift=st.floats(-2, 2), noise=st.floats(0, 1))
    @settings(max_examples=25, deadline=None)
    def test_the_interval_holds_the_drop_and_is_no_wider_than_how_far_probabilities_moved(
        self, seed: int, scale: float, shift: float, noise: float
    ) -> None:
        outputs, cases = drawn(n=150, seed=seed)
        after = scale * outputs + shift + noise * np.random.default_rng(seed).normal(size=150)
        found = compared(outputs, after, cases)
        for comparison in found.values():
            low, high = ends(comparison)
            assert comparison.drop is not None
            assert low <= comparison.drop <= high
        moved = np.abs(expit(after) - expit(outputs))
        assert ends(found["ece"])[1] <= moved.max() + 1e-9

    def test_a_candidate_that_moved_towards_the_truth_is_shown_to_be_better(self) -> None:
        outputs, cases = drawn(n=2000)
        assert ends(compared(2.5 * outputs, outputs, cases)["ece"])[1] < 0
        assert ends(compared(2.5 * outputs, outputs, cases)["brier"])[1] < 0
        assert ends(compared(2.5 * outputs, outputs, cases)["calibration_slope"])[1] < 0

    def test_classes_that_are_decided_differently_do_not_drown_the_growth_in_noise(self) -> None:
        """One case in 30 changes its class; asked the same question, the models still agree."""
        for seed in range(5):
            outputs, cases = drawn("multiclass", n=300, seed=seed)
            after = outputs + 0.1 * np.random.default_rng(seed + 100).normal(size=outputs.shape)
            assert (after.argmax(axis=1) != outputs.argmax(axis=1)).mean() > 0.01
            assert ends(compared(outputs, after, cases)["ece"])[1] < 0.02

    @pytest.mark.parametrize(("knows", "states"), [(0.99, 0.93), (0.95, 0.85)])
    def test_a_candidate_that_knows_more_is_not_better_calibrated_for_it(
        self, knows: float, states: float
    ) -> None:
        """A baseline without fault looks bad where the candidate tells right answers from wrong ones."""
        truth = abs(knows - states)
        for seed in range(5):
            rng = np.random.default_rng(seed)
            targets = rng.integers(0, 2, 2000)
            cases = Cases(kind="binary", split="test", targets=targets, labels=("no", "ill"))

            def answers(
                right: float, stated: float, rng: np.random.Generator = rng, y: np.ndarray = targets
            ) -> np.ndarray:
                says = np.where(rng.random(2000) < right, y, 1 - y)
                odds: np.ndarray = np.where(says == 1, 1.0, -1.0) * np.log(stated / (1 - stated))
                return odds

            low, high = ends(compared(answers(0.8, 0.8), answers(knows, states), cases)["ece"])
            assert high >= truth
            assert low <= truth
            assert high > 0.02  # it would have been approved

    @pytest.mark.parametrize("flipped", [0.0, 0.3])
    def test_a_candidate_that_forgets_is_not_rejected_for_what_it_no_longer_tells(
        self, flipped: float
    ) -> None:
        """A timid baseline, made useless but honest: judged in the baseline's bins it would look terrible."""
        outputs, cases = drawn(n=3000)
        timid = 0.5 * outputs
        mean = np.full(3000, np.log(cases.targets.mean() / (1 - cases.targets.mean())))
        after = np.where(np.random.default_rng(0).random(3000) < flipped, timid, mean)
        ece = compared(timid, after, cases)["ece"]
        assert ends(ece)[0] <= values(ece)[1] - values(ece)[0] + 0.02
        assert ends(ece)[0] < 0.02

    def test_cases_of_one_subject_are_not_new_evidence(self) -> None:
        outputs, cases = drawn(n=300)
        after = outputs + 0.5 * np.random.default_rng(1).normal(size=300)
        twice = replace(cases, targets=np.tile(cases.targets, 2), subjects=np.tile(np.arange(300), 2))
        once = compared(outputs, after, cases)
        repeated = compared(np.tile(outputs, 2), np.tile(after, 2), twice)
        counted = compared(np.tile(outputs, 2), np.tile(after, 2), replace(twice, subjects=None))
        for name in ("ece", "brier", "calibration_slope", "calibration_intercept"):
            widths = [np.subtract(*ends(found[name])[::-1]) for found in (once, repeated, counted)]
            assert widths[1] == pytest.approx(widths[0], rel=0.1)
            assert widths[2] < 0.95 * widths[1]
            assert repeated[name].method.endswith(", by subject")

    def test_an_ece_of_noise_alone_is_not_told_from_none(self) -> None:
        """Calibrated, yet plug-in ECE shows points: the interval of each must reach down to nearly 0."""
        lows = []
        for seed in range(20):
            outputs, cases = drawn(n=300, seed=seed)
            baseline = compared(outputs, outputs, cases)["ece"].baseline
            assert baseline is not None
            assert baseline.interval is not None
            assert baseline.value > 0.02
            assert baseline.interval.low <= baseline.value <= baseline.interval.high
            lows.append(baseline.interval.low)
        assert max(lows) < 0.01

    @pytest.mark.parametrize("family", ["too sure", "too timid", "shifted", "noisy"])
    def test_a_candidate_truly_at_the_limit_is_rarely_approved(self, family: str) -> None:
        """Baseline calibrated, candidate 2 points off: at most 2.5 % approvals, where a plain bootstrap of
        the difference approves several times as many."""
        strength = {"too sure": 1.1454, "too timid": 1 / 1.1420, "shifted": 0.1320, "noisy": 0.5627}[family]
        rng, runs, n = np.random.default_rng(3), 200, 300
        approved, plain = 0, 0
        for run in range(runs):
            odds = rng.normal(0, 2, n)
            truth = rng.random(n) < expit(odds)
            after = {
                "shifted": odds + strength,
                "noisy": odds + strength * rng.normal(size=n),
            }.get(family, odds * strength)
            gaps = [expit(x) - truth for x in (odds, after)]
            bins = [equal_mass_bins(expit(x)) for x in (odds, after)]
            pair = AbsoluteSums(
                baseline=gaps[0],
                candidate=gaps[1],
                baseline_bins=bins[0],
                candidate_bins=bins[1],
                baseline_asked=gaps[0],
            )
            table = np.column_stack([pair.columns(), np.ones(n)])
            sums = resample_sums(table, resamples=400, seed=run)
            interval = growth_interval(sums, 0, confidence=0.95)
            assert interval is not None
            approved += interval.high <= 0.02
            if family == "too sure":
                plain += plain_bootstrap(gaps, bins, seed=run) <= 0.02
        assert approved / runs <= 0.025 + 2.33 * np.sqrt(0.025 * 0.975 / runs)
        if family == "too sure":
            assert plain / runs > 0.1


def plain_bootstrap(gaps: list[np.ndarray], bins: list[np.ndarray], *, seed: int) -> float:
    """Upper end of a BCa interval of the difference of two plug-in ECEs, as one would first write it."""
    n = len(gaps[0])
    columns = [g * (b == k) for g, b in zip(gaps, bins, strict=True) for k in range(15)]
    sums = resample_sums(np.column_stack(columns), resamples=400, seed=seed)
    interval = bca_of_sums(
        sums, lambda s: (np.abs(s[..., 15:]).sum(-1) - np.abs(s[..., :15]).sum(-1)) / n, confidence=0.95
    )
    assert interval is not None
    return interval.high


class TestBadInput:
    def test_constant_predictions(self) -> None:
        _, cases = drawn()
        flat = np.full(600, 0.3)
        found = calibration(flat, flat, cases, confidence=0.95)
        ece, brier, slope, intercept = found.comparisons
        assert values(ece)[0] == pytest.approx(abs(expit(0.3) - cases.targets.mean()))
        assert len(found.baseline_bins) == 1
        assert (slope.baseline, slope.candidate, slope.drop, slope.interval) == (None, None, None, None)
        assert slope.method == "none: no fit is best"
        assert intercept.baseline is not None
        assert brier.drop == 0

    def test_a_fit_that_only_one_model_has(self) -> None:
        outputs, cases = drawn()
        slope = compared(outputs, 0 * outputs, cases)["calibration_slope"]
        assert slope.baseline is not None
        assert slope.baseline.interval is None
        assert (slope.candidate, slope.drop, slope.interval) == (None, None, None)

    @pytest.mark.parametrize("value", [0, 1])
    def test_one_class_only(self, value: int) -> None:
        outputs, cases = drawn()
        found = compared(outputs, outputs + 0.1, replace(cases, targets=np.full(600, value)))
        assert values(found["ece"])[0] == pytest.approx(abs(expit(outputs) - value).mean())
        assert found["calibration_slope"].baseline is None
        assert found["calibration_intercept"].baseline is None

    def test_a_model_without_fault_has_no_slope(self) -> None:
        _, cases = drawn()
        right = np.where(cases.targets == 1, 1.0, -1.0)
        assert slope_deviation(right, cases) is None
        assert slope_deviation(np.where(np.arange(600) == 0, 0.0, right), cases) is None  # but for one at 0
        labels, classes = drawn("multiclass")
        assert slope_deviation(np.eye(3)[classes.targets], classes) is None
        assert slope_deviation(0 * labels, classes) is None

    def test_probabilities_of_exactly_0_and_1(self) -> None:
        outputs, cases = drawn()
        found = compared(outputs, 1e4 * outputs, cases)
        hard = (outputs > 0) == (cases.targets == 1)
        assert values(found["brier"])[1] == pytest.approx(1 - hard.mean(), abs=1e-6)
        assert values(found["calibration_slope"])[1] == pytest.approx(
            values(found["calibration_slope"])[0] / 1e4
        )
        low, high = ends(found["ece"])
        assert 0.05 < low < high < 0.5

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("n", [1, 2, 19])
    def test_few_cases_have_values_and_no_interval(self, kind: ProbableKind, n: int) -> None:
        outputs, cases = drawn(kind, n=n)
        found = calibration(outputs, 2 * outputs, cases, confidence=0.95)
        assert all(comparison.interval is None for comparison in found.comparisons)
        assert values(found.comparisons[0])[0] >= 0
        checks = calibration_checks(found, CalibrationLimits(max_brier_increase=0.01))
        assert [check.status for check in checks] == [Status.INCONCLUSIVE] * 2
        assert "cannot be judged" in checks[0].reason

    def test_few_subjects_have_no_interval_either(self) -> None:
        outputs, cases = drawn()
        few = replace(cases, subjects=np.arange(600) % 19)
        assert compared(outputs, 2 * outputs, few)["ece"].interval is None

    def test_what_does_not_fit_is_named(self) -> None:
        outputs, cases = drawn()
        with pytest.raises(ValueError, match="got 599 for 600 cases"):
            calibration(outputs, outputs[1:], cases, confidence=0.95)
        with pytest.raises(ValueError, match="NaN or infinity"):
            calibration(np.full(600, np.nan), outputs, cases, confidence=0.95)
        numbers = Cases(kind="regression", split="test", targets=np.zeros(600), labels=())
        with pytest.raises(ValueError, match="got 'regression'"):
            calibration(outputs, outputs, numbers, confidence=0.95)


class TestBins:
    @given(chance=st.lists(st.sampled_from([0.0, 0.1, 0.1000001, 0.5, 0.9, 1.0]), min_size=1, max_size=300))
    def test_equal_probabilities_stay_together_and_order_is_kept(self, chance: list[float]) -> None:
        given_chance = np.array(chance)
        bins = equal_mass_bins(given_chance)
        order = np.argsort(given_chance, kind="stable")
        assert (np.diff(bins[order]) >= 0).all()
        assert all(len(np.unique(bins[given_chance == c])) == 1 for c in set(chance))
        assert bins.max() < max(1, min(15, len(chance) // 10))

    def test_fifteen_bins_of_equal_mass(self) -> None:
        assert np.bincount(equal_mass_bins(np.random.default_rng(0).random(1500))).tolist() == [100] * 15

    def test_error_of_one_model(self) -> None:
        outputs, cases = drawn()
        stated = statements(outputs, cases)
        assert expected_calibration_error(stated) == values(compared(outputs, outputs, cases)["ece"])[0]
        surely = Statements(chance=np.ones(50), came=np.zeros(50, bool), penalty=np.ones(50))
        assert expected_calibration_error(surely) == 1


class TestGate:
    def test_identical_answers_keep_any_limit_and_the_reason_says_why(self) -> None:
        outputs, cases = drawn(n=20)
        limits = CalibrationLimits(max_ece_increase=0.0, max_brier_increase=0.0)
        same, nearly = outputs.copy(), outputs.copy()
        nearly[0] += 1e-6
        checks = calibration_checks(calibration(outputs, same, cases, confidence=0.95), limits)
        assert [check.status for check in checks] == [Status.APPROVED] * 2
        assert all(check.reason.endswith(": both state the same probabilities") for check in checks)
        ece, _ = calibration_checks(calibration(outputs, nearly, cases, confidence=0.95), limits)
        assert ece.status is not Status.APPROVED
        assert ece.method.startswith("bound over how far the probabilities moved")

    def test_reasons(self) -> None:
        outputs, cases = drawn(n=3000)
        limits = CalibrationLimits(max_ece_increase=0.02, max_brier_increase=0.01)
        near, far = (calibration(outputs, k * outputs, cases, confidence=0.95) for k in (1.02, 4))
        ece, brier = calibration_checks(near, limits)
        assert (ece.status, brier.status) == (Status.APPROVED, Status.APPROVED)
        assert "3000 cases), within the limit of 2 points" in ece.reason
        assert ece.reason.startswith("expected calibration error ")
        assert brier.reason.startswith("Brier score ")
        assert "within the limit of 0.01" in brier.reason
        ece, brier = calibration_checks(far, limits)
        assert (ece.status, brier.status) == (Status.REJECTED, Status.REJECTED)
        assert "beyond the limit of 2 points even at the lower end" in ece.reason

    def test_what_is_not_asked_is_not_judged(self) -> None:
        outputs, cases = drawn()
        (only,) = calibration_checks(
            calibration(outputs, 1.3 * outputs, cases, confidence=0.95), CalibrationLimits()
        )
        assert (only.metric, only.limit, only.status) == ("ece", 0.02, Status.INCONCLUSIVE)
        assert only.more_cases is None or only.more_cases > 0
