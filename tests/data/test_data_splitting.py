from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pastille.data.split import SPLIT_NAMES
from pastille.data.splitting import split_indices, stratification
from pastille.errors import DataError
from pastille.recipe import Fractions
from pastille.values import SplitName

Parts = dict[SplitName, np.ndarray]
FRACTIONS = st.builds(Fractions, validation=st.floats(0.05, 0.45), test=st.floats(0.05, 0.45))


@st.composite
def labelled_subjects(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and subjects of a few hundred cases; every subject has cases of one label."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(3, 120))
    label_of = rng.integers(0, draw(st.integers(1, 5)), count)
    owner = np.concatenate([np.arange(count), rng.integers(0, count, draw(st.integers(0, 200)))])
    return label_of[owner], owner


def wanted(fractions: Fractions) -> dict[SplitName, float]:
    rest = 1 - fractions.validation - fractions.test
    return {"train": rest, "validation": fractions.validation, "test": fractions.test}


@settings(deadline=None)
@given(labelled_subjects(), FRACTIONS, st.integers(0, 5))
def test_disjoint_complete_sorted_and_no_subject_in_two(
    data: tuple[np.ndarray, np.ndarray], fractions: Fractions, seed: int
) -> None:
    labels, subjects = data
    parts = split_indices(len(labels), labels=labels, fractions=fractions, subjects=subjects, seed=seed)
    assert tuple(parts) == SPLIT_NAMES
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    assert all(part.size and np.all(np.diff(part) > 0) for part in parts.values())
    homes = [set(subjects[part].tolist()) for part in parts.values()]
    assert sum(map(len, homes)) == len(set.union(*homes))


@settings(deadline=None)
@given(labelled_subjects(), FRACTIONS)
def test_a_label_of_three_subjects_is_in_every_split(
    data: tuple[np.ndarray, np.ndarray], fractions: Fractions
) -> None:
    labels, subjects = data
    parts = split_indices(len(labels), labels=labels, fractions=fractions, subjects=subjects, seed=0)
    for label in set(labels.tolist()):
        if len(set(subjects[labels == label].tolist())) >= 3:
            assert all(label in labels[part] for part in parts.values())


@settings(deadline=None)
@given(st.lists(st.integers(6, 80), min_size=1, max_size=6), st.integers(0, 100))
def test_shares_of_single_cases_are_near(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    fractions = Fractions(validation=0.2, test=0.3)
    parts = split_indices(len(labels), labels=labels, fractions=fractions, subjects=None, seed=seed)
    for name, part in parts.items():
        counts = Counter(labels[part].tolist())
        for label, size in enumerate(sizes):
            assert abs(counts[label] - wanted(fractions)[name] * size) <= 2
        assert abs(len(part) - wanted(fractions)[name] * len(labels)) <= 2


def test_many_rare_labels_do_not_all_land_in_the_same_split() -> None:
    labels = np.repeat(np.arange(100), 2)
    parts = split_indices(200, labels=labels, fractions=Fractions(), subjects=None, seed=0)
    shares = {name: len(part) / 200 for name, part in parts.items()}
    assert shares == pytest.approx(wanted(Fractions()), abs=0.02)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 20))
def test_shares_of_mixed_subjects_are_near(seed: int) -> None:
    rng = np.random.default_rng(seed)
    subjects = rng.integers(0, 300, 2000)
    labels = (rng.random(2000) < rng.beta(1, 4, 300)[subjects]).astype(int)  # mixed within a subject
    parts = split_indices(2000, labels=labels, fractions=Fractions(), subjects=subjects, seed=seed)
    for name, part in parts.items():
        assert len(part) / 2000 == pytest.approx(wanted(Fractions())[name], abs=0.03)
        share = labels[part].sum() / labels.sum()
        assert share == pytest.approx(wanted(Fractions())[name], abs=0.03)


def test_a_seed_decides_and_repeats() -> None:
    labels = np.arange(100) % 2

    def train(seed: int, subjects: np.ndarray | None = None) -> list[int]:
        parts = split_indices(100, labels=labels, fractions=Fractions(), subjects=subjects, seed=seed)
        result: list[int] = parts["train"].tolist()
        return result

    assert train(1) == train(1) != train(2)
    assert train(1) == train(1, np.array([f"{i:03}" for i in range(100)]))


def test_known_answer() -> None:
    parts = split_indices(
        10,
        labels=np.array([0] * 5 + [1] * 5),
        fractions=Fractions(validation=0.2, test=0.2),
        subjects=None,
        seed=3,
    )
    assert {name: np.sort(part // 5).tolist() for name, part in parts.items()} == {
        "train": [0, 0, 0, 1, 1, 1],
        "validation": [0, 1],
        "test": [0, 1],
    }


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        (np.array(["a", "a", "b", "b"]), "at least 3 subjects to be split in three, got 2"),
        (None, "at least 3 cases to be split in three, got 2"),
    ],
)
def test_too_few(subjects: np.ndarray | None, message: str) -> None:
    n = 2 if subjects is None else len(subjects)
    with pytest.raises(DataError, match=f"the data must have {message}"):
        split_indices(n, labels=None, fractions=Fractions(), subjects=subjects, seed=0)


def test_numbers_are_stratified_by_quantile() -> None:
    targets = np.random.default_rng(0).lognormal(size=200)
    bins = stratification(targets, "regression")
    assert np.bincount(bins).tolist() == [20] * 10
    assert targets[bins == 0].max() < targets[bins == 1].min()


def test_few_or_equal_numbers_make_one_stratum() -> None:
    assert set(stratification(np.arange(5.0), "regression").tolist()) == {0}
    assert len(set(stratification(np.ones(50), "regression").tolist())) == 1


def test_a_rare_label_is_in_every_split_even_if_two_are_small() -> None:
    labels = np.array([0] * 200 + [1] * 3)
    small = Fractions(validation=0.05, test=0.05)
    parts = split_indices(203, labels=labels, fractions=small, subjects=None, seed=0)
    assert [int(labels[part].sum()) for part in parts.values()] == [1, 1, 1]
