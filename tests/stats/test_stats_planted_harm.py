"""A candidate that harms one group while the average stays: the gate must see it, and see no ghosts."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pastille.gates.groups import gap_checks, group_checks
from pastille.stats.fairness import fairness
from pastille.stats.kinds import forms
from pastille.values import Cases, Check, Fairness, Status

LIMITS = {"sensitivity": 0.02}
BANDS = ("<45", "45-64", ">=65")
SHARES = (0.06, 0.14, 0.25, 0.25, 0.3)  # of five age bands; the first one is harmed
HAM10000 = Path(__file__).parents[3] / "shared" / "data" / "ham10000_128.zip"


def _patients(rng: np.random.Generator, size: int) -> Cases:
    return Cases(
        kind="binary",
        split="test",
        targets=rng.integers(0, 2, size),
        labels=("healthy", "ill"),
        positive=(1,),
        groups={
            "age_band": rng.choice([f"{20 * i}-{20 * i + 19}" for i in range(5)], size, p=SHARES),
            "sex": rng.choice(["female", "male"], size),
        },
    )


def _answers(rng: np.random.Generator, cases: Cases, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a baseline that is right in 90 %, and of a candidate that misses ``loss`` more positives.

    Beside that, 1 % of the cases change in either direction by chance.
    """
    size, truth = len(cases.targets), cases.targets == 1
    right, chance = rng.random(size) < 0.9, rng.random(size)
    missed = truth & right & (chance < (loss + 0.01) / 0.9)
    found = truth & ~right & (chance < 0.01 / 0.1)
    before = np.where(right == truth, 1.0, -1.0)
    return before, np.where(missed, -1.0, np.where(found, 1.0, before))


def _compare(
    cases: Cases, logits: tuple[np.ndarray, np.ndarray], *, intersections: bool = True
) -> tuple[Fairness, ...]:
    before, after = (forms(x, cases).overall for x in logits)
    asked = {name: (before[name], after[name]) for name in ("sensitivity", "specificity", "accuracy")}
    one, other = ({name: pair[side] for name, pair in asked.items()} for side in (0, 1))
    return fairness(one, other, cases, by=list(cases.groups), intersections=intersections, min_group=30)


def _checks(found: tuple[Fairness, ...]) -> tuple[Check, ...]:
    return group_checks(found, limits=LIMITS, min_group=30, confidence=0.95)


def _harmed(checks: tuple[Check, ...]) -> list[dict[str, str]]:
    return [dict(check.where) for check in checks if check.status is Status.REJECTED]


def test_a_small_group_that_loses_fifteen_points_is_named_while_the_average_stays() -> None:
    """One group of 6 % of 6,000 cases, among 17 groups with the intersections.

    Of 200 repeats 197 name it, and none names another; accuracy falls by 0.45 points on average.
    """
    runs, named, shifts = 40, 0, []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        cases = _patients(rng, 6000)
        loss = np.where(cases.groups["age_band"] == "0-19", 0.15, 0.0)
        before, after = _answers(rng, cases, loss)
        shifts.append(np.mean((before > 0) == cases.targets) - np.mean((after > 0) == cases.targets))
        harmed = _harmed(_checks(_compare(cases, (before, after))))
        named += {"age_band": "0-19"} in harmed
        assert all(where.get("age_band") == "0-19" for where in harmed), seed
    assert abs(float(np.mean(shifts))) < 0.005
    assert named >= 0.95 * runs


@pytest.mark.parametrize(("drop", "nominal"), [(0.0, 0.0), (0.02, 0.025)])
def test_no_group_is_named_by_chance_more_often_than_the_level_allows(drop: float, nominal: float) -> None:
    """The candidate truly loses nothing, or exactly the limit in every group at once."""
    runs, named, passed = 60, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(1000 + seed)
        cases = _patients(rng, 6000)
        logits = _answers(rng, cases, np.full(6000, drop))
        checks = _checks(_compare(cases, logits, intersections=False))
        named += bool(_harmed(checks))
        passed += all(check.status is Status.APPROVED for check in checks)
    allowed = nominal * runs + 2.6 * (runs * nominal * (1 - nominal)) ** 0.5
    assert named <= allowed
    assert drop == 0 or passed <= allowed


def _ham10000() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """8×8 colour thumbnails with age at the end ``(N, 193)``, malignancy and age in years ``(N,)``."""
    with zipfile.ZipFile(HAM10000) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("metadata.csv"))))
        rows = [row for row in rows if row["age"]]
        thumbnails = [_thumbnail(archive.read(f"images/{row['image_id']}.jpg")) for row in rows]
    age = np.array([float(row["age"]) for row in rows])
    malignant = np.array([int(row["malignant"]) for row in rows])
    return np.column_stack([np.stack(thumbnails), age]), malignant, age


def _thumbnail(jpeg: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(jpeg))
    image.draft("RGB", (16, 16))  # lets the decoder shrink: ten times faster
    return np.asarray(image.convert("RGB").resize((8, 8)), np.float64).ravel() / 255


@pytest.mark.skipif(not HAM10000.exists(), reason="needs ../shared/data")
def test_an_activation_range_that_clips_the_old_is_caught_on_ham10000() -> None:
    """A malignancy model on thumbnails and age, whose "quantized" form clips age at 60.

    As int8 does when calibrated on a sample without old patients. Accuracy *rises*, since fewer of the old
    are called malignant; their sensitivity falls. 65 and above are named, nobody else.
    """
    inputs, malignant, age = _ham10000()
    train = np.random.default_rng(0).random(len(age)) < 0.4
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, class_weight="balanced"))
    model.fit(inputs[train], malignant[train])
    # Found on the training part: the threshold that catches 85 % of the malignant ones.
    threshold = np.quantile(model.decision_function(inputs[train & (malignant == 1)]), 0.15)
    clipped = inputs.copy()
    clipped[:, -1] = np.minimum(clipped[:, -1], 60)
    logits = tuple(model.decision_function(x[~train]) - threshold for x in (inputs, clipped))
    cases = Cases(
        kind="binary",
        split="test",
        targets=malignant[~train],
        labels=("benign", "malignant"),
        positive=(1,),
        groups={"age_band": np.array(BANDS)[np.digitize(age[~train], [45, 65])]},
    )
    right = [np.mean((x >= 0) == cases.targets) for x in logits]
    assert right[1] >= right[0]  # the average tells nothing
    found = _compare(cases, (logits[0], logits[1]))
    checks = _checks(found)
    assert _harmed(checks) == [{"age_band": ">=65"}]
    assert found[0].worst == ">=65"
    (harm,) = (check for check in checks if check.status is Status.REJECTED)
    assert harm.drop is not None
    assert harm.drop > 0.08
    assert harm.reason.startswith("sensitivity of age band >=65 fell by 1")
    growth = {check.metric: check for check in gap_checks(found, limit=0.02, min_group=30)}
    # Those best served were the ones harmed: both gaps shrink, and no gap alone would have told.
    assert set(growth) == {"equalized odds difference", "equal opportunity gap"}
    assert all(check.drop is not None and check.drop < 0 for check in growth.values())
