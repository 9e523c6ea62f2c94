from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as sk

from pastille.stats.average_precision import average_precision
from pastille.stats.estimates import estimate, value
from pastille.stats.forms import Form, OfSums, OfWeights
from pastille.stats.kinds import forms
from pastille.stats.metrics import headline, headline_value, higher_is_better, score, selection_value
from pastille.values import Cases, CustomMetric

LABELS = ("a", "b", "c", "d", "e")
Sample = tuple[np.ndarray, Cases]


def binary(n: int = 300, *, positive: int = 1, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.3).astype(np.int64)
    outputs = np.round(rng.normal(size=n) + 2 * targets - 1, 1)  # with ties
    cases = Cases(
        kind="binary",
        split="test",
        targets=targets,
        labels=("well", "ill"),
        positive=(positive,),
        threshold=0.4,
        groups={"sex": rng.choice(["f", "m"], n)},
    )
    return outputs, cases


def multiclass(n: int = 300, *, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    targets = rng.choice(5, n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    outputs = np.round(rng.normal(size=(n, 5)), 1)
    outputs[np.arange(n), targets] += 1.5
    groups = {"sex": rng.choice(["f", "m"], n)}
    return outputs, Cases(
        kind="multiclass", split="test", targets=targets, labels=LABELS, positive=(1, 2), groups=groups
    )


def multilabel(n: int = 300, *, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 5)) < [0.5, 0.3, 0.2, 0.1, 0.1]).astype(np.int64)
    outputs = np.round(rng.normal(size=(n, 5)) + 2 * targets - 1, 1)
    groups = {"sex": rng.choice(["f", "m"], n)}
    return outputs, Cases(
        kind="multilabel", split="test", targets=targets, labels=LABELS, threshold=0.4, groups=groups
    )


def regression(n: int = 200, *, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    targets = rng.normal(100, 20, n)
    groups = {"sex": rng.choice(["f", "m"], n)}
    cases = Cases(kind="regression", split="test", targets=targets, labels=(), groups=groups)
    return targets + rng.normal(-4, 10, n), cases


def segmentation(n: int = 24, *, seed: int = 0, positive: tuple[int, ...] = ()) -> Sample:
    """The last class occurs in every other image only."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, (n, 6, 7))
    targets[::2][targets[::2] == 2] = 0
    outputs = rng.normal(size=(n, 3, 6, 7)).astype(np.float32)
    outputs += 1.5 * np.moveaxis(np.eye(3, dtype=np.float32)[targets], 3, 1)
    return outputs, Cases(
        kind="segmentation",
        split="test",
        targets=targets,
        labels=("none", "organ", "lesion"),
        positive=positive,
        groups={"sex": rng.choice(["f", "m"], n)},
    )


EVERY_KIND = [binary, multiclass, multilabel, regression, segmentation]


def values(outputs: np.ndarray, cases: Cases) -> dict[str, float]:
    return {name: value(form) for name, form in forms(outputs, cases).overall.items()}


def rows_of(cases: Cases, rows: np.ndarray) -> Cases:
    groups = {name: column[rows] for name, column in cases.groups.items()}
    return replace(cases, targets=cases.targets[rows], groups=groups)


def question(truly: np.ndarray, called: np.ndarray, chance: np.ndarray) -> dict[str, float]:
    """Every metric of one yes-or-no question, by scikit-learn."""
    return {
        "accuracy": sk.accuracy_score(truly, called),
        "balanced_accuracy": sk.balanced_accuracy_score(truly, called),
        "sensitivity": sk.recall_score(truly, called),
        "specificity": sk.recall_score(~truly, ~called),
        "precision": sk.precision_score(truly, called),
        "f1": sk.f1_score(truly, called),
        "auroc": sk.roc_auc_score(truly, chance),
        "average_precision": sk.average_precision_score(truly, chance),
    }


@pytest.mark.parametrize("positive", [0, 1])
def test_binary_is_of_the_positive_label(positive: int) -> None:
    outputs, cases = binary(positive=positive)
    chance = expit(outputs if positive else -outputs)
    expected = question(cases.targets == positive, chance >= 0.4, chance)
    assert values(outputs, cases) == pytest.approx(expected)
    assert values(np.column_stack([0 * outputs, outputs]), cases) == pytest.approx(expected)
    recalls = {label: value(of["recall"]) for label, of in forms(outputs, cases).classes.items()}
    assert recalls[cases.labels[positive]] == pytest.approx(expected["sensitivity"])
    assert recalls[cases.labels[1 - positive]] == pytest.approx(expected["specificity"])


def test_a_binary_task_without_a_positive_label_means_the_second() -> None:
    outputs, cases = binary()
    assert values(outputs, replace(cases, positive=())) == values(outputs, cases)


def test_multiclass_agrees_with_scikit_learn_overall_and_by_class() -> None:
    outputs, cases = multiclass()
    targets, decided = cases.targets, outputs.argmax(axis=1)
    chances = softmax(outputs, axis=1)
    feared, called = np.isin(targets, [1, 2]), np.isin(decided, [1, 2])
    assert values(outputs, cases) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(targets, decided),
            "balanced_accuracy": sk.balanced_accuracy_score(targets, decided),
            "sensitivity": sk.recall_score(feared, called),
            "specificity": sk.recall_score(~feared, ~called),
            "precision": sk.precision_score(targets, decided, average="macro"),
            "f1": sk.f1_score(targets, decided, average="macro"),
            "auroc": sk.roc_auc_score(targets, chances, multi_class="ovr"),
            "average_precision": sk.average_precision_score(np.eye(5)[targets], chances),
        }
    )
    found = forms(outputs, cases).classes
    assert list(found) == list(LABELS)
    for index, label in enumerate(LABELS):
        expected = question(targets == index, decided == index, chances[:, index])
        expected["recall"] = expected.pop("sensitivity")
        of_class = {name: value(form) for name, form in found[label].items()}
        assert of_class == pytest.approx({name: expected[name] for name in of_class})
        assert len(of_class) == 6
    with pytest.raises(KeyError):
        found["z"]


def test_classes_that_do_not_occur_are_left_out_of_every_mean() -> None:
    """Whether a model calls a class that never occurs must not decide what is averaged."""
    outputs, cases = multiclass()
    kept = cases.targets != 4
    fewer = rows_of(cases, kept)
    decided = outputs[kept].argmax(axis=1)
    assert (decided == 4).any()
    found = values(outputs[kept], fewer)
    occurring = {"labels": [0, 1, 2, 3], "average": "macro"}
    assert found["precision"] == pytest.approx(sk.precision_score(fewer.targets, decided, **occurring))
    assert found["f1"] == pytest.approx(sk.f1_score(fewer.targets, decided, **occurring))
    assert found["balanced_accuracy"] == pytest.approx(sk.recall_score(fewer.targets, decided, **occurring))


def test_a_class_that_is_never_called_has_precision_0() -> None:
    cases = Cases(kind="binary", split="test", targets=np.array([0, 1, 0, 1]), labels=("a", "b"))
    found = values(np.full(4, -3.0), cases)
    assert (found["precision"], found["f1"], found["auroc"]) == (0.0, 0.0, 0.5)


@pytest.mark.parametrize("positive", [(), (1, 3)])
def test_multilabel_agrees_with_scikit_learn(positive: tuple[int, ...]) -> None:
    outputs, cases = multilabel()
    cases = replace(cases, positive=positive)
    chances = expit(outputs)
    truly, called = cases.targets.astype(bool), chances >= 0.4
    expected = [question(truly[:, i], called[:, i], chances[:, i]) for i in range(5)]
    means = {name: float(np.mean([of[name] for of in expected])) for name in expected[0]}
    means["sensitivity"] = float(np.mean([expected[i]["sensitivity"] for i in positive or range(5)]))
    means["exact_match"] = sk.accuracy_score(truly, called)
    found = forms(outputs, cases)
    assert values(outputs, cases) == pytest.approx(means)
    for label, of_label in zip(LABELS, expected, strict=True):
        assert {n: value(f) for n, f in found.classes[label].items()} == pytest.approx(of_label)


def test_a_label_that_never_occurs_is_left_out_of_the_means() -> None:
    outputs, cases = multilabel()
    targets = cases.targets.copy()
    targets[:, 2] = 0
    four = [0, 1, 3, 4]
    emptied = replace(cases, targets=targets)
    kept = replace(cases, targets=targets[:, four], labels=tuple(LABELS[i] for i in four))
    with_it, without_it = values(outputs, emptied), values(outputs[:, four], kept)
    for name in ("sensitivity", "precision", "f1", "auroc", "average_precision"):
        assert with_it[name] == pytest.approx(without_it[name]), name
    assert estimate(forms(outputs, emptied).classes["c"]["auroc"], subjects=None, confidence=0.95) is None


def test_regression_agrees_with_scikit_learn_and_the_bias_has_no_direction() -> None:
    predicted, cases = regression()
    assert values(predicted, cases) == pytest.approx(
        {
            "r2": sk.r2_score(cases.targets, predicted),
            "rmse": sk.root_mean_squared_error(cases.targets, predicted),
            "mae": sk.mean_absolute_error(cases.targets, predicted),
            "bias": abs(np.mean(predicted - cases.targets)),
        }
    )
    assert score(predicted, cases).overall["bias"].value == pytest.approx(np.mean(predicted - cases.targets))
    assert score(predicted, cases).overall["bias"].value < 0
    lower = [n for n, f in forms(predicted, cases).overall.items() if not _higher(f)]
    assert (
        lower
        == ["rmse", "mae", "bias"]
        == [n for n in values(predicted, cases) if not higher_is_better(n, cases)]
    )


def _higher(form: Form) -> bool:
    assert isinstance(form, OfSums | OfWeights)
    return form.higher_is_better


def _plain_overlap(decided: np.ndarray, targets: np.ndarray, index: int) -> tuple[list[float], list[float]]:
    """Dice and IoU of one class in each image that holds it, pixel by pixel."""
    dice, iou = [], []
    for image, truth in zip(decided, targets, strict=True):
        pairs = [(d == index, t == index) for d, t in zip(image.ravel(), truth.ravel(), strict=True)]
        both = sum(d and t for d, t in pairs)
        marked, truly = sum(d for d, _ in pairs), sum(t for _, t in pairs)
        if truly:
            dice.append(2 * both / (marked + truly))
            iou.append(both / (marked + truly - both))
    return dice, iou


@pytest.mark.parametrize("positive", [(), (2,)])
def test_segmentation_agrees_with_a_plain_loop(positive: tuple[int, ...]) -> None:
    outputs, cases = segmentation(positive=positive)
    decided = outputs.argmax(axis=1)
    plain = {label: _plain_overlap(decided, cases.targets, i) for i, label in enumerate(cases.labels)}
    found = forms(outputs, cases)
    for label, (dice, iou) in plain.items():
        of_class = found.classes[label]
        assert value(of_class["dice"]) == pytest.approx(np.mean(dice))
        assert value(of_class["iou"]) == pytest.approx(np.mean(iou))
        dice_estimate = estimate(of_class["dice"], subjects=None, confidence=0.95)
        assert dice_estimate is not None
        assert dice_estimate.n == len(dice)
    chosen = [cases.labels[i] for i in positive or (1, 2)]
    assert values(outputs, cases) == pytest.approx(
        {
            "dice": np.mean([np.mean(plain[label][0]) for label in chosen]),
            "iou": np.mean([np.mean(plain[label][1]) for label in chosen]),
            "pixel_accuracy": np.mean(decided == cases.targets),
        }
    )
    assert found.confusion is not None
    assert np.array_equal(found.confusion.counts, sk.confusion_matrix(cases.targets.ravel(), decided.ravel()))


def test_images_are_counted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, cases = segmentation()
    expected = values(outputs, cases)
    monkeypatch.setattr("pastille.stats.segmentation._PIXELS_AT_ONCE", 100)  # two images of 42 pixels
    assert values(outputs, cases) == expected


def test_masks_of_two_labels_may_come_as_one_logit() -> None:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 2, (9, 5, 5))
    odds = rng.normal(size=(9, 5, 5)) + targets
    cases = Cases(kind="segmentation", split="test", targets=targets, labels=("none", "lesion"))
    two = values(np.stack([0 * odds, odds], axis=1), cases)
    assert values(odds, cases) == two == values(odds[:, None], cases)
    assert values(odds, replace(cases, threshold=0.3)) != two


def test_no_image_with_the_class() -> None:
    cases = Cases(
        kind="segmentation", split="test", targets=np.zeros((3, 4, 4), int), labels=("none", "lesion")
    )
    metrics = score(np.full((3, 4, 4), -1.0), cases)
    assert set(metrics.overall) == {"pixel_accuracy"}
    assert set(metrics.per_class) == {"none"}
    with pytest.raises(ValueError, match="targets must hold a class other than the background"):
        headline_value(np.full((3, 4, 4), -1.0), cases)


def _error_rate(outputs: np.ndarray, targets: np.ndarray) -> float:
    return float((outputs != targets).mean())


WER = CustomMetric(name="wer", function=_error_rate, higher_is_better=False)


def test_a_custom_metric_is_called_with_the_cases_themselves() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 9, (80, 3))
    outputs = np.where(rng.random((80, 3)) < 0.2, -1, targets)
    cases = Cases(kind="custom", split="test", targets=targets, labels=(), metrics=(WER,))
    found = score(outputs, cases).overall["wer"]
    assert found.value == _error_rate(outputs, targets)
    assert found.interval is not None
    assert found.interval.low < found.value < found.interval.high
    assert (found.method, found.n) == ("BCa bootstrap", 80)
    assert (headline(cases), headline_value(outputs, cases)) == ("wer", found.value)
    assert selection_value(outputs, cases, metric="wer") == -found.value
    assert not higher_is_better("wer", cases)
    assert not _higher(forms(outputs, cases).overall["wer"])


def test_a_custom_metric_stands_beside_those_of_the_kind() -> None:
    outputs, cases = binary()
    mean = CustomMetric(name="mean logit", function=lambda y, t: float(y.mean()))
    found = score(outputs, replace(cases, metrics=(mean,)), bootstrap=False).overall
    assert list(found)[-1] == "mean logit"
    assert found["mean logit"].value == pytest.approx(outputs.mean())
    assert found["mean logit"].interval is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda y, t: "good", "metric 'mine' must give one number, got str 'good'"),
        (lambda y, t: None, "metric 'mine' must give one number, got NoneType None"),
        (lambda y, t: y, "metric 'mine' must give one number, got ndarray"),
        (lambda y, t: 1 / 0, "metric 'mine' raised ZeroDivisionError: division by zero, asked of 2 cases"),
    ],
)
def test_a_custom_metric_that_gives_no_number_is_named(function: object, message: str) -> None:
    assert callable(function)
    mine = CustomMetric(name="mine", function=function)
    cases = Cases(kind="custom", split="test", targets=np.zeros(2), labels=(), metrics=(mine,))
    with pytest.raises(ValueError, match=message):
        score(np.zeros(2), cases)


def test_a_custom_metric_that_is_undefined_is_left_out() -> None:
    nothing = CustomMetric(name="mine", function=lambda y, t: float("nan"))
    cases = Cases(kind="custom", split="test", targets=np.zeros(2), labels=(), metrics=(nothing,))
    assert score(np.zeros(2), cases).overall == {}
    with pytest.raises(ValueError, match="metric 'mine' must be defined by the cases, got nan"):
        headline_value(np.zeros(2), cases)
    with pytest.raises(ValueError, match="metrics of a custom task must name at least one, got none"):
        headline(replace(cases, metrics=()))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30).filter(
        lambda rows: any(truly and weight for _, truly, weight in rows)
    )
)
def test_weighted_average_precision_agrees_with_scikit_learn(rows: list[tuple[int, bool, int]]) -> None:
    """Few distinct scores, so that ties are common; a weight of 0 removes a case."""
    scores, truth, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = average_precision(scores.astype(float), truth)(np.stack([weights, 2 * weights]).astype(float))
    expected = sk.average_precision_score(truth, scores, sample_weight=weights)
    assert found == pytest.approx([expected, expected], abs=1e-12)


def test_weights_are_repeats() -> None:
    """Every metric of weights: counting a case three times is the same as having it three times."""
    for make in (binary, multiclass, multilabel):
        outputs, cases = make(60)
        times = np.random.default_rng(5).integers(0, 4, 60)
        rows = np.repeat(np.arange(60), times)
        own = CustomMetric(name="own", function=lambda y, t: float(np.mean(y[..., 0] if y.ndim > 1 else y)))
        cases = replace(cases, metrics=(own,))
        expected = values(outputs[rows], rows_of(cases, rows))
        for name, form in forms(outputs, cases).overall.items():
            if isinstance(form, OfWeights):
                weights = np.stack([np.ones(60), times.astype(float)])
                assert form.statistic(weights)[1] == pytest.approx(expected[name]), (make.__name__, name)


@pytest.mark.parametrize("make", EVERY_KIND)
def test_the_order_of_the_cases_changes_nothing(make: object) -> None:
    assert callable(make)
    outputs, cases = make()
    shuffled = np.random.default_rng(1).permutation(len(outputs))
    one = score(outputs, cases, bootstrap=False)
    other = score(outputs[shuffled], rows_of(cases, shuffled), bootstrap=False)
    for name, found in one.overall.items():
        assert other.overall[name].value == pytest.approx(found.value, abs=1e-12), name
        if found.interval is not None:
            again = other.overall[name].interval
            assert again is not None
            assert (again.low, again.high) == pytest.approx((found.interval.low, found.interval.high)), name
    assert one.confusion == other.confusion


@pytest.mark.parametrize("make", EVERY_KIND)
def test_the_metrics_of_a_group_are_those_of_its_cases_alone(make: object) -> None:
    assert callable(make)
    outputs, cases = make()
    found = score(outputs, cases).groups["sex"]
    assert set(found) == {"f", "m"}
    for name, of_group in found.items():
        rows = cases.groups["sex"] == name
        alone = score(outputs[rows], rows_of(cases, rows)).overall
        assert of_group
        for metric, estimated in of_group.items():
            assert estimated.value == pytest.approx(alone[metric].value, abs=1e-9), metric
            assert estimated.n == alone[metric].n, metric
            one, other = estimated.interval, alone[metric].interval
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-6), metric


@pytest.mark.parametrize("make", EVERY_KIND)
def test_the_headline_of_every_kind_can_be_maximised(make: object) -> None:
    assert callable(make)
    outputs, cases = make()
    metric = headline(cases)
    assert headline_value(outputs, cases) == pytest.approx(score(outputs, cases).overall[metric].value)
    assert selection_value(outputs, cases, metric=metric) == headline_value(outputs, cases)
