from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pastille.stats.metrics import headline_value, score
from pastille.stats.validity import check_cases
from pastille.values import Cases, Kind


def _cases(kind: Kind, targets: np.ndarray, labels: tuple[str, ...] = ("a", "b", "c")) -> Cases:
    return Cases(kind=kind, split="test", targets=targets, labels=labels)


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (
            _cases("multiclass", np.array([0, 1, 3])),
            "targets must be between 0 and 2, indices of the labels a, b, c, got 3 at case 2 (1 of 3)",
        ),
        (
            _cases("multiclass", np.array([0, -1, -1])),
            "targets must be between 0 and 2, indices of the labels a, b, c, got -1 at case 1 (2 of 3)",
        ),
        (
            _cases("multilabel", np.array([[0, 1, 2]])),
            "targets must be between 0 and 1, absent or present, got 2 at case 0 (1 of 3)",
        ),
        (
            _cases("segmentation", np.full((2, 3, 3), 255)),
            "targets must be between 0 and 2, indices of the labels a, b, c, got 255 at case 0 (18 of 18)",
        ),
        (
            _cases("binary", np.array([0.0, 1.0]), ("a", "b")),
            "targets of a binary task must be whole numbers, got float64",
        ),
        (
            _cases("regression", np.array([1.0, np.nan]), ()),
            "targets must be finite, got nan at case 1 (1 of 2)",
        ),
        (
            _cases("multiclass", np.zeros((4, 1), int)),
            "targets of a multiclass task must have 1 axis, got shape (4, 1)",
        ),
        (
            _cases("segmentation", np.zeros((4, 5), int)),
            "targets of a segmentation task must have 3 axes, got shape (4, 5)",
        ),
        (
            _cases("multilabel", np.zeros((4, 2), int)),
            "targets must have one column per label, got (4, 2) for 3",
        ),
        (_cases("custom", np.zeros(0), ()), "cases must hold at least one case"),
        (
            replace(_cases("regression", np.arange(3.0), ()), subjects=np.arange(4)),
            "subjects must have one entry per case, got (4,) for 3 cases",
        ),
        (
            replace(_cases("regression", np.arange(3.0), ()), groups={"sex": np.array(["f"])}),
            "groups['sex'] must have one entry per case, got (1,) for 3 cases",
        ),
    ],
)
def test_cases_that_cannot_be_used(cases: Cases, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        check_cases(cases)
    assert str(raised.value) == message


def test_a_long_list_of_labels_is_cut_short() -> None:
    many = tuple(map(str, range(1000)))
    with pytest.raises(ValueError, match="labels 0, 1, 2, 3, 4, 5, 6, 7, …, got 1000 at case 0"):
        check_cases(_cases("multiclass", np.array([1000]), many))


def test_targets_outside_the_labels_are_refused_before_anything_is_scored() -> None:
    with pytest.raises(ValueError, match="got 2 at case 1"):
        score(np.zeros(2), _cases("binary", np.array([0, 2]), ("a", "b")))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("binary", (4,)), ("multiclass", (4, 3)), ("multilabel", (4, 3)), ("regression", (4,))],
)
def test_one_value_that_is_not_finite_is_refused(kind: Kind, shape: tuple[int, ...]) -> None:
    targets = {"multilabel": np.eye(4, 3, dtype=int), "regression": np.arange(4.0)}.get(
        kind, np.arange(4) % 2
    )
    labels = {"binary": ("a", "b"), "regression": ()}.get(kind, ("a", "b", "c"))
    outputs = np.zeros(shape)
    outputs[(1,) * len(shape)] = np.inf
    with pytest.raises(
        ValueError, match=f"outputs must be finite, got NaN or infinity in 1 of {outputs.size}"
    ):
        score(outputs, _cases(kind, targets, labels))


def test_constant_predictions_rank_by_chance_and_have_an_interval() -> None:
    cases = _cases("binary", np.arange(60) % 2, ("a", "b"))
    found = score(np.zeros(60), cases).overall
    assert found["auroc"].value == 0.5
    interval = found["auroc"].interval
    assert interval is not None
    assert 0.3 < interval.low < 0.5 < interval.high < 0.7
    assert found["average_precision"].value == 0.5
    several = score(np.zeros((60, 3)), _cases("multiclass", np.arange(60) % 3)).overall
    assert several["auroc"].value == 0.5
    assert several["auroc"].interval is not None
    assert several["auroc"].interval.low < 0.5


def test_no_positive_case() -> None:
    cases = replace(
        _cases("binary", np.zeros(9, int), ("a", "b")), groups={"sex": np.repeat(["f", "m"], [4, 5])}
    )
    metrics = score(np.linspace(-1, 1, 9), cases)
    assert set(metrics.overall) == {"accuracy", "balanced_accuracy", "specificity"}
    assert set(metrics.groups["sex"]["f"]) == {"accuracy", "specificity"}
    assert set(metrics.per_class) == {"a"}


@pytest.mark.parametrize(
    ("kind", "outputs", "targets"),
    [
        ("multiclass", np.array([[0.0, 1.0, 2.0]]), np.array([2])),
        ("multilabel", np.array([[0.0, 1.0, 2.0]]), np.array([[0, 1, 1]])),
        ("segmentation", np.zeros((1, 3, 2, 2)), np.ones((1, 2, 2), int)),
    ],
)
def test_one_case_is_scored_and_bounded_where_it_can_be(
    kind: Kind, outputs: np.ndarray, targets: np.ndarray
) -> None:
    metrics = score(outputs, _cases(kind, targets))
    assert metrics.n == 1
    assert "auroc" not in metrics.overall
    for name, found in metrics.overall.items():
        assert 0 <= found.value <= 1, name
        if "BCa" in found.method:
            assert found.interval is None, name


def test_labels_that_are_all_there_or_all_absent_have_no_headline() -> None:
    with pytest.raises(
        ValueError, match="targets must have a label that is present in some cases and absent"
    ):
        headline_value(np.zeros((4, 3)), _cases("multilabel", np.tile([0, 1, 1], (4, 1))))
