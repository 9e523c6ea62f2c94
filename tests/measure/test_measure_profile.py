from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measure_models import cases_of, mlp_file, split_of

from pastille.errors import InferenceError, IntegrityError
from pastille.measure.evaluate import answer
from pastille.measure.profile import bottleneck, profile_file
from pastille.runtime import load
from pastille.values import Profile, from_json, to_json


def profiled(path: Path, *, n: int = 12, **options: object) -> Profile:
    split = split_of(n)
    given = {"budget_s": 0.2, "with_footprint": False} | options
    return profile_file(
        path,
        name="baseline",
        file="stages/00-baseline/model.onnx",
        precision="fp32",
        split=split,
        outputs=answer(load(path), split),
        cases=cases_of(split),
        **given,  # type: ignore[arg-type]
    )


def test_a_profile_holds_everything_with_its_conditions(mlp: Path) -> None:
    found = profiled(mlp, with_footprint=True, baseline=load(mlp), confidence=0.9)
    assert found.sha256 == hashlib.sha256(mlp.read_bytes()).hexdigest()
    assert found.size_bytes == mlp.stat().st_size
    assert (found.parameters, found.macs) == (64 + 24, 64 + 24)
    assert (found.metrics.n, found.metrics.split) == (12, "validation")
    accuracy = found.metrics.overall["accuracy"].interval
    assert accuracy is not None
    assert accuracy.confidence == 0.9
    assert [x.batch for x in found.latency] == [1, 8, 32]
    assert found.speedup is not None
    assert (found.speedup.batch, found.speedup.interval.confidence) == (1, 0.9)
    assert found.footprint is not None
    assert found.preprocessing is not None
    assert {x.conditions.runtime for x in found.latency} == {"onnxruntime"}
    assert from_json(Profile, to_json(found)) == found


def test_what_is_not_asked_is_left_out(mlp: Path) -> None:
    found = profiled(mlp, parameters=7, batch_sizes=(2,))
    assert (found.speedup, found.footprint) == (None, None)
    assert found.parameters == 7
    assert [x.batch for x in found.latency] == [2]


def test_threads_are_those_asked_for(mlp: Path) -> None:
    found = profiled(mlp, threads=2, batch_sizes=(1,))
    assert found.latency[0].conditions.threads == 2


def test_a_fixed_batch_is_the_only_one_timed(tmp_path: Path) -> None:
    found = profiled(mlp_file(tmp_path / "fixed.onnx", batch="4"))
    assert [x.batch for x in found.latency] == [4]
    assert found.macs == 64 + 24


def test_a_batch_may_be_larger_than_the_split(mlp: Path) -> None:
    assert [x.batch for x in profiled(mlp, n=5).latency] == [1, 8, 32]


def test_a_broken_file_is_an_error_of_ours(mlp: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(mlp.read_bytes()[:-40])
    split = split_of(3)
    with pytest.raises((IntegrityError, InferenceError)):
        profile_file(
            broken,
            name="x",
            file="x",
            precision="fp32",
            split=split,
            outputs=np.zeros((3, 3)),
            cases=cases_of(split),
        )


def test_the_bottleneck_is_named_with_numbers(mlp: Path) -> None:
    profile = profiled(mlp, batch_sizes=(8, 1))
    model, preparing = profile.latency[1], profile.preprocessing
    assert preparing is not None

    def at(latency: object, ms: float) -> object:
        quantiles = tuple(replace(x, value_ms=ms) for x in preparing.quantiles)
        return replace(latency, quantiles=quantiles)  # type: ignore[type-var]

    def told(prepare_ms: float, model_ms: float) -> str:
        latency = (profile.latency[0], at(model, model_ms))
        return bottleneck(replace(profile, latency=latency, preprocessing=at(preparing, prepare_ms)))  # type: ignore[arg-type]

    assert told(3.0, 1.0) == (
        "Preparing an input takes most of the time, 75%: 3 ms to prepare one input, 1 ms for the model."
    )
    assert told(0.5, 1.5).startswith("The model takes most of the time, 75%")
    alone = replace(profile, latency=(at(profile.latency[0], 16.0),), preprocessing=at(preparing, 1.0))  # type: ignore[arg-type]
    assert "2 ms for the model" in bottleneck(alone)  # eight inputs in one call
    assert "was not timed" in bottleneck(replace(profile, preprocessing=None))
