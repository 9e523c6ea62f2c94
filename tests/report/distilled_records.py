"""Accounts of runs that distilled, and of one that was taken apart afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import report_records as records
from report_records import clock, number, share, speedup

from pastille.record import Ablated, BudgetLimit, Record, StageDetails, StageFinished, appended
from pastille.values import Interval, LeftOut, StudentTaught, TeacherSeen

TEACHER = TeacherSeen(
    name="baseline",
    weight=1.0,
    parameters=11_177_538,
    metric="sensitivity",
    estimate=share(232, 293),
    ece=0.031,
    worse={"age_band = 65 and over": 0.082, "sex = female": 0.041},
)
ASSISTANT = replace(TEACHER, name="student width 0.5", weight=0.4, parameters=2_800_000, ece=None, worse={})


def student(**fields: Any) -> StudentTaught:
    taught: dict[str, Any] = {
        "name": "width 0.5",
        "parameters": 2_800_000,
        "teachers": (TEACHER,),
        "metric": "sensitivity",
        "estimate": share(231, 293),
        "asked": "cached, 4 views, 12 MB",
        "scratch": share(220, 293),
        "gain": Interval(low=0.009, high=0.066, confidence=0.95),
    }
    return StudentTaught(**{**taught, **fields})


TWO = (
    student(),
    student(
        name="width 0.25",
        parameters=710_000,
        teachers=(replace(TEACHER, weight=0.6), ASSISTANT),
        estimate=share(224, 293),
        scratch=share(221, 293),
        gain=Interval(low=-0.018, high=0.038, confidence=0.95),
        asked="live",
    ),
)


def distilled(students: tuple[StudentTaught, ...] = TWO) -> Record:
    """The skin record with a distillation between its prune and its quantization."""
    record = Record(name="skin-lesion-malignancy")
    for event in records.skin().events:
        made = event
        if isinstance(event, StageFinished) and event.name == "quantize":
            record = appended(record, _stage(event, students))
            made = replace(event, index=3, at=clock(46, 30))
        if isinstance(event, StageFinished) and event.name == "prune":
            limits = (
                BudgetLimit(name="max_latency.p95", asked=11.0, reached=11.4, by_ratio=10.9),
                BudgetLimit(name="max_size", asked=20e6, reached=17.3e6, by_ratio=None),
                BudgetLimit(name="max_latency.p99", asked=12.0, reached=None, by_ratio=None),
            )
            made = replace(event, details=replace(event.details, budget=limits))
        record = appended(record, made)
    return record


def _stage(quantized: StageFinished, students: tuple[StudentTaught, ...]) -> StageFinished:
    curves = [records.curve(f"distilling {taught.name}", "sensitivity", 20, 0.79, 17) for taught in students]
    if any(taught.scratch for taught in students):
        curves.append(records.curve("on labels alone", "sensitivity", 20, 0.76, 12))
    return replace(
        quantized,
        at=clock(46),
        index=2,
        name="distill",
        options={"student": {"width": 0.25}, "epochs": 20, "alpha": 0.7, "temperature": {"from": 8, "to": 2}},
        profile=replace(
            quantized.profile,
            name="distill",
            precision="fp32",
            size_bytes=2_860_000,
            parameters=students[-1].parameters,
            speedup=speedup(2.4),
            kernels=None,
        ),
        details=StageDetails(curves=tuple(curves), students=students),
        consequence="kept: validation holds too few cases to decide; the final gate will",
        seconds=1830.0,
    )


def left_out(index: int, stage: str, **fields: Any) -> LeftOut:
    row: dict[str, Any] = {
        "metric": "sensitivity",
        "estimate": share(229, 293),
        "size_bytes": 4_480_000,
        "latency_ms": 3.12,
        "speedup": speedup(3.16),
        "status": "inconclusive",
    }
    return LeftOut(stage=stage, index=index, **{**row, **fields})


def interval(low: float, high: float) -> Interval:
    return Interval(low=low, high=high, confidence=0.95)


ROWS = (
    left_out(0, ""),
    left_out(
        1, "prune and finetune", estimate=share(230, 293), worse=-0.0034, interval=interval(-0.021, 0.014)
    ),
    left_out(
        2,
        "distill",
        estimate=share(214, 293),
        worse=0.0512,
        interval=interval(0.021, 0.083),
        size_bytes=11_200_000,
        latency_ms=4.9,
        speedup=speedup(2.0),
        status="rejected",
    ),
    left_out(
        3,
        "quantize",
        estimate=share(233, 293),
        worse=-0.0137,
        interval=interval(-0.026, -0.002),
        size_bytes=17_300_000,
        latency_ms=8.9,
        speedup=speedup(1.1),
        status="approved",
    ),
)


def taken_apart(rows: tuple[LeftOut, ...] = ROWS) -> Record:
    """The same run, and afterwards its plan without one stage after the other."""
    record = distilled()
    for minute, row in enumerate(rows, start=50):
        record = appended(record, Ablated(at=clock(minute), left_out=row, seconds=60.0))
    return record


def regression_student() -> StudentTaught:
    """Of a metric of which less is better: an error of 54.0 against 57.5 is a gain of 3.5."""
    return student(
        metric="rmse",
        teachers=(replace(TEACHER, metric="rmse", estimate=number(53.0, 2.0, 90), ece=None, worse={}),),
        estimate=number(54.0, 2.1, 90),
        scratch=number(57.5, 2.4, 90),
        gain=interval(1.0, 6.0),
    )
