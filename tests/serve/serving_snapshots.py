"""Snapshots of servers in every state, as the monitor would give them."""

from __future__ import annotations

import math
from dataclasses import replace

from pastille.serve.values import EngineStatus, VariantStatus
from pastille.serve.watch.snapshot import (
    ComparisonView,
    Counted,
    DisagreementView,
    DriftView,
    Latency,
    Recent,
    SensitivityView,
    Snapshot,
    VariantView,
)

NOW = 1_763_800_000.0
EDGES = (0.5, 0.62, 0.74, 0.83, 0.9, 0.94, 0.967, 0.984, 0.9921, 0.9978, 1.0)
TENTHS = (0.1,) * 10

INT8 = VariantStatus(
    name="int8", sha256="a" * 64, usable=True, reason="answers its golden cases", latency_ms=2.1
)
FP32 = VariantStatus(
    name="fp32", sha256="b" * 64, usable=True, reason="answers its golden cases", latency_ms=6.0
)
ENGINE = EngineStatus(
    model="skin-lesions",
    version="1",
    content="c" * 64,
    mode="validate",
    ready=True,
    reason="int8 is the fastest valid variant here: 2.1 ms against 6.0 ms of fp32.",
    preferred="int8",
    degraded=False,
    threads=1,
    places=2,
    batching="off",
    variants=(INT8, FP32),
)


def view(name: str, times: tuple[float | None, ...], requests: int) -> VariantView:
    latency = Latency(n=min(requests, 4096), p50_ms=times[0], p95_ms=times[1], p99_ms=times[2])
    return VariantView(
        name=name,
        usable=True,
        reason="answers its golden cases",
        breaker="closed",
        requests=requests,
        latency=latency,
        compute=replace(latency, p50_ms=times[0] and times[0] * 0.8),
    )


AGREEING = DisagreementView(
    served="int8",
    other="fp32",
    n=1840,
    disagreed=31,
    lost=9,
    gained=4,
    low=0.0098,
    high=0.0269,
    limit=0.05,
    evidence=0.0003,
    alarm_at=100.0,
    state="ok",
    words="int8 and fp32 decided differently in 31 of 1,840 cases, which is less than the limit of 5 %.",
)
DIFFERING = replace(
    AGREEING,
    n=212,
    disagreed=27,
    lost=19,
    low=0.071,
    high=0.204,
    evidence=143.0,
    state="alarm",
    words="int8 and fp32 decide differently in more than 5 % of the cases: do not trust int8 before a look.",
)
STEADY = DriftView(
    variant="int8",
    n=1840,
    minimum=50,
    psi=0.004,
    psi_limit=0.016,
    ks=0.014,
    ks_limit=0.037,
    edges=EDGES,
    reference=TENTHS,
    now=(0.09, 0.11, 0.1, 0.095, 0.105, 0.1, 0.11, 0.1, 0.09, 0.1),
    state="ok",
    words="The model is as sure of its answers as it was in validation.",
)
DRIFTED = replace(
    STEADY,
    psi=0.31,
    ks=0.22,
    now=(0.24, 0.2, 0.13, 0.1, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03),
    state="alarm",
    words="The model is less sure than in validation: patients or devices are probably not those it knows.",
)
FEW = replace(
    STEADY,
    variant="fp32",
    n=31,
    psi=None,
    psi_limit=None,
    ks=None,
    ks_limit=None,
    now=(),
    state="not_enough_data",
    words="Not enough data: 31 of 50 answers.",
)
EVERYONE = SensitivityView(
    group="everyone",
    positives=164,
    found=151,
    low=0.861,
    high=0.958,
    expected=0.93,
    state="ok",
    words="As many are found as in validation.",
)
SMALL = replace(
    EVERYONE,
    group="age_band=80 and more",
    positives=6,
    found=5,
    low=None,
    high=None,
    state="not_enough_data",
    words="Not enough data: 6 of 30 positives.",
)
MISSED = replace(
    EVERYONE,
    group="sex=female",
    positives=70,
    found=49,
    low=0.58,
    high=0.8,
    state="alarm",
    words="Fewer are found than in validation among sex: female. Let somebody look at these cases.",
)
TRIAL = ComparisonView(
    a="skin-lesions:1",
    b="skin-lesions:2",
    requests_a=1640,
    requests_b=410,
    labelled_a=320,
    labelled_b=88,
    correct_a=288,
    correct_b=81,
    evidence=1.7,
    alarm_at=40.0,
    state="ok",
    words="Nothing shows yet that one is right more often than the other.",
)


def recents(n: int) -> tuple[Recent, ...]:
    return tuple(
        Recent(
            at=NOW - 1.7 * i,
            id=f"{i * 2654435761 % 2**32:08x}",
            route="predict" if i % 3 == 0 else "infer",
            variant="fp32" if i % 7 == 3 else "int8",
            rows=4 if i % 5 == 4 else 1,
            decision="malignant" if i % 4 == 1 else "benign",
            confidence=0.62 + 0.37 * abs(math.sin(i)),
            total_ms=2.3 + (i * 37 % 19) / 10,
            fallback="timeout" if i % 7 == 3 else "",
            cached=i % 6 == 5,
            warnings=1 if i % 11 == 2 else 0,
        )
        for i in range(n)
    )


OK = Snapshot(
    at=NOW,
    uptime_s=11_140.0,
    engine=ENGINE,
    requests=1862,
    answered=1840,
    per_second=14.2,
    history=tuple(12 + 6 * math.sin(i / 5) + i % 3 for i in range(60)),
    in_flight=1,
    cache_hits=212,
    cache_misses=1628,
    cache_bytes=18_400_000,
    shadow_dropped=0,
    variants=(view("int8", (2.4, 4.1, 7.9), 1809), view("fp32", (6.4, 9.3, None), 31)),
    fallbacks=(Counted(what="int8", why="timeout", count=28), Counted(what="int8", why="exception", count=3)),
    refusals=(Counted(what="429", why="rate", count=19), Counted(what="400", why="not_finite", count=3)),
    disagreements=(AGREEING,),
    drift=(STEADY, FEW),
    sensitivity=(EVERYONE, SMALL),
    comparison=None,
    recent=recents(50),
)
FALLEN = replace(
    OK,
    engine=replace(
        ENGINE,
        answering="fp32",
        degraded=True,
        degraded_since=NOW - 1260.0,
        reason="fp32 answers for int8.",
        variants=(
            replace(
                INT8,
                usable=False,
                why="golden",
                reason="its golden cases differ from where it was validated: 3 of 16 decisions",
            ),
            FP32,
        ),
    ),
    variants=(
        replace(
            OK.variants[0],
            usable=False,
            reason="its golden cases differ from where it was validated: 3 of 16 decisions",
        ),
        view("fp32", (6.4, 9.3, 14.8), 1840),
    ),
)
ALARM = replace(
    OK,
    disagreements=(DIFFERING,),
    drift=(DRIFTED, FEW),
    sensitivity=(EVERYONE, MISSED, SMALL),
    comparison=TRIAL,
)
NEW = replace(
    OK,
    uptime_s=4.0,
    engine=replace(ENGINE, mode="auto"),
    requests=0,
    answered=0,
    per_second=0.0,
    history=(0.0,) * 60,
    in_flight=0,
    cache_hits=0,
    cache_misses=0,
    cache_bytes=0,
    variants=(view("int8", (None, None, None), 0), view("fp32", (None, None, None), 0)),
    fallbacks=(),
    refusals=(),
    disagreements=(),
    drift=(),
    sensitivity=(),
    recent=(),
)
CLOSED = replace(
    NEW,
    engine=replace(
        ENGINE, ready=False, preferred=None, reason="No variant answers its golden cases on this machine."
    ),
)
