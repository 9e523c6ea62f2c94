"""What the tests of bundles are made from: two small real models, and bundles of them."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pastille.bundle import BundleParts, Golden, VariantPart, answer_cases, write_bundle
from pastille.runtime import load
from pastille.values import (
    Check,
    Conditions,
    Latency,
    Normalization,
    Preprocessing,
    Quantile,
    Status,
    TensorSpec,
    Validation,
    Verdict,
)

FEATURES, CLASSES = 4, 3
LABELS = ("glioma", "meningioma", "no tumour")

CONDITIONS = Conditions(
    device="test",
    isa="avx512-vnni",
    cores=2,
    threads=1,
    runtime="onnxruntime",
    runtime_version="1",
    os="Linux",
)


@cache
def model_folder() -> Path:
    """A folder with fp32.onnx and int8.onnx: (N, 4) -> (N, 3), quantized as Pastille does."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    folder = Path(tempfile.mkdtemp(prefix="pastille-bundle-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_network(folder / "fp32.onnx", seed=0)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"input": samples(64, seed=1)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    quantize_static(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        extra_options={"DedicatedQDQPair": False},
    )
    return folder


def write_network(
    path: Path, *, seed: int, external: bool = False, name: str = "logits", batch: int | str = "N"
) -> None:
    """A two-layer perceptron as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    arrays = {
        "w1": rng.normal(size=(FEATURES, 16)),
        "b1": rng.normal(size=16),
        "w2": rng.normal(size=(16, CLASSES)),
        "b2": rng.normal(size=CLASSES),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["input", "w1", "b1"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "w2", "b2"], [name]),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if external:
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        onnx.save(model, path)


def samples(n: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, FEATURES)).astype(np.float32)


@cache
def golden() -> Golden:
    sessions = {name: load(model_folder() / f"{name}.onnx", threads=1) for name in ("int8", "fp32")}
    return answer_cases({"input": samples(16, seed=2)}, sessions, output="logits")


def latency(mean_ms: float = 1.0) -> Latency:
    return Latency(
        batch=1,
        samples=100,
        warmup=10,
        mean_ms=mean_ms,
        quantiles=(Quantile(q=0.5, value_ms=mean_ms, upper_ms=None),),
        throughput_per_s=1000 / mean_ms,
        conditions=CONDITIONS,
    )


def validation(isa: str = "avx512-vnni", **changes: Any) -> Validation:
    seen = Validation(
        isa=isa, emulated=False, cases=1000, equal_decisions=1000, identical=1000, runtime_version="1"
    )
    return replace(seen, **changes)


def variant(name: str, **changes: Any) -> VariantPart:
    part = VariantPart(
        name=name,  # type: ignore[arg-type]
        path=model_folder() / f"{name}.onnx",
        precision="int8" if name == "int8" else "fp32",
        validated=(validation(),),
        latency=(latency(),),
        status=None if name == "fp32" else Status.APPROVED,
        parameters=131,
        macs=112,
    )
    return replace(part, **changes)


def make_parts(**changes: Any) -> BundleParts:
    check = Check(
        metric="accuracy",
        status=Status.APPROVED,
        limit=0.01,
        baseline=0.9,
        candidate=0.9,
        drop=0.0,
        interval=None,
        n=1000,
        method="Tango",
        more_cases=None,
        reason="accuracy fell by 0.0 points",
    )
    parts = BundleParts(
        name="brain-tumour-mri",
        kind="multiclass",
        labels=LABELS,
        positive=LABELS[:2],
        threshold=0.5,
        inputs=(TensorSpec(name="input", shape=(FEATURES,), dtype="float32"),),
        output=TensorSpec(name="logits", shape=(CLASSES,), dtype="float32"),
        preprocessing=Preprocessing(normalization=Normalization(mean=(0.5,), std=(0.25,))),
        requirements={"risk": "high", "max_drop": {"accuracy": 0.01}},
        verdict=Verdict(status=Status.APPROVED, reason="passes", checks=(check,), split="test"),
        selected="int8",
        selection_reason="int8 is smaller, faster and passes",
        variants=(variant("int8"), variant("fp32")),
        golden=golden(),
        golden_source="validation",
        evidence={"run.json": b'{"schema": 1}', "report.html": b"<!doctype html>"},
    )
    return replace(parts, **changes)


def make_bundle(directory: Path, **changes: Any) -> Path:
    write_bundle(directory, make_parts(**changes))
    return directory


def read_json(directory: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((directory / "manifest.json").read_bytes())
    return value


def forge(directory: Path, change: Callable[[dict[str, Any]], object] = lambda value: None) -> None:
    """Change a manifest as someone would who knows how hashes, content digest and seal are made."""
    value = read_json(directory)
    for entry in (*value["variants"], value["golden"]):
        entry.update(_entry(directory / entry["file"]))
    value["files"] = {file: _entry(directory / file) for file in value["files"]}
    change(value)
    write_forged(directory, value)


def write_forged(directory: Path, value: Any) -> None:
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # what it is made of may be gone
        value["content"] = _content(value)
    if isinstance(value, dict):
        value["seal"] = ""
        value["seal"] = hashlib.sha256(_written(value)).hexdigest()
    (directory / "manifest.json").write_bytes(_written(value))


def _entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


def _written(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _content(value: dict[str, Any]) -> str:
    keys = ("name", "kind", "labels", "positive", "threshold", "outputs", "inputs", "output", "preprocessing")
    answers = {key: value[key] for key in keys}
    answers["variants"] = {v["name"]: (v["unpacked"] or v)["sha256"] for v in value["variants"]}
    own = {v["name"]: v["threshold"] for v in value["variants"] if v["threshold"] is not None}
    answers["thresholds"] = own
    answers["golden"] = value["golden"]["sha256"]
    return hashlib.sha256(json.dumps(answers, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
