"""`pastille.judge`: arrays from anywhere, and what is wrong with them said in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import pastille
from pastille.errors import PastilleError
from pastille.stats.proportions import tango
from pastille.values import Status, Verdict, from_json, to_json

RNG = np.random.default_rng(0)
N = 600
TRUTH = np.arange(N) % 2
LOGITS = np.where(RNG.random(N) < 0.95, 1.0, -1.0) * np.where(TRUTH == 1, 2.0, -2.0)
OTHER = np.where(RNG.random(N) < 0.98, LOGITS, -LOGITS)
CHANCES = 1 / (1 + np.exp(-LOGITS))


def judged(*arrays: Any, **options: Any) -> Verdict:
    return pastille.judge(*arrays, **{"risk": "low", **options})


def test_the_numbers_are_those_of_independent_tools() -> None:
    said = judged(LOGITS, OTHER, TRUTH)
    assert said.evidence is not None
    found = {c.metric: c for c in said.evidence.comparisons if not c.where}
    for metric, oracle in (("auroc", roc_auc_score), ("balanced_accuracy", balanced_accuracy_score)):
        given = OTHER if metric == "auroc" else OTHER >= 0
        estimate = found[metric].candidate
        assert estimate is not None
        assert estimate.value == pytest.approx(oracle(TRUTH, given), abs=1e-12)
    wrong = int(((LOGITS >= 0) == TRUTH)[(OTHER >= 0) != TRUTH].sum())
    right = int(((LOGITS >= 0) != TRUTH)[(OTHER >= 0) == TRUTH].sum())
    assert said.checks[0].interval == tango(wrong, right, N, 0.95)


def test_logits_and_probabilities_give_the_same_verdict() -> None:
    one = judged(LOGITS, OTHER, TRUTH)
    other = judged(CHANCES, 1 / (1 + np.exp(-OTHER)), TRUTH, given="probabilities")
    assert [(c.metric, c.status, c.drop) for c in one.checks] == [
        (c.metric, c.status, c.drop) for c in other.checks
    ]


def test_a_verdict_prints_as_its_reason_and_goes_to_json_and_back() -> None:
    said = judged(LOGITS, OTHER, TRUTH, groups={"sex": np.where(TRUTH, "f", "m")})
    assert str(said) == said.reason
    assert from_json(Verdict, to_json(said)) == said


@pytest.mark.parametrize(
    "targets",
    [TRUTH.tolist(), TRUTH.astype(float), TRUTH.astype(bool), TRUTH[:, None], TRUTH.astype(np.uint8)],
)
def test_targets_come_as_they_come(targets: Any) -> None:
    assert judged(LOGITS, OTHER, targets) == judged(LOGITS, OTHER, TRUTH)


def test_targets_may_be_names() -> None:
    names = np.where(TRUTH == 1, "ill", "well")
    said = judged(LOGITS.tolist(), OTHER, names, labels=["well", "ill"])
    assert [c.drop for c in said.checks] == [c.drop for c in judged(LOGITS, OTHER, TRUTH).checks]


def test_every_metric_of_ones_own_is_judged() -> None:
    def median_error(outputs: np.ndarray, targets: np.ndarray) -> float:
        return float(np.median(np.abs(outputs - targets)))

    metrics = [
        pastille.CustomMetric(name=name, function=median_error, higher_is_better=False) for name in ("a", "b")
    ]
    said = judged(LOGITS, LOGITS, LOGITS + 0.1, kind="custom", metrics=metrics, max_drop={"b": "1 %"})
    assert {c.metric: c.limit for c in said.checks} == {"a": 0.05, "b": 0.01}


def test_a_model_that_decides_every_case_alike_is_told() -> None:
    said = judged(np.full(N, 2.0), LOGITS, TRUTH, given="logits")
    assert "the baseline decides every case as '1': are its answers what they are said to be?" in said.notes


def test_a_limit_of_zero_asks_for_better() -> None:
    same = judged(LOGITS, LOGITS, TRUTH, max_drop={"accuracy": 0, "sensitivity": 0})
    assert same.status is Status.INCONCLUSIVE
    assert "only a candidate that is shown to be better" in same.reason
    better = judged(
        LOGITS, np.where(TRUTH == 1, 2.0, -2.0), TRUTH, max_drop={"accuracy": 0, "sensitivity": 0}
    )
    assert better.status is Status.APPROVED


def test_a_group_with_one_class_only_has_what_its_cases_define() -> None:
    said = judged(LOGITS, OTHER, TRUTH, groups={"class": np.where(TRUTH, "ill", "well")})
    assert said.evidence is not None
    (found,) = said.evidence.fairness
    undefined = [c for c in found.groups if c.metric == "sensitivity" and c.where == {"class": "well"}]
    assert [c.baseline for c in undefined] == [None]


SHORT, NAN = LOGITS[:-1], np.where(np.arange(N) == 7, np.nan, LOGITS)


class Series:
    """What carries an index of its own, as pandas does."""

    def __init__(self, values: np.ndarray, index: np.ndarray) -> None:
        self.values, self.index = values, index

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values, dtype)


ROWS = np.arange(N)


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ((LOGITS, SHORT, TRUTH), {}, "one row per case"),
        ((LOGITS, OTHER, TRUTH[:-1]), {}, "one row per case"),
        ((NAN, OTHER, TRUTH), {}, "baseline must be finite, got NaN or infinity in row 7"),
        ((CHANCES, CHANCES, TRUTH), {}, "must be said to be logits or probabilities"),
        ((100 * CHANCES, CHANCES, TRUTH), {}, "probabilities in per cent?"),
        ((LOGITS, OTHER, TRUTH), {"given": "probabilities"}, "baseline must be probabilities in"),
        ((LOGITS, OTHER, TRUTH + 1), {}, "targets must be between 0 and 1"),
        ((LOGITS, OTHER, TRUTH + 0.5), {}, "must be whole numbers, got float64"),
        (
            (LOGITS, OTHER, np.where(TRUTH, "x", "y")),
            {"labels": ["x", "z"]},
            "the labels x, z, got 'y'",
        ),
        ((LOGITS.astype(str), OTHER, TRUTH), {}, "baseline must be an array of numbers"),
        (([object()] * N, OTHER, TRUTH), {}, "baseline must be an array of numbers"),
        (("file.npy", OTHER, TRUTH), {}, "baseline must be an array of numbers"),
        ((np.ma.masked_less(LOGITS, -1), OTHER, TRUTH), {}, "baseline must not be masked"),
        ((Series(LOGITS, ROWS), Series(OTHER, ROWS[::-1]), TRUTH), {}, "candidate must have the index of"),
        ((LOGITS, OTHER, TRUTH), {"candidate_ids": ROWS}, "ids must be given where candidate_ids is"),
        ((LOGITS, OTHER, TRUTH), {"ids": ROWS // 2}, "ids must differ"),
        ((LOGITS, OTHER, TRUTH), {"ids": ROWS, "candidate_ids": ROWS[::-1]}, "in the same order"),
        ((LOGITS, OTHER, TRUTH), {"threshold": {"sensitivity": 0.9}}, "threshold"),
        ((LOGITS, OTHER, TRUTH), {"split": "foo"}, "split must be one of train, validation, test"),
        ((LOGITS, OTHER, TRUTH), {"metrics": [len]}, "metrics must be pastille.CustomMetric"),
        (
            (LOGITS, OTHER, TRUTH),
            {"metrics": [pastille.CustomMetric(name="f1", function=lambda o, t: 1.0)]},
            "must not be called 'f1'",
        ),
        ((LOGITS, OTHER, TRUTH), {"max_drop": {"accuracy": "6 %"}}, "at most 5 % at risk tier 'low'"),
        ((LOGITS, OTHER, TRUTH), {"confidence": 0.5}, "requirements.confidence must be at least 95 %"),
        ((LOGITS, OTHER, TRUTH), {"fairness": {"by": ["sex"]}, "groups": {"sexx": TRUTH}}, "sex"),
        ((LOGITS, OTHER, TRUTH), {"subjects": ROWS[:-1]}, "subjects must have one entry per case"),
        ((LOGITS[:0], OTHER[:0], TRUTH[:0]), {}, "at least one case"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arrays: tuple[Any, ...], options: dict[str, Any], said: str
) -> None:
    with pytest.raises((ValueError, PastilleError), match=r".*") as caught:
        judged(*arrays, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_cases_are_inconclusive_and_no_crash(n: int) -> None:
    assert judged(LOGITS[:n], OTHER[:n], TRUTH[:n]).status is Status.INCONCLUSIVE


def test_constant_predictions_have_an_area_of_a_half() -> None:
    said = judged(np.full(N, 0.9), np.full(N, 0.9), TRUTH, given="probabilities")
    assert said.evidence is not None
    (area,) = [c for c in said.evidence.comparisons if c.metric == "auroc" and not c.where]
    assert area.candidate is not None
    assert area.candidate.value == 0.5
