"""Accounts of runs whose verdict rests on much evidence: groups, calibration, disagreement, stress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import report_records as records
from report_records import MARKUP, clock, number, share

from pastille.gates.findings import Findings
from pastille.gates.judge import judge_answers
from pastille.gates.verdict import verdict
from pastille.openings import Opening
from pastille.policy import Bar
from pastille.recipe.sections import CalibrationLimits, FairnessLimits
from pastille.record import (
    Event,
    FinalJudged,
    Record,
    StageFinished,
    Started,
    TaskLoaded,
    TestOpened,
    ThresholdChosen,
)
from pastille.values import (
    Calibration,
    Cases,
    Check,
    Comparison,
    Concentration,
    Disagreement,
    Evidence,
    Fairness,
    Gap,
    Interval,
    Invariance,
    ReliabilityBin,
    Status,
    StressCurve,
    StressPoint,
    Verdict,
)

OVERRIDE = (
    "Override by Dr. Ada Kern of risk tier 'high' (1 %): max_drop.sensitivity 2 %. "
    "Reason given: research use only"
)
LOOKED = "these test cases were opened 1 time before (2026-11-02, final gate of runs/earlier)"
HARM = "a group is harmed, though no fairness limit was asked for: sensitivity of sex female fell by 6 points"
NAN = float("nan")


def interval(middle: float, half: float) -> Interval:
    return Interval(low=middle - half, high=middle + half, confidence=0.95)


def curve(perturbation: str, excess: float, metric: str = "accuracy", top: float = 0.9) -> StressCurve:
    """Both models degrade; the candidate faster by ``excess`` for each severity."""
    points = tuple(
        StressPoint(
            severity=severity,
            baseline=share(round(500 * (top - 0.02 * severity)), 500),
            candidate=share(round(500 * (top - 0.005 - (0.02 + excess) * severity)), 500),
            excess=excess * severity,
            interval=interval(excess * severity, 0.012 + 0.004 * severity) if severity else None,
        )
        for severity in (0, 1, 3, 5)
    )
    return StressCurve(
        perturbation=perturbation,
        metric=metric,
        points=points,
        method="paired score interval",
        setting="standard deviation 0.02, 0.05, 0.1, 0.2, 0.4 of the range of values",
    )


CURVES = (
    curve("gaussian noise", 0.012),
    curve("blur", 0.001),
    curve("contrast", -0.002),
    curve("brightness", 0.004),
    curve("jpeg", 0.0),
    curve("rotation", 0.006, "sensitivity", 0.8),
)


def stress_check(of: StressCurve, status: Status) -> Check:
    worst = of.points[-1]
    return Check(
        metric=of.metric,
        status=status,
        limit=0.02,
        baseline=worst.baseline.value,
        candidate=worst.candidate.value,
        drop=worst.excess,
        interval=worst.interval,
        n=500,
        method=of.method,
        more_cases=None,
        reason=f"under {of.perturbation} it fell more than the baseline's",
        where={"perturbation": of.perturbation, "severity": "5"},
        adjusted_p=0.2,
    )


@cache
def simulated() -> Findings:
    """A candidate that is as good as the baseline on average, and misses women over 65."""
    rng = np.random.default_rng(3)
    n = 2003
    truth = (rng.random(n) < 0.195).astype(int)
    before = rng.normal(size=n) + 2.4 * truth - 1.6
    sex = np.where(rng.random(n) < 0.47, "female", "male")
    sex[:8] = "other"
    age = rng.choice(["under 45", "45 to 64", "65 and over"], n, p=[0.36, 0.38, 0.26])
    after = before + rng.normal(0, 0.06, n)
    after[(truth == 1) & (sex == "female") & (age == "65 and over")] -= 0.8
    cases = Cases(
        kind="binary",
        split="test",
        targets=truth,
        labels=("benign", "malignant"),
        positive=(1,),
        threshold=0.38,
        groups={"sex": sex, "age_band": age},
    )
    bar = Bar(
        max_drop={"accuracy": 0.02, "sensitivity": 0.02},
        confidence=0.95,
        fairness=FairnessLimits(
            by=["sex", "age_band"], max_drop={"accuracy": 0.02, "sensitivity": 0.05}, max_gap_increase=0.05
        ),
        calibration=CalibrationLimits(),
    )
    return judge_answers(before, after, cases=cases, bar=bar)


INVARIANCE = Invariance(
    cases=256,
    batch_sizes=(1, 2, 4, 32),
    threads=(1, 2),
    changed={"batch 2": 0, "batch 4": 0, "batch 32": 0, "2 threads": 0},
    max_abs_error=2.4e-6,
    batch_statistics=(),
)


def rich() -> Record:
    """The skin run, judged in every way that there is."""
    found = simulated()
    evidence = replace(found.evidence, stress=CURVES, invariance=INVARIANCE)
    if evidence.disagreement:
        evidence = replace(
            evidence, disagreement=replace(evidence.disagreement, file="final/disagreements.csv")
        )
    ok, unsure = Status.APPROVED, Status.INCONCLUSIVE
    others = records.skin().all(FinalJudged)[0].verdict.checks[2:]
    stressed = [stress_check(c, unsure if c is CURVES[0] else ok) for c in CURVES]
    said = verdict(
        (*found.checks, *others, *stressed), split="test", notes=(OVERRIDE, LOOKED), evidence=evidence
    )
    return judged(records.skin(), said)


def judged(record: Record, said: Verdict, **requirements: Any) -> Record:
    """A finished run with another verdict, a chosen threshold, and an earlier look at its test cases."""
    look = Opening(
        at="2026-11-02T10:11:12+00:00", purpose="final gate", by="runs/earlier", cases=2003, sketch=()
    )
    override = {"by": "Dr. Ada Kern", "reason": "research use only"}
    events: list[Event] = []
    for event in record.events:
        match event:
            case Started():
                asked = {**dict(event.recipe["requirements"]), **requirements}
                if said.notes and said.notes[0] == OVERRIDE:
                    asked["override"] = override
                events.append(replace(event, recipe={**event.recipe, "requirements": asked}))
            case TaskLoaded():
                events.append(event)
                events.append(
                    ThresholdChosen(
                        at=clock(30, 9),
                        threshold=0.3841,
                        reason="A case is called malignant from a probability of 0.3841 on, chosen on "
                        "validation for a sensitivity of at least 80 %: sensitivity 80.2 %",
                    )
                )
            case TestOpened():
                events.append(replace(event, earlier=(look,)))
            case FinalJudged():
                events.append(replace(event, verdict=said))
            case _:
                events.append(event)
    return replace(record, events=tuple(events))


def comparison(
    metric: str, where: Mapping[str, str], drop: float, half: float = 0.01, n: int = 200
) -> Comparison:
    return Comparison(
        metric=metric,
        where=where,
        n=n,
        baseline=number(0.9, 0.02, n),
        candidate=number(0.9 - drop, 0.02, n),
        drop=drop,
        interval=interval(drop, half),
        method="score interval",
        newly_wrong=5,
        newly_right=1,
        mcnemar=0.22,
    )


def limit_on(found: Comparison, limit: float, status: Status) -> Check:
    return Check(
        metric=found.metric,
        status=status,
        limit=limit,
        baseline=0.9,
        candidate=0.8,
        drop=found.drop,
        interval=found.interval,
        n=found.n,
        method=found.method,
        more_cases=None,
        reason="accuracy of this group fell by 1.0 points (95 % CI −0.2 to 2.1, 200 cases: 5 newly wrong, "
        "1 newly right), so the limit of 1 point is not shown to hold; about 300 more cases would decide",
        where=found.where,
        adjusted_p=0.3,
        mcnemar=found.mcnemar,
    )


def crowded(groups: int = 200, classes: int = 1000, name: str = "{}") -> Evidence:
    """Very many classes, groups, curves and bins."""
    of_classes = [
        comparison("recall", {"class": name.format(f"class {i}")}, 0.0001 * (i % 97)) for i in range(classes)
    ]
    values = [name.format(f"hospital {i}") for i in range(groups)]
    metrics = ("sensitivity", "specificity", "accuracy", "auroc", "underdiagnosis")
    fairness = tuple(
        Fairness(
            attribute=name.format(attribute),
            groups=tuple(
                comparison(m, {name.format(attribute): v}, 0.0002 * i - 0.01, n=20 + i)
                for m in metrics
                for i, v in enumerate(values)
            ),
            gaps=tuple(
                Gap(
                    attribute=name.format(attribute),
                    name=gap,
                    baseline=0.1,
                    candidate=0.2,
                    growth=0.1,
                    interval=interval(0.1, 0.05),
                    method="MOVER",
                    worst_before=values[0] if values else "",
                    worst_after=values[-1] if values else "",
                    left_out=dict.fromkeys(values[:9], 7),
                )
                for gap in ("equalized odds difference", "equal opportunity gap", "accuracy gap")
            ),
            too_small=dict.fromkeys(values[:9], 12),
            worst=values[-1] if values else "",
        )
        for attribute in ("site", "scanner", "site × scanner")
    )
    bins = tuple(
        ReliabilityBin(n=100, confidence=i / 50, observed=i / 50, interval=interval(i / 50, 0.02))
        for i in range(50)
    )
    pile = Concentration(
        attribute="site",
        value=name.format("a"),
        n=9,
        changed=3,
        elsewhere_n=99,
        elsewhere_changed=1,
        p_value=0.01,
        adjusted_p=0.04,
        sentence=name.format("Changed decisions pile up in site a: 3 of 9"),
    )
    return Evidence(
        comparisons=(comparison("accuracy", {}, 0.004), comparison("rmse", {}, 1.5, 0.7), *of_classes),
        fairness=fairness,
        calibration=Calibration(
            comparisons=tuple(comparison(m, {}, 0.01) for m in ("ece", "brier", "calibration_slope")),
            baseline_bins=bins,
            candidate_bins=bins,
            of=name.format("malignant"),
        ),
        disagreement=Disagreement(
            n=2003,
            changed=60,
            positive_to_negative=20,
            negative_to_positive=40,
            newly_wrong=35,
            newly_right=25,
            transitions=tuple((name.format(i), name.format(i + 1), 3) for i in range(400)),
            concentrations=(pile,) * 50,
            summary=name.format("60 of 2003 cases are decided otherwise"),
            file=name.format("final/disagreements.csv"),
        ),
        stress=tuple(curve(name.format(f"noise {i}"), 0.001 * i) for i in range(60)),
        invariance=replace(
            INVARIANCE, changed={name.format("batch 2"): 3}, batch_statistics=(name.format("bn"),) * 40
        ),
    )


def crowd(name: str = "{}", groups: int = 200, classes: int = 1000) -> Record:
    """Everything at once: 1,000 classes, 200 groups of three attributes, and a check for each."""
    found = crowded(groups, classes, name)
    status = (Status.APPROVED, Status.INCONCLUSIVE, Status.REJECTED)
    compared = [
        *found.comparisons,
        *(c for each in found.fairness for c in each.groups if c.metric == "accuracy"),
    ]
    checks = tuple(limit_on(c, 0.01, status[i % 3]) for i, c in enumerate(compared))
    checks += tuple(stress_check(c, Status.APPROVED) for c in found.stress)
    said = verdict(checks, split="test", notes=(OVERRIDE, *[HARM] * 40), evidence=found)
    labels = [name.format(f"class {i}") for i in range(classes)]
    return many_stages(many_groups(judged(records.with_labels(labels), said)))


def many_groups(record: Record) -> Record:
    """Metrics of 200 groups of three attributes."""
    of_group = {m: share(180, 200) for m in ("accuracy", "sensitivity")}
    groups = {a: {f"hospital {i}": of_group for i in range(200)} for a in ("site", "scanner", "region")}

    def grouped(event: FinalJudged) -> FinalJudged:
        before, after = (replace(m, groups=groups) for m in (event.baseline_metrics, event.candidate_metrics))
        return replace(event, baseline_metrics=before, candidate_metrics=after)

    return replace(
        record, events=tuple(grouped(e) if isinstance(e, FinalJudged) else e for e in record.events)
    )


def many_stages(record: Record) -> Record:
    """A hundred more stages before the last, each with the evidence of its own verdict."""
    stage = record.all(StageFinished)[0]
    evidence = record.all(FinalJudged)[0].verdict.evidence
    told = replace(stage, verdict=replace(stage.verdict, evidence=evidence))
    more = [replace(told, index=i) for i in range(4, 104)]
    return replace(record, events=(*record.events[:-3], *more, *record.events[-3:]))


def blank() -> Record:
    """Evidence of cases that can tell nothing: NaN, absent intervals, empty groups."""
    nothing = Comparison(
        metric="accuracy",
        where={"sex": ""},
        n=0,
        baseline=None,
        candidate=None,
        drop=None,
        interval=None,
        method="none",
    )
    odd = replace(
        comparison("auroc", {"sex": "f"}, NAN), interval=Interval(low=NAN, high=math.inf, confidence=0.95)
    )
    broken = number(NAN, NAN, 0)
    found = Evidence(
        comparisons=(replace(nothing, where={}), replace(odd, where={})),
        fairness=(Fairness(attribute="", groups=(nothing, odd), gaps=()),),
        calibration=Calibration(
            comparisons=(replace(odd, metric="calibration_slope", where={}),),
            baseline_bins=(ReliabilityBin(n=0, confidence=NAN, observed=NAN, interval=None),),
            candidate_bins=(),
            of="",
        ),
        disagreement=Disagreement(
            n=0,
            changed=0,
            positive_to_negative=None,
            negative_to_positive=None,
            newly_wrong=0,
            newly_right=0,
            transitions=(),
            concentrations=(),
            summary="",
        ),
        stress=(
            StressCurve(perturbation="", metric="accuracy", points=(), method=""),
            StressCurve(
                perturbation="noise",
                metric="r2",
                points=(
                    StressPoint(severity=0, baseline=broken, candidate=broken, excess=NAN, interval=None),
                ),
                method="",
            ),
        ),
        invariance=replace(INVARIANCE, changed={}, batch_sizes=(), threads=(), max_abs_error=NAN),
    )
    checks = (
        replace(limit_on(nothing, 0.0, Status.INCONCLUSIVE), interval=None),
        limit_on(odd, NAN, Status.REJECTED),
    )
    return judged(
        records.skin(),
        Verdict(status=Status.REJECTED, reason="x", checks=checks, split="test", evidence=found),
    )


def hostile() -> Record:
    """Markup in every free text of the evidence."""
    record = crowd(MARKUP + "{}", groups=4, classes=4)
    final = record.all(FinalJudged)[0]
    said = replace(final.verdict, notes=(f"Override by {MARKUP}", MARKUP))
    return replace(record, events=tuple(replace(e, verdict=said) if e is final else e for e in record.events))


ALL = {"rich": rich, "crowd": crowd, "blank": blank, "hostile evidence": hostile}
