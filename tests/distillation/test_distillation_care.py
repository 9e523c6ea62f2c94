"""Teachers are judged before they teach, against oracles that are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pastille.data.split import Split
from pastille.distillation.care import (
    MAX_ECE,
    answers_to,
    calibration_error,
    constant_value,
    gain_over,
    inherited,
    judged,
    problems,
    turned,
    worse_groups,
)
from pastille.errors import PreconditionError
from pastille.stats.proportions import tango
from pastille.values import Cases, Interval, TeacherSeen

LABELS = ("healthy", "ill")


class Known(nn.Module):
    """Answers with its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def cases_of(targets: np.ndarray, **more: object) -> Cases:
    asked = {"kind": "binary", "labels": LABELS, "positive": (1,), **more}
    return Cases(split="validation", targets=targets, **asked)  # type: ignore[arg-type]


def answering(targets: np.ndarray, wrong: np.ndarray, *, sure: float = 2.0) -> np.ndarray:
    """Logits of whoever is right but for some cases."""
    right = np.where(targets == 1, sure, -sure)
    return np.where(wrong, -right, right).astype(np.float32)


def judged_of(outputs: np.ndarray, cases: Cases, metric: str = "accuracy") -> object:
    split = Split(inputs=outputs[:, None], targets=cases.targets)
    return judged("baseline", 1.0, Known(), split, cases, metric=metric)


TARGETS = np.arange(400) % 2
NOBODY = np.zeros(400, bool)


def test_answers_are_those_of_the_model_in_one_piece() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2).eval()
    inputs = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    found = answers_to(net, Split(inputs=inputs, targets=np.zeros(600, np.int64)))
    with torch.no_grad():
        np.testing.assert_allclose(found, net(torch.from_numpy(inputs)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_good_teacher_is_seen_with_its_figures() -> None:
    wrong = np.arange(400) < 40
    found = judged_of(answering(TARGETS, wrong), cases_of(TARGETS))
    seen = found.seen  # type: ignore[attr-defined]
    assert (seen.metric, seen.estimate.value, seen.estimate.method) == ("accuracy", 0.9, "Wilson")
    stated = 1 / (1 + math.exp(-2.0))
    assert seen.ece == pytest.approx(abs(stated - 0.9), abs=1e-6)
    start = answering(TARGETS, np.arange(400) < 60)
    assert problems(found, cases_of(TARGETS), start=start) == []  # type: ignore[arg-type]
    assert problems(found, cases_of(TARGETS), start=None) == []  # type: ignore[arg-type]


def test_a_teacher_that_is_worse_than_its_student_already_is_is_told_with_the_numbers() -> None:
    cases = cases_of(TARGETS)
    found = judged_of(answering(TARGETS, np.arange(400) < 60), cases)
    start = answering(TARGETS, np.arange(400) < 20)
    (problem,) = problems(found, cases, start=start)  # type: ignore[arg-type]
    interval = tango(40, 0, 400, 0.95)  # 40 cases that only the student gets right
    assert problem.startswith("teacher 'baseline' is worse than its student already is: accuracy 0.8500")
    assert "against 0.9500, worse by 0.1000" in problem
    assert f"({interval.low:.4f} to {interval.high:.4f}, paired)".replace("(", "95 % CI ", 1) in problem


def test_a_teacher_that_may_only_seem_worse_teaches() -> None:
    cases = cases_of(TARGETS)
    found = judged_of(answering(TARGETS, np.arange(400) < 42), cases)
    start = answering(TARGETS, np.arange(400) < 40)
    assert problems(found, cases, start=start) == []  # type: ignore[arg-type]


def test_a_teacher_that_answers_one_thing_has_nothing_to_teach() -> None:
    rare = (np.arange(400) % 10 == 0).astype(np.int64)
    cases = cases_of(rare)
    found = judged_of(np.full(400, -2.2, np.float32), cases)
    (problem,) = problems(found, cases, start=None)  # type: ignore[arg-type]
    assert "is no better than one constant answer: accuracy 0.9000" in problem
    assert problem.endswith("against 0.9000")


def test_a_teacher_that_says_little_with_its_probabilities_is_told() -> None:
    """Right in 70 % of the cases, sure of nearly all of them: off by 30 points."""
    cases = cases_of(TARGETS)
    wrong = np.arange(400) % 10 < 3
    found = judged_of(answering(TARGETS, wrong, sure=8.0), cases)
    (problem,) = problems(found, cases, start=None)  # type: ignore[arg-type]
    assert f"is badly calibrated: expected calibration error 0.29{''}" in problem
    assert problem.endswith(f"above {MAX_ECE:g}")


def test_a_teacher_whose_answers_are_not_finite_is_refused() -> None:
    outputs = answering(TARGETS, NOBODY)
    outputs[[3, 7]] = math.nan, math.inf
    with pytest.raises(PreconditionError, match="'baseline' answers NaN or infinity to 2 of 400 cases"):
        judged_of(outputs, cases_of(TARGETS))


def test_too_few_cases_do_not_condemn_a_teacher() -> None:
    """Twelve cases cannot tell a calibration error from noise."""
    few = np.arange(12) % 2
    found = judged_of(answering(few, np.arange(12) < 4, sure=3.0), cases_of(few))
    assert problems(found, cases_of(few), start=None) == []  # type: ignore[arg-type]


def test_numbers_have_no_calibration_and_are_held_against_their_mean() -> None:
    targets = np.random.default_rng(0).normal(size=300)
    cases = cases_of(targets, kind="regression", labels=(), positive=())
    assert calibration_error(targets.astype(np.float32), cases) is None
    assert constant_value(cases, "r2") == pytest.approx(0.0, abs=1e-9)
    bad = judged_of((-targets).astype(np.float32), cases, metric="r2")
    (problem,) = problems(bad, cases, start=None)  # type: ignore[arg-type]
    assert "is no better than one constant answer: r2 -3.0" in problem


@pytest.mark.parametrize(
    ("kind", "targets", "labels", "metric", "expected"),
    [
        ("binary", np.arange(40) % 4 == 0, LABELS, "balanced_accuracy", 0.5),
        ("multiclass", np.arange(40) % 4 % 3, ("a", "b", "c"), "accuracy", 0.5),
        ("multilabel", np.stack([np.arange(40) % 2, np.arange(40) % 4 == 0], 1), ("a", "b"), "auroc", 0.5),
        ("segmentation", np.tile(np.eye(3, dtype=np.int64), (4, 1, 1)), ("none", "spot"), "dice", 0.0),
    ],
)
def test_what_one_constant_answer_is_worth(
    kind: str, targets: np.ndarray, labels: tuple[str, ...], metric: str, expected: float
) -> None:
    cases = cases_of(targets.astype(np.int64), kind=kind, labels=labels, positive=())
    assert constant_value(cases, metric) == pytest.approx(expected)


def grouped(wrong_in_f: float, n: int = 800, seed: int = 0) -> tuple[np.ndarray, Cases]:
    rng = np.random.default_rng(seed)
    sex = np.where(np.arange(n) % 2 == 0, "F", "M")
    targets = rng.integers(0, 2, n)
    wrong = rng.random(n) < np.where(sex == "F", wrong_in_f, 0.1)
    return answering(targets, wrong), cases_of(targets, groups={"sex": sex})


def test_groups_that_the_teacher_is_certainly_worse_for_are_told() -> None:
    outputs, cases = grouped(0.3)
    found = worse_groups(outputs, cases, metric="accuracy")
    right = (outputs > 0) == (cases.targets == 1)
    women = np.asarray(cases.groups["sex"]) == "F"
    ill = cases.targets == 1
    assert found["sex = F"] == pytest.approx(right[~women].mean() - right[women].mean())
    missed = right[~women & ill].mean() - right[women & ill].mean()
    assert found["sex = F, sensitivity"] == pytest.approx(missed)
    assert "sex = M" not in found
    seen = TeacherSeen(
        name="baseline",
        weight=1.0,
        parameters=3,
        metric="accuracy",
        estimate=judged_of(outputs, cases).seen.estimate,  # type: ignore[attr-defined]
        ece=None,
        worse=found,
    )
    lower, misses = inherited(seen)
    assert lower.startswith("teacher 'baseline' has a lower accuracy where sex = F (")
    assert misses.startswith("teacher 'baseline' misses more where sex = F (")
    assert misses.endswith("the student will inherit it")


def test_the_metric_of_a_group_is_named_where_it_is_another() -> None:
    """A binary teacher is judged by balanced accuracy, which a group without ill cases does not have."""
    outputs, cases = grouped(0.3)
    sex = np.where(np.asarray(cases.groups["sex"]) == "F", "F, of two", "M")
    cases = replace(cases, groups={"sex": sex})
    found = judged_of(outputs, cases, "balanced_accuracy").seen  # type: ignore[attr-defined]
    assert list(found.worse) == ["sex = F, of two, accuracy", "sex = F, of two, sensitivity"]
    lower, misses = inherited(found)
    assert lower.startswith("teacher 'baseline' has a lower accuracy where sex = F, of two (")
    assert misses.startswith("teacher 'baseline' misses more where sex = F, of two (")


def test_groups_that_are_alike_are_rarely_told() -> None:
    """At most 5 % of teachers that treat all alike may be accused, whatever the number of groups."""
    accused = sum(bool(worse_groups(*_alike(seed), metric="accuracy")) for seed in range(200))
    assert accused <= 16  # 97.5 % of a binomial of 200 draws at 5 %


def _alike(seed: int) -> tuple[np.ndarray, Cases]:
    return grouped(0.1, n=400, seed=seed)


def test_small_groups_are_not_looked_at() -> None:
    outputs, cases = grouped(1.0, n=50)
    assert worse_groups(outputs, cases, metric="accuracy") == {}
    assert worse_groups(outputs, cases, metric="accuracy", min_group=20)


def test_a_gain_is_the_drop_turned_around() -> None:
    cases = cases_of(TARGETS)
    scratch, taught = (answering(TARGETS, np.arange(400) < k) for k in (60, 40))
    found = gain_over(scratch, taught, cases, "accuracy")
    assert found.drop == pytest.approx(-0.05)
    gain, oracle = turned(found.interval), tango(20, 0, 400, 0.95)
    assert gain is not None
    assert gain.low == pytest.approx(oracle.low)
    assert gain.high == pytest.approx(oracle.high)
    assert turned(None) is None
    assert turned(Interval(low=-1, high=2, confidence=0.9)) == Interval(low=-2, high=1, confidence=0.9)
