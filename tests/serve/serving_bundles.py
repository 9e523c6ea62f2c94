"""Tiny bundles for the tests of serving: real models that misbehave only where their input says so.

The last features of an input are switches (`TRIGGERS`), 0 in every ordinary case and in the golden ones, so
that a variant passes its golden cases and fails on demand. By default only int8 obeys them.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from pastille.bundle import BundleParts, VariantPart, answer_cases, write_bundle
from pastille.runtime import load
from pastille.values import (
    Check,
    Conditions,
    Kind,
    Latency,
    Quantile,
    Status,
    TensorSpec,
    Validation,
    Verdict,
)

Trigger = Literal["nan", "raise", "slow", "rows", "lost", "gained"]
TRIGGERS: Final[tuple[Trigger, ...]] = (
    "nan",  # > 0.5: the output is NaN
    "raise",  # > 0.5: the runtime fails
    "slow",  # the call takes about this many seconds, or longer
    "rows",  # > 0.5: one row fewer comes back
    "lost",  # by as many thousands its logits move towards negative
    "gained",  # towards positive
)
FEATURES: Final = 4
LABELS: Final = ("glioma", "meningioma", "no tumour")
SIZES: Final[dict[Kind, int]] = {"binary": 1, "multiclass": 3, "multilabel": 3, "regression": 1, "custom": 3}
_SIDE, _PER_SECOND = 192, 12000  # products of two such matrices: 0.07 ms each on a fast core


def cases(n: int, *, seed: int = 0, shape: Sequence[int] | None = None, **triggers: float) -> np.ndarray:
    """Inputs of a tiny bundle, ``(n, 10)`` or ``(n, *shape)`` float32; ``cases(2, nan=1)`` sets a switch."""
    rng = np.random.default_rng(seed)
    if shape is not None:
        return rng.uniform(size=(n, *shape)).astype(np.float32)
    x = np.zeros((n, FEATURES + len(TRIGGERS)), np.float32)
    x[:, :FEATURES] = rng.normal(size=(n, FEATURES))
    for name, value in triggers.items():
        x[:, FEATURES + TRIGGERS.index(name)] = value
    return x


def tiny_bundle(
    folder: Path,
    kind: Kind = "multiclass",
    *,
    faulty: Sequence[str] = ("int8",),
    slow: Sequence[str] = ("fp32",),
    shape: tuple[int, ...] | None = None,
    sparse: bool = False,
    **changes: Any,
) -> Path:
    """Write a bundle of int8 and fp32, whose input is ``"input"``.

    Args:
        folder: Where it goes.
        kind: Of the task; segmentation needs a ``shape`` of (C, H, W).
        faulty: Variants that obey the switches.
        slow: Variants that take about 0.3 ms longer, so that which is faster is not left to chance.
        shape: Of an input without switches, e.g. ``(1, 8, 8)`` for an image; None: 4 features and switches.
        sparse: Most weights are 0, so that with a large shape the files are stored packed.
        **changes: Of `BundleParts`, e.g. ``name="digits"``, ``preprocessing=…``, ``selected="fp32"``.
    """
    write_bundle(folder, tiny_parts(kind, faulty=faulty, slow=slow, shape=shape, sparse=sparse, **changes))
    return folder


def tiny_parts(
    kind: Kind = "multiclass",
    *,
    faulty: Sequence[str] = ("int8",),
    slow: Sequence[str] = ("fp32",),
    shape: tuple[int, ...] | None = None,
    sparse: bool = False,
    **changes: Any,
) -> BundleParts:
    """What `tiny_bundle` writes."""
    files = {n: _model(kind, shape, n == "int8", n in faulty, n in slow, sparse) for n in ("int8", "fp32")}
    sessions = {name: load(path, threads=1) for name, path in files.items()}
    spec = TensorSpec(name="input", shape=shape or (FEATURES + len(TRIGGERS),), dtype="float32")
    given = cases(8, seed=2, shape=shape)
    golden = answer_cases({"input": given}, sessions, output="logits")
    size = golden.outputs["fp32"].shape[1:]
    positive = {"binary": ("ill",), "regression": (), "custom": ()}.get(kind, LABELS[:2])
    parts = BundleParts(
        name="tiny",
        kind=kind,
        labels=_labels(kind),
        positive=positive,
        threshold=0.5,
        inputs=(spec,),
        output=TensorSpec(name="logits", shape=size, dtype="float32"),
        preprocessing=None,
        requirements={"risk": "high", "max_drop": {"accuracy": 0.01}},
        verdict=_verdict(),
        selected="int8",
        selection_reason="int8 is smaller, faster and passes",
        variants=tuple(_part(name, path) for name, path in files.items()),
        golden=golden,
        golden_source="validation",
        evidence={"run.json": b'{"schema": 1}', "report.html": b"<!doctype html>"},
    )
    return replace(parts, **changes)


def _verdict() -> Verdict:
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
    return Verdict(status=Status.APPROVED, reason="passes", checks=(check,), split="test")


def _labels(kind: Kind) -> tuple[str, ...]:
    return () if kind in ("regression", "custom") else ("healthy", "ill") if kind == "binary" else LABELS


def _part(name: str, path: Path) -> VariantPart:
    return VariantPart(
        name=name,  # type: ignore[arg-type]
        path=path,
        precision="int8" if name == "int8" else "fp32",
        validated=(_validation(),),
        latency=(_latency(1.0 if name == "int8" else 2.0),),
        status=None if name == "fp32" else Status.APPROVED,
        parameters=15,
        macs=12,
    )


def _validation() -> Validation:
    return Validation(
        isa="avx512-vnni",
        emulated=False,
        cases=1000,
        equal_decisions=1000,
        identical=1000,
        runtime_version="1",
    )


def _latency(mean_ms: float) -> Latency:
    return Latency(
        batch=1,
        samples=100,
        warmup=10,
        mean_ms=mean_ms,
        quantiles=(Quantile(q=0.5, value_ms=mean_ms, upper_ms=None),),
        throughput_per_s=1000 / mean_ms,
        conditions=Conditions(
            device="test",
            isa="avx512-vnni",
            cores=2,
            threads=1,
            runtime="onnxruntime",
            runtime_version="1",
            os="Linux",
        ),
    )


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pastille-serving-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _model(
    kind: Kind, shape: tuple[int, ...] | None, rounded: bool, faulty: bool, slow: bool, sparse: bool
) -> Path:
    from onnx import TensorProto, helper, save

    path = _folder() / f"{kind}-{shape}-{rounded}-{faulty}-{slow}-{sparse}.onnx"
    graph = _Graph()
    x = graph.x("Identity", "input")
    logits = (
        _segmented(graph, shape, rounded)
        if kind == "segmentation"
        else _linear(graph, kind, shape, rounded, sparse)
    )
    if faulty and shape is None:
        logits = _obeying(graph, logits, kind)
    if slow:
        busy = graph.x("MatMul", *[graph.x("Expand", graph.peak(x), graph.c([_SIDE, _SIDE]))] * 2)
        for _ in range(3):
            busy = graph.x("MatMul", busy, busy)
        logits = graph.x("Add", logits, graph.nothing(busy))
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    sizes = [len(LABELS), *shape[1:]] if kind == "segmentation" and shape else [SIZES[kind]]
    written = helper.make_graph(
        graph.nodes,
        "tiny",
        [
            helper.make_tensor_value_info(
                "input", TensorProto.FLOAT, ["N", *(shape or [FEATURES + len(TRIGGERS)])]
            )
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", *sizes])],
        graph.constants,
    )
    save(helper.make_model(written, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


class _Graph:
    """Nodes and constants that know their own names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def x(self, op: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def c(self, value: Any, dtype: Any = np.int64) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def peak(self, value: str) -> str:
        """Its maximum, clipped to [0, 1]: a scalar that no optimiser knows."""
        top = self.x("ReduceMax", value, keepdims=0)
        return self.x("Clip", top, self.c(0, np.float32), self.c(1, np.float32))

    def nothing(self, value: str) -> str:
        """0, which the value must be computed for."""
        total = self.x(
            "ReduceSum", self.x("Clip", value, self.c(0, np.float32), self.c(1, np.float32)), keepdims=0
        )
        return self.x("Mul", total, self.c(0, np.float32))

    def column(self, name: Trigger) -> str:
        """One switch, ``(N, 1)``."""
        return self.x("Gather", "input", self.c([FEATURES + TRIGGERS.index(name)]), axis=1)

    def on(self, name: Trigger) -> str:
        """int64 1 where any row has the switch on, else 0."""
        greater = self.x(
            "Greater", self.x("ReduceMax", self.column(name), keepdims=0), self.c(0.5, np.float32)
        )
        return self.x("Cast", greater, to=7)


def _weights(rows: int, columns: int, rounded: bool) -> np.ndarray:
    """int8's are those of fp32 on a grid of 1/64."""
    w = np.random.default_rng(0).normal(size=(rows, columns))
    return np.round(w * 64) / 64 if rounded else w


def _linear(graph: _Graph, kind: Kind, shape: tuple[int, ...] | None, rounded: bool, sparse: bool) -> str:
    flat = graph.x("Flatten", "input")
    used = int(np.prod(shape)) if shape else FEATURES
    part = graph.x("Slice", flat, graph.c([0]), graph.c([used]), graph.c([1]))
    weights = _weights(used, SIZES[kind], rounded)
    weights[1 if sparse else used :] = 0
    w = graph.c(weights, np.float32)
    return graph.x("Gemm", part, w, graph.c(np.zeros(SIZES[kind]), np.float32))


def _segmented(graph: _Graph, shape: tuple[int, ...] | None, rounded: bool) -> str:
    assert shape is not None, "a segmentation needs a shape"
    w = _weights(len(LABELS), shape[0], rounded)[:, :, None, None] * 4
    return graph.x("Conv", "input", graph.c(w, np.float32))


def _obeying(graph: _Graph, logits: str, kind: Kind) -> str:
    """The logits, with every switch wired in."""
    moved = logits
    for name, towards in (("lost", -1000.0), ("gained", 1000.0)):
        direction = np.full(SIZES[kind], towards)
        if kind == "multiclass":  # the last label is the negative one
            direction = np.array([0.0, 0.0, -towards])
        shift = graph.x("Mul", graph.column(name), graph.c(direction[None], np.float32))  # type: ignore[arg-type]
        moved = graph.x("Add", moved, shift)
    log = graph.x("Log", graph.x("Sub", graph.c(0.5, np.float32), graph.column("nan")))
    moved = graph.x("Add", moved, graph.x("Mul", log, graph.c(0, np.float32)))
    # Index 1 of one element: the runtime refuses it.
    moved = graph.x("Add", moved, graph.x("Gather", graph.c([0.0], np.float32), graph.on("raise")))
    moved = graph.x("Add", moved, _loop(graph))
    rows = graph.x("Gather", graph.x("Shape", "input"), graph.c([0]))
    kept = graph.x("Sub", rows, graph.on("rows"))
    return graph.x("Slice", moved, graph.c([0]), kept, graph.c([0]))


def _loop(graph: _Graph) -> str:
    """Multiplies matrices for as long as the switch "slow" says; gives 0."""
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "before"], ["product"]),
            helper.make_node("Clip", ["product", "low", "high"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [_SIDE, _SIDE]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [_SIDE, _SIDE]),
        ],
        [
            helper.make_tensor("low", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("high", TensorProto.FLOAT, [], [1.0]),
        ],
    )
    asked = graph.x(
        "Mul", graph.x("ReduceMax", graph.column("slow"), keepdims=0), graph.c(_PER_SECOND, np.float32)
    )
    start = graph.x("Expand", graph.peak("input"), graph.c([_SIDE, _SIDE]))
    turns = graph.x("Cast", asked, to=7)
    return graph.nothing(graph.x("Loop", turns, graph.c(True, np.bool_), start, body=body))
