"""How long judging takes: resampled areas beside a plain loop, and all closed-form comparisons of a split.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/judging.py            # writes benchmarks/judging.csv

Made-up answers of two models; only speed is looked at. One core. Ours and the plain loop are timed in
alternation on the same resamples of subjects, and a pair gives one ratio; above 1 is faster. The loop draws
subjects, joins their rows and asks `sklearn.metrics.roc_auc_score`. It does a tenth of the resamples, and
its time is counted tenfold.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

from pastille.devices import this_machine
from pastille.stats.auroc import auroc_resamples
from pastille.stats.bootstrap import draws
from pastille.stats.forms import Form, Ranking, Share
from pastille.stats.paired import compare

HERE = Path(__file__).parent
RESAMPLES = 2000
SHORTER = 10  # the plain loop does this part of the resamples
PAIRS = 5
CASES, SUBJECTS = 10_000, 2_500
BIG, GROUPS = 100_000, 10


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def answers(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, and the scores of two models that mostly agree, ``(N,)`` each."""
    rng = np.random.default_rng(0)
    truth = rng.random(n) < 0.2
    baseline = rng.normal(size=n) + 2.0 * truth
    return truth, baseline, baseline + 0.1 * rng.normal(size=n)


def plain_loop(scores: np.ndarray, truth: np.ndarray, subjects: np.ndarray, resamples: int) -> list[float]:
    rows_of = np.split(np.argsort(subjects, kind="stable"), np.cumsum(np.bincount(subjects))[:-1])
    rng = np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        rows = np.concatenate([rows_of[s] for s in rng.integers(0, len(rows_of), len(rows_of))])
        found.append(roc_auc_score(truth[rows], scores[rows]))
    return found


def by_weights(scores: np.ndarray, truth: np.ndarray, subjects: np.ndarray, resamples: int) -> np.ndarray:
    chunks = draws(len(scores), clusters=subjects, resamples=resamples)
    return np.concatenate([auroc_resamples(scores, truth, times) for times in chunks])


def resampled_areas() -> dict[str, object]:
    truth, scores, _ = answers(CASES)
    subjects = np.arange(CASES) % SUBJECTS
    loop = plain_loop(scores, truth, subjects, RESAMPLES // SHORTER)
    ours = by_weights(scores, truth, subjects, RESAMPLES // SHORTER)
    assert np.allclose(loop, ours), "the same subjects are drawn, so the areas are the same"
    pairs = [
        (
            seconds(lambda: by_weights(scores, truth, subjects, RESAMPLES)),
            SHORTER * seconds(lambda: plain_loop(scores, truth, subjects, RESAMPLES // SHORTER)),
        )
        for _ in range(PAIRS)
    ]
    ratios = [theirs / mine for mine, theirs in pairs]
    return {
        "what": f"{RESAMPLES} resamples by subject of AUROC",
        "cases": CASES,
        "seconds": round(float(np.median([mine for mine, _ in pairs])), 3),
        "beside": f"loop over roc_auc_score, scikit-learn {sklearn.__version__}",
        "beside_seconds": round(float(np.median([theirs for _, theirs in pairs])), 2),
        "ratio": round(float(np.median(ratios)), 1),
        "lowest_ratio": round(min(ratios), 1),
        "runs": PAIRS,
    }


def forms(scores: np.ndarray, truth: np.ndarray) -> dict[str, Form]:
    called, everyone = scores > 1.0, np.ones(len(truth), bool)
    return {
        "accuracy": Share(hits=called == truth, among=everyone),
        "sensitivity": Share(hits=called & truth, among=truth),
        "specificity": Share(hits=~called & ~truth, among=~truth),
        "auroc": Ranking(scores=scores, truth=truth, among=everyone),
    }


def closed_forms(repeated: bool) -> dict[str, object]:
    truth, baseline, candidate = answers(BIG)
    group = np.arange(BIG) % GROUPS
    subjects = np.arange(BIG) // 2 if repeated else None

    def judge() -> int:
        before, after = forms(baseline, truth), forms(candidate, truth)
        masks = [np.ones(BIG, bool), *(group == g for g in range(GROUPS))]
        found = [
            compare(
                before[m].within(rows), after[m].within(rows), metric=m, subjects=subjects, confidence=0.95
            )
            for m in before
            for rows in masks
        ]
        return len(found)

    runs = [seconds(judge) for _ in range(PAIRS)]
    return {
        "what": f"{4 * (GROUPS + 1)} comparisons, overall and of {GROUPS} groups"
        + (", two cases per subject" if repeated else ""),
        "cases": BIG,
        "seconds": round(float(np.median(runs)), 3),
        "beside": "",
        "beside_seconds": "",
        "ratio": "",
        "lowest_ratio": "",
        "runs": PAIRS,
    }


def rows() -> Iterator[dict[str, object]]:
    conditions = asdict(this_machine(threads=1, runtime="numpy", runtime_version=np.__version__))
    for row in (resampled_areas(), closed_forms(False), closed_forms(True)):
        yield row | conditions


def main() -> None:
    found = list(rows())
    with (HERE / "judging.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    for row in found:
        beside = f", {row['ratio']}× a {row['beside']}" if row["ratio"] else ""
        print(f"{row['what']}, {row['cases']} cases: {row['seconds']} s{beside}")


if __name__ == "__main__":
    main()
