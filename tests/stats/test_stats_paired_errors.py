"""At a true drop equal to the limit, how often the comparison would approve: at most 2.5 % at 95 %.

Each test is the reduced form of a larger simulation; seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import norm

from pastille.stats.forms import Form, MeanOfShares, OfSums, Ranking, Share
from pastille.stats.paired import compare

Draw = Callable[[np.random.Generator], tuple[Form, Form]]


def _approved(draw: Draw, limit: float, *, runs: int, subjects: np.ndarray | None = None) -> float:
    rng = np.random.default_rng(40)
    highs = []
    for _ in range(runs):
        before, after = draw(rng)
        found = compare(before, after, metric="any", subjects=subjects, confidence=0.95)
        highs.append(found.interval.high if found.interval else np.inf)
    return float(np.mean(np.array(highs) <= limit))


def _tolerated(runs: int) -> float:
    """2.5 %, and what chance adds to it in so many runs."""
    return float(0.025 + 2.6 * np.sqrt(0.025 * 0.975 / runs))


def _normals(rng: np.random.Generator, n: int, each: int) -> np.ndarray:
    """Standard normal, half of the variance shared by the cases of a subject."""
    if each == 1:
        return rng.normal(size=n)
    both: np.ndarray = np.sqrt(0.5) * (np.repeat(rng.normal(size=n // each), each) + rng.normal(size=n))
    return both


def _uniforms(rng: np.random.Generator, n: int, each: int) -> np.ndarray:
    """Uniform; cases of one subject mostly have the same."""
    shared = np.repeat(rng.random(n // each), each)
    return np.where((rng.random(n) < 0.6) & np.full(n, each > 1), shared, rng.random(n))


def _ranking(scores: np.ndarray, truth: np.ndarray) -> Ranking:
    return Ranking(scores=scores, truth=truth, among=np.ones(len(truth), bool))


@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("n", "limit"), [(200, 0.05), (1000, 0.02)])
def test_auroc_of_correlated_scores(n: int, limit: float, each: int, mixed: bool) -> None:
    truth = np.arange(n) % 5 < 2 if mixed else np.arange(n) < 0.4 * n  # or one class per subject
    apart = np.sqrt(2) * norm.ppf([0.9, 0.9 - limit])

    def draw(rng: np.random.Generator) -> tuple[Form, Form]:
        one, other = _normals(rng, n, each), _normals(rng, n, each)
        return (
            _ranking(one + apart[0] * truth, truth),
            _ranking(0.95 * one + np.sqrt(1 - 0.95**2) * other + apart[1] * truth, truth),
        )

    runs = 400
    subjects = np.arange(n) // each
    assert _approved(draw, limit, runs=runs, subjects=subjects) <= _tolerated(runs)


@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize("falling", ["positives", "negatives"])
@pytest.mark.parametrize(("n", "limit"), [(200, 0.02), (1000, 0.01), (1000, 0.05)])
def test_auroc_where_a_few_cases_fall_out_of_order(n: int, limit: float, each: int, falling: str) -> None:
    truth = np.arange(n) < 0.5 * n
    apart, share = np.sqrt(2) * norm.ppf(0.9), limit / 0.9
    hit, far = (truth, -50.0) if falling == "positives" else (~truth, 50.0)

    def draw(rng: np.random.Generator) -> tuple[Form, Form]:
        scores = _normals(rng, n, each) + apart * truth
        fallen = np.repeat(rng.random(n // each) < share, each) & hit
        after = np.where(fallen, far, scores + 0.02 * rng.normal(size=n))
        return _ranking(scores, truth), _ranking(after, truth)

    runs = 600
    subjects = np.arange(n) // each
    assert _approved(draw, limit, runs=runs, subjects=subjects) <= _tolerated(runs)


@pytest.mark.parametrize("each", [1, 2, 5])
@pytest.mark.parametrize("sizes", [(100, 900), (500, 500), (100,) * 10])
@pytest.mark.parametrize(("wrong", "right"), [(0.02, 0.0), (0.12, 0.1)])
@pytest.mark.parametrize("where", ["all", "first"])
def test_balanced_accuracy(sizes: tuple[int, ...], wrong: float, right: float, each: int, where: str) -> None:
    """Cases of a subject, which mostly go the same way, are of one class and of the next."""
    count, n = len(sizes), sum(sizes)
    truth = np.random.default_rng(41).permutation(np.repeat(np.arange(count), sizes))
    if where == "first":
        wrong, right = min(0.5, wrong * count), min(0.4, right * count)
    hit = truth == 0 if where == "first" else np.ones(n, bool)
    limit = (wrong - right) / (count if where == "first" else 1)

    def form(hits: np.ndarray) -> MeanOfShares:
        parts = {str(k): truth == k for k in range(count)}
        return MeanOfShares(parts={k: Share(hits=hits & rows, among=rows) for k, rows in parts.items()})

    def draw(rng: np.random.Generator) -> tuple[Form, Form]:
        u = np.where(hit, _uniforms(rng, n, each), 1.0)
        before, after = u >= wrong + right, u >= wrong + right
        return form(before | (u < wrong)), form(after | ((u >= wrong) & (u < wrong + right)))

    runs = 300
    subjects = np.arange(n) // each
    assert _approved(draw, limit, runs=runs, subjects=subjects) <= _tolerated(runs)


def _f1(decided: np.ndarray, truth: np.ndarray) -> OfSums:
    def statistic(s: np.ndarray) -> np.ndarray:
        value: np.ndarray = 2 * s[..., 0] / (s[..., 1] + s[..., 2])
        return value

    columns = np.column_stack([decided & truth, decided, truth]).astype(float)
    return OfSums(columns=columns, among=np.ones(len(truth), bool), statistic=statistic)


@pytest.mark.parametrize(("n", "each"), [(200, 1), (600, 1), (600, 3)])
@pytest.mark.parametrize("right", [1.0, 0.9])
@pytest.mark.parametrize("broken", [0.02, 0.05])
def test_f1(n: int, each: int, right: float, broken: float) -> None:
    """Few cases change, often none, of models that are always right or nearly so."""

    def decided(rng: np.random.Generator, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        correct = _uniforms(rng, len(truth), each) < right
        harmed = correct & (_uniforms(rng, len(truth), each) < broken)
        before = np.where(correct, truth, ~truth)
        return before, before ^ harmed

    many = np.random.default_rng(42).random(300_000) < 0.3
    whole = [_f1(d, many).columns.sum(axis=0) for d in decided(np.random.default_rng(43), many)]
    limit = float(np.subtract(*(2 * s[0] / (s[1] + s[2]) for s in whole)))

    def draw(rng: np.random.Generator) -> tuple[Form, Form]:
        truth = rng.random(n) < 0.3
        before, after = decided(rng, truth)
        return _f1(before, truth), _f1(after, truth)

    runs = 60
    assert _approved(draw, limit, runs=runs, subjects=np.arange(n) // each) <= 2 / runs


def _errors(errors: np.ndarray, targets: np.ndarray, metric: str) -> OfSums:
    columns = np.column_stack([np.ones(len(errors)), errors**2, targets, targets**2])

    def statistic(s: np.ndarray) -> np.ndarray:
        if metric == "rmse":
            return np.asarray(np.sqrt(s[..., 1] / s[..., 0]))
        return np.asarray(1 - s[..., 1] / (s[..., 3] - s[..., 2] ** 2 / s[..., 0]))

    return OfSums(
        columns=columns,
        among=np.ones(len(errors), bool),
        statistic=statistic,
        higher_is_better=metric == "r2",
    )


@pytest.mark.parametrize("metric", ["r2", "rmse"])
@pytest.mark.parametrize(("n", "each"), [(100, 1), (400, 1), (400, 4)])
@pytest.mark.parametrize("heavy", [False, True])
def test_errors_of_a_regression(metric: str, n: int, each: int, heavy: bool) -> None:
    """The plain bootstrap approves 3 to 6 %, with heavy tails up to 10 %."""

    def errors(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        scale = np.sqrt(5 / rng.chisquare(5, size)) if heavy else 1.0
        one, other = _normals(rng, size, each) * scale, _normals(rng, size, each) * scale
        return 0.5 * one, 0.525 * (0.95 * one + np.sqrt(1 - 0.95**2) * other)

    big = np.random.default_rng(44)
    before, after = (float((e**2).mean()) for e in errors(big, 2_000_000))
    limit = after - before if metric == "r2" else np.sqrt(after) - np.sqrt(before)

    def draw(rng: np.random.Generator) -> tuple[Form, Form]:
        targets = rng.normal(size=n)
        one, other = errors(rng, n)
        return _errors(one, targets, metric), _errors(other, targets, metric)

    runs = 120
    assert _approved(draw, float(limit), runs=runs, subjects=np.arange(n) // each) <= _tolerated(runs)
