"""What is said of an answer and of a server, field by field; the clients' tests see the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_bundles import LABELS, tiny_bundle
from serving_events import answered

from pastille.bundle import Manifest, read_manifest
from pastille.serve.oip import (
    answer_parameters,
    infer_answer,
    model_config,
    model_metadata,
    model_ready,
    repository_index,
)
from pastille.serve.oip_statistics import Statistics
from pastille.serve.values import EngineStatus, Fallback, Reply
from pastille.wire import InferRequest, RequestedOutput, decode_response


def status(**changes: Any) -> EngineStatus:
    known: dict[str, Any] = {
        "model": "tiny",
        "version": "2",
        "content": "c",
        "mode": "auto",
        "ready": True,
        "reason": "int8 answers",
        "preferred": "int8",
        "degraded": False,
        "threads": 1,
        "places": 2,
        "batching": "off",
        "variants": (),
    }
    return EngineStatus(**known | changes)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    folder = tmp_path_factory.mktemp("oip")
    kinds = ("binary", "multiclass", "multilabel", "regression")
    return {
        kind: read_manifest(tiny_bundle(folder / kind, kind, slow=()) / "manifest.json")  # type: ignore[arg-type]
        for kind in kinds
    }


def reply(decisions: Any, **changes: Any) -> Reply:
    return answered(decisions, **changes).reply


def with_probabilities(given: Reply, *values: float) -> Reply:
    return replace(given, answer=replace(given.answer, probabilities=np.asarray(values)))


def test_one_case_has_plain_values(manifests: dict[str, Manifest]) -> None:
    given = with_probabilities(reply(["ill"], confidence=[0.75]), 0.75)
    assert answer_parameters(given, manifests["binary"]) == {
        "variant": "int8",
        "model_sha256": "ab" * 32,
        "cached": False,
        "fallback": False,
        "threshold": 0.5,
        "decision": "ill",
        "confidence": 0.75,
        "probability": 0.75,
    }


def test_several_cases_are_the_text_of_a_list(manifests: dict[str, Manifest]) -> None:
    given = reply(["glioma", "no tumour"], confidence=[0.5, 1], disagreement=np.array([True, False]))
    said = answer_parameters(given, manifests["multiclass"])
    lists = {name: json.loads(str(said[name])) for name in ("decision", "confidence", "disagreement")}
    assert lists == {
        "decision": ["glioma", "no tumour"],
        "confidence": [0.5, 1.0],
        "disagreement": [True, False],
    }


def test_every_parameter_is_one_by_the_protocol(manifests: dict[str, Manifest]) -> None:
    told = Fallback(preferred="int8", why="timeout", detail="took 10 s")
    more = {"fallback": told, "arm": "b", "warnings": ("odd",), "disagreement": np.array([True])}
    said = answer_parameters(reply([("glioma", "meningioma")], **more), manifests["multilabel"])
    assert all(isinstance(value, (str, int, float, bool)) for value in said.values())
    assert json.loads(str(said["decision"])) == ["glioma", "meningioma"]
    assert json.loads(str(said["warnings"])) == ["odd"]
    assert said["disagreement"] is True
    assert said["arm"] == "b"
    assert [said[f"fallback{end}"] for end in ("", "_from", "_why", "_detail")] == [
        True,
        "int8",
        "timeout",
        "took 10 s",
    ]


def test_the_probability_is_of_the_label_that_the_threshold_speaks_of(manifests: dict[str, Manifest]) -> None:
    given = with_probabilities(reply(["ill"]), 0.75)
    turned = replace(manifests["binary"], positive=("healthy",))
    assert answer_parameters(given, turned)["probability"] == 0.25


def test_a_regression_says_neither_decision_nor_confidence(manifests: dict[str, Manifest]) -> None:
    given = replace(reply([]), confidence=None, threshold=None)
    said = answer_parameters(given, manifests["regression"])
    assert set(said) == {"variant", "model_sha256", "cached", "fallback"}


def test_the_whole_answer_carries_the_outputs(manifests: dict[str, Manifest]) -> None:
    given = reply(["glioma", "glioma"])
    request = InferRequest(inputs={}, outputs=(RequestedOutput(name="logits", binary=True),), id="7")
    sent = infer_answer(given, request, manifests["multiclass"])
    read = decode_response(sent.body, json_length=sent.json_length)
    np.testing.assert_array_equal(read.outputs["logits"], given.answer.outputs)
    assert (read.id, read.model, read.version, read.parameters["variant"]) == ("7", "tiny", "1", "int8")


def test_a_degraded_model_says_so(manifests: dict[str, Manifest]) -> None:
    worse = status(preferred="fp32", degraded=True, reason="int8 fails")
    said = model_metadata(manifests["multiclass"], worse, ["2", "1"])
    assert (said["versions"], said["parameters"]["degraded"]) == (["2", "1"], True)
    assert (said["parameters"]["variant"], said["parameters"]["reason"]) == ("fp32", "int8 fails")
    assert json.loads(said["parameters"]["labels"]) == list(LABELS)
    config = model_config(manifests["multiclass"], worse, rows=8)
    assert config["parameters"]["degraded"] == {"string_value": "true"}
    assert config["instance_group"] == [{"name": "tiny", "kind": "KIND_CPU", "count": 2}]
    assert model_ready(status(ready=False, reason="none"))["ready"] is False


def test_the_index_tells_what_is_ready(manifests: dict[str, Manifest]) -> None:
    all_of_them = (status(), status(version="1", ready=False, reason="no variant is valid"))
    said = repository_index(all_of_them)
    assert [(one["version"], one["state"], one["reason"]) for one in said] == [
        ("2", "READY", ""),
        ("1", "UNAVAILABLE", "no variant is valid"),
    ]
    assert repository_index(all_of_them, ready_only=True) == said[:1]


def test_statistics_tell_what_ran_from_what_was_remembered() -> None:
    statistics = Statistics()
    tiny: dict[str, Any] = {"version": "2"}
    statistics.answered(answered(["a"], total_s=0.01, compute_s=0.004, queue_s=0.002, at=3.5, **tiny))
    statistics.answered(answered(["a", "a"], total_s=0.01, compute_s=0.004, batch=4, **tiny))
    statistics.answered(answered(["a", "a"], total_s=0.01, compute_s=0.004, batch=4, at=7.25, **tiny))
    statistics.answered(answered(["a"], total_s=0.001, cached=True, at=9.5, **tiny))
    statistics.failed("tiny", "2", 0.02)
    (said,) = statistics.body([status(cache_misses=5)])["model_stats"]
    counts = [said[key] for key in ("last_inference", "inference_count", "execution_count")]
    assert counts == [9500, 5, 2]
    stats = said["inference_stats"]
    assert stats["success"] == {"count": 4, "ns": 31_000_000}
    assert stats["fail"] == {"count": 1, "ns": 20_000_000}
    assert stats["queue"] == {"count": 3, "ns": 2_000_000}
    assert stats["compute_infer"] == {"count": 3, "ns": 12_000_000}
    assert stats["compute_input"] == {"count": 3, "ns": 16_000_000}
    assert stats["cache_hit"] == {"count": 1, "ns": 1_000_000}
    assert stats["cache_miss"]["count"] == 5
    assert [one["batch_size"] for one in said["batch_stats"]] == [1, 4]
    assert [one["compute_infer"]["count"] for one in said["batch_stats"]] == [1, 2]


def test_statistics_of_a_closed_version_are_dropped(tmp_path: Path) -> None:
    statistics = Statistics()
    statistics.answered(answered(["a"], version="2"))
    statistics.forget("tiny", "2")
    statistics.forget("tiny", "2")
    (said,) = statistics.body([status()])["model_stats"]
    assert said["inference_count"] == 0
