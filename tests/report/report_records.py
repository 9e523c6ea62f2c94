"""Accounts of runs that never were, with figures as such runs give them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pastille.record import (
    BaselineProfiled,
    BundleWritten,
    Curve,
    Environment,
    Event,
    FinalJudged,
    Record,
    Resumed,
    SplitSummary,
    StageDetails,
    StageFinished,
    Started,
    TaskLoaded,
    TestOpened,
    WidthChange,
)
from pastille.values import (
    Check,
    Conditions,
    Confusion,
    Estimate,
    Footprint,
    ImageDecoding,
    Interval,
    Latency,
    Metrics,
    Normalization,
    Preprocessing,
    Profile,
    Quantile,
    Speedup,
    SplitName,
    Status,
    TensorSpec,
    Verdict,
)

HERE = Conditions(
    device="AMD EPYC 9V74 80-Core Processor",
    isa="avx512-vnni",
    cores=2,
    threads=1,
    runtime="onnxruntime",
    runtime_version="1.31.1",
    os="Linux 6.1 x86_64",
)
ENVIRONMENT = Environment(
    pastille="0.1.0",
    python="3.11.2",
    platform="Linux-6.1.0-x86_64-with-glibc2.36",
    packages={"numpy": "2.3.4", "onnx": "1.23.2", "onnxruntime": "1.31.1", "torch": "2.13.0"},
    machine=HERE,
)


def clock(minute: int, second: int = 0) -> str:
    return f"2026-11-20T09:{minute:02d}:{second:02d}+00:00"


def share(right: int, n: int) -> Estimate:
    p, half = right / n, 1.96 * math.sqrt(max(right / n * (1 - right / n), 0.0005) / n)
    interval = Interval(low=max(0.0, p - half), high=min(1.0, p + half), confidence=0.95)
    return Estimate(value=p, interval=interval, n=n, method="Wilson")


def number(value: float, half: float, n: int, method: str = "BCa bootstrap") -> Estimate:
    return Estimate(
        value=value,
        interval=Interval(low=value - half, high=value + half, confidence=0.95),
        n=n,
        method=method,
    )


def latency(batch: int, ms: float, samples: int = 1200) -> Latency:
    spread = {0.5: 1.0, 0.9: 1.07, 0.95: 1.12, 0.99: 1.31}
    quantiles = tuple(
        Quantile(q=q, value_ms=ms * f, upper_ms=ms * f * 1.03 if samples >= 100 else None)
        for q, f in spread.items()
        if q < 0.99 or samples >= 459
    )
    return Latency(
        batch=batch,
        samples=samples,
        warmup=50,
        mean_ms=ms * 1.02,
        quantiles=quantiles,
        throughput_per_s=1000 * batch / (ms * 1.02),
        conditions=HERE,
    )


def speedup(ratio: float, batch: int = 1, half: float = 0.05) -> Speedup:
    interval = Interval(low=ratio * (1 - half), high=ratio * (1 + half), confidence=0.95)
    return Speedup(ratio=ratio, interval=interval, pairs=400, batch=batch, conditions=HERE)


def profile(
    name: str,
    metrics: Metrics,
    *,
    size: int,
    ms: float,
    parameters: int,
    macs: int,
    baseline_ms: float | None = None,
    precision: Any = "fp32",
    preparing_ms: float | None = 0.41,
) -> Profile:
    return Profile(
        name=name,
        file=f"stages/{name}/model.onnx",
        sha256=(name.encode().hex() * 20)[:64],
        size_bytes=size,
        precision=precision,
        parameters=parameters,
        macs=macs,
        metrics=metrics,
        latency=(latency(1, ms), latency(8, ms * 6.1, 600), latency(32, ms * 23, 240)),
        speedup=speedup(baseline_ms / ms) if baseline_ms else None,
        footprint=Footprint(
            peak_bytes=74_000_000 + 4 * size,
            runtime_bytes=61_000_000,
            cold_start_ms=14 + ms * 3,
            import_ms=182.0,
            conditions=HERE,
        ),
        preprocessing=latency(1, preparing_ms, 500) if preparing_ms else None,
    )


def check(
    metric: str,
    status: Status,
    limit: float,
    before: float | None,
    after: float,
    half: float | None = None,
    n: int | None = None,
    more: int | None = None,
) -> Check:
    drop = before - after if before is not None and half is not None else None
    interval = (
        Interval(low=drop - half, high=drop + half, confidence=0.95)
        if drop is not None and half is not None
        else None
    )
    return Check(
        metric=metric,
        status=status,
        limit=limit,
        baseline=before,
        candidate=after,
        drop=drop,
        interval=interval,
        n=n,
        method="Tango score interval, paired" if drop is not None else "measured",
        more_cases=more,
        reason=f"{metric} was held against its limit: {status.value}.",
    )


def verdict(status: Status, checks: Sequence[Check], split: SplitName, reason: str = "") -> Verdict:
    return Verdict(
        status=status, reason=reason or f"{status.value} on {split}.", checks=tuple(checks), split=split
    )


def confusion(labels: Sequence[str], right: Sequence[int], wrong: Mapping[tuple[int, int], int]) -> Confusion:
    counts = [
        [right[i] if i == j else wrong.get((i, j), 0) for j in range(len(labels))] for i in range(len(labels))
    ]
    return Confusion(labels=tuple(labels), counts=tuple(map(tuple, counts)))


def class_metrics(split: SplitName, found: Confusion, **more: Any) -> Metrics:
    n = sum(map(sum, found.counts))
    right = sum(found.counts[i][i] for i in range(len(found.labels)))
    recalls = {
        label: share(found.counts[i][i], sum(found.counts[i]))
        for i, label in enumerate(found.labels)
        if sum(found.counts[i])
    }
    overall = {"accuracy": share(right, n), **more.pop("overall", {})}
    return Metrics(split=split, n=n, overall=overall, per_class=recalls, confusion=found, **more)


def curve(stage: str, metric: str, epochs: int, top: float, best: int) -> Curve:
    steps = range(1, epochs + 1)
    return Curve(
        stage=stage,
        metric=metric,
        loss=tuple(0.05 + 0.9 / (e**1.2) for e in steps),
        validation=tuple(top - 0.05 / e - 0.004 * abs(math.sin(3 * e)) for e in steps),
        best_epoch=best,
    )


# A ten-class run that was approved -------------------------------------------------------------------


DIGITS = [str(i) for i in range(10)]


def digits_metrics(split: SplitName, errors: Sequence[tuple[int, int]], per_class: int = 36) -> Metrics:
    wrong: dict[tuple[int, int], int] = {}
    for pair in errors:
        wrong[pair] = wrong.get(pair, 0) + 1
    right = [per_class - sum(n for (i, _), n in wrong.items() if i == k) for k in range(10)]
    return class_metrics(split, confusion(DIGITS, right, wrong))


BASE_ERRORS = [(8, 1), (9, 3), (3, 5), (5, 9), (4, 7)]
INT8_ERRORS = [(8, 1), (8, 1), (9, 3), (3, 5), (5, 9), (1, 8)]


def digits_recipe() -> dict[str, Any]:
    train = {"epochs": 3, "learning_rate": 0.01, "batch_size": 64, "optimizer": "sgd", "schedule": "cosine"}
    return {
        "name": "digits",
        "task": {
            "kind": "multiclass",
            "model": "model.py:build",
            "weights": "trained.safetensors",
            "labels": DIGITS,
        },
        "data": {"source": "data.py:splits"},
        "requirements": {
            "risk": "low",
            "max_drop": {"accuracy": 0.05},
            "max_size": 100_000.0,
            "confidence": 0.95,
        },
        "target": "this-machine",
        "threads": 1,
        "plan": [
            {
                "prune": {
                    "method": "structured",
                    "criterion": "l1",
                    "sparsity": 0.5,
                    "steps": 3,
                    "finetune": train,
                }
            },
            {"finetune": train},
            {"quantize": {"method": "ptq", "calibration": "minmax", "samples": 256, "weight_bits": 7}},
        ],
        "seed": 0,
        "output": "runs",
    }


def opening(recipe: dict[str, Any], splits: Mapping[str, SplitSummary], **loaded: Any) -> list[Event]:
    defaults: dict[str, Any] = {
        "inputs": (TensorSpec(name="input", shape=(1, 28, 28), dtype="float32"),),
        "preprocessing": None,
        "data_digest": "b1946ac92492d2347c6235b4d2611184b1946ac92492d2347c6235b4d2611184",
    }
    return [
        Started(at=clock(30), recipe=recipe, recipe_hash="3f9c01ab", environment=ENVIRONMENT),
        TaskLoaded(at=clock(30, 2), splits=splits, **{**defaults, **loaded}),
    ]


def digits() -> Record:
    before = digits_metrics("validation", BASE_ERRORS[:3], 27)
    middle = digits_metrics("validation", [*BASE_ERRORS[:3], (7, 9)], 27)
    after = digits_metrics("validation", [*BASE_ERRORS[:3], (7, 9), (2, 8)], 27)
    summary = {
        name: SplitSummary(n=10 * k, subjects=None, classes=dict.fromkeys(DIGITS, k), groups={})
        for name, k in (("train", 116), ("validation", 27), ("test", 36))
    }
    base = profile("baseline", before, size=1_130_000, ms=1.93, parameters=280_906, macs=31_000_000)
    pruned = profile(
        "prune", middle, size=318_000, ms=0.81, parameters=76_400, macs=8_900_000, baseline_ms=1.93
    )
    tuned = profile(
        "finetune", middle, size=318_000, ms=0.82, parameters=76_400, macs=8_900_000, baseline_ms=1.93
    )
    small = profile(
        "quantize",
        after,
        size=85_600,
        ms=0.47,
        parameters=76_400,
        macs=8_900_000,
        baseline_ms=1.93,
        precision="int8",
    )
    ok = Status.APPROVED
    n = before.n
    test_before, test_after = digits_metrics("test", BASE_ERRORS), digits_metrics("test", INT8_ERRORS)
    a, b = test_before.overall["accuracy"].value, test_after.overall["accuracy"].value
    final = verdict(
        ok,
        [check("accuracy", ok, 0.05, a, b, 0.0113, 360), check("size", ok, 100_000.0, 1_130_000, 85_600)],
        "test",
        "Every limit holds on 360 test cases: accuracy fell by at most 1.4 points, 5 are permitted.",
    )
    widths = tuple(
        WidthChange(module=f"stage{s}.{i}.conv{c}", before=w, after=w // 2)
        for s, w in ((1, 32), (2, 64), (3, 128))
        for i in (0, 1)
        for c in (1, 2)
    )
    stages: list[Event] = [
        BaselineProfiled(at=clock(30, 30), profile=base, details=StageDetails(parity_max_abs_error=3.8e-6)),
        StageFinished(
            at=clock(31, 40),
            index=1,
            name="prune",
            options={
                "method": "structured",
                "criterion": "l1",
                "sparsity": 0.5,
                "steps": 3,
                "finetune": {"epochs": 3},
            },
            profile=pruned,
            verdict=verdict(ok, [check("accuracy", ok, 0.05, 0.9889, 0.9852, 0.012, n)], "validation"),
            kept=True,
            consequence="Kept: approved on validation, 3.6 times smaller.",
            details=StageDetails(
                curves=tuple(
                    curve(f"prune, step {i} of 3", "accuracy", 3, 0.94 + 0.015 * i, 3) for i in (1, 2, 3)
                ),
                widths=widths,
                left_whole={"head": "the output layer has one unit per class"},
                parity_max_abs_error=2.1e-6,
            ),
            seconds=70.4,
        ),
        StageFinished(
            at=clock(32, 5),
            index=2,
            name="finetune",
            options={"epochs": 12, "learning_rate": 0.01},
            profile=tuned,
            verdict=verdict(ok, [check("accuracy", ok, 0.05, 0.9889, 0.9852, 0.012, n)], "validation"),
            kept=True,
            consequence="Kept: approved on validation.",
            details=StageDetails(
                curves=(curve("fine-tuning", "accuracy", 12, 0.988, 9),), parity_max_abs_error=2.4e-6
            ),
            seconds=24.9,
        ),
        StageFinished(
            at=clock(32, 31),
            index=3,
            name="quantize",
            options={"method": "ptq", "calibration": "minmax", "samples": 256, "weight_bits": 7},
            profile=small,
            verdict=verdict(ok, [check("accuracy", ok, 0.05, 0.9889, 0.9815, 0.014, n)], "validation"),
            kept=True,
            consequence="Kept: approved on validation, 13.2 times smaller than the baseline.",
            details=StageDetails(
                calibration_samples=256,
                int8_operators={
                    "QLinearConv": 15,
                    "QLinearAdd": 6,
                    "QGemm": 1,
                    "QLinearGlobalAveragePool": 1,
                },
                float_operators={"Softmax": 1},
                notes=("Weights were quantized to 7 bits: with 8, pairs of products can saturate on AVX2.",),
            ),
            seconds=8.2,
        ),
        TestOpened(at=clock(32, 40), reason="final gate: baseline against 3 quantize"),
        FinalJudged(
            at=clock(32, 58),
            candidate="quantize",
            baseline_metrics=test_before,
            candidate_metrics=test_after,
            verdict=final,
            speedups=(speedup(4.1), speedup(3.6, 8), speedup(3.2, 32)),
            selected="int8",
            selection_reason="It is approved, and the fastest of the variants that are.",
        ),
        BundleWritten(
            at=clock(33),
            path="bundle",
            content="9e107d9d372bb6826bd81d3542a419d69e107d9d372bb6826bd81d3542a419d6",
        ),
    ]
    return Record(name="digits", events=(*opening(digits_recipe(), summary), *stages))


# A binary clinical run with groups that was not decided ------------------------------------------------


SKIN = ["benign", "malignant"]


def skin_metrics(
    split: SplitName, n_benign: int, n_malignant: int, missed: int, alarms: int, auroc: float
) -> Metrics:
    found = confusion(SKIN, [n_benign - alarms, n_malignant - missed], {(0, 1): alarms, (1, 0): missed})
    n = n_benign + n_malignant

    def group(part: float, shift: int) -> dict[str, Estimate]:
        cases, ill = round(n * part), round(n_malignant * part)
        return {
            "accuracy": share(round(cases * (n - missed - alarms) / n) - shift, cases),
            "sensitivity": share(max(0, round(ill * (1 - missed / n_malignant)) - shift), ill),
        }

    return class_metrics(
        split,
        found,
        overall={
            "sensitivity": share(n_malignant - missed, n_malignant),
            "specificity": share(n_benign - alarms, n_benign),
            "auroc": number(auroc, 0.014, n, "DeLong"),
        },
        groups={
            "sex": {"female": group(0.47, 1), "male": group(0.53, 0)},
            "age_band": {
                "under 45": group(0.36, 0),
                "45 to 64": group(0.38, 2),
                "65 and over": group(0.26, 3),
            },
        },
    )


def skin_recipe() -> dict[str, Any]:
    train = {"epochs": 6, "learning_rate": 0.005, "batch_size": 64, "class_weights": "balanced"}
    return {
        "name": "skin-lesion-malignancy",
        "task": {
            "kind": "binary",
            "model": "model.py:build",
            "weights": "resnet.safetensors",
            "labels": SKIN,
            "positive": ["malignant"],
            "threshold": 0.38,
        },
        "data": {
            "reader": "csv_images",
            "path": "HAM10000_metadata.csv",
            "images": ["HAM10000_images_part_1", "HAM10000_images_part_2"],
            "target": "dx",
            "label_map": {"mel": "malignant", "bcc": "malignant", "akiec": "malignant", "other": "benign"},
            "groups": {"sex": "sex", "age_band": {"column": "age", "bins": [45, 65]}},
            "size": 64,
            "split": {"validation": 0.15, "test": 0.2, "by": "lesion_id", "stratify": "label"},
        },
        "requirements": {
            "risk": "high",
            "max_drop": {"accuracy": 0.01, "sensitivity": 0.01},
            "max_latency": {"p95": 50.0},
            "confidence": 0.95,
        },
        "target": "this-machine",
        "threads": 1,
        "plan": [
            {"prune": {"criterion": "l2", "sparsity": 0.4, "steps": 2, "finetune": train}},
            {"quantize": {"calibration": "percentile", "percentile": 99.99, "samples": 256}},
        ],
        "seed": 0,
    }


def skin_events() -> list[Event]:
    def summary(n: int, ill: int) -> SplitSummary:
        return SplitSummary(
            n=n,
            subjects=round(n * 0.74),
            classes={"benign": n - ill, "malignant": ill},
            groups={
                "sex": {"female": round(n * 0.46), "male": n - round(n * 0.46) - 8, "unknown": 8},
                "age_band": {
                    "under 45": round(n * 0.36),
                    "45 to 64": round(n * 0.38),
                    "65 and over": round(n * 0.26),
                },
            },
        )

    image = ImageDecoding(height=64, width=64, channels=3)
    scale = Normalization(mean=(0.763, 0.546, 0.571), std=(0.141, 0.152, 0.170))
    return opening(
        skin_recipe(),
        {"train": summary(6510, 1270), "validation": summary(1502, 293), "test": summary(2003, 391)},
        inputs=(TensorSpec(name="input", shape=(3, 64, 64), dtype="float32"),),
        preprocessing=Preprocessing(image=image, normalization=scale),
    )


def skin() -> Record:
    """Accuracy holds its limit, sensitivity is not decided; and one stage is slower than the baseline."""
    before = skin_metrics("validation", 1209, 293, 61, 138, 0.902)
    pruned = skin_metrics("validation", 1209, 293, 63, 141, 0.899)
    small = skin_metrics("validation", 1209, 293, 64, 143, 0.898)
    ok, unsure = Status.APPROVED, Status.INCONCLUSIVE
    base = profile(
        "baseline",
        before,
        size=44_780_000,
        ms=9.85,
        parameters=11_177_538,
        macs=150_000_000,
        preparing_ms=14.2,
    )
    slow = profile(
        "prune",
        pruned,
        size=17_300_000,
        ms=10.7,
        parameters=4_310_000,
        macs=61_000_000,
        baseline_ms=9.85,
        preparing_ms=14.2,
    )
    int8 = profile(
        "quantize",
        small,
        size=4_480_000,
        ms=3.12,
        parameters=4_310_000,
        macs=61_000_000,
        baseline_ms=9.85,
        precision="int8",
        preparing_ms=14.2,
    )
    test_before = skin_metrics("test", 1612, 391, 80, 186, 0.904)
    test_after = skin_metrics("test", 1612, 391, 82, 189, 0.901)
    acc = (test_before.overall["accuracy"].value, test_after.overall["accuracy"].value)
    sens = (test_before.overall["sensitivity"].value, test_after.overall["sensitivity"].value)
    final = verdict(
        unsure,
        [
            check("accuracy", ok, 0.01, *acc, 0.0058, 2003),
            check("sensitivity", unsure, 0.01, *sens, 0.0131, 391, 1180),
            check("latency p95", ok, 50.0, 11.0, 3.49),
        ],
        "test",
        "Sensitivity dropped by 0.5 points on 391 malignant cases; the interval reaches to 1.8 points, "
        "beyond the limit of 1, so a tolerable loss is not shown.",
    )
    validation = [
        check("accuracy", ok, 0.01, 0.8675, 0.8642, 0.006, 1502),
        check("sensitivity", unsure, 0.01, 0.7918, 0.7850, 0.014, 293, 1600),
    ]
    return Record(
        name="skin-lesion-malignancy",
        events=(
            *skin_events(),
            BaselineProfiled(at=clock(33), profile=base, details=StageDetails(parity_max_abs_error=8.3e-6)),
            StageFinished(
                at=clock(41),
                index=1,
                name="prune",
                options={"criterion": "l2", "sparsity": 0.4, "steps": 2, "finetune": {"epochs": 6}},
                profile=slow,
                verdict=verdict(unsure, validation, "validation"),
                kept=True,
                consequence="Kept although it is slower: 2.6 times smaller, and the time may be won back.",
                details=StageDetails(
                    curves=tuple(
                        curve(f"prune, step {i} of 2", "sensitivity", 6, 0.78 + 0.01 * i, 5) for i in (1, 2)
                    ),
                    widths=tuple(
                        WidthChange(
                            module=f"layer{s}.{i}.conv1", before=64 * 2 ** (s - 1), after=40 * 2 ** (s - 1)
                        )
                        for s in (1, 2, 3, 4)
                        for i in (0, 1)
                    ),
                    left_whole={
                        "fc": "the output layer has one unit per class",
                        "conv1": "protected by the recipe",
                    },
                    parity_max_abs_error=7.9e-6,
                ),
                seconds=461.0,
            ),
            Resumed(at=clock(44), environment=ENVIRONMENT),
            StageFinished(
                at=clock(46),
                index=2,
                name="quantize",
                options={"calibration": "percentile", "percentile": 99.99, "samples": 256, "weight_bits": 7},
                profile=int8,
                verdict=verdict(unsure, validation, "validation"),
                kept=True,
                consequence="Kept: 10 times smaller and faster; sensitivity stays undecided on 293 cases.",
                details=StageDetails(
                    calibration_samples=256,
                    int8_operators={"QLinearConv": 20, "QLinearAdd": 8, "MaxPool": 1, "QGemm": 1},
                    float_operators={"ReduceMean": 1},
                ),
                seconds=31.0,
            ),
            TestOpened(at=clock(47), reason="final gate: baseline against 2 quantize"),
            FinalJudged(
                at=clock(48),
                candidate="quantize",
                baseline_metrics=test_before,
                candidate_metrics=test_after,
                verdict=final,
                speedups=(speedup(3.16), speedup(2.9, 8), speedup(2.7, 32)),
                selected="fp32",
                selection_reason="Nothing compressed is approved, so the model is served as it was brought.",
            ),
            BundleWritten(
                at=clock(49),
                path="bundle",
                content="7d793037a0760186574b0282f2f435e77d793037a0760186574b0282f2f435e7",
            ),
        ),
    )


# A regression that was rejected -----------------------------------------------------------------------


def progression_metrics(split: SplitName, n: int, r2: float, rmse: float) -> Metrics:
    groups = {
        "sex": {
            "female": {"r2": number(r2 + 0.03, 0.15, n // 2)},
            "male": {"r2": number(r2 - 0.04, 0.16, n - n // 2)},
        },
        "age_band": {
            "under 50": {"r2": number(r2, 0.14, n // 2)},
            "50 and over": {"r2": number(r2 - 0.01, 0.15, n // 2)},
        },
    }
    overall = {"r2": number(r2, 0.11, n), "rmse": number(rmse, 4.4, n), "mae": number(rmse * 0.8, 3.5, n)}
    return Metrics(split=split, n=n, overall=overall, groups=groups)


def regression() -> Record:
    ok, bad = Status.APPROVED, Status.REJECTED
    recipe = {
        "name": "diabetes-progression",
        "task": {"kind": "regression", "model": "model.py:build"},
        "data": {"reader": "npz", "path": "diabetes.npz"},
        "requirements": {"risk": "medium", "max_drop": {"r2": 0.02}},
        "plan": [{"prune": {"sparsity": 0.8}}, {"quantize": {}}],
        "seed": 7,
    }
    groups = {"sex": {"female": 40, "male": 49}, "age_band": {"under 50": 44, "50 and over": 45}}
    splits = {
        name: SplitSummary(n=n, subjects=None, classes={}, groups=groups)
        for name, n in (("train", 287), ("validation", 66), ("test", 89))
    }
    base = profile(
        "baseline",
        progression_metrics("validation", 66, 0.471, 53.8),
        size=38_400,
        ms=0.021,
        parameters=9_217,
        macs=9_088,
        preparing_ms=None,
    )
    cut = profile(
        "prune",
        progression_metrics("validation", 66, 0.402, 57.1),
        size=11_900,
        ms=0.019,
        parameters=2_641,
        macs=2_590,
        baseline_ms=0.021,
        preparing_ms=None,
    )
    small = profile(
        "quantize",
        progression_metrics("validation", 66, 0.466, 54.0),
        size=14_800,
        ms=0.027,
        parameters=9_217,
        macs=9_088,
        baseline_ms=0.021,
        precision="int8",
        preparing_ms=None,
    )
    before, after = progression_metrics("test", 89, 0.484, 52.9), progression_metrics("test", 89, 0.421, 56.0)
    return Record(
        name="diabetes-progression",
        events=(
            *opening(recipe, splits, inputs=(TensorSpec(name="input", shape=(10,), dtype="float32"),)),
            BaselineProfiled(at=clock(31), profile=base, details=StageDetails()),
            StageFinished(
                at=clock(32),
                index=1,
                name="prune",
                options={"sparsity": 0.8},
                profile=cut,
                verdict=verdict(bad, [check("r2", bad, 0.02, 0.471, 0.402, 0.041, 66)], "validation"),
                kept=False,
                consequence="Dropped: rejected on validation, so the run went on from the baseline.",
                details=StageDetails(),
                seconds=3.0,
            ),
            StageFinished(
                at=clock(33),
                index=2,
                name="quantize",
                options={"samples": 128},
                profile=small,
                verdict=verdict(ok, [check("r2", ok, 0.02, 0.471, 0.466, 0.012, 66)], "validation"),
                kept=True,
                consequence="Kept for its size; it is slower than the baseline.",
                details=StageDetails(calibration_samples=128, int8_operators={"QGemm": 4}),
                seconds=2.0,
            ),
            TestOpened(at=clock(34), reason="final gate: baseline against 2 quantize"),
            FinalJudged(
                at=clock(34, 20),
                candidate="quantize",
                baseline_metrics=before,
                candidate_metrics=after,
                verdict=verdict(
                    bad,
                    [check("r2", bad, 0.02, 0.484, 0.421, 0.035, 89)],
                    "test",
                    "R² dropped by 0.063 on 89 test cases, at least by 0.028; 0.02 is permitted.",
                ),
                speedups=(speedup(0.78),),
                selected="fp32",
                selection_reason="The compressed model is rejected.",
            ),
            BundleWritten(at=clock(35), path="bundle", content="ab" * 32),
        ),
    )


def unfinished(events: int = 4) -> Record:
    """A run that was killed; with 2 events before the baseline, with 3 after it, with 4 after a stage."""
    whole = skin()
    return replace(whole, events=whole.events[:events])


# Records that are meant to break the page ----------------------------------------------------------------


MARKUP = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def with_labels(labels: Sequence[str], name: str = "labels") -> Record:
    """A finished run over any classes, one decision of each class wrong."""
    k = len(labels)

    def metrics(split: SplitName, shift: int) -> Metrics:
        wrong = {(i, (i + 1 + shift) % k): 1 + i % 3 for i in range(k)}
        return class_metrics(split, confusion(labels, [40 - (i + shift) % 7 for i in range(k)], wrong))

    def renamed(event: Event) -> Event:
        match event:
            case BaselineProfiled():
                return replace(event, profile=replace(event.profile, metrics=metrics("validation", 0)))
            case StageFinished():
                return replace(
                    event, profile=replace(event.profile, metrics=metrics("validation", event.index % 2))
                )
            case FinalJudged():
                return replace(
                    event, baseline_metrics=metrics("test", 0), candidate_metrics=metrics("test", 1)
                )
            case TaskLoaded():
                summary = SplitSummary(n=40 * k, subjects=None, classes=dict.fromkeys(labels, 40), groups={})
                return replace(event, splits=dict.fromkeys(("train", "validation", "test"), summary))
            case _:
                return event

    return Record(name=name, events=tuple(renamed(event) for event in digits().events))


def hostile() -> Record:
    """Markup in every free text of the record."""
    whole = with_labels([f"{MARKUP}{i}" for i in range(10)], name=MARKUP)

    def poisoned(event: Event) -> Event:
        match event:
            case Started():
                recipe = {**event.recipe, MARKUP: MARKUP, "plan": [{MARKUP: {MARKUP: MARKUP}}]}
                environment = replace(event.environment, platform=MARKUP, packages={MARKUP: MARKUP})
                return replace(event, at=MARKUP, recipe=recipe, recipe_hash=MARKUP, environment=environment)
            case TaskLoaded():
                return replace(event, leakage=(MARKUP,), data_digest=MARKUP)
            case StageFinished():
                details = StageDetails(
                    curves=(curve(MARKUP, MARKUP, 4, 0.9, 3),),
                    widths=(WidthChange(module=MARKUP, before=8, after=0),),
                    left_whole={MARKUP: MARKUP},
                    int8_operators={MARKUP: 1},
                    notes=(MARKUP,),
                )
                checks = tuple(replace(c, reason=MARKUP, method=MARKUP) for c in event.verdict.checks)
                said = replace(event.verdict, reason=MARKUP, checks=checks)
                return replace(
                    event,
                    name=MARKUP,
                    options={MARKUP: MARKUP},
                    consequence=MARKUP,
                    details=details,
                    verdict=said,
                )
            case TestOpened():
                return replace(event, reason=MARKUP)
            case FinalJudged():
                checks = tuple(replace(c, metric=MARKUP, reason=MARKUP) for c in event.verdict.checks)
                said = replace(event.verdict, reason=MARKUP, checks=checks)
                return replace(
                    event, candidate=MARKUP, verdict=said, selected=MARKUP, selection_reason=MARKUP
                )
            case BundleWritten():
                return replace(event, path=MARKUP, content=MARKUP)
            case _:
                return event

    return replace(whole, events=tuple(poisoned(event) for event in whole.events))


def leaky() -> Record:
    """Leakage that was let pass, and a test split that was opened twice."""
    whole = skin()
    loaded = whole.last(TaskLoaded)
    assert loaded is not None
    leaks = ("lesion HAM_0001234 is in train and test", "identical input: train[17] and validation[402]")
    events = [replace(e, leakage=leaks) if e is loaded else e for e in whole.events]
    where = next(i for i, e in enumerate(events) if isinstance(e, TestOpened))
    events.insert(where, TestOpened(at=clock(46, 30), reason="final gate: baseline against 2 quantize"))
    return replace(whole, events=tuple(events))


ALL = {
    "digits": digits,
    "skin": skin,
    "regression": regression,
    "unfinished": unfinished,
    "leaky": leaky,
    "hostile": hostile,
}
