from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
)

from pastille.stats.metrics import headline, headline_value, score
from pastille.stats.proportions import wilson
from pastille.values import Cases, Estimate, Kind, from_json, to_json
from pastille.values import Metrics as MetricsValue

RNG_SEED = 11


def _multiclass(n: int = 400, *, subjects: np.ndarray | None = None) -> tuple[np.ndarray, Cases]:
    rng = np.random.default_rng(RNG_SEED)
    targets = rng.integers(0, 4, n)
    outputs = rng.normal(size=(n, 4)).astype(np.float32)
    outputs[np.arange(n), targets] += 2
    cases = Cases(
        kind="multiclass",
        split="test",
        targets=targets,
        labels=("glioma", "meningioma", "no_tumour", "pituitary"),
        positive=(0, 1, 3),
        groups={"sex": rng.choice(["f", "m"], n)},
        subjects=subjects,
    )
    return outputs, cases


def _binary(n: int = 300) -> tuple[np.ndarray, Cases]:
    rng = np.random.default_rng(RNG_SEED)
    targets = (rng.random(n) < 0.3).astype(np.int64)
    cases = Cases(
        kind="binary",
        split="validation",
        targets=targets,
        labels=("benign", "malignant"),
        positive=(1,),
        threshold=0.4,
        groups={
            "sex": rng.choice(["f", "m"], n),
            "site": np.where(np.cumsum(targets == 0) * (targets == 0) % 60 == 1, "rare", "common"),
        },
    )
    return rng.normal(size=n) + 2 * targets - 1, cases


def _regression(n: int = 250, *, subjects: np.ndarray | None = None) -> tuple[np.ndarray, Cases]:
    rng = np.random.default_rng(RNG_SEED)
    targets = rng.normal(150, 40, n)
    cases = Cases(
        kind="regression",
        split="test",
        targets=targets,
        labels=(),
        groups={"sex": rng.choice(["f", "m"], n)},
        subjects=subjects,
    )
    return targets + rng.normal(3, 20, n), cases


def _holds(estimate: Estimate) -> bool:
    i = estimate.interval
    return i is not None and i.low < i.high and i.low <= estimate.value <= i.high


def test_multiclass_agrees_with_scikit_learn() -> None:
    outputs, cases = _multiclass()
    decided, targets = outputs.argmax(axis=1), cases.targets
    metrics = score(outputs, cases)
    overall = {name: estimate.value for name, estimate in metrics.overall.items()}
    ill, called = targets != 2, decided != 2
    assert overall == pytest.approx(
        {
            "accuracy": np.mean(decided == targets),
            "balanced_accuracy": balanced_accuracy_score(targets, decided),
            "sensitivity": recall_score(ill, called),
            "specificity": recall_score(~ill, ~called),
            "precision": precision_score(targets, decided, average="macro"),
            "f1": f1_score(targets, decided, average="macro"),
            "auroc": roc_auc_score(targets, softmax(outputs, axis=1), multi_class="ovr"),
            "average_precision": average_precision_score(
                np.eye(4)[targets], softmax(outputs.astype(np.float64), axis=1)
            ),
        },
        abs=1e-6,  # scikit-learn takes probabilities in the precision of the logits
    )
    recalls = recall_score(targets, decided, average=None)
    assert [metrics.per_class[label].value for label in cases.labels] == pytest.approx(list(recalls))
    assert metrics.confusion is not None
    assert np.array_equal(metrics.confusion.counts, confusion_matrix(targets, decided))
    assert all(map(_holds, (*metrics.overall.values(), *metrics.per_class.values())))
    assert (metrics.n, metrics.split) == (400, "test")


def test_calling_the_wrong_positive_class_is_not_missing_it() -> None:
    cases = Cases(
        kind="multiclass", split="test", targets=np.array([0, 1, 2]), labels=("a", "b", "c"), positive=(0, 1)
    )
    metrics = score(np.eye(3)[[1, 0, 2]], cases)
    assert metrics.overall["accuracy"].value == pytest.approx(1 / 3)
    assert metrics.overall["sensitivity"].value == 1.0


def test_intervals_of_single_cases_are_wilsons() -> None:
    outputs, cases = _multiclass()
    found = score(outputs, cases, confidence=0.9).overall["sensitivity"]
    assert found.interval == wilson(round(found.value * found.n), found.n, 0.9)
    assert (found.method, found.n) == ("Wilson", int((cases.targets != 2).sum()))


def test_binary_agrees_with_scikit_learn_by_group_too() -> None:
    outputs, cases = _binary()
    metrics = score(outputs, cases)
    chance = 1 / (1 + np.exp(-outputs))
    assert metrics.overall["auroc"].value == pytest.approx(roc_auc_score(cases.targets, chance))
    assert metrics.overall["sensitivity"].value == pytest.approx(recall_score(cases.targets, chance >= 0.4))
    for name in ("f", "m"):
        rows = cases.groups["sex"] == name
        group = metrics.groups["sex"][name]
        assert group["accuracy"].n == np.count_nonzero(rows)
        assert group["specificity"].value == pytest.approx(
            recall_score(cases.targets[rows] == 0, chance[rows] < 0.4)
        )
        assert group["auroc"].value == pytest.approx(roc_auc_score(cases.targets[rows], chance[rows]))


def test_what_a_group_cannot_define_is_left_out() -> None:
    outputs, cases = _binary()
    assert set(cases.targets[cases.groups["site"] == "rare"]) == {0}
    assert set(score(outputs, cases).groups["site"]["rare"]) == {"accuracy", "specificity"}


def test_a_label_that_does_not_occur_is_left_out() -> None:
    outputs, cases = _multiclass()
    kept = cases.targets != 3
    fewer = Cases(kind="multiclass", split="test", targets=cases.targets[kept], labels=cases.labels)
    metrics = score(outputs[kept], fewer)
    assert set(metrics.per_class) == {"glioma", "meningioma", "no_tumour"}
    assert metrics.confusion is not None
    assert len(metrics.confusion.counts) == 4
    assert "sensitivity" not in metrics.overall  # no positive classes were named


def test_balanced_accuracy_is_uncertain_even_when_perfect() -> None:
    targets = np.arange(40) % 2
    cases = Cases(kind="binary", split="test", targets=targets, labels=("a", "b"))
    found = score(np.where(targets == 1, 1.0, -1.0), cases).overall["balanced_accuracy"]
    assert found.value == 1.0
    assert found.interval is not None
    assert 0.83 < found.interval.low < 0.95


def test_balanced_accuracy_adds_the_classes_variances() -> None:
    """Two classes of 100 with recall 0.8: half the reach of the sum, so that of one over the root of 2."""
    targets = np.arange(200) % 2
    cases = Cases(kind="binary", split="test", targets=targets, labels=("a", "b"))
    right = np.arange(200) >= 40
    found = score(np.where(right == (targets == 1), 1.0, -1.0), cases).overall["balanced_accuracy"].interval
    one = wilson(80, 100, 0.95)
    assert found is not None
    assert found.low == pytest.approx(0.8 - (0.8 - one.low) / 2**0.5)
    assert found.high == pytest.approx(0.8 + (one.high - 0.8) / 2**0.5)


def test_balanced_accuracy_covers_the_truth() -> None:
    rng = np.random.default_rng(12)
    targets = np.repeat([0, 1], [160, 40])
    cases = Cases(kind="binary", split="test", targets=targets, labels=("a", "b"))
    recalls = np.array([0.97, 0.9])
    covered = 0
    for _ in range(600):
        right = rng.random(200) < recalls[targets]
        outputs = np.where(right == (targets == 1), 1.0, -1.0)
        found = score(outputs, cases, bootstrap=False).overall["balanced_accuracy"]
        assert found.interval is not None
        covered += found.interval.low <= recalls.mean() <= found.interval.high
    assert 0.93 <= covered / 600 <= 0.985


def test_several_cases_of_a_subject_widen_every_interval_and_say_so() -> None:
    outputs, cases = _multiclass(100)
    outputs = np.repeat(outputs, 4, axis=0)  # every patient four times, identically
    targets = np.repeat(cases.targets, 4)
    alone, clustered = (
        score(
            outputs,
            Cases(
                kind="multiclass",
                split="test",
                targets=targets,
                labels=cases.labels,
                positive=(0,),
                subjects=s,
            ),
        )
        for s in (None, np.repeat(np.arange(100), 4))
    )
    for name, estimate in clustered.overall.items():
        other = alone.overall[name].interval
        assert estimate.interval is not None
        assert other is not None
        assert estimate.interval.high - estimate.interval.low > 1.7 * (other.high - other.low), name
        assert "subject" in estimate.method, name
    once = score(outputs[::4], cases).overall["accuracy"].interval
    found = clustered.overall["accuracy"].interval
    assert once is not None
    assert found is not None
    assert (found.low, found.high) == pytest.approx((once.low, once.high))  # four copies tell no more
    assert (
        clustered.overall["accuracy"].method
        == "Wilson, 400 cases of 100 subjects worth 100.0 independent ones"
    )


def test_one_case_per_subject_changes_nothing() -> None:
    outputs, cases = _multiclass()
    _, alone = _multiclass(subjects=np.arange(400))
    assert score(outputs, cases) == score(outputs, alone)


def test_regression_agrees_with_scikit_learn() -> None:
    predicted, cases = _regression()
    metrics = score(predicted[:, None], cases)
    assert {name: estimate.value for name, estimate in metrics.overall.items()} == pytest.approx(
        {
            "r2": r2_score(cases.targets, predicted),
            "rmse": mean_squared_error(cases.targets, predicted) ** 0.5,
            "mae": mean_absolute_error(cases.targets, predicted),
            "bias": np.mean(predicted - cases.targets),
        }
    )
    rows = cases.groups["sex"] == "f"
    found = metrics.groups["sex"]["f"]["r2"]
    assert found.value == pytest.approx(r2_score(cases.targets[rows], predicted[rows]))
    assert found.n == np.count_nonzero(rows)
    assert all(map(_holds, metrics.overall.values()))
    assert metrics.confusion is None


def test_regression_by_subject() -> None:
    predicted, cases = _regression(subjects=np.arange(250) // 5)
    found = score(predicted, cases).overall["mae"]
    assert found.method == "BCa bootstrap of 50 subjects"
    assert _holds(found)


def test_targets_that_do_not_vary_have_no_r2() -> None:
    cases = Cases(kind="regression", split="test", targets=np.full(30, 0.1), labels=())
    assert set(score(np.linspace(0, 1, 30), cases).overall) == {"rmse", "mae", "bias"}
    with pytest.raises(ValueError, match="targets must differ from each other for R² to be defined"):
        headline_value(np.linspace(0, 1, 30), cases)


def test_r2_survives_targets_far_from_zero() -> None:
    predicted, cases = _regression()
    moved = Cases(kind="regression", split="test", targets=cases.targets + 1e9, labels=())
    assert headline_value(predicted + 1e9, moved) == pytest.approx(headline_value(predicted, cases), abs=1e-5)


def test_one_case() -> None:
    cases = Cases(kind="regression", split="test", targets=np.array([2.0]), labels=())
    found = score(np.array([2.5]), cases).overall
    assert found["mae"] == Estimate(value=0.5, interval=None, n=1, method="BCa bootstrap")
    one = Cases(kind="binary", split="test", targets=np.array([1]), labels=("a", "b"), positive=(1,))
    assert set(score(np.array([0.5]), one).overall) == {
        *("accuracy", "sensitivity", "balanced_accuracy", "precision", "f1", "average_precision"),
    }
    assert found["bias"].value == 0.5


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_headline_is_the_overall_metric(kind: Kind) -> None:
    outputs, cases = {"binary": _binary, "multiclass": _multiclass, "regression": _regression}[kind]()
    assert headline_value(outputs, cases) == pytest.approx(
        score(outputs, cases).overall[headline(cases)].value
    )


@pytest.mark.parametrize("make", [_binary, _multiclass, _regression])
def test_metrics_are_written_and_read_back(make: object) -> None:
    assert callable(make)
    metrics = score(*make())
    assert from_json(MetricsValue, to_json(metrics)) == metrics


def test_a_score_repeats() -> None:
    outputs, cases = _regression(subjects=np.arange(250) // 2)
    assert score(outputs, cases) == score(outputs, cases)


def test_no_cases_and_nan_are_refused() -> None:
    none = Cases(kind="binary", split="test", targets=np.zeros(0, np.int64), labels=("a", "b"))
    with pytest.raises(ValueError, match="cases must hold at least one case"):
        score(np.zeros(0), none)
    outputs, cases = _regression()
    outputs[3] = np.nan
    with pytest.raises(ValueError, match="outputs must be finite, got NaN or infinity in 1 of 250 values"):
        score(outputs, cases)
    with pytest.raises(ValueError, match="one row per case"):
        score(outputs[:7], cases)
