from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.stats.bootstrap import bca_of_sums, resample_sums
from pastille.stats.clusters import effective_cases, has_repeats
from pastille.stats.proportions import tango_upper, wilson

LIMIT = 0.02


def _changes(rng: np.random.Generator, subjects: np.ndarray, wrong: float, right: float) -> np.ndarray:
    """1 newly wrong, -1 newly right, 0 as before; cases of one subject mostly go the same way."""
    own, shared = rng.random(len(subjects)), rng.random(subjects.max() + 1)[subjects]
    u = np.where(rng.random(len(subjects)) < 0.6, shared, own)
    return np.where(u < wrong, 1, np.where(u < wrong + right, -1, 0))


def _uppers(changes: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Upper ends for many runs ``(runs, N)`` at once: one by one they take ten times as long."""
    worth = np.array([effective_cases(row, subjects, rare=row != 0, confidence=0.95) for row in changes])
    shrink = worth / changes.shape[1]
    wrong, right = ((changes == way).sum(axis=1) * shrink for way in (1, -1))
    return tango_upper(wrong, right, worth, 0.95)


@pytest.mark.parametrize(
    ("count", "each", "extra"), [(50, 2, 0.0), (100, 2, 0.01), (100, 5, 0.01), (200, 4, 0.0), (1000, 2, 0.01)]
)
def test_at_a_drop_equal_to_the_limit_few_are_approved(count: int, each: int, extra: float) -> None:
    rng = np.random.default_rng(30)
    subjects = np.repeat(np.arange(count), each)
    runs = 2000
    changes = np.array([_changes(rng, subjects, LIMIT + extra, extra) for _ in range(runs)])
    assert np.mean(_uppers(changes, subjects) <= LIMIT) <= 0.025 + 2.6 * np.sqrt(0.025 * 0.975 / runs)


def test_why_no_bootstrap_by_subject_decides_on_shares() -> None:
    """It approves without a single disagreement, and far too often with few."""
    rng = np.random.default_rng(31)
    subjects = np.repeat(np.arange(50), 2)

    def bootstrapped(change: np.ndarray) -> float:
        sums = resample_sums(np.column_stack([change, np.ones(100)]), clusters=subjects, resamples=200)
        interval = bca_of_sums(sums, lambda s: s[..., 0] / s[..., 1], confidence=0.95)
        return interval.high if interval else np.inf

    approved = np.mean([bootstrapped(_changes(rng, subjects, LIMIT, 0.0)) <= LIMIT for _ in range(200)])
    assert approved > 0.1


def test_wilson_on_effective_cases_covers_the_true_share() -> None:
    rng = np.random.default_rng(32)
    subjects = np.repeat(np.arange(100), 3)
    covered = 0
    for _ in range(1000):
        hits = _changes(rng, subjects, 0.07, 0.0) == 0
        worth = effective_cases(hits, subjects, rare=~hits, confidence=0.95)
        interval = wilson(hits.mean() * worth, worth, 0.95)
        covered += interval.low <= 0.93 <= interval.high
    assert 0.935 <= covered / 1000 <= 0.985


def test_cases_that_always_agree_are_one() -> None:
    subjects = np.repeat(np.arange(40), 3)
    values = np.repeat(np.arange(40) % 4 == 0, 3).astype(float)
    assert effective_cases(values, subjects, rare=values == 1, confidence=0.95) == pytest.approx(40)


def test_independent_cases_stay_nearly_all() -> None:
    rng = np.random.default_rng(33)
    subjects, values = np.repeat(np.arange(5000), 2), rng.random(10_000) < 0.3
    assert effective_cases(values, subjects, rare=values, confidence=0.95) > 9400


def test_without_a_rare_case_each_subject_counts_once() -> None:
    subjects = np.repeat(np.arange(10), 4)
    assert effective_cases(np.ones(40), subjects, rare=np.zeros(40, bool), confidence=0.95) == 10


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from([-1, 0, 1])), min_size=1, max_size=60))
def test_never_more_than_the_cases_nor_less_than_one(rows: list[tuple[int, int]]) -> None:
    subjects, values = (np.array(column) for column in zip(*rows, strict=True))
    worth = effective_cases(values, subjects, rare=values != 0, confidence=0.95)
    assert 1 - 1e-9 <= worth <= len(rows) + 1e-9


def test_repeats() -> None:
    assert not has_repeats(np.array([], str))
    assert not has_repeats(np.array(["b", "a"]))
    assert has_repeats(np.array(["b", "b"]))


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one entry per case, got 2, 3 and 2"):
        effective_cases(np.zeros(2), np.zeros(3), rare=np.zeros(2, bool), confidence=0.95)
    with pytest.raises(ValueError, match="one entry per case, got 0, 0 and 0"):
        effective_cases(np.zeros(0), np.zeros(0), rare=np.zeros(0, bool), confidence=0.95)
