from __future__ import annotations

import re

import numpy as np
import pytest
from data_samples import BINARY, NUMBER, THREE, split_of, splits_of

from pastille.data.cases import cases
from pastille.data.checks import SplitDescription, check_targets, describe, require_finite
from pastille.data.split import Split
from pastille.errors import DataError
from pastille.recipe import TaskSection


@pytest.mark.parametrize("task", [BINARY, THREE, NUMBER])
def test_sound_targets_pass(task: TaskSection) -> None:
    check_targets(splits_of(), task)


def numbers(*values: float) -> Split:
    return split_of(values)


@pytest.mark.parametrize(
    ("split", "task", "message"),
    [
        (numbers(), BINARY, "split test is empty; it needs at least one case of two different targets"),
        (
            numbers(1, 1, 1),
            BINARY,
            "split test has one class only: all 3 cases are 'malignant'; it needs cases of",
        ),
        (numbers(0, 0), THREE, "split test has one class only: all 2 cases are 'cat'"),
        (
            numbers(0, 2, 1),
            BINARY,
            "target test[1] is 2, but must be between 0 and 1, an index into task.labels (benign, malignant)",
        ),
        (numbers(0, 1, -1), THREE, "target test[2] is -1, but must be between 0 and 2"),
        (
            numbers(0.0, 1.0),
            BINARY,
            "targets of test must be integer class indices, got float64; convert them",
        ),
        (split_of([0, 1]), NUMBER, ""),
        (
            numbers(1.0, np.nan, np.inf),
            NUMBER,
            "target test[1] is nan, as 2 of 3 are not finite; remove such cases",
        ),
        (numbers(2.5, 2.5), NUMBER, "all 2 targets of test are 2.5; they must differ"),
    ],
)
def test_bad_targets_are_named(split: Split, task: TaskSection, message: str) -> None:
    splits = splits_of(test=split)
    if not message:
        check_targets(splits, task)
        return
    with pytest.raises(DataError, match=re.escape(message)):
        check_targets(splits, task)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_one_class_only_is_refused_in_every_split(name: str) -> None:
    with pytest.raises(DataError, match=f"split {name} has one class only"):
        check_targets(splits_of(**{name: split_of([0, 0, 0])}), BINARY)


@pytest.mark.parametrize("task", [BINARY, NUMBER])
def test_targets_of_the_wrong_shape(task: TaskSection) -> None:
    column = Split(inputs=[0.0] * 4, targets=np.array([[0], [1], [0], [1]]))
    with pytest.raises(
        DataError, match=r"targets of train must have shape \(N,\), one per case, got \(4, 1\)"
    ):
        check_targets(splits_of(train=column), task)


def test_targets_that_are_text() -> None:
    text = Split(inputs=[0.0] * 2, targets=np.array(["a", "b"]))
    with pytest.raises(DataError, match="targets of train must be numbers for a regression task, got <U1"):
        check_targets(splits_of(train=text), NUMBER)
    with pytest.raises(DataError, match="targets of train must be integer class indices, got <U1"):
        check_targets(splits_of(train=text), BINARY)


def test_finite_inputs_and_integers_pass() -> None:
    require_finite(np.array([1, 2]), name="x", where="train[0]")
    require_finite(np.array([1.0, 2.0]), name="x", where="train[0]")


def test_describe_counts_without_rows() -> None:
    split = split_of(
        [0, 2, 2],
        subjects=np.array(["a", "b", "b"]),
        groups={"sex": np.array(["F", "M", "F"]), "ward": np.array([1, 2, 2])},
    )
    assert describe(split, THREE.labels) == SplitDescription(
        n=3,
        subjects=2,
        classes={"cat": 1, "dog": 0, "fox": 2},
        groups={"sex": {"F": 2, "M": 1}, "ward": {"1": 1, "2": 2}},
    )


def test_describe_a_regression_split() -> None:
    assert describe(split_of([0.5, 1.5]), []) == SplitDescription(n=2, subjects=None, classes={}, groups={})


def test_cases_of_classes() -> None:
    split = split_of([0, 1], groups={"age": np.array([45, 65])}, subjects=np.array(["a", "b"]))
    task = BINARY.model_copy(update={"threshold": 0.3})
    found = cases(split, "test", task)
    assert (found.kind, found.split, found.labels, found.positive) == (
        "binary",
        "test",
        ("benign", "malignant"),
        (1,),
    )
    assert found.threshold == 0.3
    assert found.targets.dtype == np.int64
    assert found.groups["age"].tolist() == ["45", "65"]
    assert found.subjects is split.subjects


def test_cases_of_numbers() -> None:
    found = cases(split_of([1, 2]), "validation", NUMBER)
    assert found.targets.dtype == np.float64
    assert (found.labels, found.positive) == ((), ())


def test_named_positives_are_found() -> None:
    task = THREE.model_copy(update={"positive": ["fox", "dog"]})
    assert cases(split_of([0, 1, 2]), "train", task).positive == (2, 1)
