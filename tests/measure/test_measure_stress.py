"""Both models under the same perturbed inputs, and what the gate says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from measure_models import FakeSession, mlp_file

from pastille.data.split import Split
from pastille.data.text import TokenizedText
from pastille.errors import InferenceError, RecipeError, UsageError
from pastille.gates.stress import stress_checks
from pastille.measure.stress import stress
from pastille.recipe import StressLimits
from pastille.runtime import Session, load
from pastille.values import (
    Cases,
    CustomMetric,
    Estimate,
    Interval,
    Normalization,
    Preprocessing,
    Status,
    StressCurve,
    StressPoint,
    from_json,
    to_json,
)

T = TypeVar("T")


@dataclass
class Listening:
    """A `Progress` that remembers."""

    notes: list[str] = field(default_factory=list)
    steps: list[tuple[str, int | None, int]] = field(default_factory=list)

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        count = 0
        for item in items:
            count += 1
            yield item
        self.steps.append((what, total, count))

    def note(self, text: str) -> None:
        self.notes.append(text)


def dots(n: int = 200) -> tuple[Split, Cases]:
    """Pictures with a bright left or right half."""
    rng = np.random.default_rng(0)
    truth = np.arange(n) % 2
    pictures = np.full((n, 1, 8, 8), 0.3, np.float32) + 0.02 * rng.standard_normal((n, 1, 8, 8))
    pictures[truth == 0, :, :, :4] += 0.4
    pictures[truth == 1, :, :, 4:] += 0.4
    split = Split(inputs=list(pictures.astype(np.float32)), targets=truth)
    cases = Cases(kind="binary", split="validation", targets=truth, labels=("left", "right"), positive=(1,))
    return split, cases


def halves(x: np.ndarray) -> np.ndarray:
    return np.asarray(x[..., 4:].mean(axis=(1, 2, 3)) - x[..., :4].mean(axis=(1, 2, 3)), np.float32)


def one_pixel(x: np.ndarray) -> np.ndarray:
    """Right as well, as long as its two pixels are clean."""
    return np.asarray(x[:, 0, 4, 6] - x[:, 0, 4, 1], np.float32)


ROBUST, BRITTLE = FakeSession(halves), FakeSession(one_pixel)


def limits(*names: str, **more: Any) -> StressLimits:
    return StressLimits(**{"perturbations": list(names) or "auto", "severities": [1, 4], **more})


def stressed(
    baseline: Session, candidate: Session, split: Split, cases: Cases, asked: StressLimits, **more: Any
) -> tuple[StressCurve, ...]:
    usual = {"base": Path(), "preprocessing": None, "confidence": 0.95, "seed": 0}
    return stress(baseline, candidate, split, cases, asked, **{**usual, **more})


def test_a_brittle_candidate_is_rejected_under_noise_though_untouched_it_is_perfect() -> None:
    split, cases = dots(600)
    curves = stressed(ROBUST, BRITTLE, split, cases, limits("gaussian_noise", severities=[1, 5]))
    assert [(c.perturbation, c.metric) for c in curves] == [
        ("gaussian noise", "accuracy"),
        ("gaussian noise", "sensitivity"),
    ]
    accuracy = curves[0]
    assert [p.severity for p in accuracy.points] == [0, 1, 5]
    first, mild, strong = accuracy.points
    assert (first.candidate.value, first.excess, first.interval) == (1.0, 0.0, None)
    assert (mild.baseline.value, mild.candidate.value) == (1.0, 1.0)
    assert strong.interval is not None
    assert strong.excess == pytest.approx(
        (first.candidate.value - strong.candidate.value) - (first.baseline.value - strong.baseline.value)
    )
    assert "standard deviation" in accuracy.setting
    worst = stress_checks(curves, limits("gaussian_noise", max_extra_drop=0.02), 0.95)[0]
    assert worst.status is Status.REJECTED
    assert worst.where == {"perturbation": "gaussian noise", "severity": "5"}
    assert worst.reason.startswith("under gaussian noise (severity 5) accuracy fell by ")
    assert "more than the baseline's (95 % CI " in worst.reason


def test_the_baseline_itself_passes_everything() -> None:
    split, cases = dots(600)
    curves = stressed(ROBUST, ROBUST, split, cases, limits())
    assert {c.perturbation for c in curves} == {
        *("gaussian noise", "gaussian blur", "contrast", "brightness", "jpeg", "rotation", "occlusion")
    }
    checks = stress_checks(curves, limits(max_extra_drop=0.05), 0.95)
    assert {check.status for check in checks} == {Status.APPROVED}
    assert len(checks) == 14
    assert from_json(tuple[StressCurve, ...], to_json(curves)) == curves


def test_both_are_given_the_same_inputs_and_no_more_than_asked() -> None:
    split, cases = dots(300)
    seen: dict[str, list[np.ndarray]] = {"one": [], "two": []}

    def spy(name: str) -> FakeSession:
        def look(x: np.ndarray) -> np.ndarray:
            seen[name].append(x.copy())
            return halves(x)

        return FakeSession(look)

    progress = Listening()
    asked = limits("gaussian_noise", "occlusion", cases=100)
    stressed(spy("one"), spy("two"), split, cases, asked, progress=progress)
    one, two = (np.concatenate(seen[name]) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    assert len(one) == 100 * (1 + 2 * 2)
    assert progress.steps == [("stressing", 20, 20)]


def test_the_same_seed_gives_the_same_curves_and_another_other_cases() -> None:
    split, cases = dots(400)
    asked = limits("gaussian_noise", cases=60, severities=[5])
    one, two, other = (stressed(ROBUST, BRITTLE, split, cases, asked, seed=seed) for seed in (3, 3, 4))
    assert one == two
    assert one != other


def test_all_batches_of_a_fixed_size_are_filled() -> None:
    split, cases = dots(70)
    fixed = replace(ROBUST, fixed_batch=48, batches=[])
    stressed(fixed, ROBUST, split, cases, limits("jpeg"))
    assert set(fixed.batches) == {48}


def test_the_metrics_asked_for_are_taken_and_what_cannot_be_stressed_is_left_out() -> None:
    split, cases = dots(60)
    for asked, taken in (
        (("specificity",), {"specificity"}),
        (("accuracy", "auroc"), {"accuracy"}),
        (("auroc",), {"accuracy", "sensitivity"}),
    ):
        curves = stressed(ROBUST, BRITTLE, split, cases, limits("jpeg"), metrics=asked)
        assert {c.metric for c in curves} == taken


def test_without_positive_cases_sensitivity_is_left_out() -> None:
    split, cases = dots(60)
    negative = replace(cases, targets=np.zeros(60, np.int64))
    assert {c.metric for c in stressed(ROBUST, BRITTLE, split, negative, limits("jpeg"))} == {"accuracy"}


def test_a_regression_is_judged_by_r2(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 5, (300, 8)).astype(np.float32)
    targets = x.sum(axis=1).astype(np.float64)
    split = Split(inputs=list(x), targets=targets)
    cases = Cases(kind="regression", split="validation", targets=targets, labels=())
    exact = FakeSession(lambda x: x.sum(axis=1))
    curves = stressed(
        exact, FakeSession(lambda x: np.where(x > 9, 5 * x, x).sum(axis=1)), split, cases,
        limits("unit_slip", severities=[2]), metrics=("rmse",),
    )  # fmt: skip
    (curve,) = curves
    assert curve.metric == "r2"
    assert curve.points[1].excess > 0
    (check,) = stress_checks(curves, limits(), 0.95)
    assert "R² fell by " in check.reason
    assert "points" not in check.reason


def test_a_custom_task_is_judged_by_its_own_metric() -> None:
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    mean = CustomMetric(
        name="spread", function=lambda y, t: float(np.abs(y - t).mean()), higher_is_better=False
    )
    targets = x.sum(axis=1, keepdims=True)
    cases = Cases(kind="custom", split="validation", targets=targets, labels=(), metrics=(mean,))
    sums = FakeSession(lambda x: x.sum(axis=1, keepdims=True))
    split = Split(inputs=list(x), targets=targets)
    (curve,) = stressed(sums, sums, split, cases, limits("missing_values", severities=[1], cases=40))
    assert curve.metric == "spread"
    assert curve.points[1].candidate.value > curve.points[0].candidate.value
    (check,) = stress_checks([curve], limits(), 0.95)
    assert "spread lost neither more nor less than the baseline's" in check.reason


def test_the_normalization_is_undone_before_and_done_again_after() -> None:
    split, cases = dots(80)
    normalization = Normalization(mean=(0.5,), std=(0.25,))
    scaled = Split(
        inputs=[(x - np.float32(0.5)) / np.float32(0.25) for x in split.inputs], targets=split.targets
    )
    plain = stressed(ROBUST, BRITTLE, split, cases, limits("gaussian_noise", severities=[5]))
    undone = stressed(
        ROBUST, BRITTLE, scaled, cases, limits("gaussian_noise", severities=[5]),
        preprocessing=Preprocessing(normalization=normalization),
    )  # fmt: skip
    assert [p.candidate.value for p in undone[0].points] == [p.candidate.value for p in plain[0].points]


def ids_of(text: str) -> dict[str, np.ndarray]:
    return {"input": np.frombuffer(text.encode().ljust(8, b"_")[:8], np.uint8).astype(np.int64)}


def test_token_ids_without_text_are_noted_and_texts_are_perturbed() -> None:
    texts = ["fever", "cough", "feverish", "coughing"] * 10
    truth = np.arange(40) % 2
    cases = Cases(kind="binary", split="validation", targets=truth, labels=("fever", "cough"), positive=(1,))
    first_letter = FakeSession(lambda ids: np.where(ids[:, 0] == ord("c"), 2.0, -2.0).astype(np.float32))
    progress = Listening()
    bare = Split(inputs=[ids_of(text) for text in texts], targets=truth)
    assert stressed(first_letter, first_letter, bare, cases, limits(), progress=progress) == ()
    assert "TokenizedText" in progress.notes[0]
    raw = Split(inputs=TokenizedText(texts=texts, tokenize=ids_of), targets=truth)
    curves = stressed(first_letter, first_letter, raw, cases, limits(), metrics=("accuracy",))
    assert [c.perturbation for c in curves] == ["typos", "case", "truncation"]
    assert curves[1].points[2].candidate.value < 1


def own(tmp_path: Path, body: str) -> str:
    (tmp_path / "mine.py").write_text(
        f"import numpy as np\n\ndef mine(x, severity, generator):\n    {body}\n"
    )
    return "mine.py:mine"


def test_a_users_own_is_taken_beside_the_built_in_ones(tmp_path: Path) -> None:
    split, cases = dots(60)
    asked = limits(own(tmp_path, "return x[..., ::-1]"), "jpeg")
    curves = stressed(ROBUST, ROBUST, split, cases, asked, base=tmp_path, metrics=("accuracy",))
    assert [(c.perturbation, c.setting == "") for c in curves] == [("mine.py:mine", True), ("jpeg", False)]
    assert curves[0].points[1].baseline.value == 0.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "failed: ValueError: no"),
        ("return x[:, :2]", r"must keep the shape \(1, 8, 8\), got \(1, 2, 8\)"),
        ("return x * np.nan", "gave NaN or infinity"),
    ],
)
def test_a_users_own_that_fails_is_named(tmp_path: Path, body: str, message: str) -> None:
    split, cases = dots(40)
    with pytest.raises(UsageError, match=f"mine.py:mine .*{message}"):
        stressed(ROBUST, ROBUST, split, cases, limits(own(tmp_path, body)), base=tmp_path)


def test_an_unknown_name_is_refused_before_anything_runs() -> None:
    split, cases = dots(40)

    def never(x: np.ndarray) -> np.ndarray:
        raise AssertionError

    with pytest.raises(RecipeError, match="did you mean occlusion"):
        stressed(FakeSession(never), FakeSession(never), split, cases, limits("oclusion"))


def test_a_file_that_fails_under_stress_says_under_which() -> None:
    split, cases = dots(40)

    def saturates(x: np.ndarray) -> np.ndarray:
        return np.where(x.max(axis=(1, 2, 3)) > 0.9, np.nan, halves(x))

    with pytest.raises(
        InferenceError, match=r"stress \(gaussian noise, severity 5\) from input 0 on: .*finite"
    ):
        stressed(ROBUST, FakeSession(saturates), split, cases, limits("gaussian_noise", severities=[5]))


def test_real_files_answer(tmp_path: Path) -> None:
    session = load(mlp_file(tmp_path / "m.onnx"))
    x = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)
    split = Split(inputs=list(x), targets=np.arange(50) % 3)
    cases = Cases(kind="multiclass", split="validation", targets=split.targets, labels=("a", "b", "c"))
    curves = stressed(session, session, split, cases, limits())
    assert {c.perturbation for c in curves} == {"missing values", "unit slip"}
    assert {p.excess for c in curves for p in c.points} == {0.0}


def curve(name: str, *points: tuple[int, float, float | None, float | None]) -> StressCurve:
    right = Estimate(value=0.9, interval=None, n=500, method="Wilson")

    def point(severity: int, excess: float, low: float | None, high: float | None) -> StressPoint:
        known = None if low is None or high is None else Interval(low=low, high=high, confidence=0.95)
        return StressPoint(severity=severity, baseline=right, candidate=right, excess=excess, interval=known)

    made = tuple(point(*each) for each in ((0, 0.0, None, None), *points))
    return StressCurve(perturbation=name, metric="accuracy", points=made, method="score interval")


def checks(*curves: StressCurve, limit: float = 0.02) -> list[tuple[Status, str]]:
    found = stress_checks(curves, StressLimits(max_extra_drop=limit), 0.95)
    return [(check.status, check.reason) for check in found]


def test_every_severity_must_pass() -> None:
    ((status, reason),) = checks(curve("jpeg", (1, 0.0, -0.01, 0.01), (3, 0.018, 0.002, 0.035)))
    assert status is Status.INCONCLUSIVE
    assert reason.startswith(
        "under jpeg (severity 3) accuracy fell by 1.8 points more than the baseline's (95 % CI 0.2 to 3.5, "
        "500 cases), so the limit of 2 points is not shown to hold; about "
    )
    ((status, reason),) = checks(curve("jpeg", (1, 0.0, -0.015, 0.015), (3, -0.01, -0.02, 0.001)))
    assert status is Status.APPROVED
    assert reason == (
        "under jpeg (severity 1) accuracy lost neither more nor less than the baseline's (95 % CI of the "
        "excess −1.5 to 1.5, 500 cases), within the limit of 2 points"
    )


def test_a_gain_is_said_as_one() -> None:
    ((_, reason),) = checks(curve("jpeg", (1, -0.01, -0.02, 0.001)))
    assert "accuracy fell by 1.0 points less than the baseline's (95 % CI of the excess −2.0 to 0.1" in reason


def test_rejecting_takes_holms_correction() -> None:
    beyond = curve("contrast", (2, 0.05, 0.021, 0.079))
    ((status, reason),) = checks(beyond)
    assert status is Status.REJECTED
    assert reason.endswith(
        "beyond the limit of 2 points even at the lower end of the interval and after Holm's correction over "
        "1 stress test"
    )
    fine = [curve(f"noise {i}", (1, 0.0, -0.01, 0.01), (2, 0.0, -0.01, 0.01)) for i in range(5)]
    (status, reason), *rest = checks(beyond, *fine)
    assert status is Status.INCONCLUSIVE
    assert reason.endswith("but among 11 stress tests that may be chance (Holm's correction)")
    assert {status for status, _ in rest} == {Status.APPROVED}
    (status, _), *_ = checks(curve("contrast", (2, 0.09, 0.06, 0.12)), *fine)
    assert status is Status.REJECTED


def test_what_has_no_interval_is_inconclusive() -> None:
    ((status, reason),) = checks(curve("jpeg", (1, 0.0, None, None), (2, 0.0, -0.01, 0.01)))
    assert status is Status.INCONCLUSIVE
    assert (
        reason == "under jpeg (severity 1) accuracy cannot be judged: 500 cases are too few for an interval"
    )


def test_a_rejected_severity_goes_before_a_wider_one() -> None:
    found = stress_checks(
        [curve("jpeg", (1, 0.09, 0.06, 0.12), (2, 0.05, -0.1, 0.2))], StressLimits(max_extra_drop=0.02), 0.95
    )
    assert [(check.status, check.where["severity"]) for check in found] == [(Status.REJECTED, "1")]
